"""The plan of a model whose state grows: its capacity, its messages, and what processes hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import CACHED, CACHED_DEMO, write_bundle

from longspan.bundle import Bundle, ChunkBytes, Manifest
from longspan.engines import Engine
from longspan.errors import BadInput, DoesNotFit
from longspan.runtime.plan import MIN_CHUNK_TOKENS, Plan, make_plan, require_fit
from longspan.runtime.plan_entries import LEAST_CAPACITY, MOST_CAPACITY, RESERVE_TOKENS
from longspan.runtime.plan_items import CACHE_COPIES, PlanItem

MIB = 2**20
ENGINES: tuple[Engine, ...] = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda")
LAYER = ChunkBytes(fixed=4096, per_token=2048, per_entry=64, per_token_entry=16)
ENTRY_BYTES = 2 * 4 * (2 * 4 + 6)
MANIFEST = Manifest(
    config=CACHED,
    dtype="float32",
    parameters=1_000_000,
    weight_bytes=4_000_000,
    state=CACHED.state_layout("float32"),
    chunk_bytes=dict.fromkeys(ENGINES, (*[LAYER] * 4, ChunkBytes(per_token=256))),
    files={},
    source={},
)


def planned(
    budget_bytes: int,
    *,
    tokens: int | None = None,
    engine: Engine = "torch-cuda",
    cache_entries: int | None = None,
    chunk_tokens: int | None = None,
) -> Plan:
    return make_plan(
        MANIFEST,
        engine=engine,
        budget_bytes=budget_bytes,
        baseline_bytes=0,
        tokens=tokens,
        cache_entries=cache_entries,
        chunk_tokens=chunk_tokens,
    )


def test_a_chunk_s_bytes_grow_with_the_cache() -> None:
    assert LAYER.at(10) == 4096 + 20480
    assert LAYER.at(10, 7) == 4096 + 20480 + 7 * 64 + 70 * 16
    assert MANIFEST.cache_entry_bytes == ENTRY_BYTES
    assert MANIFEST.state_bytes == sum(s.nbytes for s in MANIFEST.state_at(9)) - 9 * ENTRY_BYTES


@pytest.mark.parametrize("engine", ENGINES)
def test_a_document_s_length_decides_the_capacity(engine: Engine) -> None:
    plan = planned(2**30, tokens=10_000, engine=engine)
    copies = CACHE_COPIES[engine]
    assert plan.fits
    assert plan.capacity == 10_000 + RESERVE_TOKENS
    name = "cache of 11,024 entries" + (f", {copies} copies" if copies > 1 else "")
    assert PlanItem(name=name, bytes=copies * 11_024 * ENTRY_BYTES) in plan.items
    assert plan.to_json()["capacity"] == 11_024


def test_entries_that_are_known_count_in_place_of_tokens() -> None:
    plan = planned(2**30, tokens=10_000, cache_entries=77)
    assert plan.capacity == 77 + RESERVE_TOKENS
    assert planned(2**30, cache_entries=0).capacity == RESERVE_TOKENS


@given(
    engine=st.sampled_from(ENGINES),
    budget=st.integers(2**22, 2**31),
    tokens=st.none() | st.integers(1, 10**6),
    chunk_tokens=st.none() | st.integers(1, 500),
)
def test_chunk_and_capacity_are_as_large_as_they_may_be(
    engine: Engine, budget: int, tokens: int | None, chunk_tokens: int | None
) -> None:
    plan = planned(budget, tokens=tokens, engine=engine, chunk_tokens=chunk_tokens)
    assert plan.fits == (plan.total_bytes <= budget)
    if tokens is not None:
        assert plan.capacity == tokens + RESERVE_TOKENS
        assert plan.longest_tokens is not None
        assert (plan.longest_tokens >= tokens) == (plan.smallest_budget_bytes <= budget)
    elif plan.fits:
        assert LEAST_CAPACITY <= plan.capacity <= MOST_CAPACITY
        if plan.capacity < MOST_CAPACITY:
            entries = plan.capacity + 1 - RESERVE_TOKENS
            more = planned(
                budget, cache_entries=entries, engine=engine, chunk_tokens=plan.chunk_tokens
            )
            # A recorded step may take their place.
            assert not more.fits or (plan.step_graph and not more.step_graph)
    else:
        assert plan.capacity == LEAST_CAPACITY
        assert plan.chunk_tokens in (MIN_CHUNK_TOKENS, chunk_tokens)


@given(engine=st.sampled_from(ENGINES), budget=st.integers(2**22, 2**31))
def test_the_longest_document_just_fits(engine: Engine, budget: int) -> None:
    longest = planned(budget, engine=engine).longest_tokens
    assert longest is not None
    if longest:
        assert planned(budget, tokens=longest, engine=engine).fits
    if longest or planned(budget, tokens=1, engine=engine).fits:
        assert not planned(budget, tokens=longest + 1, engine=engine).fits


def test_the_smallest_budget_just_holds_the_document() -> None:
    least = planned(1, tokens=50_000).smallest_budget_bytes
    assert planned(least, tokens=50_000).fits
    assert not planned(least - 1, tokens=50_000).fits


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    plan = planned(64 * MIB, tokens=100_000, engine="onnx-cpu")
    with pytest.raises(DoesNotFit) as caught:
        require_fit(plan)
    assert str(caught.value) == (
        "The budget is 64.0 MiB, and onnx-cpu with chunks of 16 tokens needs 96.5 MiB:\n"
        "  interpreter and libraries                  0 B\n"
        "  weights, mapped from the file          3.8 MiB\n"
        "  state, 3 copies                        2.7 KiB\n"
        "  logits and sampling                    1.6 KiB\n"
        "  ONNX Runtime's session                 4.9 MiB\n"
        "  cache of 101,024 entries, 3 copies    32.4 MiB\n"
        "  activations of 16 tokens              30.9 MiB\n"
        "  ONNX Runtime's arena around them      24.5 MiB\n"
        "  together                              96.5 MiB\n"
        "A copy of the cache has 100,000 entries for the document and 1,024 for a question and its "
        "answer: 101,024 x 112 bytes = 10.8 MiB. This budget holds documents of up to 59,865 "
        "tokens.\n"
        "The smallest budget that would do is 97MiB; 671MiB is the smallest that reads at full "
        "speed. Give --budget 97MiB, a shorter document, or export a smaller model."
    )


def test_the_summary_tells_the_longest_document() -> None:
    assert planned(64 * MIB, tokens=1000).summary(fit=True).splitlines()[1] == (
        "The smallest budget that would do is 21MiB; 134MiB is the smallest that reads at full "
        "speed. The budget of 64.0 MiB holds documents of up to 106,127 tokens."
    )
    assert planned(20 * MIB).summary().splitlines()[1] == (
        "The smallest budget that would do is 22MiB; 631MiB is the smallest that reads at full "
        "speed. The budget of 20.0 MiB holds no document."
    )


def test_numbers_that_are_out_of_range() -> None:
    with pytest.raises(BadInput) as caught:
        planned(2**30, cache_entries=-1)
    assert str(caught.value) == "cache_entries is -1; it must be 0 or more."


def test_a_manifest_of_caches_is_read_as_it_was_written() -> None:
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.to_json()))) == MANIFEST


# A whole process reads the start and the end of a document, asks about it, and saves. What stands
# between needs time to read and makes no call larger.
WHOLE_PROCESS = """
import json, sys
from dataclasses import replace
import numpy as np
import longspan

