"""Training by the clock: stage after stage, each until it is mastered or its time is over.

session = Session(run, model, optimizer, documents)
session.train(seconds=540)
session.progress, session.log
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from step import Model, Stage, Trainer, set_lr
from streams import Streams
from tasks import Batch, Documents, Task

MASTERED = 0.9  # exact answers of each task, of the last JUDGED ones to the longest documents
JUDGED = 1000
WARMUP_STEPS = 100
ANEW = 0.25  # of the steps of a stage with streams, those on documents that end with the step
REPORT_STEPS = 25
REPORT_SECONDS = 10
FALLING = 0.4  # of a run, its last part, if the learning rate is to fall to zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What stays the same from start to end.

    Attributes:
        tasks: what is asked; nothing for words alone.
        stages: in order.
        lr: the highest learning rate.
        anchor: id of the token that stands for its segment, where attention is to read so.
        graphs: whether steps are CUDA graphs.
        finish: whether the learning rate falls to zero at the end, as a cosine.
    """

    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]
    lr: float
    anchor: int | None = None
    graphs: bool = False
    finish: bool = False


@dataclass(slots=True)
class Progress:
    """Where the training stands, as far as it is not in the weights."""

    step: int = 0
    stage: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Scores:
    """Exact answers by task, summed on the device."""

    def __init__(self, tasks: tuple[Task, ...], rows: int, device: torch.device) -> None:
        """Rows belong to the tasks as `Documents.draw` puts them."""
        self.tasks = tasks
        parts = torch.arange(rows).tensor_split(max(1, len(tasks)))
        owners = [torch.full((len(part),), i) for i, part in enumerate(parts)]
        self.owner = torch.cat(owners).to(device)
        self.sums = torch.zeros(max(1, len(tasks)), 2, device=device)

    def add(self, right: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Count right answers [B], 0 or 1, of the rows `asked` [B]; return their share by task."""
        both = torch.stack([asked.to(right.dtype), right * asked], dim=1)
        batch = torch.zeros_like(self.sums).index_add_(0, self.owner, both)
        self.sums += batch
        return batch[:, 1] / batch[:, 0].clamp(min=1)

    def take(self) -> dict[str, float]:
        """The share of exact answers of each task since the last call."""
        found = (self.sums[:, 1] / self.sums[:, 0].clamp(min=1)).tolist()
        self.sums.zero_()
        return {task: round(share, 4) for task, share in zip(self.tasks, found, strict=False)}


@dataclass(frozen=True, slots=True)
class Clock:
    """How much of a run is done, by its time or its tokens, and the learning rate that follows.

    Attributes:
        begin: monotonic seconds.
        seconds: after which it ends.
        tokens: after which it ends, too; None for no such end.
        finish: whether the learning rate falls to zero.
    """

    begin: float
    seconds: float
    tokens: int | None
    finish: bool

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begin

    def done(self, tokens: int) -> float:
        """The share of the run that is done after so many tokens; 1 or more at its end."""
        by_time = self.elapsed() / self.seconds if self.seconds > 0 else 1.0
        return by_time if self.tokens is None else max(by_time, tokens / max(1, self.tokens))

    def rate(self, progress: Progress) -> float:
        """Warm up, stay, and when finishing fall to zero."""
        warm = min(1.0, (progress.step + 1) / WARMUP_STEPS)
        left = min(1.0, max(0.0, 1.0 - self.done(progress.tokens)) / FALLING)
        return warm * (0.5 - 0.5 * math.cos(math.pi * left) if self.finish else 1.0)


@dataclass(slots=True)
class Session:
    """A model in training."""

    run: Run
    model: Model
    optimizer: torch.optim.Optimizer
    documents: Documents
    progress: Progress = field(default_factory=Progress)
    log: list[dict[str, Any]] = field(default_factory=list)

    def train(self, seconds: float, tokens: int | None = None) -> None:
        """Train until the time is over, a stage after the other.

        Args:
            seconds: of this run.
            tokens: with which it ends sooner, those of the runs before it among them.
        """
        clock = Clock(time.monotonic(), seconds, tokens, self.run.finish)
        before = self.progress.seconds
        while clock.done(self.progress.tokens) < 1:
            ended = self._stage(clock, before)
            if ended and self.progress.stage + 1 < len(self.run.stages):
                self.progress.stage += 1
        self.progress.seconds = before + clock.elapsed()

    def tasks(self, stage: Stage) -> tuple[Task, ...]:
        """What a stage asks."""
        return self.run.tasks[: stage.tasks]

    def trainer(self, stage: Stage) -> Trainer:
        """A trainer for one stage."""
        return Trainer(
            self.model,
            self.optimizer,
            stage,
            answer_tokens=self.documents.answer_tokens if self.run.tasks else 0,
            anchor=self.run.anchor,
            graphs=self.run.graphs,
        )

    def _stage(self, clock: Clock, before: float) -> bool:
        """Train on one stage until it ends; return False if the run's time is over first."""
        stage = self.run.stages[self.progress.stage]
        trainer = self.trainer(stage)
        scores = Scores(self.tasks(stage), stage.rows, trainer.tokens.device)
        streams = self.streams(trainer) if stage.lifetime else None
        # Streams start young: only after a lifetime are documents of every age among them.
        judged = max(math.ceil(JUDGED / stage.rows), stage.lifetime)
        hardest: deque[torch.Tensor] = deque(maxlen=judged)
        began = reported = clock.elapsed()
        while clock.done(self.progress.tokens) < 1:
            elapsed = clock.elapsed()
            set_lr(self.optimizer, self.run.lr * clock.rate(self.progress))
            if streams is not None and float(torch.rand(())) >= ANEW:
                self.read_on(trainer, streams)
                longest = True
            else:
                segments = draw_segments(stage)
                self.step(trainer, segments)
                longest = streams is None and segments == stage.segments
            shares = scores.add(trainer.right, trainer.answers.any(1))
            if longest:
                hardest.append(shares)
            if self.progress.step % REPORT_STEPS or not hardest:
                continue
            least = float(torch.stack(list(hardest)).mean(0).min())
            mastered = bool(scores.tasks) and len(hardest) == judged and least >= MASTERED
            over = stage.share < 1 and elapsed - began > stage.share * clock.seconds
            if mastered or over or elapsed - reported > REPORT_SECONDS:
                reported = elapsed
                self._report(trainer, before + elapsed, least, scores.take(), mastered)
            if mastered or over:
                return True
        return False

    def _report(
        self, trainer: Trainer, seconds: float, least: float, exact: dict[str, float], done: bool
    ) -> None:
        """One line about where the training stands, printed and kept."""
        answer_loss, lm_loss = trainer.losses.tolist()
        row = {
            **asdict(self.progress),
            "seconds": round(seconds, 1),
            "hardest": round(least, 4),
            "mastered": done,
            "answer_loss": round(answer_loss, 4),
            "lm_loss": round(lm_loss, 4),
            "exact": exact,
        }
        self.log.append(row)
        shares = "  ".join(f"{task} {share:.3f}" for task, share in exact.items())
        print(
            f"{seconds:6.1f} s  step {row['step']}  {self.progress.tokens / 1e6:.1f}M tokens  "
            f"stage {row['stage']}{' mastered' if done else ''}  hardest {least:.3f}  "
            f"answer {answer_loss:.3f}  lm {lm_loss:.3f}  {shares}",
            flush=True,
        )

    def step(self, trainer: Trainer, segments: int) -> None:
        """Read new documents, training on the last segment of each."""
        stage = trainer.stage
        batch = self.draw(stage, segments)
        trainer.reset()
        *passed, last = torch.split(batch.tokens, stage.length, dim=1)
        for segment in passed:
            trainer.tokens.copy_(segment)
            trainer.skip()
        trainer.load(last, batch.answers)
        trainer.train()
        self.progress.step += 1
        self.progress.tokens += batch.tokens.numel()

    def streams(self, trainer: Trainer) -> Streams:
        """Documents that outlast a step, each at its start."""
        stage = trainer.stage
        return Streams(self.documents, self.tasks(stage), stage, trainer.state)

    def read_on(self, trainer: Trainer, streams: Streams) -> None:
        """Read a segment more of every document; train on another, which only asks."""
        fresh, segment = streams.read_on()
        trainer.go_on(streams.state, fresh)
        trainer.tokens.copy_(segment)
        trainer.skip()
        streams.keep(trainer.state)
        trainer.load(*streams.ask())
        trainer.train()
        self.progress.step += 1
        self.progress.tokens += 2 * segment.numel()

    def draw(self, stage: Stage, segments: int) -> Batch:
        """Documents of so many segments; of several, the first fact stands in the first half."""
        length = segments * stage.length
        if not self.run.tasks:
            tokens = self.documents.filler_rows(stage.rows, length)
            none = tokens.new_zeros(stage.rows, 0, dtype=torch.bool)
            return Batch(tokens=tokens, asked=none, answers=none)
        least = 1 if segments == 1 else length // 2
        return self.documents.draw(
            self.tasks(stage),
            rows=stage.rows,
            length=length,
            gap=(least, stage.gap),
            facts=stage.facts,
        )


def draw_segments(stage: Stage) -> int:
    """Segments of the next documents: 1, 2, 4, ..., the longer the rarer, as they cost more."""
    choices: list[int] = [2**i for i in range(stage.segments.bit_length())]
    weights = torch.tensor([n**-0.5 for n in choices])
    return choices[int(torch.multinomial(weights, 1).item())]
