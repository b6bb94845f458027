"""What a plan chose and why, in the order in which it chooses.

The largest chunk that fits comes first, then the capacity of caches, then whether a step is
recorded; what does not fit with the smallest chunk is refused. `longspan plan --explain` shows
them.

chunk_choice(512, asked=False, larger=(1024, 2**20), fits=True, whole_document=False).why
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decision of a plan, in words.

    Attributes:
        what: was to be decided.
        chosen: how it was.
        why: for which reason.
    """

    what: str
    chosen: str
    why: str


def chunk_choice(
    tokens: int,
    *,
    asked: bool,
    larger: tuple[int, int] | None,
    fits: bool,
    whole_document: bool,
) -> Choice:
    """Tokens of a chunk.

    Args:
        tokens: of a chunk.
        asked: whether the caller said so.
        larger: the next larger chunk's tokens, and the bytes by which it passes the budget; None
            where there is none.
        fits: whether this one is within the budget.
        whole_document: whether it holds the whole document.
    """
    if asked:
        why = "it was asked for" if fits else "it was asked for, and does not fit"
    elif not fits:
        why = "not even the smallest fits"
    elif larger is not None:
        why = f"{larger[0]:,} tokens would pass the budget by {format_bytes(larger[1])}"
    elif whole_document:
        why = "the document is no longer"
    else:
        why = "the largest that is used: a longer one is no faster"
    return Choice(what="chunk", chosen=f"{tokens:,} tokens", why=why)


def capacity_choice(
    capacity: int, *, document: int | None, reserve: int, beside: int, at_most: int | None
) -> Choice:
    """Entries of the caches.

    Args:
        capacity: entries of each.
        document: entries that the document takes, if that is known.
        reserve: entries for a question and its answer.
        beside: tokens of the chunk that was chosen before.
        at_most: the limit where no longer document is announced, if it is met.
    """
    if document is not None:
        why = f"{document:,} for the document, {reserve:,} for a question and its answer"
    elif at_most is not None:
        why = "each call copies them: no more, unless a longer document is announced"
    else:
        why = f"what the document can take, or the most that fits beside {beside:,} tokens"
    return Choice(what="caches", chosen=f"{capacity:,} entries", why=why)


def step_choice(*, recorded: bool, why: str) -> Choice:
    """Whether the step of an answer is recorded, and replayed."""
    return Choice(
        what="step", chosen="recorded once" if recorded else "launched each time", why=why
    )