path, engine, span, tokens, chunk_tokens = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
backend, device = engine.split("-")
with longspan.load(path, budget="2GiB", tokens=tokens, device=device, backend=backend,
                   chunk_tokens=chunk_tokens if device == "cpu" else None) as runtime:
    rng = np.random.default_rng(0)
    memory = runtime.read_tokens([rng.integers(0, 4096, min(tokens - 256, 1200))])
    between = {
        name: np.full_like(array, tokens - 256) if name.endswith("position")
        else np.ones((1, tokens - 256, *array.shape[2:]), array.dtype)
        for name, array in memory.state.items()
    }
    memory = replace(memory, state=between)
    del between
    memory = runtime.read_tokens([rng.integers(0, 4096, 256)], memory=memory)
    runtime.decode_seconds(memory, 20)
    memory.save(span)
    del memory
    runtime.decode_seconds(runtime.open(span), 3)
    measured = runtime.measured
print(json.dumps({"peak": measured.peak_bytes, "planned": measured.planned_bytes,
                  "items": {item.name: item.bytes for item in runtime.plan.items}}))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("demo") / "bundle", CACHED_DEMO)


@pytest.mark.parametrize(
    ("engine", "tokens", "chunk_tokens"),
    [
        ("onnx-cpu", 1000, 256),
        ("onnx-cpu", 9000, 16),
        ("onnx-cpu", 9000, 64),
        ("onnx-cpu", 17125, 16),
        ("onnx-cpu", 19000, 16),
        ("torch-cpu", 1000, 64),
        ("torch-cpu", 9000, 256),
        pytest.param("torch-cuda", 1500, 0, marks=pytest.mark.gpu),
        pytest.param("onnx-cuda", 1500, 0, marks=pytest.mark.gpu),
    ],
)
def test_a_process_stays_within_its_plan(
    demo: Bundle, tmp_path: Path, engine: Engine, tokens: int, chunk_tokens: int
) -> None:
    """1.15 is how far a plan may be above what is used."""
    span = tmp_path / "memory.span"
    arguments = [str(demo.path), engine, str(span), str(tokens), str(chunk_tokens)]
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_PROCESS, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["peak"] <= seen["planned"] <= 1.15 * seen["peak"], seen
    assert span.stat().st_size > tokens * demo.manifest.cache_entry_bytes
