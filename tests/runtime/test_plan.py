"""The plan's arithmetic, its messages, and the plan against what processes really hold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import DEMO, TINY, write_bundle

from longspan.bundle import ChunkBytes, Manifest
from longspan.engines import Engine
from longspan.errors import BadInput, DoesNotFit
from longspan.runtime.plan import (
    MAX_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    STEP_CHUNK_TOKENS,
    Plan,
    make_plan,
    require_fit,
)
from longspan.runtime.plan_items import GRAPH_BYTES, PlanItem

MIB = 2**20
ENGINES: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")
LAYER = ChunkBytes(fixed=4096, per_token=2048, per_pair=8)
LIVE_256 = 4096 + 2048 * 256 + 8 * 256 * 256 + 256 * 256
MANIFEST = Manifest(
    config=TINY,
    dtype="float32",
    parameters=1_000_000,
    weight_bytes=4_000_000,
    state=TINY.state_layout("float32"),
    chunk_bytes=dict.fromkeys(ENGINES, (*[LAYER] * 4, ChunkBytes(per_token=256))),
    files={},
    source={},
)


@given(
    engine=st.sampled_from(ENGINES),
    budget=st.integers(1, 2**31),
    baseline=st.integers(0, 2**29),
    tokens=st.none() | st.integers(1, 10**6),
    per_token=st.integers(0, 2**20),
    per_pair=st.integers(0, 2**8),
)
def test_a_plan_that_fits_is_within_the_budget_with_the_largest_chunk(
    engine: Engine, budget: int, baseline: int, tokens: int | None, per_token: int, per_pair: int
) -> None:
    chunk = (ChunkBytes(per_token=per_token, per_pair=per_pair), ChunkBytes(fixed=7))
    manifest = replace(MANIFEST, chunk_bytes={engine: chunk})

    def planned(chunk_tokens: int | None) -> Plan:
        plan = make_plan(
            manifest,
            engine=engine,
            budget_bytes=budget,
            baseline_bytes=baseline,
            tokens=tokens,
            chunk_tokens=chunk_tokens,
        )
        assert plan.fits == (plan.total_bytes <= budget)
        assert plan.total_bytes >= plan.smallest_budget_bytes
        return plan

    plan = planned(None)
    size = plan.chunk_tokens
    largest = MAX_CHUNK_TOKENS[engine.split("-")[1]]
    assert MIN_CHUNK_TOKENS <= size <= largest
    power = size & (size - 1) == 0
    # The document as a whole, which is of any length.
    whole = largest if tokens is None else -(-tokens // MIN_CHUNK_TOKENS) * MIN_CHUNK_TOKENS
    assert size <= whole
    assert power or size // 3 & (size // 3 - 1) == 0 or size == whole
    longer = size * 3 // 2 if power else size * 4 // 3
    if size < whole and longer <= min(largest, whole):
        beyond = planned(longer)
        # A recorded step may take the place of a longer chunk, if this one is long enough.
        swapped = plan.step_graph and not beyond.step_graph and size >= STEP_CHUNK_TOKENS
        assert not beyond.fits or swapped
    if not plan.fits:
        assert size == MIN_CHUNK_TOKENS


def test_the_items_are_named_and_add_up() -> None:
    plan = make_plan(
        MANIFEST,
        engine="onnx-cpu",
        budget_bytes=2**30,
        baseline_bytes=65 * MIB,
        tokens=None,
        tokenizer_file_bytes=1000,
    )
    assert tuple(PlanItem(name=item.name, bytes=item.bytes) for item in plan.items) == (
        PlanItem(name="interpreter and libraries", bytes=65 * MIB),
        PlanItem(name="weights, mapped from the file", bytes=4_000_000),
        PlanItem(name="state, 3 copies", bytes=3 * MANIFEST.state_bytes),
        PlanItem(name="logits and sampling", bytes=50 * 32),
        PlanItem(name="ONNX Runtime's session", bytes=3 * MIB + 4 * (35 * MIB // 100)),
        PlanItem(name="tokenizer and text", bytes=8_000 + 9 * MIB),
        PlanItem(name="activations of 256 tokens", bytes=LIVE_256),
        PlanItem(name="ONNX Runtime's arena around them", bytes=LIVE_256 * 80 // 100 + 4 * MIB),
    )
    assert plan.total_bytes == sum(item.bytes for item in plan.items)
    require_fit(plan)


@pytest.mark.parametrize(
    ("engine", "dtype", "names"),
    [
        ("onnx-cpu", "bfloat16", ["weights, bfloat16 widened to float32"]),
        ("torch-cpu", "float16", ["weights, mapped from the file"]),
        ("onnx-cuda", "bfloat16", ["weights, on the device"]),
        ("torch-cuda", "float32", ["weights, on the device"]),
    ],
)  # fmt: skip
def test_weights_as_each_engine_holds_them(engine: Engine, dtype: str, names: list[str]) -> None:
    manifest = replace(MANIFEST, dtype=dtype)
    plan = make_plan(manifest, engine=engine, budget_bytes=2**30, baseline_bytes=0, tokens=None)
    assert [
        item.name for item in plan.items if "weight" in item.name or "head" in item.name
    ] == names


def test_chunks_are_no_longer_than_the_document() -> None:
    plan = make_plan(MANIFEST, engine="onnx-cpu", budget_bytes=2**30, baseline_bytes=0, tokens=100)
    assert plan.chunk_tokens == 112


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    plan = make_plan(
        MANIFEST, engine="onnx-cpu", budget_bytes=64 * MIB, baseline_bytes=65 * MIB, tokens=None
    )
    with pytest.raises(DoesNotFit) as caught:
        require_fit(plan)
    assert str(caught.value) == (
        "The budget is 64.0 MiB, and onnx-cpu with chunks of 16 tokens needs 77.3 MiB:\n"
        "  interpreter and libraries           65.0 MiB\n"
        "  weights, mapped from the file        3.8 MiB\n"
        "  state, 3 copies                      3.6 KiB\n"
        "  logits and sampling                  1.6 KiB\n"
        "  ONNX Runtime's session               4.4 MiB\n"
        "  activations of 16 tokens            42.0 KiB\n"
        "  ONNX Runtime's arena around them     4.0 MiB\n"
        "  together                            77.3 MiB\n"
        "The smallest budget that would do is 78MiB; 80MiB is the smallest that reads at full "
        "speed. Give --budget 78MiB, or export a smaller model."
    )


RECORDED = PlanItem(
    name="recorded step",
    bytes=GRAPH_BYTES,
    source="measured on an H100, beside the state's own buffers",
)
RECORDED_STATE = PlanItem(
    name="state of the recorded step", bytes=MANIFEST.state_bytes, stage="loaded"
)


def on_cuda(budget_bytes: int, **options: Any) -> Plan:
    return make_plan(
        MANIFEST,
        engine="torch-cuda",
        budget_bytes=budget_bytes,
        baseline_bytes=0,
        tokens=None,
        **options,
    )


def test_a_recorded_step_is_planned_where_there_is_room() -> None:
    plan = on_cuda(2**31)
    assert plan.step_graph
    assert RECORDED in plan.items
    assert RECORDED_STATE in plan.items
    assert plan.summary().splitlines()[-1] == (
        "Answers replay a recorded step: the budget holds its 80.0 MiB."
    )
    assert plan.to_json()["step_graph"] is True
    assert plan.to_json()["step_reason"] == plan.step_reason


def test_without_room_for_it_steps_are_launched() -> None:
    enough = on_cuda(2**31, chunk_tokens=1024)
    plan = on_cuda(enough.total_bytes - 1, chunk_tokens=1024)
    assert plan.fits
    assert not plan.step_graph
    assert plan.items == tuple(
        item for item in enough.items if item not in (RECORDED, RECORDED_STATE)
    )
    assert plan.summary().splitlines()[-1] == (
        "Answers launch every kernel of a step: a recorded one takes 80.0 MiB, which chunks of "
        "1,024 tokens do not leave."
    )
    assert on_cuda(enough.total_bytes, chunk_tokens=1024) == replace(
        enough, budget_bytes=enough.total_bytes
    )


def test_the_smallest_budget_holds_no_recorded_step() -> None:
    plan = on_cuda(1)
    assert not plan.fits
    smallest = on_cuda(plan.smallest_budget_bytes)
    assert smallest.fits
    assert not smallest.step_graph
    assert on_cuda(2**31).smallest_budget_bytes == plan.smallest_budget_bytes


def test_the_budget_of_full_speed_holds_a_recorded_step_and_the_longest_chunk() -> None:
    fastest = on_cuda(1).fastest_budget_bytes
    assert on_cuda(2**31).fastest_budget_bytes == fastest == on_cuda(2**31).total_bytes
    enough, less = on_cuda(fastest), on_cuda(fastest - 1)
    assert enough.step_graph
    assert not less.step_graph or less.chunk_tokens < enough.chunk_tokens


@pytest.mark.parametrize("over", [0, 1])
def test_a_recorded_step_takes_the_place_of_long_chunks_alone(over: int) -> None:
    short = on_cuda(2**31, chunk_tokens=STEP_CHUNK_TOKENS)
    plan = on_cuda(short.total_bytes - over)
    assert plan.step_graph == (over == 0)
    assert plan.chunk_tokens >= STEP_CHUNK_TOKENS
    assert (plan.chunk_tokens == STEP_CHUNK_TOKENS) == plan.step_graph


def test_why_no_step_can_be_recorded_is_told() -> None:
    plan = on_cuda(2**31, no_step_graph="without Triton some of them wait for the host")
    assert not plan.step_graph
    assert RECORDED not in plan.items
    assert plan.to_json()["step_reason"] == "without Triton some of them wait for the host"


@pytest.mark.parametrize("engine", ["onnx-cpu", "torch-cpu"])
def test_cpus_record_no_steps(engine: Engine) -> None:
    plan = make_plan(MANIFEST, engine=engine, budget_bytes=2**31, baseline_bytes=0, tokens=None)
    assert not plan.step_graph
    assert plan.to_json()["step_reason"] == "the engine has no recorded steps"
    assert "Answers" not in plan.summary()


def test_a_chunk_that_was_asked_for_is_kept() -> None:
    plan = make_plan(
        MANIFEST,
        engine="torch-cuda",
        budget_bytes=50 * MIB,
        baseline_bytes=0,
        tokens=None,
        chunk_tokens=4096,
    )
    assert (plan.chunk_tokens, plan.fits) == (4096, False)
    assert plan.smallest_budget_bytes == plan.total_bytes


@pytest.mark.parametrize(
    ("tokens", "chunk_tokens", "message"),
    [
        (0, None, "tokens is 0; it must be 1 or more."),
        (None, 0, "chunk_tokens is 0; it must be 1 or more."),
    ],
)
def test_numbers_that_are_not_positive(
    tokens: int | None, chunk_tokens: int | None, message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(
            MANIFEST,
            engine="onnx-cpu",
            budget_bytes=2**30,
            baseline_bytes=0,
            tokens=tokens,
            chunk_tokens=chunk_tokens,
        )
    assert str(caught.value) == message


def test_an_engine_that_the_bundle_does_not_know() -> None:
    manifest = replace(MANIFEST, chunk_bytes={"onnx-cpu": (LAYER,)})
    with pytest.raises(BadInput) as caught:
        make_plan(manifest, engine="torch-cuda", budget_bytes=1, baseline_bytes=0, tokens=None)
    assert str(caught.value) == (
        "The bundle tells how much memory it takes on onnx-cpu, and not on torch-cuda. Choose "
        "another --device or --backend, or export the checkpoint again."
    )


def test_a_fixed_state_sets_no_limit() -> None:
    assert (
        make_plan(
            MANIFEST, engine="onnx-cpu", budget_bytes=1, baseline_bytes=0, tokens=None
        ).longest_tokens
        is None
    )


# A whole process reads 16 chunks and one shorter, then makes steps, as `read` and `ask` do.
WHOLE_PROCESS = """
import json, sys
import numpy as np
from longspan.bundle import open_bundle
from longspan.runtime.backends import open_backend
from longspan.runtime.baseline import measure_baseline
from longspan.runtime.device_memory import PeakWatch
from longspan.runtime.plan import make_plan, require_fit

