"""Plans of models with anchors: what a length takes, what a budget holds, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_in import CACHED_DEMO, write_bundle

from longspan.bundle import Manifest, write_manifest
from longspan.errors import BadInput, DoesNotFit
from longspan.export.activations import chunk_bytes
from longspan.models.config import FullAttentionConfig, ModelConfig, with_anchors
from longspan.runtime import anchor_interval
from longspan.runtime.anchor_interval import choose_interval
from longspan.runtime.measure import measure_bundle
from longspan.runtime.plan import Plan, make_plan, require_fit
from longspan.runtime.plan_entries import LEAST_CAPACITY, MOST_CAPACITY, RESERVE_TOKENS
from longspan.runtime.plan_items import CACHE_COPIES

MIB = 2**20
# Keys and values of 4 heads of 64 in float32: 2 KiB an entry.
FULL = ModelConfig(
    family="llama",
    vocab_size=50,
    d_model=64,
    layers=(FullAttentionConfig(n_heads=4, n_kv_heads=4, head_dim=64),),
)
ENTRY_BYTES = 2 * 4 * 64 * 4
TOKENS = 2**18


def manifest_of(**rule: Any) -> Manifest:
    config = with_anchors(FULL, **rule) if rule else FULL
    return Manifest(
        config=config,
        dtype="float32",
        parameters=0,
        weight_bytes=0,
        state=config.state_layout("float32"),
        chunk_bytes=chunk_bytes(config, "float32"),
        files={},
        source={},
    )


def planned(manifest: Manifest, budget: int = 2**30, **options: Any) -> Plan:
    options = {"tokens": None} | options
    return make_plan(manifest, engine="onnx-cpu", budget_bytes=budget, baseline_bytes=0, **options)


def test_an_interval_tells_the_capacity_exactly() -> None:
    plan = planned(manifest_of(anchor_every=128), tokens=TOKENS)
    # 1,024 tokens more, for a question and its answer, close 8 segments.
    assert plan.capacity == TOKENS // 128 - 1 + 127 + 8
    assert plan.reserve_entries == 8
    # Counted from the text, which may end anywhere: at most 7 anchors and 127 tokens are added.
    counted = planned(manifest_of(anchor_every=128), tokens=TOKENS, cache_entries=2048)
    assert counted.capacity == 2048 + 7 + 127
    assert planned(manifest_of(), tokens=TOKENS).capacity == TOKENS + RESERVE_TOKENS
    assert plan.cache_entry_bytes == ENTRY_BYTES
    cache = next(item for item in plan.items if item.name.startswith("cache of"))
    assert cache.bytes == CACHE_COPIES["onnx-cpu"] * plan.capacity * ENTRY_BYTES


@pytest.mark.parametrize("every", [2, 16, 128, 5000])
def test_the_longest_document_fits_and_one_token_more_does_not(every: int) -> None:
    manifest = manifest_of(anchor_every=every)
    longest = planned(manifest, 2**26).longest_tokens
    assert longest is not None
    assert planned(manifest, 2**26, tokens=longest).fits
    more = planned(manifest, 2**26, tokens=longest + every)
    assert not more.fits
    with pytest.raises(DoesNotFit) as refusal:
        require_fit(more)
    assert f"This budget holds documents of up to {longest:,} tokens. " in str(refusal.value)
    assert (
        f"export the checkpoint with --anchors every=auto --tokens {longest + every} "
        "--budget 64MiB."
    ) in str(refusal.value)


def test_with_ids_the_text_decides() -> None:
    manifest = manifest_of(anchor_ids=(3,))
    plan = planned(manifest, 2**27, tokens=TOKENS)
    assert plan.fits
    assert plan.longest_tokens is None
    assert LEAST_CAPACITY <= plan.capacity <= MOST_CAPACITY
    assert plan.to_json(fit=True)["most_entries"] == plan.most_entries
    assert plan.summary(fit=True).endswith(
        f"The budget of 128.0 MiB holds documents of up to {plan.most_entries:,} anchors and "
        "tokens of the longest segment together."
    )
    assert planned(manifest, tokens=100).capacity == 100 + RESERVE_TOKENS
    # Counted from the text, as `read` does before it reads.
    assert planned(manifest, tokens=TOKENS, cache_entries=9000).capacity == 9000 + RESERVE_TOKENS


def test_a_text_that_does_not_fit_is_refused_with_a_way_out() -> None:
    plan = planned(manifest_of(anchor_ids=(3,)), 2**26, tokens=TOKENS, cache_entries=50_000)
    with pytest.raises(DoesNotFit) as refusal:
        require_fit(plan)
    assert (
        "A copy of the cache has 50,000 entries for the document and 1,024 for a question and its "
        f"answer: 51,024 x 2,048 bytes = 99.7 MiB. This budget holds documents of up to "
        f"{plan.most_entries:,} anchors and tokens of the longest segment together. To have as "
        "many anchors as fit, export the checkpoint with --anchors every=auto --tokens 262144 "
        "--budget 64MiB.\n"
    ) in str(refusal.value)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic alone, whatever this machine has."""

    def facts(manifest: Manifest, tokenizer: None, tokens: int, budget: int) -> dict[str, Any]:
        return planned(manifest, budget, tokens=tokens).to_json(fit=True)

    monkeypatch.setattr(anchor_interval, "_planned", facts)


def described(every: int) -> Manifest:
    return manifest_of(anchor_every=every)


