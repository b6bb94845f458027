"""Golden logits that transformers computed in float64, for tiny checkpoints of each family."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from longspan.models.checkpoint import load_decoder
from longspan.models.families import open_checkpoint

# What is float32 whatever the dtype, relative to logits near 10: A here and there; the scan and the
# gated norm of transformers' Mamba-2; the angles of its RoPE.
FLOAT64_ATOL = {"mamba": 3e-6, "falcon_mamba": 3e-6, "mamba2": 1e-5, "llama": 1e-6}
FLOAT32_ATOL = 1e-5


@pytest.mark.parametrize("family", FLOAT64_ATOL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_logits(dtype: torch.dtype, family: str) -> None:
    root = os.environ.get("LONGSPAN_DATA")
    folder = Path(root or "") / "checkpoints/hf-golden" / family
    if root is None or not folder.is_dir():
        pytest.skip(f"LONGSPAN_DATA names no folder with checkpoints/hf-golden/{family}")
    atol = FLOAT64_ATOL[family] if dtype == torch.float64 else FLOAT32_ATOL
    golden = json.loads((folder / "logits.json").read_text(encoding="utf-8"))
    decoder = load_decoder(open_checkpoint(folder), dtype=torch.float32, compute=dtype).to(dtype)
    for sequence, expected in zip(golden["sequences"], golden["logits"], strict=True):
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in decoder.new_state(capacity=len(sequence)).items()
        }
        logits, _ = decoder(torch.tensor([sequence]), torch.arange(len(sequence)), state)
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(logits[0].double(), wanted, atol=atol, rtol=0)
