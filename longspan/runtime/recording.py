"""Whether a step of a model can be recorded once and replayed, by engine.

why_not_recorded(manifest, "onnx-cuda")    # None, or a reason in words
"""

from __future__ import annotations

from longspan.bundle import Manifest
from longspan.engines import Engine
from longspan.runtime.backends.choice import Installed, find_installed

# Kinds of layers that are an ONNX Scan in `model.onnx`: ONNX Runtime records no control flow.
SCANNED_KINDS = frozenset({"conba", "moe"})
NO_TRITON = "without Triton some of them wait for the host"


def why_not_recorded(
    manifest: Manifest, engine: Engine, installed: Installed | None = None
) -> str | None:
    """Why answers do not replay a recorded step, in words; None where they can.

    Args:
        manifest: of the bundle.
        engine: what computes.
        installed: which packages are there; None to look.
    """
    if engine == "torch-cuda":
        return None if (installed or find_installed()).triton else NO_TRITON
    if engine != "onnx-cuda":
        return None
    if manifest.cache_entry_bytes:
        return "ONNX Runtime would hold the caches twice more for it"
    scanned = sorted(SCANNED_KINDS & {layer.kind for layer in manifest.config.layers})
    if scanned:
        return f"ONNX Runtime records no loops, and layers of kind {', '.join(scanned)} are some"
    return None
