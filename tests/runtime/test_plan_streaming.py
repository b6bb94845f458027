"""Where weights lie under a budget: bytes by place, the fastest split, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_plan import MANIFEST

from longspan.errors import DoesNotFit
from longspan.export.activations import chunk_bytes
from longspan.kernels.quantized_linear import scratch
from longspan.models.config import MlpConfig, ModelConfig, MoeConfig, Quantization
from longspan.runtime import plan_weights
from longspan.runtime.plan import Plan, make_plan, require_fit
from longspan.runtime.plan_items import MIB, PlanItem
from longspan.runtime.plan_speed import Rates
from longspan.runtime.plan_streaming import (
    MOST_CHUNK_TOKENS,
    USEFUL_CHUNK_TOKENS,
    barest_placement,
    choose_placement,
    chunk_sizes,
    most_resident,
    require_host_memory,
)
from longspan.runtime.plan_weights import (
    ExpertSizes,
    PlacedWeights,
    WeightSizes,
    aligned,
    place_weights,
    weight_sizes,
    with_brought_experts,
)

# As of a model of 64 equal layers.
SIZES = WeightSizes(mixers=(80 * MIB,) * 64, tables=256 * MIB, rest=MIB)
# An H100's.
RATES = Rates(copied_bytes=55e9, operations=600e12)
PARAMETERS = 2_700_000_000
# Of layers some are mixtures of experts, which have no bytes as a layer.
uneven = st.builds(
    lambda mixers, experts: WeightSizes(
        mixers=(*mixers, *(0,) * len(experts)),
        tables=7,
        rest=1,
        experts=tuple(ExpertSizes(all=8 * one, one=one, top_k=2) for one in experts),
    ),
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.lists(st.integers(1, 50), max_size=3),
)


def remake_under(budget_bytes: int) -> Callable[[PlacedWeights, int | None], Plan]:
    """Plans of the tests' small model, whose weights are taken to be larger than they are."""

    def remake(weights: PlacedWeights, chunk_tokens: int | None) -> Plan:
        return make_plan(
            MANIFEST,
            engine="torch-cuda",
            budget_bytes=budget_bytes,
            baseline_bytes=700 * MIB,
            tokens=None,
            chunk_tokens=chunk_tokens,
            weights=weights,
        )

    return remake


def planned(
    budget_bytes: int,
    *,
    rates: Rates = RATES,
    chunk_tokens: int | None = None,
    tokens: int | None = None,
) -> Plan:
    return choose_placement(
        remake_under(budget_bytes),
        SIZES,
        lambda: rates,
        parameters=PARAMETERS,
        chunk_tokens=chunk_tokens,
        tokens=tokens,
    )


def loaded(name: str, nbytes: int) -> PlanItem:
    """What is held from before the first chunk on."""
    return PlanItem(name=name, bytes=nbytes, stage="loaded")


@given(sizes=uneven, data=st.data())
def test_every_byte_has_one_place(sizes: WeightSizes, data: st.DataObject) -> None:
    layers = len(sizes.streamable)
    resident = data.draw(st.integers(0, layers))
    slots = data.draw(st.sampled_from([0, 2, 5])) if sizes.experts else 0
    streamed = sizes.spread(resident=resident)
    assert len(set(streamed)) == layers - resident
    assert set(streamed) <= set(sizes.streamable)
    placed = place_weights(sizes, streamed, slots)
    experts = sum(each.all for each in sizes.experts)
    everything = sum(sizes.mixers) + sizes.tables + sizes.rest + experts
    assert placed.resident_bytes + placed.pinned_bytes == everything
    shared = placed.slots_bytes + placed.expert_slots_bytes
    assert placed.device_bytes == placed.resident_bytes + shared
    assert placed.expert_slots_bytes == slots * max((each.one for each in sizes.experts), default=0)
    assert placed.chunk_bytes <= placed.pinned_bytes
    assert placed.slots_bytes == min(2, len(streamed)) * max(
        (sizes.mixers[index] for index in streamed), default=0
    )


@pytest.mark.parametrize(
    ("resident", "streamed"),
    [(0, (0, 1, 2, 3, 4, 5)), (3, (0, 2, 4)), (4, (0, 3)), (5, (0,)), (6, ())],
)
def test_layers_that_stay_stand_evenly_between_those_that_stream(
    resident: int, streamed: tuple[int, ...]
) -> None:
    sizes = WeightSizes(mixers=(1,) * 6, tables=0, rest=0)
    assert sizes.spread(resident=resident) == streamed


