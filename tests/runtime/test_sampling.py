"""Choosing a token: greedy, top-k, top-p, seeds, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest

from longspan.errors import BadInput
from longspan.runtime.sampling import Sampler, new_rng

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(sampler: Sampler, count: int = 2000, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return [sampler.pick(LOGITS, rng) for _ in range(count)]


def test_greedy_takes_the_first_of_the_largest_and_draws_nothing() -> None:
    rng = np.random.default_rng(1)
    assert Sampler().pick(np.array([0, 2, 2, 1], np.float32), rng) == 1
    assert rng.random() == np.random.default_rng(1).random()


def test_drawing_follows_the_probabilities() -> None:
    shares = np.bincount(draws(Sampler(temperature=1.0), 20_000), minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.2, 0.3], atol=0.015)


@pytest.mark.parametrize(
    ("sampler", "possible"),
    [
        (Sampler(temperature=1.0, top_k=1), {1}),
        (Sampler(temperature=1.0, top_k=2), {1, 3}),
        (Sampler(temperature=1.0, top_k=99), {0, 1, 2, 3}),
        (Sampler(temperature=1.0, top_p=0.05), {1}),
        (Sampler(temperature=1.0, top_p=0.5), {1, 3}),
        (Sampler(temperature=1.0, top_p=0.85), {1, 2, 3}),
        (Sampler(temperature=1.0, top_k=3, top_p=0.6), {1, 3}),
        (Sampler(temperature=0.01), {1}),
    ],
)
def test_what_can_be_drawn(sampler: Sampler, possible: set[int]) -> None:
    assert set(draws(sampler)) == possible


def test_a_seed_repeats() -> None:
    sampler = Sampler(temperature=2.0)
    assert draws(sampler, 50, seed=3) == draws(sampler, 50, seed=3)
    assert draws(sampler, 50, seed=3) != draws(sampler, 50, seed=4)


def test_a_negative_seed_is_refused() -> None:
    assert new_rng(2**70).random() == new_rng(2**70).random()
    with pytest.raises(BadInput) as refusal:
        new_rng(-1)
    assert str(refusal.value) == "seed is -1; it must be 0 or more. Leave it out for a fresh one."


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(Sampler(temperature=temperature), 50)) == {1}


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf], np.float32)
    rng = np.random.default_rng(0)
    assert {Sampler(temperature=5.0).pick(logits, rng) for _ in range(100)} == {1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"temperature": -0.5},
            "temperature is -0.5; it must be 0 (the most probable token) or more. Try 0.7.",
        ),
        (
            {"temperature": float("nan")},
            "temperature is nan; it must be 0 (the most probable token) or more. Try 0.7.",
        ),
        ({"top_k": 0}, "top_k is 0; it must be 1 or more. Leave it out for all."),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1. Leave it out for all."),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1. Leave it out for all."),
    ],
)
def test_refusals(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput) as refusal:
        Sampler(**wrong)  # type: ignore[arg-type]
    assert str(refusal.value) == message


def test_logits_that_are_no_numbers() -> None:
    with pytest.raises(BadInput) as refusal:
        Sampler().pick(np.array([0, np.nan], np.float32), np.random.default_rng(0))
    assert str(refusal.value) == (
        "The model gave logits that are not numbers, so no token can be chosen. Check the bundle "
        "with: longspan verify BUNDLE"
    )
