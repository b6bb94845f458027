"""What weights take on each engine: sums by hand, and processes that hold little else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stand_in import write_bundle
from test_plan import MANIFEST

from longspan.bundle import Manifest
from longspan.engines import Engine
from longspan.models.config import (
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    Quantization,
)
from longspan.runtime.measure import measure_bundle
from longspan.runtime.weight_bytes import weight_bytes

MIB = 2**20
MAMBA = MambaConfig(d_inner=64, d_state=4, d_conv=4, dt_rank=4)
WIDE = ModelConfig(
    family="none", vocab_size=4096, d_model=512, layers=(MAMBA, *(MlpConfig(d_ff=2048),) * 8)
)
EXPERTS = replace(WIDE, layers=(MAMBA, *(MoeConfig(n_experts=8, top_k=2, d_ff=1024),) * 2))
# Two tables of 16 MiB in 16 bits beside layers of 3.
TABLES = replace(
    WIDE, vocab_size=32768, d_model=256, layers=(MAMBA, *(MlpConfig(d_ff=512),) * 4), tied=False
)


def manifest_of(config: ModelConfig, dtype: str, parameters: int, nbytes: int) -> Manifest:
    return replace(MANIFEST, config=config, dtype=dtype, parameters=parameters, weight_bytes=nbytes)


ROWS = 4096 * 512


@pytest.mark.parametrize(
    ("engine", "dtype", "tied", "expected"),
    [
        ("torch-cuda", "bfloat16", True, {"weights, on the device": 6000}),
        ("torch-cpu", "bfloat16", True, {"weights, mapped from the file": 6000}),
        ("onnx-cpu", "float32", True, {"weights, mapped from the file": 6000}),
        (
            "onnx-cpu", "float16", True,
            {
                "weights, float16 widened to float32": (ROWS + 1000) * 4 * 26 // 25,
                "embedding, mapped from the file": 2 * ROWS,
            },
        ),
        (
            "onnx-cpu", "float16", False,
            {
                "weights, float16 widened to float32": 1000 * 4 * 26 // 25,
                "embedding, mapped from the file": 2 * ROWS,
            },
        ),
    ],
)  # fmt: skip
def test_weights_of_floating_point(
    engine: Engine, dtype: str, tied: bool, expected: dict[str, int]
) -> None:
    manifest = manifest_of(replace(WIDE, tied=tied), dtype, ROWS + 1000, 6000)
    assert dict(weight_bytes(manifest, engine)) == expected


def test_weights_of_4_bits() -> None:
    """A block of 32: 16 bytes and a scale of 2 in the file, widened to 4 once it is packed."""
    stored = Quantization(bits=4)
    config = replace(WIDE, quantization=stored)
    manifest = manifest_of(config, "bfloat16", ROWS + 320, ROWS // 32 * 18 + 10 * 18)
    assert dict(weight_bytes(manifest, "torch-cpu")) == {
        "weights, mapped from the file": manifest.weight_bytes
    }
    assert dict(weight_bytes(manifest, "onnx-cpu")) == {
        "weights, packed by ONNX Runtime": (ROWS // 32 + 10) * 20,
        "embedding, mapped from the file": ROWS // 32 * 18,
    }
    untied = replace(manifest, config=replace(config, tied=False))
    assert dict(weight_bytes(untied, "onnx-cpu")) == {
        "weights, packed by ONNX Runtime": 10 * 20,
        "embedding, mapped from the file": ROWS // 32 * 18,
    }


def test_a_head_of_16_bits_lies_there_twice_while_it_is_packed() -> None:
    stored = Quantization(bits=8, symmetric=False, head=False)
    config = replace(WIDE, quantization=stored, tied=False, vocab_size=2**15)
    rows = 2**15 * 512
    manifest = manifest_of(config, "bfloat16", 2 * rows, rows // 32 * (32 + 2 + 1) + 2 * rows)
    assert dict(weight_bytes(manifest, "onnx-cpu")) == {
        "weights, packed by ONNX Runtime": rows * 4 * 26 // 25,
        "embedding, mapped from the file": rows // 32 * 35,
        "head, while it is packed": 4 * rows - rows // 32 * 35 - 4 * MIB,
    }


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(WIDE, quantization=Quantization(bits=8)), id="int8"),
        pytest.param(replace(WIDE, quantization=Quantization(bits=4, symmetric=False)), id="int4"),
        pytest.param(
            replace(EXPERTS, quantization=Quantization(bits=8, block=128, experts=True)),
            id="int8 experts",
        ),
        pytest.param(
            replace(EXPERTS, quantization=Quantization(bits=4, experts=True)), id="int4 experts"
        ),
        pytest.param(TABLES, id="two tables"),
        pytest.param(
            replace(TABLES, quantization=Quantization(bits=4, head=False)), id="int4 but the head"
        ),
    ],
)
def test_a_process_takes_what_is_planned(tmp_path: Path, config: ModelConfig) -> None:
    """On ONNX Runtime, within ten percent of the peak and not below it."""
    bundle = write_bundle(tmp_path / "bundle", config, "bfloat16")
    (run,) = measure_bundle(bundle.path, [512], device="cpu", backend="onnx").runs
    assert run.peak_bytes <= run.planned_bytes <= 1.1 * run.peak_bytes, run
