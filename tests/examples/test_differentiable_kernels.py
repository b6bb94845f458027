"""The kernels of training against plain torch, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent


def compare(script: str, device: str, shape: str) -> str:
    """What the comparison complains about."""
    root = SCRIPTS.parents[1]
    path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "examples" / "train")])}
    interpret = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), device, *shape.split()],
        env={**os.environ, **path, **interpret},
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    ("script", "shape"),
    [
        pytest.param("compare_scans.py", "1 1 1 2", id="scan-one-of-everything"),
        pytest.param("compare_scans.py", "2 33 5 4", id="scan-chunk-plus-1"),
        pytest.param("compare_scans.py", "2 70 18 8", id="scan-two-blocks"),
        pytest.param("compare_convs.py", "1 1 1 2", id="conv-one-of-everything"),
        pytest.param("compare_convs.py", "2 65 70 4", id="conv-blocks-plus-1"),
    ],
)
def test_matches_plain_torch(script: str, shape: str) -> None:
    assert compare(script, "cpu", shape) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("script", ["compare_scans.py", "compare_convs.py"])
@pytest.mark.parametrize("shape", ["2 33 5 4", "3 257 48 16"])
def test_matches_plain_torch_on_a_gpu(script: str, shape: str) -> None:
    assert compare(script, "cuda", shape) == ""
