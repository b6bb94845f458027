"""Documents that outlast a step: each reads on, and is asked anew after every segment.

A document costs one segment a step whatever its age, so that states which have read a million
tokens are as common as young ones. Its facts stand in one segment; later ones are filler. The state
is carried over the updates of the weights, as in truncated backpropagation through time; where a
document ends, the next begins in its row, from a state of zeros.

    streams = Streams(documents, ("passkey",), stage, trainer.state)
    fresh, segment = streams.read_on()  # zero the rows `fresh` of `streams.state`, then read
    tokens, answers = streams.ask()  # to be read from that state, which stays as it is
"""

from __future__ import annotations

import torch
from step import Stage, State
from tasks import Documents, Task, log_uniform


class Streams:
    """A row of documents for each of a stage's rows."""

    def __init__(
        self, documents: Documents, tasks: tuple[Task, ...], stage: Stage, state: State
    ) -> None:
        """All rows begin a document with the first segment.

        Args:
            documents: where filler, facts and questions come from.
            tasks: what is asked.
            stage: rows, tokens of a segment, and the most segments of a document, its `lifetime`:
                they are drawn log-uniformly, and the facts stand somewhere in the first half.
            state: a model's of so many rows; only what it looks like counts.
        """
        device, rows = documents.filler.device, stage.rows
        self.documents, self.tasks, self.stage = documents, tasks, stage
        self.state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self.left = torch.zeros(rows, dtype=torch.long, device=device)
        self.until_facts = torch.zeros(rows, dtype=torch.long, device=device)
        width = documents.questions.width
        self.question = torch.zeros(rows, width, dtype=torch.long, device=device)
        self.asked = torch.zeros(rows, width, dtype=torch.bool, device=device)
        self.answers = torch.zeros(rows, documents.answer_tokens, dtype=torch.bool, device=device)

    def read_on(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows begin a document, bool [B], and the next segment of all, int64 [B, L]."""
        rows, length = self.stage.rows, self.stage.length
        fresh = self.left == 0
        lifetime = log_uniform(rows, 1, self.stage.lifetime, fresh.device)
        first = (torch.rand(rows, device=fresh.device) * (lifetime + 1) / 2).long()
        self.left = torch.where(fresh, lifetime, self.left) - 1
        self.until_facts = torch.where(fresh, first, self.until_facts - 1)

        told = (self.until_facts == 0)[:, None]
        batch = self.documents.draw(
            self.tasks, rows=rows, length=length, gap=(1, length), facts=self.stage.facts
        )
        width = self.question.shape[1]
        filler = self.documents.filler_rows(rows, length)
        segment = torch.where(told, batch.tokens, filler)
        # A question comes later: where it stands in what was drawn is filler.
        end = torch.where(batch.asked, filler[:, -width:], segment[:, -width:])
        segment = torch.cat([segment[:, :-width], end], dim=1)
        self.question = torch.where(told, batch.tokens[:, -width:], self.question)
        self.asked = torch.where(told, batch.asked, self.asked)
        self.answers = torch.where(told, batch.answers, self.answers)
        return fresh, segment

    def keep(self, state: State) -> None:
        """Keep the state after a segment; a document whose state is not finite ends there."""
        for name, kept in self.state.items():
            kept.copy_(state[name])
            if kept.is_floating_point():
                self.left.masked_fill_(~kept.flatten(1).isfinite().all(1), 0)

    def ask(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A segment more that ends in the question, and its `answers`: none before the facts."""
        filler = self.documents.filler_rows(self.stage.rows, self.stage.length)
        width = self.question.shape[1]
        known = (self.until_facts <= 0)[:, None]
        end = torch.where(self.asked & known, self.question, filler[:, -width:])
        return torch.cat([filler[:, :-width], end], dim=1), self.answers & known
