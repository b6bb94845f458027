"""What ONNX Runtime allocates for a chunk on the CPU, layer by layer, beside the plan's formula.

Without its arena every tensor is a mapping of its own, so the kernel's count of the process tells
what lives at once. The formula must hold it; the arena's own overhead is another item of the plan.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import write_bundle
from test_plan_property import LAYERS, model

from longspan.models.config import (
    ConbaConfig,
    GlaConfig,
    Mamba2Config,
    MambaConfig,
    ModelConfig,
)
from longspan.models.config.model import LAYER_KINDS
from longspan.tensors import DType

TOKENS = 1024
# glibc's mallopt: each allocation from 16 KiB on is a mapping of its own, which ends with it.
MEASURE = """
import ctypes, json, sys
ctypes.CDLL(None).mallopt(-3, 16384)
import numpy as np
import onnxruntime as ort
from longspan.bundle import open_bundle

def held(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

def measure(path, tokens):
    bundle = open_bundle(path)
    manifest, options = bundle.manifest, ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(bundle.graph_path("cpu"), options)
    names = [each.name for each in session.get_outputs()]
    capacity = 2 * tokens + 1 if manifest.cache_entry_bytes else 0

    def run(state, length):
        feeds = {"tokens": np.ones((1, length), np.int64), "keep": np.empty(0, np.int64)}
        found = dict(zip(names, session.run(None, feeds | state)))
        return {f"past.{spec.name}": found[f"present.{spec.name}"] for spec in manifest.state}

    nothing = {f"past.{spec.name}": np.zeros(spec.shape, spec.dtype)
               for spec in manifest.state_at(capacity)}
    state = run(nothing, tokens)
    run(state, tokens)
    before = held("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    after = run(state, tokens)
    written = sum(each.nbytes for each in after.values())
    return {"live": held("VmHWM") - before - written,
            "planned": manifest.chunk_peak_bytes("onnx-cpu", tokens, capacity)}

print(json.dumps([measure(path, int(sys.argv[1])) for path in sys.argv[2:]]))
"""
SMALL = MambaConfig(d_inner=8, d_state=2, d_conv=2, dt_rank=1)
# Pages of small allocations, and of code that is used for the first time.
SLACK_BYTES = 2**19
# How far formulas may be above what lives at once. A block's keys and scores are gone when what all
# blocks found is joined; of anchors the keys of one head are counted for the chunk's tokens, too.
MOST_ABOVE = {"full_attention": 1.7, "anchor_attention": 2.4}
MOST_ABOVE_OTHERS = 1.2
GROWING = ("full_attention", "anchor_attention")
SIZES = {"family": "none", "vocab_size": 40, "d_model": 256}
SCANS = (
    MambaConfig(d_inner=512, d_state=16, d_conv=4, dt_rank=16),
    MambaConfig(d_inner=1024, d_state=64, d_conv=4, dt_rank=16),
    Mamba2Config(n_heads=8, head_dim=64, n_groups=1, d_state=128, d_conv=4),
    Mamba2Config(n_heads=16, head_dim=64, n_groups=8, d_state=64, d_conv=4),
    GlaConfig(n_heads=2, key_dim=96, value_dim=192, gate_rank=16),
    GlaConfig(n_heads=4, key_dim=64, value_dim=64, gate_rank=None, rope_base=10000.0),
    ConbaConfig(n_heads=8, head_dim=32, d_state=32, d_select=512),
    ConbaConfig(n_heads=8, head_dim=32, d_state=128, d_select=16, gain="off"),
)


def _measured(paths: list[str]) -> list[dict[str, int]]:
    arguments = [sys.executable, "-c", MEASURE, str(TOKENS), *paths]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc tell it")
def test_what_onnx_runtime_allocates_is_within_the_formula(tmp_path: Path) -> None:
    first = {layer.kind: layer for layer in reversed(LAYERS)}
    assert first.keys() == set(LAYER_KINDS)
    paths = [
        # A graph has a state: where the layer has none, of a small one beside it.
        str(
            write_bundle(
                tmp_path / kind, model((layer,) if layer.state("float32") else (SMALL, layer))
            ).path
        )
        for kind, layer in first.items()
    ]
    found = dict(zip(first, _measured(paths), strict=True))
    for kind, seen in found.items():
        assert seen["live"] <= seen["planned"] + SLACK_BYTES, (kind, seen)
        above = MOST_ABOVE.get(kind, MOST_ABOVE_OTHERS)
        assert seen["planned"] <= above * seen["live"] + SLACK_BYTES, (kind, seen)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc tell it")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scans_of_many_sizes_and_models_of_many_kinds(tmp_path: Path, dtype: DType) -> None:
    """Nothing of one layer is held while another computes."""
    many = [layer for layer in LAYERS if layer.state("float32") and layer.kind not in GROWING]
    models = [model(tuple(many)), *(ModelConfig(**SIZES, layers=(layer,)) for layer in SCANS)]
    paths = [
        str(write_bundle(tmp_path / str(i), config, dtype).path) for i, config in enumerate(models)
    ]
    for config, seen in zip(models, _measured(paths), strict=True):
        assert seen["live"] <= seen["planned"] + SLACK_BYTES, (config.layers, seen)
        assert seen["planned"] <= MOST_ABOVE_OTHERS * seen["live"] + SLACK_BYTES, (config, seen)
