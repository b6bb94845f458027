"""One step of training on one segment, as plain calls or as a CUDA graph, and its optimizer.

The segments before the last only move the state forward. Not known here: documents, the order of
the stages, the clock.

    trainer = Trainer(model, new_optimizer(model, lr=2e-3), stage, answer_tokens=7, graphs=True)
    trainer.load(batch.tokens, batch.answers)
    trainer.train()
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from attention_blocks import seen_through_anchors
from ops import differentiable
from torch import nn
from torch.nn import functional as F

State = dict[str, torch.Tensor]
LM_TOKENS = 16_384  # tokens a step whose language-model loss is taken, beside answers
CLIP = 1.0


class Model(Protocol):
    """What is trained: longspan's `Decoder`, or what has its signature."""

    def new_state(self, batch: int, *, capacity: int) -> State:
        """Zeros."""

    def __call__(
        self, tokens: torch.Tensor, keep: torch.Tensor | None, state: State
    ) -> tuple[torch.Tensor, State]:
        """Logits [B, n, V] at the positions `keep`, and the state after."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Documents of up to `segments` segments (a power of two), with gaps of up to `gap` tokens.

    Attributes:
        gap: most tokens between the first fact and the question, without other facts.
        length: tokens of a segment.
        rows: documents a step.
        segments: of the longest documents.
        tasks: how many of the run's tasks are asked, the first ones; None for all.
        facts: of needles and mary.
        lifetime: segments of the longest documents that outlast a step (`streams.py`); 0 for none.
        lm: weight of the language-model loss. It is nothing at first: recall then starts in
            hundreds of steps instead of thousands.
        share: of the run's time, the most that the stage may take without being mastered.
    """

    gap: int
    length: int
    rows: int
    segments: int = 1
    tasks: int | None = None
    facts: int = 1
    lifetime: int = 0
    lm: float = 0.0
    share: float = 1.0


class Trainer:
    """Buffers of one stage, and the two things done with them: train on a segment, or pass by."""

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        stage: Stage,
        *,
        answer_tokens: int,
        anchor: int | None = None,
        graphs: bool = False,
    ) -> None:
        """Allocate, and with `graphs` capture both steps as CUDA graphs.

        Args:
            model: what is trained.
            optimizer: of its parameters.
            stage: sizes, and the weight of the language-model loss.
            answer_tokens: the last tokens of a segment that may be an answer; 0 where nothing is
                asked, and every token teaches.
            anchor: id of the token that stands for its segment, where attention is to read so.
            graphs: whether steps are CUDA graphs.
        """
        self.model, self.optimizer, self.stage, self.anchor = model, optimizer, stage, anchor
        self.parameters = [parameter for _, parameter in model.named_parameters()]
        device = self.parameters[0].device
        rows, length = stage.rows, stage.length
        self.state = model.new_state(rows, capacity=length)
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.answers = torch.zeros(rows, answer_tokens, dtype=torch.bool, device=device)
        room = length - answer_tokens - 1
        spots = min(room, max(1, LM_TOKENS // rows)) if answer_tokens else room
        self.lm_places = torch.arange(spots, device=device)
        self.right = torch.zeros(rows, device=device)
        self.losses = torch.zeros(2, device=device)
        self.train: Callable[[], None] = self._train
        self.skip: Callable[[], None] = self._skip
        if graphs and (stage.segments > 1 or stage.lifetime):
            self.skip = captured(self._skip, warm_up=self._skip)
        if graphs:
            self.train = captured(self._train, warm_up=self._gradients)
        self.reset()

    def reset(self) -> None:
        """Begin new documents."""
        for tensor in self.state.values():
            tensor.zero_()

    def go_on(self, state: State, fresh: torch.Tensor) -> None:
        """Take up the state of documents, those of the rows `fresh`, bool [B], begun anew.

        What the rows share, the position, goes on: only differences of positions count.
        """
        for name, mine in self.state.items():
            mine.copy_(state[name])
            if mine.is_floating_point():
                mine.masked_fill_(fresh.view(-1, *[1] * (mine.dim() - 1)), 0)

    def load(self, segment: torch.Tensor, answers: torch.Tensor) -> None:
        """Take tokens [B, L] and what of their end is the answer; draw where words are learnt."""
        self.tokens.copy_(segment)
        self.answers.copy_(answers)
        last = segment.shape[1] - answers.shape[1] - 1
        places = torch.randperm(last, device=segment.device)[: len(self.lm_places)]
        self.lm_places.copy_(places)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """How ops compute while `tokens` are read."""
        seen = None if self.anchor is None else seen_through_anchors(self.tokens, self.anchor)
        with differentiable(seen):
            yield

    def _skip(self) -> None:
        with torch.no_grad(), self._reading():
            _, after = self.model(self.tokens, self.lm_places[:0], self.state)
        for name, mine in self.state.items():
            mine.copy_(after[name])

    def _gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        width, length = self.answers.shape[1], self.tokens.shape[1]
        ends = torch.arange(length - width - 1, length - 1, device=self.tokens.device)
        with self._reading():
            logits, _ = self.model(self.tokens, torch.cat([ends, self.lm_places]), self.state)
        words = self.tokens.index_select(1, self.lm_places + 1)
        lm_loss = F.cross_entropy(logits[:, width:].flatten(0, 1), words.flatten())
        answer_loss = self._answer_loss(logits[:, :width]) if width else torch.zeros_like(lm_loss)
        torch.autograd.backward(answer_loss + self.stage.lm * lm_loss)
        self.losses.copy_(torch.stack([answer_loss.detach(), lm_loss.detach()]))

    def _answer_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens of all answers; notes which are right to the last token."""
        target = self.tokens[:, -self.answers.shape[1] :]
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        wrong = (logits.detach().argmax(-1) != target) & self.answers
        self.right.copy_(~wrong.any(1))
        weight = self.answers.flatten().to(losses.dtype)
        return (losses * weight).sum() / weight.sum().clamp(min=1)

    def _train(self) -> None:
        self._gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP)
        # AdamW's kernel steps over a batch whose gradients are not finite.
        self.optimizer.found_inf = (~norm.isfinite()).to(norm.dtype)  # type: ignore[attr-defined]
        self.optimizer.step()


def captured(work: Callable[[], None], warm_up: Callable[[], None]) -> Callable[[], None]:
    """`work` as a CUDA graph, after `warm_up` has compiled and allocated what it needs."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            warm_up()
    torch.cuda.current_stream().wait_stream(side)
    # The graph of the stage before is freed by now: while one is captured, none may be.
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def new_optimizer(model: Model, lr: float) -> torch.optim.Optimizer:
    """AdamW whose state exists from the start, so that a CUDA graph can hold its step.

    Matrices decay; what has no rows and columns, decays of the state and taps do not.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.endswith("weight") and p.dim() >= 2]
    matrices += [p for name, p in named if name in ("embedding", "head")]
    matrices = [p for p in matrices if p.dim() != 3 or p.shape[1] > 1]
    known = {id(parameter) for parameter in matrices}
    others = [p for _, p in named if id(p) not in known]
    device = matrices[0].device
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=torch.tensor(lr, device=device),
        betas=(0.9, 0.98),
        fused=True,
        capturable=device.type == "cuda",
    )
    set_lr(optimizer, 0.0)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Fill the learning-rate tensors in place: a CUDA graph reads them."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)
