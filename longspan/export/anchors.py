"""What `--anchors` asks for: which tokens are anchors, found in the tokenizer or by arithmetic.

AnLLM (arXiv 2402.07616) changes no weight of Llama, so a checkpoint becomes an anchor model here:

    ac         the token <AC>, which reading puts after every sentence
    ep         every token that is a full stop
    ids=1,2,3  these tokens
    every=N    every N-th token, whatever it is
    every=auto the smallest N with which a document of `tokens` fits `budget`
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, cast, get_args

from tokenizers import Tokenizer

from longspan.bundle import Manifest
from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import FullAttentionConfig, Positions, with_anchors
from longspan.runtime.anchor_interval import LEAST_INTERVAL, choose_interval
from longspan.sizes import parse_tokens

SENTENCE_TOKEN = "<AC>"
# As a token of its own, after a word, and at a word's start in SentencePiece and byte-level BPE.
FULL_STOPS = frozenset({".", " .", "\u2581.", "\u0120."})
AUTO = "every=auto"
FORMS = f"ac, ep, ids=1,2,3, every=N or {AUTO}"
BY_CUT = (
    "Positions are compressed, as in the authors' runs: what the model computes depends on how the "
    "text is cut into chunks, so on the budget, and is not checked in chunks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorReport:
    """The anchors of a bundle.

    Attributes:
        asked: the option's value.
        ids: tokens that are anchors.
        every: every so many tokens one is; None for no such rule.
        positions: what RoPE turns by.
        sentence_token: the token that reading puts after each sentence; None for none.
        trained: whether the tokenizer shows that the checkpoint was trained with such anchors.
        notes: what to know about the bundle, in words.
    """

    asked: str
    ids: tuple[int, ...]
    every: int | None
    positions: Positions
    sentence_token: int | None
    trained: bool
    notes: tuple[str, ...]

    def text(self) -> str:
        """The report for people."""
        every = () if self.every is None else (f"every {self.every:,} tokens",)
        names = "token" if len(self.ids) == 1 else "tokens"
        ids = (f"{names} {', '.join(map(str, self.ids))}",) if self.ids else ()
        first = f"anchors: {', '.join((*ids, *every))} ({self.positions} positions)"
        return "\n".join([first, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """A plain dict, for the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorRequest:
    """What a person asked for.

    Attributes:
        anchors: as in this module's docstring; None for none.
        positions: "absolute" or "compressed"; None for absolute.
        tokens, budget: length of a document and what may be held while it is read, for
            ``every=auto``.
    """

    anchors: str | None
    positions: str | None
    tokens: str | int | None
    budget: str | int | None


def add_anchors(
    checkpoint: Checkpoint,
    request: AnchorRequest,
    *,
    tokenizer: bytes | None,
    describe: Callable[[Checkpoint], Manifest],
) -> tuple[Checkpoint, AnchorReport | None]:
    """The checkpoint with anchors in place of full attention, and what they are.

    Args:
        checkpoint: as its family opened it.
        request: what was asked for.
        tokenizer: content of the bundle's ``tokenizer.json``; None without one.
        describe: gives the manifest of a checkpoint, without files.

    Raises:
        BadInput: the request cannot be met; with what was found and the next step.
        DoesNotFit: no interval makes the document fit the budget.
    """
    asked = request.anchors
    _check_options(request)
    if asked is None:
        return checkpoint, None
    _check_layers(checkpoint, asked)
    vocabulary = _vocabulary(tokenizer)
    positions = _positions(request.positions)
    ids, every, chosen = _ids(asked, checkpoint, vocabulary), _every(asked), None

    def anchored(interval: int | None) -> Checkpoint:
        config = with_anchors(
            checkpoint.config, anchor_ids=ids, anchor_every=interval, positions=positions
        )
        return replace(checkpoint, config=config)

    if asked == AUTO:
        assert request.tokens is not None, "checked above"
        assert request.budget is not None, "checked above"
        chosen = choose_interval(
            lambda interval: describe(anchored(interval)),
            tokens=parse_tokens(request.tokens),
            budget=request.budget,
            tokenizer=tokenizer,
        )
        every = chosen.every
    trained = asked == "ac"
    return anchored(every), AnchorReport(
        asked=asked,
        ids=ids,
        every=every,
        positions=positions,
        sentence_token=ids[0] if trained else None,
        trained=trained,
        notes=(
            *(() if chosen is None else (chosen.text(),)),
            _origin(trained, knows_ac=SENTENCE_TOKEN in vocabulary),
            *((BY_CUT,) if positions == "compressed" else ()),
        ),
    )


