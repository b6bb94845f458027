"""The training scan against plain torch, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "compare_scans.py"


def compare(device: str, shape: str) -> str:
    """What the comparison complains about."""
    root = SCRIPT.parents[2]
    path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "examples" / "train")])}
    interpret = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), device, *shape.split()],
        env={**os.environ, **path, **interpret},
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param("1 1 1 2", id="one-of-everything"),
        pytest.param("2 33 5 4", id="chunk-plus-1"),
        pytest.param("2 70 18 8", id="two-blocks"),
    ],
)
def test_matches_plain_torch(shape: str) -> None:
    assert compare("cpu", shape) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", ["2 33 5 4", "3 257 48 16"])
def test_matches_plain_torch_on_a_gpu(shape: str) -> None:
    assert compare("cuda", shape) == ""
