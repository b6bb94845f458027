"""Samba's comparisons exported: every engine agrees, and the recurrence keeps its operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers_checkpoints import GLA_HEADS, SAMBA_VARIANTS, VOCABULARY, write_samba

from longspan.bundle import GRAPHS, open_bundle
from longspan.engines import Engine
from longspan.export import export_bundle
from longspan.runtime.backends import open_backend
from longspan.runtime.plan import make_plan

ENGINES: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")


def exported(folder: Path, dtype: str, **changes: Any) -> Path:
    """A bundle of a tiny checkpoint; torch and ONNX Runtime agree on it, in any chunks."""
    write_samba(folder / "checkpoint", **changes)
    report = export_bundle(folder / "checkpoint", folder / "bundle", weights=dtype)
    failed = [check.text() for check in report.checks if not check.passed]
    assert not failed, failed
    ran = sum(check.skipped is None for check in report.checks)
    assert ran == (3 if dtype == "bfloat16" else 5)
    return folder / "bundle"


@pytest.mark.parametrize(
    ("variant", "blocks"),
    [
        ("swa", 1),
        ("attention to all", 1),
        ("mlp2-swa-mlp", 2),
        ("mamba-swa-mlp", 1),
        ("nope", 2),
    ],
)
def test_every_engine_agrees(tmp_path: Path, variant: str, blocks: int) -> None:
    exported(tmp_path, "float32", **SAMBA_VARIANTS[variant], n_layer=blocks)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("sliding gla", "float16"), ("sliding retnet", "bfloat16")],
)
def test_a_bundle_of_linear_attention(tmp_path: Path, variant: str, dtype: str) -> None:
    """Graphs, chunks and plans, of one export."""
    bundle = exported(tmp_path, dtype, **SAMBA_VARIANTS[variant])
    for graph in GRAPHS.values():
        model = onnx.load(bundle / graph, load_external_data=False)
        kinds = [node.op_type for node in model.graph.node]
        assert (kinds.count("LinearAttention"), kinds.count("Scan")) == (1, 0), graph
        (node,) = (node for node in model.graph.node if node.op_type == "LinearAttention")
        heads = {a.name: a.i for a in node.attribute if a.name.endswith("heads")}
        assert heads == {"q_num_heads": GLA_HEADS, "kv_num_heads": GLA_HEADS}
        # Fixed decays and the divisor are constants, and none is as large as a weight.
        inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
        assert all(tensor.ByteSize() < 256 for tensor in inside)

    opened = open_bundle(bundle)
    text = np.random.default_rng(3).integers(0, VOCABULARY, 40)
    backend = open_backend(opened, engine="onnx-cpu", memory_limit_bytes=None)
    whole, _ = backend.forward(text, backend.new_state(), keep=range(40))
    state, rows, start = backend.new_state(), [], 0
    for tokens in (13, 1, 26):
        part, state = backend.forward(text[start : start + tokens], state, keep=range(tokens))
        rows.append(part)
        start += tokens
    # Keys and values of attention are kept in the weights' dtype.
    tolerance = {"float16": 2e-2, "bfloat16": 2e-1}[dtype]
    np.testing.assert_allclose(np.concatenate(rows), whole, atol=tolerance)

    for engine in ENGINES:
        plan = make_plan(
            opened.manifest, engine=engine, budget_bytes=2**30, baseline_bytes=0, tokens=10_000
        )
        assert plan.total_bytes <= 2**30
        assert plan.chunk_tokens >= 16
