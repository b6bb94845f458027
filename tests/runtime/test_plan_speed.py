"""How long reading takes while weights stream: by hand, by bounds, and as an H100 took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.runtime.plan_speed import LayerSeconds, Rates, ReadingSpeed, chunk_seconds
from longspan.runtime.plan_weights import ExpertSizes, WeightSizes, place_weights

# Mamba-2 2.7B in bfloat16: 64 layers of 80.4 MB, a table of 257 MB.
SIZES = WeightSizes(mixers=(80_400_000,) * 64, tables=257_000_000, rest=330_000)
SPEED = ReadingSpeed(
    sizes=SIZES,
    rates=Rates(copied_bytes=54e9, operations=620e12),
    parameters=2_700_000_000,
)
layers = st.builds(
    LayerSeconds,
    computed=st.integers(1, 20).map(float),
    copied=st.none() | st.integers(1, 20).map(float),
)


def layer(computed: float, copied: float | None = None, experts: float = 0.0) -> LayerSeconds:
    return LayerSeconds(computed=computed, copied=copied, experts=experts)


def test_what_stays_is_computed_alone() -> None:
    assert chunk_seconds([layer(2.0), layer(3.0)]) == 5.0


@pytest.mark.parametrize(("computed", "seconds"), [(1.0, 40.0), (9.0, 40.0), (11.0, 44.0)])
def test_the_slower_of_bus_and_device_decides_where_all_stream(
    computed: float, seconds: float
) -> None:
    assert chunk_seconds([layer(computed, 10.0)] * 4) == seconds


def test_a_layer_that_stays_lets_the_bus_wait_for_a_slot() -> None:
    """Both slots are full while it computes: neither sum, 40 or 36, is what four layers take."""
    streamed = layer(4.0, 10.0)
    assert chunk_seconds([streamed, streamed, streamed, streamed, layer(20.0)]) == 48.0


def test_two_slots_of_three_layers_keep_one() -> None:
    """The second is still there when its turn comes again; the first and third change hands."""
    assert chunk_seconds([layer(1.0, 10.0)] * 3) == 22.0


@given(st.lists(layers, min_size=1, max_size=12))
def test_no_chunk_is_faster_than_its_parts_or_slower_than_all_in_turn(
    played: list[LayerSeconds],
) -> None:
    copies = [each.copied for each in played if each.copied is not None]
    computed, found = sum(each.computed for each in played), chunk_seconds(played)
    assert computed <= found <= computed + sum(copies)
    if len(copies) > 2 and len(copies) % 2 == 0:
        assert found >= sum(copies)


def test_experts_come_while_their_mixture_computes() -> None:
    assert chunk_seconds([layer(5.0, experts=3.0)]) == 5.0
    assert chunk_seconds([layer(3.0, experts=5.0)]) == 5.0


# Milliseconds on an H100 whose bus copied 54 GB/s.
@pytest.mark.parametrize(
    ("tokens", "measured"), [(1024, 111.4), (2048, 102.7), (4096, 105.0), (8192, 99.3)]
)
def test_what_an_h100_took_while_all_layers_streamed(tokens: int, measured: float) -> None:
    weights = place_weights(SIZES, tuple(range(64)))
    found = SPEED.seconds(weights, chunk_tokens=tokens, tokens=None) * tokens
    assert 1e3 * found == pytest.approx(measured, rel=0.16)


@pytest.mark.parametrize(("chunk", "streamed", "seconds"), [(8192, 0, 0.699), (16384, 64, 0.701)])
def test_what_an_h100_took_where_computing_decides(
    chunk: int, streamed: int, seconds: float
) -> None:
    weights = place_weights(SIZES, tuple(range(streamed)))
    found = SPEED.seconds(weights, chunk_tokens=chunk, tokens=65_536) * 65_536
    assert found == pytest.approx(seconds, rel=0.05)


def test_a_short_last_chunk_takes_all_copies() -> None:
    """So that 14 chunks of 5,120 tokens, the last of 1, take a whole one more than 13."""
    weights = place_weights(SIZES, tuple(range(64)))
    thirteen = SPEED.seconds(weights, chunk_tokens=5120, tokens=13 * 5120) * 13 * 5120
    more = SPEED.seconds(weights, chunk_tokens=5120, tokens=13 * 5120 + 1) * (13 * 5120 + 1)
    assert more / thirteen == pytest.approx(14 / 13, rel=1e-6)


def test_a_token_meets_the_experts_that_it_goes_to_alone() -> None:
    """Of 800 bytes of experts 200 are chosen; neither the table nor a norm is multiplied."""
    experts = (ExpertSizes(all=800, one=100, top_k=2),)
    sizes = WeightSizes(mixers=(150, 0), tables=40, rest=10, experts=experts)
    slow = Rates(copied_bytes=1e9, operations=1.0)
    speed = ReadingSpeed(sizes=sizes, rates=slow, parameters=500)
    found = speed.seconds(place_weights(sizes), chunk_tokens=4, tokens=None)
    assert found == pytest.approx(1.3 * 2 * (150 + 200) / 2)
