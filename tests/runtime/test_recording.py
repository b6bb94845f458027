"""A plan says whether answers replay a recorded step, and why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bundles import GIB, fake_manifest

from longspan.bundle import ChunkBytes, Manifest
from longspan.engines import Engine
from longspan.models.config import LAYER_KINDS, ModelConfig
from longspan.runtime.backends.choice import Installed
from longspan.runtime.plan import make_plan
from longspan.runtime.plan_graph import onnx_graph_arena_bytes, onnx_graph_bytes
from longspan.runtime.recording import why_not_recorded

ALL = Installed(torch=True, torch_cuda=True, triton=True, onnx_cuda=True)


def manifest(kind: str) -> Manifest:
    """Of a model with one layer, the smallest of its kind."""
    config = ModelConfig(family="none", vocab_size=8, d_model=4, layers=(LAYER_KINDS[kind].tiny(),))
    nothing = (ChunkBytes(), ChunkBytes())
    return fake_manifest(
        config=config,
        state=config.state_layout("float32"),
        chunk_bytes={"onnx-cuda": nothing, "onnx-cpu": nothing},
    )


@pytest.mark.parametrize(
    ("engine", "kind", "lacking", "expected"),
    [
        ("onnx-cuda", "mamba2", {}, None),
        ("onnx-cuda", "window_attention", {"triton": False}, None),
        ("onnx-cuda", "full_attention", {}, "ONNX Runtime would hold the caches twice more for it"),
        (
            "onnx-cuda",
            "conba",
            {},
            "ONNX Runtime records no loops, and layers of kind conba are some",
        ),
        ("onnx-cuda", "mamba2", {"torch": False, "torch_cuda": False}, None),
        ("torch-cuda", "conba", {}, None),
        (
            "torch-cuda",
            "mamba2",
            {"triton": False},
            "without Triton some of them wait for the host",
        ),
        ("onnx-cpu", "full_attention", {"triton": False, "torch_cuda": False}, None),
    ],
)
def test_reasons(engine: Engine, kind: str, lacking: dict[str, bool], expected: str | None) -> None:
    assert why_not_recorded(manifest(kind), engine, replace(ALL, **lacking)) == expected


def test_a_plan_holds_what_recording_takes() -> None:
    model = manifest("mamba2")
    plan = make_plan(model, engine="onnx-cuda", budget_bytes=4 * GIB, baseline_bytes=0, tokens=None)
    item = plan.items[[each.name for each in plan.items].index("recorded step")]
    assert item.bytes == onnx_graph_bytes(model) + onnx_graph_arena_bytes(model)
    assert onnx_graph_arena_bytes(model) == 2 * model.state_bytes
    assert (plan.step_graph, plan.to_json()["step_graph"]) == (True, True)


def test_a_plan_says_why_nothing_is_recorded() -> None:
    model = manifest("conba")
    plan = make_plan(
        model,
        engine="onnx-cuda",
        budget_bytes=4 * GIB,
        baseline_bytes=0,
        tokens=None,
        no_step_graph=why_not_recorded(model, "onnx-cuda", ALL),
    )
    assert not plan.step_graph
    assert "recorded step" not in {item.name for item in plan.items}
    assert "layers of kind conba are some" in plan.summary()


def test_on_the_cpu_there_is_nothing_to_record() -> None:
    model = manifest("mamba2")
    plan = make_plan(model, engine="onnx-cpu", budget_bytes=4 * GIB, baseline_bytes=0, tokens=None)
    assert not plan.step_graph
