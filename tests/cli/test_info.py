"""`longspan info` of a checkpoint: what its files hold, and what longspan has to run it."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import (
    backbone_shapes,
    write_hf,
    write_llama,
    write_mamba2,
    write_samba,
    write_tokenizer,
)
from typer.testing import CliRunner

from longspan.cli import app
from longspan.info import describe
from longspan.kernels import implementations
from longspan.models.config import LAYER_KINDS, ModelConfig
from longspan.models.operations import operations
from longspan.render import fact_rows
from longspan.runtime.doctor import OPS

ALL = ["reference", "triton", "onnx"]


def test_a_checkpoint_of_bfloat16(tmp_path: Path) -> None:
    """A, D and dt_bias, 6 numbers a channel, are float32 in a bundle of any dtype."""
    write_hf(tmp_path, dtype=torch.bfloat16)
    write_tokenizer(tmp_path / "tokenizer.json")
    numbers = sum(prod(shape) for shape in backbone_shapes(embedding="embeddings").values())
    wide = 2 * 32 * (4 + 1 + 1)
    assert describe(tmp_path) == {
        "kind": "checkpoint",
        "family": "hf_mamba",
        "what": "transformers' Mamba, model_type 'mamba'",
        "layers": {"mamba": 2},
        "vocabulary": 24,
        "tokenizer": True,
        "parameters": numbers,
        "dtype": "bfloat16",
        "stored_bytes": {"bfloat16": 2 * numbers},
        "weight_bytes": 2 * numbers + 2 * wide,
        "weight_bytes_by_dtype": {
            "float32": 4 * numbers,
            "float16": 2 * numbers + 2 * wide,
            "bfloat16": 2 * numbers + 2 * wide,
        },
        "state_bytes": 2 * (3 * 32 * 2 + 32 * 4 * 4),
        "cache_entry_bytes": 0,
        "operations": {
            "add_norm": ALL,
            "causal_conv": ALL,
            "linear": ALL,
            "linear_conv": ALL,
            "selective_scan": ALL,
        },
    }


def test_a_cache_tells_the_bytes_of_a_token(tmp_path: Path) -> None:
    """Two layers of attention: a key and a value of two heads of 4, in float32, and a position."""
    write_llama(tmp_path)
    found = describe(tmp_path)
    assert (found["state_bytes"], found["cache_entry_bytes"]) == (2 * 8, 2 * 2 * 2 * 4 * 4)
    assert found["operations"]["full_attention"] == ALL


def test_dtypes_may_be_mixed(tmp_path: Path) -> None:
    weights = write_samba(tmp_path)
    wide = weights["transformer.wte.weight"].numel()
    mixed = {n: w if w.numel() == wide else w.bfloat16() for n, w in weights.items()}
    torch.save({"model": mixed}, tmp_path / "samba.pth")
    numbers = sum(w.numel() for w in weights.values())
    assert describe(tmp_path)["stored_bytes"] == {
        "float32": 4 * sum(w.numel() for w in mixed.values() if w.dtype == torch.float32),
        "bfloat16": 2 * sum(w.numel() for w in mixed.values() if w.dtype == torch.bfloat16),
    }
    assert describe(tmp_path)["parameters"] == numbers


def test_on_the_command_line(tmp_path: Path) -> None:
    write_mamba2(tmp_path)
    shown = CliRunner().invoke(app, ["info", str(tmp_path)])
    as_json = CliRunner().invoke(app, ["info", str(tmp_path), "--json"])
    assert (shown.exit_code, as_json.exit_code) == (0, 0)
    assert json.loads(as_json.stdout) == describe(tmp_path)
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["layers", "mamba2:", "2"] in lines
    assert ["state", "bytes", "2,176", "(2.1", "KiB)"] in lines
    assert ["ssd:", "reference,", "triton,", "onnx"] in lines


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_kind_of_layer_tells_its_ops(kind: str) -> None:
    config = ModelConfig(
        family="none", vocab_size=9, d_model=64, layers=(LAYER_KINDS[kind].tiny(),) * 3
    )
    assert {"add_norm", "linear"} <= set(operations(config)) <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_and_a_graph(op: str) -> None:
    """A kernel, too."""
    first, *between, last = implementations(op)
    assert (first, last) == ("reference", "onnx")
    assert "triton" in between


def test_facts_in_words() -> None:
    facts = {
        "state_bytes": 2048,
        "tokens": 12345,
        "tokenizer": None,
        "tied": True,
        "layers": {"mamba": 2, "mlp": 1},
        "stored_bytes": {"float32": 4},
        "operations": {"ssd": ["reference", "onnx"], "linear": ["onnx"]},
    }
    assert dict(fact_rows(facts)) == {
        "state bytes": "2,048 (2.0 KiB)",
        "tokens": "12,345",
        "tokenizer": "-",
        "tied": "yes",
        "layers": "mamba: 2, mlp: 1",
        "stored bytes": "float32: 4 (4 B)",
        "operations": "ssd: reference, onnx\nlinear: onnx",
    }