@given(sizes=uneven, device_bytes=st.integers(0, 700))
def test_the_most_layers_stay_that_fit(sizes: WeightSizes, device_bytes: int) -> None:
    found, barest = most_resident(sizes, device_bytes), barest_placement(sizes)
    assert found.device_bytes <= max(device_bytes, barest.device_bytes)
    # One layer or two would be on the device in all but name.
    assert len(found.layers) not in (1, 2)
    layers = len(sizes.streamable)
    better = [
        place_weights(sizes, sizes.spread(resident=count), barest.expert_slots)
        for count in range(layers - len(found.layers) + 1, layers - 2)
    ]
    assert all(each.device_bytes > device_bytes for each in better)
    if found.expert_slots > 2:
        more = place_weights(sizes, found.layers, found.expert_slots + 1)
        all_of_them = sum(each.all // each.one for each in sizes.experts)
        assert more.device_bytes > device_bytes or found.expert_slots == all_of_them


def test_sizes_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {
        "embedding": torch.zeros(5, 3, dtype=torch.bfloat16),
        "head": torch.zeros(5, 3),
        "head_scales": torch.zeros(5),
        "norm.weight": torch.zeros(3),
        "layers.0.norm.weight": torch.zeros(3),
        "layers.0.mixer.in_proj.weight": torch.zeros(100, 3, dtype=torch.uint8),
        "layers.0.mixer.A": torch.zeros(3),
        "layers.1.mixer.weight": torch.zeros(100, 7),
        "layers.2.mixer.router.weight": torch.zeros(4, 3),
        "layers.2.mixer.gate_up_proj.weight": torch.zeros(4, 18, 3),
        "layers.2.mixer.down_proj.weight": torch.zeros(4, 3, 9),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    config = ModelConfig(
        family="none",
        vocab_size=5,
        d_model=3,
        layers=(MlpConfig(d_ff=1), MlpConfig(d_ff=1), MoeConfig(n_experts=4, top_k=2, d_ff=9)),
    )
    assert weight_sizes(path, config) == WeightSizes(
        mixers=(512 + 256, 2816, 0),
        tables=256 + 256 + 256,
        rest=256 + 256 + 256,
        experts=(ExpertSizes(all=1024 + 512, one=256 + 256, top_k=2),),
    )
    assert aligned(2800) == 2816


def test_a_model_that_fits_streams_nothing() -> None:
    plan = planned(2**33)
    assert plan.fits
    assert plan.streamed_layers == ()
    assert plan.pinned_host_bytes == 0
    assert plan.step_graph
    assert plan.chunk_tokens >= USEFUL_CHUNK_TOKENS


@pytest.mark.parametrize("budget_mib", [1200, 1500, 2500, 4000, 6000])
def test_what_does_not_fit_streams(budget_mib: int) -> None:
    plan = planned(budget_mib * MIB)
    assert plan.fits
    placed = place_weights(SIZES, plan.streamed_layers)
    assert loaded("weights, on the device", placed.resident_bytes) in plan.items
    assert loaded("two slots for streamed weights", 160 * MIB) in plan.items
    assert plan.pinned_host_bytes == placed.pinned_bytes
    assert not plan.step_graph
    # One layer more would not fit beside this chunk.
    assert plan.total_bytes + 80 * MIB > plan.budget_bytes


def test_a_step_is_said_to_cost_what_the_bus_takes() -> None:
    plan = planned(1500 * MIB)
    count, waiting = len(plan.streamed_layers), plan.pinned_host_bytes
    assert plan.to_json()["streamed_layers"] == count
    assert plan.to_json()["pinned_host_bytes"] == waiting
    assert plan.summary().splitlines()[-1] == (
        f"Answers launch every kernel of a step: {count} of 64 layers stream, and a step takes "
        f"{waiting / 2**30:.1f} GiB over the bus, {waiting / 55e6:.1f} ms at the measured "
        "55.0 GB/s."
    )


def test_a_slow_bus_takes_longer_chunks_and_a_fast_one_more_layers_on_the_device() -> None:
    """Where the bus decides, a longer chunk makes copies cheaper; else nothing is gained by it."""
    slow = planned(2500 * MIB, rates=Rates(copied_bytes=4e9, operations=600e12))
    fast = planned(2500 * MIB, rates=Rates(copied_bytes=1e15, operations=600e12))
    assert slow.chunk_tokens > fast.chunk_tokens
    assert len(slow.streamed_layers) > len(fast.streamed_layers)


def test_a_chunk_that_was_asked_for_is_kept() -> None:
    plan = planned(1500 * MIB, chunk_tokens=700)
    assert (plan.chunk_tokens, plan.fits) == (700, True)
    assert plan.streamed_layers


def test_the_smallest_budget_is_that_of_streaming_all() -> None:
    least = planned(1).smallest_budget_bytes
    assert planned(2**33).smallest_budget_bytes == least
    assert planned(least).fits
    assert len(planned(least).streamed_layers) == 64
    refused = planned(least - 1)
    assert not refused.fits
    with pytest.raises(DoesNotFit) as caught:
        require_fit(refused)
    assert "  two slots for streamed weights  " in str(caught.value)


def test_at_full_speed_nothing_streams() -> None:
    fastest = planned(2500 * MIB).fastest_budget_bytes
    whole = planned(fastest)
    assert (whole.streamed_layers, whole.total_bytes) == ((), fastest)
    assert whole.chunk_tokens > planned(fastest - 1).chunk_tokens


@settings(max_examples=60, deadline=None)
@given(budget=st.integers(800 * MIB, 7000 * MIB))
def test_no_plan_passes_its_budget(budget: int) -> None:
    plan = planned(budget)
    assert plan.fits == (budget >= plan.smallest_budget_bytes)
    assert plan.total_bytes <= budget or not plan.fits


def test_rates_are_not_measured_for_what_fits() -> None:
    def never() -> Rates:
        raise AssertionError("nothing has to be measured")

    plan = choose_placement(
        remake_under(2**33), SIZES, never, parameters=1, chunk_tokens=None, tokens=None
    )
    assert plan.fits


def test_two_layers_gain_nothing_by_streaming() -> None:
    two = WeightSizes(mixers=(80 * MIB,) * 2, tables=0, rest=MIB)
    plan = choose_placement(
        remake_under(MIB), two, lambda: RATES, parameters=1, chunk_tokens=None, tokens=None
    )
    assert not plan.fits
    assert plan.streamed_layers == ()


def test_experts_that_come_packed_are_dequantised_beside_the_chunk() -> None:
    """On a GPU; those that lie there are dequantised in registers."""
    assert plan_weights.SCRATCH_NUMBERS == scratch.SCRATCH_NUMBERS
    layer = MoeConfig(n_experts=4, top_k=2, d_ff=48)
    config = ModelConfig(family="mixcon", vocab_size=50, d_model=64, layers=(layer,))
    fixed = []
    for stored in (None, Quantization(bits=4), Quantization(bits=4, experts=True)):
        stored_as = replace(config, quantization=stored)
        manifest = replace(
            MANIFEST,
            config=stored_as,
            dtype="bfloat16",
            state=(),
            chunk_bytes=chunk_bytes(stored_as, "bfloat16"),
        )
        brought = with_brought_experts(manifest, "torch-cuda")
        fixed.append([each.chunk_bytes["torch-cuda"][0].fixed for each in (manifest, brought)])
    head = 2 * 50 * 64
    assert fixed == [[0, 0], [head, head], [head, head + 2 * 2 * 48 * 64]]


def test_experts_come_one_by_one_before_layers_do() -> None:
    """Eight experts of 64 MiB in each of four layers, beside layers of 20 MiB."""
    experts = (ExpertSizes(all=512 * MIB, one=64 * MIB, top_k=2),) * 4
    sizes = WeightSizes(mixers=(20 * MIB, 0) * 4, tables=MIB, rest=MIB, experts=experts)

    def at(budget_mib: int) -> Plan:
        return choose_placement(
            remake_under(budget_mib * MIB),
            sizes,
            lambda: RATES,
            parameters=10**9,
            chunk_tokens=2048,
            tokens=None,
        )

    assert at(4000).expert_slots == 0
    some, few, fewest = at(2000), at(1050), at(1000)
    assert some.streamed_layers == few.streamed_layers == ()
    assert some.expert_slots > few.expert_slots == 2
    assert len(fewest.streamed_layers) > 2
    assert fewest.expert_slots == 2
    assert loaded("2 slots for experts", 128 * MIB) in few.items
    assert loaded("weights, on the device", 81 * MIB) in few.items
    assert few.step_reason == (
        "experts stream through 2 slots, and a step takes 513.0 MiB over the bus, 9.8 ms at the "
        "measured 55.0 GB/s"
    )


@given(tokens=st.integers(1, 2**21))
def test_chunks_cut_a_document_evenly(tokens: int) -> None:
    """Each is as short as the number of its chunks allows, and a longer one saves a chunk."""
    sizes = chunk_sizes(tokens)
    counts = [-(-tokens // size) for size in sizes]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == -(-tokens // MOST_CHUNK_TOKENS)
    for size, count in zip(sizes, counts, strict=True):
        assert size <= MOST_CHUNK_TOKENS
        assert size < 64 + -(-tokens // count) or size <= 64


def test_a_document_s_last_chunk_is_no_waste() -> None:
    """65,536 tokens in chunks of 7,168 would be 10, the last of 1,024 with all of the copies."""
    plan = planned(2400 * MIB, tokens=65_536)
    assert 65_536 / plan.chunk_tokens > -(-65_536 // plan.chunk_tokens) - 0.1


def test_a_host_without_room_is_told() -> None:
    plan = planned(1500 * MIB)
    require_host_memory(plan, plan.pinned_host_bytes)
    with pytest.raises(DoesNotFit) as caught:
        require_host_memory(plan, 2**30)
    assert str(caught.value) == (
        "The budget of 1.5 GiB does not hold the weights, and those that stream would wait in "
        "5.2 GiB of pinned host memory, of which 1.0 GiB are free. Free host memory, give a larger "
        "--budget, or export the checkpoint with --weights int8 or int4."
    )


@pytest.mark.gpu
def test_rates_of_this_machine() -> None:
    from longspan.runtime.rates import PROBE_BYTES, measure_rates

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    rates = measure_rates("bfloat16")
    assert 1e9 < rates.copied_bytes < 1e12
    assert 1e11 < rates.operations < 1e16
    assert torch.cuda.max_memory_reserved() <= before + PROBE_BYTES + 64 * MIB
