"""Exact answers by length of the document, as far as a run must know them before it is exported.

exact_answers(model, documents, "passkey", length=16384, rows=64)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from attention_blocks import seen_through_anchors
from ops import differentiable
from step import Model
from tasks import Documents, Task

SEGMENT = 2048
FACTS = 8


@torch.no_grad()
def exact_answers(
    model: Model,
    documents: Documents,
    task: Task,
    *,
    length: int,
    rows: int,
    anchor: int | None = None,
    whole: bool = False,
) -> float:
    """The share of documents whose answer is right to its last token, from a zero state.

    The tokens before it are given, so this is what greedy decoding says, too.

    Args:
        model: what is asked.
        documents: where the text comes from.
        task: what is asked for; facts lie anywhere in the document.
        length: tokens of each document.
        rows: documents.
        anchor: id of the token that stands for its segment, where attention is to read so.
        whole: whether a document is read in one segment, as a model with a cache must here.
    """
    gap = length // 2, length
    batch = documents.draw((task,), rows=rows, length=length, gap=gap, facts=FACTS)
    segment = length if whole else min(length, SEGMENT)
    state = model.new_state(rows, capacity=segment)
    width = batch.answers.shape[1]
    # The first segment is the short one.
    cuts = [length % segment or segment] + [segment] * ((length - 1) // segment)
    for part in torch.split(batch.tokens, cuts, dim=1):
        seen = None if anchor is None else seen_through_anchors(part, anchor)
        keep = torch.arange(part.shape[1] - width - 1, part.shape[1] - 1, device=part.device)
        with differentiable(seen):
            logits, state = model(part, keep, state)
    wrong = (logits.argmax(-1) != batch.tokens[:, -width:]) & batch.answers
    return float((~wrong.any(1)).float().mean())


@torch.no_grad()
def loss_of_words(
    model: Model, documents: Documents, *, length: int, rows: int, anchor: int | None = None
) -> float:
    """Mean cross-entropy of every token of `rows` texts of `length` tokens, in nats."""
    tokens = documents.filler_rows(rows, length)
    seen = None if anchor is None else seen_through_anchors(tokens, anchor)
    keep = torch.arange(length - 1, device=tokens.device)
    with differentiable(seen):
        logits, _ = model(tokens, keep, model.new_state(rows, capacity=length))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return float(loss)


def report(
    model: Model,
    documents: Documents,
    tasks: Iterable[Task],
    *,
    lengths: Iterable[int],
    rows: int,
    anchor: int | None,
    whole: bool,
) -> dict[str, float]:
    """`task length` -> share of exact answers, printed as it is found."""
    found = {}
    for task in tasks:
        for length in lengths:
            share = exact_answers(
                model, documents, task, length=length, rows=rows, anchor=anchor, whole=whole
            )
            found[f"{task} {length}"] = share
            print(f"{task:8} {length:7,} tokens: exact {share:.3f} of {rows}", flush=True)
    return found
