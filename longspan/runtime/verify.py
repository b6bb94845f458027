"""Check a bundle on this machine: chunk-invariance of each engine, torch against ONNX Runtime.

Random tokens are read in one pass, in odd chunks, and one by one; all logits and the final state
must agree. Where the model keeps anchors, there are some among the tokens. It loads the model once
an engine and knows nothing of plans or documents.

A NaN anywhere fails, unless the manifest names weights that are not finite: then a NaN agrees with
a NaN, an infinity with the same one, and a check is skipped where no finite logit is left.

    checks = verify_bundle(open_bundle("bundle"), device="cpu")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import GRAPHS, MANIFEST, Bundle, Manifest, file_sha256
from longspan.engines import Device, Engine, device_of
from longspan.errors import BadBundle
from longspan.models.config import AnchorAttentionConfig, ModelConfig
from longspan.runtime.backends import Arrays, Backend, State, open_backend
from longspan.runtime.backends.choice import find_installed
from longspan.tensors import DType, TensorSpec

# By dtype of the arithmetic and of the tails, keys and values. Relative to the largest value of
# what is compared.
TOLERANCES: Mapping[tuple[DType, DType], float] = {
    ("float32", "float32"): 5e-4,  # thousands of sums in another order; one layer is off by 2e-6
    ("float32", "float16"): 4e-3,  # a kept value may round the other way: 2^-11, twice
    ("float32", "bfloat16"): 3e-2,  # the same with 2^-8
    ("float16", "float16"): 3e-2,  # every layer rounds: some dozen times 2^-11
    ("bfloat16", "bfloat16"): 1e-1,  # some dozen times 2^-8
}
# Of 8-bit weights ONNX Runtime rounds activations on CPUs to 8 bits a block, too
# (longspan.kernels.quantized_linear.onnx_op): as many times 2^-8 as bfloat16 does.
ROUNDED_ACTIVATIONS_TOLERANCE = 1e-1
ODD_CHUNKS = (1, 7, 2, 31, 16, 3)
# Entries of each cache that stay unused, so that a look at one shows.
SPARE_ENTRIES = 5
# One token in so many is an anchor, where ids are.
ANCHOR_TOKENS = 9
BY_CUT = (
    "its positions are compressed: they count the cache's entries when a call begins, so what it "
    "computes depends on how the text is cut"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        max_error: largest difference, relative to the largest value; None if nothing was run.
        tolerance: largest error that passes.
        passed: whether the error is within the tolerance; True where the check was skipped.
        skipped: why nothing was run, or None.
    """

    name: str
    max_error: float | None
    tolerance: float
    passed: bool
    skipped: str | None = None

    def text(self) -> str:
        """One line for people."""
        if self.max_error is None:
            return f"skipped  {self.name}: {self.skipped}"
        result = "passed " if self.passed else "FAILED "
        return f"{result}  {self.name}: {self.max_error:.1e} (at most {self.tolerance:.0e})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What an engine made of the tokens: logits float32 [L, V], and the state after them."""

    logits: NDArray[np.float32]
    state: Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class _CudaGraphOnCpu(Bundle):
    """A bundle whose `model.onnx` stands for the CPU's graph."""

    def graph_path(self, device: Literal["cpu", "cuda"]) -> Path:
        """`model.onnx`, whatever the device."""
        del device
        return self.path / GRAPHS["cuda"]


def check_files(bundle: Bundle) -> None:
    """Compare every byte of a bundle's files with the checksums in its manifest.

    Raises:
        BadBundle: a file is not the one that was exported.
    """
    for name, expected in bundle.manifest.files.items():
        found = file_sha256(bundle.path / name)
        if found != expected:
            raise BadBundle(
                f"{bundle.path / name} is not what was exported: its SHA-256 is {found[:12]}..., "
                f"and {MANIFEST} says {expected[:12]}.... Copy the bundle again, or export the "
                "checkpoint again."
            )


def verify_bundle(
    bundle: Bundle, *, device: Device, tokens: int = 96, seed: int = 0
) -> tuple[Check, ...]:
    """Compare every engine of `device` with itself in other chunks, and with the others.

    Args:
        bundle: what to check.
        device: ``"cpu"`` or ``"cuda"``.
        tokens: random tokens to read, at least 2.
        seed: of the tokens.

    Returns:
        One check a comparison; those that cannot run here are skipped with a reason.
    """
    text = _text(bundle.manifest.config, tokens, seed)
    by_cut = any(layer.positions == "compressed" for layer in bundle.manifest.config.anchor_layers)
    checks: list[Check] = []
    reference: list[_Run] | None = None
    for name, engine, graph, skipped in _engines(bundle, device):
        tolerance = _tolerance(engine, graph)
        if skipped is not None:
            checks.append(_skip(f"{name} in chunks", skipped, tolerance))
            continue
        runs = _runs(graph, engine, text)
        checks.append(
            _skip(f"{name} in chunks", BY_CUT, tolerance)
            if by_cut
            else _compare(f"{name} in chunks", runs[1:], [runs[0]] * 2, tolerance, bundle)
        )
        if reference is not None:
            checks.append(_compare(f"{name} against torch", runs, reference, tolerance, bundle))
        elif engine.startswith("torch"):
            reference = runs
    return tuple(checks)