def _check_options(request: AnchorRequest) -> None:
    """Refuse an option that says nothing without another, or lacks one."""
    sizes = {"tokens": request.tokens, "budget": request.budget}
    given = [name for name, value in sizes.items() if value is not None]
    if request.anchors == AUTO and len(given) < len(sizes):
        (*_, missing) = sizes.keys() - set(given)
        raise BadInput(
            f"anchors={AUTO!r} was asked for without {missing}. The interval follows from the "
            "length of a document and the budget that it is read under. Give both, as in: "
            "--tokens 256K --budget 8GiB"
        )
    if request.anchors != AUTO and given:
        raise BadInput(
            f"{given[0]}={sizes[given[0]]!r} was given to export, which needs it for "
            f"anchors={AUTO!r} only. Leave it out, or export with --anchors {AUTO}."
        )
    if request.anchors is None and request.positions is not None:
        raise BadInput(
            f"positions={request.positions!r} was asked for without anchors. Only a model with "
            f"anchors has a choice. Give anchors={FORMS} (--anchors), or leave positions out."
        )


def _positions(asked: str | None) -> Positions:
    for known in get_args(Positions):
        if asked in (None, known):
            return cast(Positions, known)
    raise BadInput(
        f"positions={asked!r} was asked for; it must be {' or '.join(get_args(Positions))}. "
        "Leave it out for absolute ones."
    )


def _check_layers(checkpoint: Checkpoint, asked: str) -> None:
    """Anchors stand in plain attention over every token before."""
    full = [each for each in checkpoint.config.layers if isinstance(each, FullAttentionConfig)]
    if full and all(layer.d_conv is None for layer in full):
        return
    kinds = ", ".join(checkpoint.config.layers_by_kind())
    found = "a convolution in its attention" if full else f"the layers {kinds}"
    raise BadInput(
        f"anchors={asked!r} was asked for, and {checkpoint.path} is a {checkpoint.family} model "
        f"with {found}. Anchors need attention over every token before, and nothing between it and "
        "its projections, as Llama has. Leave anchors (--anchors) out."
    )


def _vocabulary(tokenizer: bytes | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    found: dict[str, int] = Tokenizer.from_str(tokenizer.decode()).get_vocab(with_added_tokens=True)
    return found


def _ids(asked: str, checkpoint: Checkpoint, vocabulary: dict[str, int]) -> tuple[int, ...]:
    """The tokens that are anchors; none for an interval."""
    kind, _, value = asked.partition("=")
    if kind == "ids":
        return _given_ids(asked, value, checkpoint.config.vocab_size)
    if asked == "ac":
        return _named(asked, {SENTENCE_TOKEN}, f"the token {SENTENCE_TOKEN}", vocabulary)
    if asked == "ep":
        return _named(asked, FULL_STOPS, "a token that is a full stop", vocabulary)
    if kind == "every":
        return ()
    raise BadInput(
        f"anchors={asked!r} was asked for; it must be one of {FORMS}, or left out to keep all keys."
    )


def _named(
    asked: str, texts: Collection[str], what: str, vocabulary: dict[str, int]
) -> tuple[int, ...]:
    ids = tuple(sorted(token for text, token in vocabulary.items() if text in texts))
    if ids:
        return ids
    found = "the tokenizer has none" if vocabulary else "there is no tokenizer to find it in"
    raise BadInput(
        f"anchors={asked!r} was asked for, which makes {what} an anchor, and {found}. Give the "
        "model's own with tokenizer=FILE (--tokenizer), or name the ids, as anchors='ids=32001' "
        "(--anchors ids=32001)."
    )


def _given_ids(asked: str, value: str, vocab_size: int) -> tuple[int, ...]:
    parts = value.split(",")
    if not all(part.isdecimal() for part in parts):
        raise BadInput(
            f"anchors={asked!r} was asked for; ids are whole numbers with commas between, as in: "
            "ids=29889,29973. Correct it."
        )
    ids = tuple(sorted({int(part) for part in parts}))
    if ids[-1] >= vocab_size:
        raise BadInput(
            f"anchors={asked!r} was asked for, and the model has no token {ids[-1]}: ids go from 0 "
            f"to {vocab_size - 1}. Correct it."
        )
    return ids


def _every(asked: str) -> int | None:
    """The interval that was asked for; None for ids, and where it is yet to be chosen."""
    kind, _, value = asked.partition("=")
    if kind != "every" or asked == AUTO:
        return None
    if value.isdecimal() and int(value) >= LEAST_INTERVAL:
        return int(value)
    raise BadInput(
        f"anchors={asked!r} was asked for; N must be a whole number of at least {LEAST_INTERVAL}: "
        "an anchor sees its own segment alone, so with an anchor at every token no token would see "
        "another. Try every=128."
    )


def _origin(trained: bool, *, knows_ac: bool) -> str:
    """Whether the checkpoint was trained so, as far as can be told."""
    if trained:
        return f"Trained with these anchors: its tokenizer has {SENTENCE_TOKEN}."
    if knows_ac:
        return (
            f"Trained with other anchors: its tokenizer has {SENTENCE_TOKEN} (--anchors ac). What "
            "these anchors stand for was not trained."
        )
    return (
        "Not trained with anchors, as far as can be told: only a tokenizer with "
        f"{SENTENCE_TOKEN} would show it. A model that was not trained so never learnt to put a "
        "segment into its anchor's keys, and recalls little of the segments that are closed."
    )
