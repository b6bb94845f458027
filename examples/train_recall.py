"""Train a small Samba to recall a pass key said once, a very long document ago.

    python examples/train_recall.py prepare --novels novels.txt.xz --data .data
    python examples/train_recall.py train --data .data --out out/recall --minutes 9
    python examples/train_recall.py train --data .data --out out/final --resume out/recall \\
        --minutes 9 --finish

A step reads a batch of documents that end in the question. Only the last segment is trained on;
the segments before it only move the state forward. Recall starts with short documents, where it
is easy to learn, and a stage of longer ones begins as soon as the present stage is mastered.
On a GPU a step is one CUDA graph. The folder written last holds a microsoft/Samba checkpoint:
samba.pth, config.json, tokenizer.json.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from recall_data import RecallData, prepare
from recall_model import Samba, SambaConfig
from recall_step import ANSWER_TOKENS, Stage, Trainer, new_optimizer, set_lr

MASTERED = 0.9  # exact answers, of the last JUDGED ones to the longest documents
JUDGED = 1000
WARMUP_STEPS = 100
REPORT_STEPS = 25
REPORT_SECONDS = 10


STAGES = (
    Stage(gap=32, length=96, rows=256),
    Stage(gap=96, length=160, rows=160),
    Stage(gap=224, length=288, rows=128),
    Stage(gap=480, length=544, rows=96, lm=0.05),
    Stage(gap=2000, length=2048, rows=48, lm=0.1),
    Stage(gap=8192, length=2048, rows=48, segments=4, lm=0.2),
    Stage(gap=32768, length=2048, rows=48, segments=16, lm=0.2),
    Stage(gap=131072, length=2048, rows=48, segments=64, lm=0.2),
)


@dataclass(slots=True)
class Progress:
    """Where the training stands, as far as it is not in the weights."""

    step: int = 0
    stage: int = 0
    seconds: float = 0.0
    tokens: int = 0


def log_uniform_gaps(rows: int, low: int, high: int, device: torch.device) -> torch.Tensor:
    """Log-uniform int64 [rows] in low..high."""
    start, end = torch.tensor([low, high + 1.0]).log().tolist()
    return (
        torch.exp(start + (end - start) * torch.rand(rows, device=device)).long().clamp(low, high)
    )


def draw_segments(stage: Stage) -> int:
    """Segments of the next documents: 1, 2, 4, ..., the longer the rarer, as they cost more."""
    choices: list[int] = [2**i for i in range(stage.segments.bit_length())]
    weights = torch.tensor([n**-0.5 for n in choices])
    return choices[int(torch.multinomial(weights, 1).item())]


class Scores:
    """Exact answers and right digits by gap, in buckets of powers of four, summed on the device."""

    def __init__(self, device: torch.device) -> None:
        """Start from nothing."""
        self.sums = torch.zeros(10, 3, device=device)

    def add(self, gaps: torch.Tensor, right: torch.Tensor) -> None:
        """Count gaps [B] and right digits, 0 or 1, [B, 5]."""
        bucket = (gaps.float().log2() / 2).long().clamp(0, 9)
        row = torch.stack([torch.ones_like(right[:, 0]), right.prod(1), right.mean(1)], dim=1)
        self.sums.index_add_(0, bucket, row)

    def report(self) -> str:
        """`<gap: exact/digits` of every bucket that has an answer, and start again."""
        parts = [
            f"<{4 ** (i + 1)}: {exact / count:.2f}/{digits / count:.2f}"
            for i, (count, exact, digits) in enumerate(self.sums.tolist())
            if count
        ]
        self.sums.zero_()
        return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a run, and the learning rate that belongs to it."""

    begin: float
    budget: float
    finish: bool

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begin

    def rate(self, step: int) -> float:
        """Warm up, stay, and when finishing go to zero over the last 40% of the time."""
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        cool = min(1.0, (1.0 - self.elapsed() / self.budget) / 0.4) if self.finish else 1.0
        return warm * max(0.0, cool)


@dataclass(slots=True)
class Session:
    """A model in training."""

    model: Samba
    optimizer: torch.optim.Optimizer
    data: RecallData
    lr: float
    graphs: bool
    progress: Progress = field(default_factory=Progress)

    def run(self, seconds: float, finish: bool, stages: tuple[Stage, ...] = STAGES) -> None:
        """Train until the time is over, a stage after the other."""
        clock = Clock(time.monotonic(), seconds, finish)
        while clock.elapsed() < seconds:
            stage = stages[self.progress.stage]
            trainer = Trainer(self.model, self.optimizer, stage, self.graphs)
            last = self.progress.stage + 1 == len(stages)
            if self._master(trainer, clock) and not last:
                self.progress.stage += 1
        self.progress.seconds += clock.elapsed()

    def _master(self, trainer: Trainer, clock: Clock) -> bool:
        """Train on one stage until it is mastered or the time is over; return which."""
        stage, progress, scores = trainer.stage, self.progress, Scores(trainer.tokens.device)
        hardest: deque[torch.Tensor] = deque(maxlen=math.ceil(JUDGED / stage.rows))
        reported = time.monotonic()
        while (elapsed := clock.elapsed()) < clock.budget:
            set_lr(self.optimizer, self.lr * clock.rate(progress.step))
            segments = draw_segments(stage)
            scores.add(self.step(trainer, stage, segments), trainer.right)
            if segments == stage.segments:
                hardest.append(trainer.right.prod(1).mean())
            progress.step += 1
            progress.tokens += segments * trainer.tokens.numel()
            if progress.step % REPORT_STEPS == 0 and hardest:
                accuracy = float(torch.stack(list(hardest)).mean())
                mastered = len(hardest) == hardest.maxlen and accuracy >= MASTERED
                if mastered or time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    self.print_line(trainer, scores, elapsed, accuracy)
                if mastered:
                    return True
        return False

    def print_line(self, trainer: Trainer, scores: Scores, elapsed: float, accuracy: float) -> None:
        """One line about where the training stands."""
        answer_loss, lm_loss = trainer.losses.tolist()
        p = self.progress
        print(
            f"{elapsed:6.1f} s  step {p.step}  {p.tokens / 1e6:.1f}M tokens  stage {p.stage}  "
            f"hardest {accuracy:.3f}  answer {answer_loss:.3f}  lm {lm_loss:.3f}  "
            f"{scores.report()}",
            flush=True,
        )

    def step(self, trainer: Trainer, stage: Stage, segments: int) -> torch.Tensor:
        """Read new documents, training on the last segment of each; return their gaps."""
        length = segments * stage.length
        low = 1 if segments == 1 else length // 2
        high = min(stage.gap, self.data.longest_gap(length))
        gaps = log_uniform_gaps(stage.rows, low, high, trainer.tokens.device)
        tokens, _ = self.data.documents(length, gaps)
        trainer.reset()
        for segment in torch.split(tokens, stage.length, dim=1)[:-1]:
            trainer.tokens.copy_(segment)
            trainer.skip()
        trainer.load(tokens[:, -stage.length :])
        trainer.train()
        return gaps