bundle, engine = open_bundle(sys.argv[1]), sys.argv[2]
plan = make_plan(bundle.manifest, engine=engine, budget_bytes=int(sys.argv[3]),
                 baseline_bytes=measure_baseline(engine), tokens=None)
require_fit(plan)
device = "cuda" if engine.endswith("cuda") else "cpu"
with PeakWatch(device) as watch:
    backend = open_backend(bundle, engine=engine, memory_limit_bytes=plan.budget_bytes,
                           step_graph=plan.step_graph)
    state, random = backend.new_state(), np.random.default_rng(0)
    vocabulary = bundle.manifest.config.vocab_size
    for length in [plan.chunk_tokens] * 16 + [plan.chunk_tokens // 3 + 1]:
        _, state = backend.forward(random.integers(0, vocabulary, length), state, keep=[])
        watch.sample()
    steps = backend.steps(state)
    del state
    for token in random.integers(0, vocabulary, 8):
        logits = steps.step(int(token))
        watch.sample()
    saved = backend.to_arrays(steps.state())
print(json.dumps({
    "planned": plan.total_bytes, "peak": watch.peak.bytes, "budget": plan.budget_bytes,
    "chunk": plan.chunk_tokens, "items": {item.name: item.bytes for item in plan.items},
    "torch": "torch" in sys.modules, "source": watch.peak.source,
}))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("demo") / "bundle", DEMO).path


@pytest.mark.parametrize(
    ("engine", "budget"),
    [
        ("onnx-cpu", 128 * MIB),
        ("onnx-cpu", 96 * MIB),
        ("torch-cpu", 512 * MIB),
        pytest.param("torch-cuda", 2**30, marks=pytest.mark.gpu),
        pytest.param("onnx-cuda", 2**30, marks=pytest.mark.gpu),
    ],
)
def test_a_process_stays_within_its_plan(demo: Path, engine: Engine, budget: int) -> None:
    """The built-in model's size; 1.15 is how far a plan may be above what is used."""
    arguments = [sys.executable, "-c", WHOLE_PROCESS, str(demo), engine, str(budget)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["peak"] <= seen["planned"] <= seen["budget"], seen
    assert seen["planned"] <= 1.15 * seen["peak"], seen
    assert seen["torch"] == (engine != "onnx-cpu"), seen