def _text(config: ModelConfig, tokens: int, seed: int) -> NDArray[np.int64]:
    """Random tokens; where ids are anchors, some of those among them."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, config.vocab_size, tokens, dtype=np.int64)
    ids = [anchor for layer in config.anchor_layers for anchor in layer.anchor_ids]
    if ids:
        places = rng.integers(0, ANCHOR_TOKENS, tokens) == 0
        text[places] = rng.choice(ids, places.sum())
    return text


def _skip(name: str, reason: str, tolerance: float) -> Check:
    return Check(name=name, max_error=None, tolerance=tolerance, passed=True, skipped=reason)


def nonfinite_names(manifest: Manifest) -> str:
    """The first few parameters that hold NaN or infinities, and how many more do."""
    first, more = manifest.nonfinite[:3], len(manifest.nonfinite) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _engines(bundle: Bundle, device: Device) -> Iterator[tuple[str, Engine, Bundle, str | None]]:
    """Name, engine, bundle to open, reason to skip; torch first: the others are held to it."""
    missing = None if find_installed().torch else "torch is not installed"
    if device == "cuda":
        yield "torch-cuda", "torch-cuda", bundle, missing
        yield "onnx-cuda model.onnx", "onnx-cuda", bundle, None
        return
    yield "torch-cpu", "torch-cpu", bundle, missing
    yield f"onnx-cpu {GRAPHS['cpu']}", "onnx-cpu", bundle, None
    on_cpu = _CudaGraphOnCpu(path=bundle.path, manifest=bundle.manifest)
    no_kernels = (
        "ONNX Runtime has no bfloat16 arithmetic on the CPU; longspan verify --device cuda runs it"
        if bundle.manifest.dtype == "bfloat16"
        else None
    )
    yield f"onnx-cpu {GRAPHS['cuda']}", "onnx-cpu", on_cpu, no_kernels


def _runs(bundle: Bundle, engine: Engine, text: NDArray[np.int64]) -> list[_Run]:
    """The text in one pass, in odd chunks, and token by token."""
    backend = open_backend(
        bundle, engine=engine, memory_limit_bytes=None, capacity=len(text) + SPARE_ENTRIES
    )
    try:
        cuts = ([len(text)], _odd_cuts(len(text)), [1] * len(text))
        config = bundle.manifest.config
        return [_read(backend, _first_state(backend, config, len(text)), text, c) for c in cuts]
    finally:
        backend.close()


def _odd_cuts(length: int) -> list[int]:
    cuts: list[int] = []
    while (left := length - sum(cuts)) > 0:
        cuts.append(min(left, ODD_CHUNKS[len(cuts) % len(ODD_CHUNKS)]))
    return cuts


def _first_state(backend: Backend, config: ModelConfig, tokens: int) -> State:
    """Nothing read; but where every n-th token is an anchor, soon before one."""
    state = backend.new_state()
    if not config.anchor_layers:
        return state
    arrays = backend.to_arrays(state)
    for i, layer in enumerate(config.layers):
        if isinstance(layer, AnchorAttentionConfig) and layer.anchor_every is not None:
            arrays[f"layers.{i}.position"][:] = max(0, layer.anchor_every - tokens // 2)
    return backend.from_arrays(arrays)


def _read(backend: Backend, state: State, text: NDArray[np.int64], cuts: Sequence[int]) -> _Run:
    logits, start = [], 0
    for tokens in cuts:
        part = text[start : start + tokens]
        rows, state = backend.forward(part, state, keep=range(tokens))
        logits.append(rows)
        start += tokens
    return _Run(logits=np.concatenate(logits), state=backend.to_arrays(state))


def _arithmetic(engine: Engine, graph: Bundle) -> DType:
    """The dtype that an engine computes in."""
    on_cpu = device_of(engine) == "cpu" and not isinstance(graph, _CudaGraphOnCpu)
    return "float32" if on_cpu else graph.manifest.dtype


def _tolerance(engine: Engine, graph: Bundle) -> float:
    """The largest error that passes, of an engine against itself or torch."""
    manifest = graph.manifest
    stored = manifest.quantization
    if engine == "onnx-cpu" and stored is not None and stored.bits == 8:
        return ROUNDED_ACTIVATIONS_TOLERANCE
    return TOLERANCES[_arithmetic(engine, graph), manifest.dtype]


def _compare(
    name: str, runs: Sequence[_Run], references: Sequence[_Run], tolerance: float, bundle: Bundle
) -> Check:
    manifest = bundle.manifest
    finite = any(np.isfinite(run.logits).any() for run in (*references, *runs))
    if manifest.nonfinite and not finite:
        reason = f"no logit is finite, with NaN or infinities in {nonfinite_names(manifest)}"
        return _skip(name, reason, tolerance)
    pairs = zip(runs, references, strict=True)
    error = max(_difference(run, other, manifest) for run, other in pairs)
    return Check(name=name, max_error=error, tolerance=tolerance, passed=error <= tolerance)


def _difference(run: _Run, reference: _Run, manifest: Manifest) -> float:
    """The largest relative difference of logits and of every state tensor; infinite for a NaN."""
    pairs = [(run.logits, reference.logits)] + [
        (_as_float(run.state[spec.name], spec), _as_float(reference.state[spec.name], spec))
        for spec in manifest.state
    ]
    # Caches with other numbers of entries in use.
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return np.inf
    if manifest.nonfinite:
        pairs = [_without_equal_nonfinite(*pair) for pair in pairs]
    return float(np.nan_to_num(np.max([_relative(*pair) for pair in pairs]), nan=np.inf))


def _without_equal_nonfinite(
    ours: NDArray[Any], theirs: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both with zeros where they hold the same infinity, or a NaN each."""
    same = (np.isinf(ours) & (ours == theirs)) | (np.isnan(ours) & np.isnan(theirs))
    return np.where(same, 0.0, ours), np.where(same, 0.0, theirs)


def _relative(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if not ours.size:
        return 0.0
    scale = float(np.abs(theirs).max())
    return float(np.abs(ours - theirs).max()) / (scale or 1.0)


def _as_float(array: NDArray[Any], spec: TensorSpec) -> NDArray[np.float64]:
    """The values of a state tensor; bfloat16 comes as uint16 with the same bits."""
    if spec.dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)
