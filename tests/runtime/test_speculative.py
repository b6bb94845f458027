"""Drafts change how soon an answer comes, and never what it is: drafters with the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import VOCABULARY, cached_bundle, fake_bundle, fake_draft, fake_runtime
from small_models import RandomDecoder, Recurrent, decoder_bundle, recurrent_bundle
from tokenizers_ import byte_level

from longspan.bundle import Bundle
from longspan.errors import BadInput, BadMemory
from longspan.runtime.backends import Backend
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.drafting import MAX_DRAFTED
from longspan.runtime.memory import Memory
from longspan.runtime.speculative import MAX_WAITING

DOCUMENT, QUESTION = "It was a whale, and a white one.", "What was it?"
LENGTH = 60
SEEDS = range(25)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return recurrent_bundle(tmp_path)


def read_by(bundle: Bundle, model: Backend) -> Memory:
    with fake_runtime(bundle, backend=model) as runtime:
        return runtime.read(DOCUMENT)


def answer_of(
    bundle: Bundle,
    model: Backend,
    draft: Backend | None = None,
    *,
    chunk_tokens: int = 64,
    draft_reads: bool = True,
    **options: Any,
) -> Any:
    """The answer; the draft model has read the document, too."""
    helper = None if draft is None else fake_draft(bundle, draft, chunk_tokens=chunk_tokens)
    if draft is not None and draft_reads:
        options["draft_memory"] = read_by(bundle, draft)
    memory = read_by(bundle, model)
    with fake_runtime(bundle, backend=model, chunk_tokens=chunk_tokens, draft=helper) as runtime:
        answer = runtime.ask(memory, QUESTION, **{"stop": [], "max_tokens": LENGTH} | options)
        assert "".join(list(answer)) == answer.text
        return answer


def assert_same(one: Any, two: Any) -> None:
    assert (one.text, one.tokens, one.finish) == (two.text, two.tokens, two.finish)


@pytest.mark.parametrize("draft_tokens", [1, 2, 4, 40])
@pytest.mark.parametrize("noise", [0.1, 0.5, 3.0])
def test_the_answer_is_the_models_own(bundle: Bundle, noise: float, draft_tokens: int) -> None:
    rates, bytes_said = [], []
    for seed in SEEDS:
        plain = answer_of(bundle, Recurrent(seed))
        drafted = answer_of(
            bundle, Recurrent(seed), Recurrent(seed, noise=noise),
            chunk_tokens=(64, 3, 2, 20)[seed % 4], draft_tokens=draft_tokens,
            draft_reads=seed % 3 > 0,
        )  # fmt: skip
        assert_same(drafted, plain)
        assert (plain.tokens, plain.draft) == (LENGTH, None)
        bytes_said.append(len(set(plain.text)))
        assert drafted.draft.accepted <= drafted.draft.proposed
        rates.append(drafted.draft.acceptance_rate)
    assert np.mean(bytes_said) > 20
    if draft_tokens < 40:
        assert (np.mean(rates) > 0.4) == (noise == 0.1)


def test_a_drafted_answer_whose_runtime_is_closed_ends_in_a_message(bundle: Bundle) -> None:
    model, drafter = Recurrent(1), Recurrent(1, noise=0.3)
    draft = fake_draft(bundle, drafter, chunk_tokens=64)
    memory = read_by(bundle, model)
    with fake_runtime(bundle, backend=model, draft=draft) as runtime:
        pieces = iter(runtime.ask(memory, QUESTION, stop=[], max_tokens=LENGTH))
        next(pieces)
    passes = [*model.passes], [*drafter.passes]
    with pytest.raises(BadInput, match="The runtime is closed, and its model is freed"):
        list(pieces)
    assert (model.passes, drafter.passes) == passes


def test_a_pass_is_never_longer_than_a_chunk(bundle: Bundle) -> None:
    for seed in SEEDS:
        for chunk_tokens in (1, 2, 3, 4, 9):
            model, draft = Recurrent(seed), Recurrent(seed, noise=0.3)
            drafted = answer_of(bundle, model, draft, chunk_tokens=chunk_tokens, draft_tokens=7)
            assert_same(drafted, answer_of(bundle, Recurrent(seed)))
            # The first pass is the document's, read in a runtime of its own.
            assert max(model.passes[1:]) <= chunk_tokens
            assert (drafted.draft.proposed == 0) == (chunk_tokens == 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_decoders_answer_is_its_own(tmp_path: Path, noise: float, seed: int) -> None:
    """Mamba, attention over a window and MLP after LayerNorm: passes of any length."""
    bundle = decoder_bundle(tmp_path)
    plain = answer_of(bundle, RandomDecoder(seed), max_tokens=16)
    drafted = answer_of(
        bundle, RandomDecoder(seed), RandomDecoder(seed, noise=noise), max_tokens=16
    )
    assert_same(drafted, plain)
    assert (drafted.draft.acceptance_rate == 1) == (noise == 0)


def test_the_same_model_is_a_perfect_drafter(bundle: Bundle) -> None:
    for seed in SEEDS:
        model, count = Recurrent(seed), 1 + seed % 7
        drafted = answer_of(bundle, model, Recurrent(seed), draft_tokens=count)
        assert_same(drafted, answer_of(bundle, Recurrent(seed)))
        report = drafted.draft
        assert report.acceptance_rate == 1
        assert report.proposed == report.accepted
        assert report.forwards == ceil((LENGTH - 1) / (count + 1))
        # One more pass for the document, and one for the question.
        assert len(model.passes) == report.forwards + 2
        assert report.tokens == LENGTH


def test_another_model_is_a_bad_drafter(bundle: Bundle) -> None:
    for seed in SEEDS:
        model = Recurrent(seed)
        drafted = answer_of(bundle, model, Recurrent(seed + 500))
        assert_same(drafted, answer_of(bundle, Recurrent(seed)))
        assert drafted.draft.acceptance_rate < 0.3
        # Each pass decides a token, and one in MAX_WAITING or fewer reads again what waits.
        assert drafted.draft.forwards <= (LENGTH - 1) * (1 + 1 / MAX_WAITING)
        assert len(model.passes) == drafted.draft.forwards + 2
        assert max(model.passes[2:]) <= MAX_WAITING + 1 + MAX_DRAFTED


def ended_by(part: str, answer: Any) -> dict[str, Any]:
    """A stop string, or a last token, from the middle of an answer."""
    at = len(answer.text) // 2
    return {"stop": [answer.text[at : at + 2]]} if part == "stop" else {"max_tokens": at}


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("end", ["stop", "length", "first"])
def test_ends(bundle: Bundle, noise: float, end: str) -> None:
    for seed in SEEDS:
        plain = answer_of(bundle, Recurrent(seed))
        options = {"max_tokens": 1} if end == "first" else ended_by(end, plain)
        short = answer_of(bundle, Recurrent(seed), **options)
        draft = Recurrent(seed, noise=noise)
        assert_same(answer_of(bundle, Recurrent(seed), draft, **options), short)
        assert short.finish == ("stop" if end == "stop" else "length")
        assert 0 < short.tokens < plain.tokens


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_the_token_that_ends_a_text(bundle: Bundle, noise: float) -> None:
    ended = 0
    for seed in SEEDS:
        plain = answer_of(bundle, Recurrent(seed))
        letters = [c for c in plain.text if c.isascii()]
        with_eos = replace(
            bundle, manifest=replace(bundle.manifest, eos=ord(letters[len(letters) // 2]))
        )
        short = answer_of(with_eos, Recurrent(seed))
        drafted = answer_of(with_eos, Recurrent(seed), Recurrent(seed, noise=noise))
        assert_same(drafted, short)
        ended += short.finish == "eos"
    assert ended == len(SEEDS)


def test_nothing_is_computed_before_it_is_wanted(bundle: Bundle) -> None:
    seed = next(s for s in SEEDS if answer_of(bundle, Recurrent(s)).text[0].isalpha())
    model, draft = Recurrent(seed), Recurrent(seed)
    memory = read_by(bundle, model)
    with fake_runtime(bundle, backend=model, draft=fake_draft(bundle, draft)) as runtime:
        model.passes.clear()
        answer = runtime.ask(memory, QUESTION, stop=[])
        assert answer.finish is None
        assert (model.passes, draft.passes) == ([], [])
        assert answer.draft is not None
        assert answer.draft.acceptance_rate is None
        for piece in answer:
            assert piece.isalpha()
            break
        assert (answer.finish, len(model.passes), answer.draft.forwards) == ("cancelled", 1, 0)
        assert runtime.measured.decode_tokens == 0


def test_a_draft_without_a_memory_reads_the_question_and_the_answer(bundle: Bundle) -> None:
    draft = Recurrent(2)
    answer = answer_of(bundle, Recurrent(1), draft, draft_reads=False, max_tokens=2)
    assert draft.passes == []  # the second token is the last: there is nothing to guess
    answer = answer_of(bundle, Recurrent(1), draft, draft_reads=False, max_tokens=3)
    assert draft.passes == [len(QUESTION), 1]
    assert answer.draft.draft_forwards == 2


def test_a_vocabulary_that_is_padded_further(tmp_path: Path) -> None:
    """A draft may not propose what the model has no row for, nor read what it has none for."""
    small, large = recurrent_bundle(tmp_path), recurrent_bundle(tmp_path)
    config = replace(small.manifest.config, vocab_size=400)
    large = replace(large, manifest=replace(large.manifest, config=config))
    for target, helper in ((small, large), (large, small)):
        sizes = [one.manifest.config.vocab_size for one in (target, helper)]
        for seed in SEEDS:
            model, draft = (Recurrent(seed, vocab_size=size) for size in sizes)
            memory = read_by(target, model)
            with fake_runtime(target, backend=model) as runtime:
                plain = runtime.ask(memory, QUESTION, stop=[])
                assert plain.read()
            with fake_runtime(target, backend=model, draft=fake_draft(helper, draft)) as runtime:
                drafted = runtime.ask(memory, QUESTION, stop=[])
                assert drafted.read() == plain.text


@pytest.mark.parametrize("perfect", [True, False])
def test_caches_that_fill_up_while_answering(tmp_path: Path, perfect: bool) -> None:
    """The answer ends where it does without drafts, and no pass goes beyond the caches."""
    bundle = cached_bundle(tmp_path)
    text = "The key is four. The lock is five. " * 3
    helper = fake_draft(fake_bundle(tmp_path), FakeBackend(VOCABULARY))
    with fake_runtime(helper.bundle, backend=helper.backend) as runtime:
        known = runtime.read(text if perfect else "It was a whale, and a white one.")
    for more in range(1, 14):
        capacity = sum(len(byte_level().encode(part).ids) for part in (text, "The key")) + more
        found = []
        for draft in (None, helper):
            with fake_runtime(bundle, capacity=capacity, draft=draft) as runtime:
                read = None if draft is None else known
                answer = runtime.ask(runtime.read(text), "The key", draft_memory=read)
                answer.read()
                found.append(answer)
        assert_same(*found)
        assert (found[0].finish, found[0].tokens) == ("room", more + 1)
        assert found[1].draft.proposed > 0 or more < 2
        assert (found[1].draft.accepted > 0) == (perfect and more > 1) or not perfect


def refused(bundle: Bundle, draft: Callable[[], Any] | None, **options: Any) -> str:
    model = Recurrent(1)
    memory = read_by(bundle, model)
    helper = None if draft is None else draft()
    with (
        fake_runtime(bundle, backend=model, draft=helper) as runtime,
        pytest.raises((BadInput, BadMemory)) as refusal,
    ):
        runtime.ask(memory, QUESTION, **options)
    return str(refusal.value)


def test_refusals(bundle: Bundle, tmp_path: Path) -> None:
    def draft() -> Any:
        return fake_draft(bundle, Recurrent(1))

    memory = read_by(bundle, Recurrent(1))
    assert refused(bundle, draft, temperature=0.5) == (
        "temperature is 0.5, and a draft model is loaded. A draft is accepted where it is the most "
        "probable token, so the temperature must be 0. Leave it out, or load without a draft model "
        "(--draft) to draw at random."
    )
    assert refused(bundle, draft, draft_tokens=0) == (
        "draft_tokens is 0; it must be 1 or more. Try 4."
    )
    assert refused(bundle, None, draft_memory=memory) == (
        "A draft model's memory was given, and no draft model is loaded. Load one with load(..., "
        "draft=BUNDLE) (--draft BUNDLE)."
    )
    other = replace(memory, origin=replace(memory.origin, model="0" * 64))
    assert refused(bundle, draft, draft_memory=other).startswith(
        "The draft model's memory belongs to the fake model 000000000000, and this bundle is the "
    )
    without = fake_bundle(tmp_path, tokenizer=False)
    assert refused(bundle, lambda: fake_draft(without)).startswith(
        f"The bundle {tmp_path} has no tokenizer, so it can read tokens and no text."
    )
