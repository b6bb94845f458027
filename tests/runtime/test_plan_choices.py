"""What a plan says of its choices: in order, each with its reason, and whence each figure is."""

from __future__ import annotations

from typing import Any

import pytest
from test_plan import LAYER, MANIFEST, MIB
from test_plan_caches import MANIFEST as CACHED_MANIFEST

from longspan.runtime.plan import Plan, make_plan
from longspan.runtime.plan_choices import Choice
from longspan.runtime.plan_entries import MOST_CAPACITY


def planned(budget_bytes: int, *, manifest: Any = MANIFEST, **options: Any) -> Plan:
    options = {"engine": "onnx-cpu", "baseline_bytes": 0, "tokens": None} | options
    return make_plan(manifest, budget_bytes=budget_bytes, **options)


def test_the_largest_chunk_is_long_enough() -> None:
    (choice,) = planned(2**30).choices
    assert choice == Choice(
        what="chunk",
        chosen="256 tokens",
        why="the largest that is used: a longer one is no faster",
    )


@pytest.mark.parametrize(("chosen", "larger"), [(192, 256), (128, 192), (24, 32), (16, 24)])
def test_the_next_larger_chunk_passes_the_budget(chosen: int, larger: int) -> None:
    plan = planned(planned(2**30, chunk_tokens=larger).total_bytes - 100)
    assert plan.chunk_tokens == chosen
    assert plan.choices[0].why == f"{larger} tokens would pass the budget by 100 B"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"chunk_tokens": 33}, "it was asked for"),
        ({"chunk_tokens": 33, "budget_bytes": 1}, "it was asked for, and does not fit"),
        ({"budget_bytes": 1}, "not even the smallest fits"),
        ({"tokens": 60}, "the document is no longer"),
    ],
)
def test_other_reasons_for_a_chunk(options: dict[str, Any], why: str) -> None:
    assert planned(**{"budget_bytes": 2**30} | options).choices[0].why == why


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tokens": 5000}, "5,000 for the document, 1,024 for a question and its answer"),
        (
            {"budget_bytes": 2**40},
            "each call copies them: no more, unless a longer document is announced",
        ),
        ({}, "what the document can take, or the most that fits beside 256 tokens"),
    ],
)
def test_the_capacity_comes_after_the_chunk(options: dict[str, Any], why: str) -> None:
    plan = planned(**{"budget_bytes": 64 * MIB, "manifest": CACHED_MANIFEST} | options)
    assert [choice.what for choice in plan.choices] == ["chunk", "caches"]
    assert plan.choices[1].chosen == f"{plan.capacity:,} entries"
    assert plan.choices[1].why == why
    assert (plan.capacity == MOST_CAPACITY) == ("announced" in why)


def test_the_recorded_step_comes_last() -> None:
    plan = planned(2**31, engine="torch-cuda")
    assert [choice.what for choice in plan.choices] == ["chunk", "step"]
    assert plan.choices[-1].chosen == "recorded once"
    plan = planned(2**31, engine="torch-cuda", no_step_graph="it would wait")
    assert plan.choices[-1] == Choice(what="step", chosen="launched each time", why="it would wait")


def test_every_item_says_whence_its_bytes_are() -> None:
    facts = planned(2**30, tokenizer_file_bytes=1).to_json()
    sources = {item["name"]: item["source"] for item in facts["items"]}
    assert sources["interpreter and libraries"] == "measured in this process"
    assert sources["weights, mapped from the file"] == "computed"
    assert all(source == "computed" or "measured" in source for source in sources.values())
    assert facts["choices"] == [
        {"what": choice.what, "chosen": choice.chosen, "why": choice.why}
        for choice in planned(2**30).choices
    ]
    assert (
        LAYER.at(256)
        <= {item["name"]: item["bytes"] for item in facts["items"]}["activations of 256 tokens"]
    )