@pytest.mark.parametrize("budget", [60, 80, 200])
@pytest.mark.usefixtures("on_cpu")
def test_the_most_anchors_that_fit(budget: int) -> None:
    found = choose_interval(described, tokens=TOKENS, budget=budget * MIB)
    room = budget * MIB - anchor_interval.SPREAD_BYTES

    def fits(every: int) -> bool:
        return planned(manifest_of(anchor_every=every), room, tokens=TOKENS).fits

    assert fits(found.every)
    assert found.every > 2
    assert not any(fits(every) for every in range(2, found.every))
    plan = planned(manifest_of(anchor_every=found.every), tokens=TOKENS)
    assert found.entries == plan.capacity - plan.reserve_entries
    assert "nothing is dropped" not in found.text()


@pytest.mark.usefixtures("on_cpu")
def test_a_budget_that_holds_all_says_so() -> None:
    found = choose_interval(described, tokens=1000, budget="1GiB")
    assert found.every == 2
    assert found.text() == (
        "An anchor every 2 tokens: 1,000 tokens take 500 entries, of "
        f"{found.most_entries:,} that 1.0 GiB hold on onnx-cpu. They hold every token, too: "
        "without --anchors nothing is dropped."
    )


@pytest.mark.usefixtures("on_cpu")
def test_where_no_interval_fits_the_arithmetic_is_told() -> None:
    with pytest.raises(DoesNotFit) as refusal:
        choose_interval(described, tokens=TOKENS, budget="18MiB")
    text = str(refusal.value)
    assert text.startswith(
        "every=auto was asked for, for 262,144 tokens and a budget of 18.0 MiB. An anchor every N "
        "tokens takes tokens / N + N entries, about; least of all N = 513: 1,022 entries and 2 for "
        "a question and its answer, 1,024 x 2,048 bytes = 2.0 MiB a copy. Beside the model, "
        "onnx-cpu has room for "
    )
    budget = text.split("Give --budget ")[1].split(",")[0]
    assert choose_interval(described, tokens=TOKENS, budget=budget).every <= 513


def test_the_plan_is_that_of_the_command_line() -> None:
    """What a reader holds, without torch and the exporter, which this process holds."""
    manifest = described(64)
    facts = anchor_interval._planned(manifest, b"{}", TOKENS, 2**30)
    names = {item["name"]: item["bytes"] for item in facts["items"]}
    if facts["engine"] == "onnx-cpu":
        assert 20 * MIB < names["interpreter and libraries"] < 200 * MIB
        assert "tokenizer and text" in names
    assert facts["capacity"] == TOKENS // 64 - 1 + 63 + RESERVE_TOKENS // 64
    with pytest.raises(
        BadInput, match=r"every=auto needs a plan, and there is none: .* is not pos"
    ):
        anchor_interval._planned(manifest, None, 0, 2**30)


def test_random_tokens_measure_no_text(tmp_path: Path) -> None:
    manifest = manifest_of(anchor_ids=(3,))
    write_manifest(tmp_path, manifest)
    with pytest.raises(BadInput) as refusal:
        measure_bundle(tmp_path, [100])
    assert str(refusal.value) == (
        f"Measuring reads random tokens, and in {tmp_path} tokens of the text are anchors, which "
        "decide how much it takes. Read a text of yours: longspan read BUNDLE DOCUMENT --out "
        "FILE.span --json tells its peak and speed."
    )


# A whole process reads, answers and saves. Of anchors, half of the tokens are.
WHOLE_PROCESS = """
import json, sys
import numpy as np
import longspan

backend, device = sys.argv[2].split("-")
chunk_tokens = int(sys.argv[4]) if device == "cpu" else None
with longspan.load(sys.argv[1], budget="1GiB", tokens=4000, device=device, backend=backend,
                   chunk_tokens=chunk_tokens) as runtime:
    memory = runtime.read_tokens([np.random.default_rng(0).integers(0, 4096, 4000)])
    runtime.decode_seconds(memory, 20)
    memory.save(sys.argv[3])
    del memory  # A plan counts one.
    runtime.decode_seconds(runtime.open(sys.argv[3]), 3)
    measured = runtime.measured
print(json.dumps({"peak": measured.peak_bytes, "planned": measured.planned_bytes,
                  "items": {item.name: item.bytes for item in runtime.plan.items}}))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = with_anchors(CACHED_DEMO, anchor_every=2)
    return write_bundle(tmp_path_factory.mktemp("demo") / "bundle", config).path


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cached") / "bundle", CACHED_DEMO, "bfloat16").path


def _assert_within(
    bundle: Path, memory: Path, engine: str, chunk_tokens: int, *, percent: int
) -> None:
    """Run it: the plan is no less than the peak, and at most so many percent above it."""
    arguments = [str(bundle), engine, str(memory), str(chunk_tokens)]
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_PROCESS, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["peak"] <= seen["planned"] <= (100 + percent) * seen["peak"] // 100, seen


@pytest.mark.parametrize("chunk_tokens", [16, 256])
@pytest.mark.parametrize("engine", ["onnx-cpu", "torch-cpu"])
def test_a_process_with_caches_stays_within_its_plan(
    cached: Path, tmp_path: Path, engine: str, chunk_tokens: int
) -> None:
    _assert_within(cached, tmp_path / "memory.span", engine, chunk_tokens, percent=12)


@pytest.mark.parametrize(
    ("engine", "chunk_tokens"),
    [
        ("onnx-cpu", 16),
        ("onnx-cpu", 128),
        ("torch-cpu", 64),
        pytest.param("torch-cuda", 0, marks=pytest.mark.gpu),
        pytest.param("onnx-cuda", 0, marks=pytest.mark.gpu),
    ],
)
def test_a_process_stays_within_its_plan(
    demo: Path, tmp_path: Path, engine: str, chunk_tokens: int
) -> None:
    _assert_within(demo, tmp_path / "memory.span", engine, chunk_tokens, percent=8)
