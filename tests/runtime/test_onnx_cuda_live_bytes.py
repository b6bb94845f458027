"""What ONNX Runtime took for a chunk on CUDA at once, beside the plan's formula of activations.

Measured on an H100 with onnxruntime-gpu 1.31.1: the most bytes of a `DeviceHeap` in use in a second
chunk, less what was in use before it and the state that it wrote, of the models of
`benchmarks/plan_models.py` of width 1,024. Caches had three chunks of entries and one more.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plan_models import model_config

from longspan.export.activations import chunk_bytes
from longspan.models.config import Quantization
from longspan.tensors import DType

MIB = 2**20
TOKENS = (128, 1024, 4096)
# MiB for each of the chunks.
LIVE = {
    "anchors": (4.70, 270.92, 4347.66),
    "conba": (3.19, 32.72, 130.83),
    "gla": (18.88, 201.98, 1602.85),
    "llama": (3.56, 199.07, 3136.29),
    "mamba": (36.01, 288.07, 1152.28),
    "mamba2": (4.14, 33.13, 132.53),
    "mixcon": (4.79, 199.07, 3136.29),
    "retnet": (18.88, 202.10, 1603.35),
    "samba": (34.29, 289.10, 1602.72),
}
LIVE_OF_FLOAT32 = {"samba": (37.00, 394.88, 3141.45)}
LIVE_OF_4_BITS = {"mamba2": (9.37, 33.13, 132.53)}
ROWS = [
    *((name, "bfloat16", None, found) for name, found in LIVE.items()),
    *((name, "float32", None, found) for name, found in LIVE_OF_FLOAT32.items()),
    *((name, "bfloat16", 4, found) for name, found in LIVE_OF_4_BITS.items()),
]
# Short chunks of attention hold more while RoPE computes than scores; formulas add the two up. A
# matrix of 4 bits is counted whole, which the largest layer does not hold when it holds most.
MOST_ABOVE, MOST_ABOVE_SHORT = 1.27, 1.7


@pytest.mark.parametrize(("name", "dtype", "bits", "live"), ROWS)
def test_formulas_hold_what_was_taken_and_little_more(
    name: str, dtype: DType, bits: int | None, live: tuple[float, ...]
) -> None:
    config = model_config(name, 1024)
    if bits is not None:
        config = replace(config, quantization=Quantization(bits=bits))
    *layers, rest = chunk_bytes(config, dtype)["onnx-cuda"]
    for tokens, taken in zip(TOKENS, live, strict=True):
        capacity = 3 * tokens + 1
        planned = max(each.at(tokens, capacity) for each in layers) + rest.at(tokens, capacity)
        most = MOST_ABOVE_SHORT if tokens == min(TOKENS) else MOST_ABOVE
        assert taken - 0.01 <= planned / MIB <= most * taken, (tokens, planned / MIB, taken)