@torch.no_grad()
def recalled(model: Samba, tokens: torch.Tensor, segment: int = 2048) -> torch.Tensor:
    """Which digits greedy decoding gets right, bool [B, 5], for documents tokens [B, L]."""
    state = model.new_state(len(tokens))
    front = tokens.shape[1] % model.config.window
    for part in torch.split(tokens[:, front:], segment, dim=1):
        hidden, state = model(part, state)
    best = model.head(hidden[:, -ANSWER_TOKENS - 1 : -1]).argmax(-1)
    return (best == tokens[:, -ANSWER_TOKENS:])[:, 1:-1]


def evaluate(model: Samba, folder: Path, device: str, keys: int) -> None:
    """Print how many keys are recalled from unseen text, by length of the document."""
    for array in ("books", "modules"):
        data = RecallData(folder, device, array)
        for length in (2048, 16384, 65536, 131072):
            gaps = torch.randint(data.longest_gap(length), (keys,), device=device)
            right = recalled(model, data.documents(length, gaps)[0])
            print(
                f"{array:8} {length:7} tokens: exact {right.all(1).float().mean():.3f}  "
                f"digits {right.float().mean():.3f}  of {keys} keys",
                flush=True,
            )


def save(session: Session, data_folder: Path, out: Path) -> None:
    """Write the checkpoint for longspan, and in three more files what resuming needs."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": session.model.state_dict()}, out / "samba.pth")
    session.model.config.save(out / "config.json")
    shutil.copy(data_folder / "tokenizer.json", out / "tokenizer.json")
    state = session.optimizer.state_dict()["state"]
    for moment in ("exp_avg", "exp_avg_sq"):
        torch.save({i: s[moment] for i, s in state.items()}, out / f"{moment}.pt")
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    rest = {"progress": asdict(session.progress), "cpu": torch.get_rng_state(), "cuda": cuda}
    torch.save(rest, out / "progress.pt")


def resume(session: Session, folder: Path) -> None:
    """Continue from what `save` wrote."""
    weights = torch.load(folder / "samba.pth", weights_only=True)["model"]
    session.model.load_state_dict(weights)
    rest = torch.load(folder / "progress.pt", weights_only=True)
    session.progress = Progress(**rest["progress"])
    moments = {
        m: torch.load(folder / f"{m}.pt", weights_only=True) for m in ("exp_avg", "exp_avg_sq")
    }
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        state = session.optimizer.state[parameter]
        state["step"].fill_(session.progress.step)
        for moment, tensors in moments.items():
            state[moment].copy_(tensors[index])
    torch.set_rng_state(rest["cpu"])
    if rest["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(rest["cuda"])


def train(options: argparse.Namespace) -> None:
    """Train by the clock, save, evaluate."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model = Samba(SambaConfig()).to(options.device)
    session = Session(
        model,
        new_optimizer(model, options.lr),
        RecallData(options.data, options.device),
        options.lr,
        graphs=options.device == "cuda" and not options.eager,
    )
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    if options.resume is not None:
        resume(session, options.resume)
    session.run(60 * options.minutes, options.finish)
    save(session, options.data, options.out)
    evaluate(model, options.data, options.device, options.keys)


def main() -> None:
    """Read the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    preparing = commands.add_parser("prepare", help="train the tokenizer and tokenise the filler")
    preparing.add_argument("--novels", type=Path, required=True)
    preparing.add_argument("--data", type=Path, required=True)
    preparing.set_defaults(run=lambda options: print(prepare(options.novels, options.data)))
    training = commands.add_parser("train", help="train by the clock, save, evaluate")
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--resume", type=Path)
    training.add_argument("--minutes", type=float, default=9.0)
    training.add_argument(
        "--finish", action="store_true", help="let the learning rate fall to zero"
    )
    training.add_argument("--lr", type=float, default=2e-3)
    training.add_argument("--keys", type=int, default=64, help="documents per evaluation")
    training.add_argument("--device", default="cuda")
    training.add_argument("--eager", action="store_true", help="no CUDA graphs: slower")
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
