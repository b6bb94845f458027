"""Train one of longspan's systems, by the clock, on what the papers ask of them.

    python examples/train/text.py --data .data
    python examples/train/train.py --data .data --system samba --tasks passkey,needles,mary,lm \\
        --minutes 9 --out out/samba
    python examples/train/train.py --data .data --system samba --tasks passkey,needles,mary,lm \\
        --minutes 9 --resume out/samba --finish --out out/final
    longspan export out/final bundle/

The model is longspan's own decoder. A step reads a batch of documents that end in a question; only
the last segment is trained on, the segments before it move the state forward. Stages go from short
documents to long ones. On a GPU a step is one CUDA graph. The folder written last is a checkpoint
in the system's published format, with what it cost in `training.json`.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from evaluate import loss_of_words, report
from loop import Run, Session
from saving import resume, save
from stages import stages_of
from start import new_model
from step import new_optimizer
from systems import SYSTEMS, System
from tasks import Documents, Task
from text import Array, Text

from longspan.version import __version__

LM = "lm"
TOKENIZER = "tokenizer.json"
SHORT, LONG = (512, 2048), (16_384, 65_536, 262_144)


@dataclass(frozen=True, slots=True)
class Asked:
    """What `--tasks` names: questions, and whether words are learnt beside them."""

    tasks: tuple[Task, ...]
    lm: bool

    @classmethod
    def parse(cls, text: str) -> Asked:
        """Read `passkey,needles,mary,lm`.

        Raises:
            argparse.ArgumentTypeError: a name is none of these.
        """
        names = text.split(",")
        tasks = tuple(name for name in get_args(Task) if name in names)
        unknown = set(names) - {*tasks, LM}
        if unknown:
            known = ", ".join((*get_args(Task), LM))
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))} was asked for; the tasks are {known}"
            )
        return cls(tasks, LM in names)


def new_session(options: argparse.Namespace, system: System) -> Session:
    """A model at its start, or where `--resume` left it."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model = new_model(system.model, compute=getattr(torch, options.compute), device=options.device)
    run = Run(
        tasks=options.tasks.tasks,
        stages=stages_of(system, options.tasks.tasks, lm=options.tasks.lm),
        lr=options.lr,
        anchor=system.anchor,
        graphs=options.device == "cuda" and not options.eager,
        finish=options.finish,
    )
    documents = Documents(Text(options.data, system.tokens), "train", options.device)
    session = Session(run, model, new_optimizer(model, options.lr), documents)
    if options.resume is not None:
        resume(system, session, options.resume)
    return session


def evaluated(options: argparse.Namespace, system: System, session: Session) -> dict[str, Any]:
    """What the model can do with texts that it was not trained on, by the text's name."""
    cached, anchor, found = system.model.has_cache, system.anchor, {}
    for array in options.held_out:
        documents = Documents(Text(options.data, system.tokens), array, options.device)
        length = SHORT[-1]
        loss = loss_of_words(session.model, documents, length=length, rows=16, anchor=anchor)
        print(f"words of {array}: {loss:.4f} nats a token of {length:,}", flush=True)
        exact = report(
            session.model,
            documents,
            session.run.tasks,
            lengths=SHORT if cached else (*SHORT, *LONG),
            rows=options.keys,
            anchor=anchor,
            whole=cached,
        )
        found[array] = {"nats_a_token": loss, "exact": exact}
    return {"held_out": found}


def notes(options: argparse.Namespace, system: System, session: Session) -> dict[str, Any]:
    """What was trained, on what, and what it cost, over all runs that it was resumed from."""
    on_gpu = options.device == "cuda"
    minutes = session.progress.seconds / 60
    return {
        "system": system.name,
        "tasks": [*session.run.tasks, *([LM] if options.tasks.lm else [])],
        "parameters": sum(p.numel() for _, p in session.model.named_parameters()),
        "tokens": session.progress.tokens,
        "gpu_minutes": minutes if on_gpu else 0.0,
        "cpu_minutes": 0.0 if on_gpu else minutes,
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "versions": {"longspan": __version__, "torch": torch.__version__},
        "seed": options.seed,
        "lr": options.lr,
        "compute": options.compute,
        "finished": options.finish,
        "export": list(system.export),
    }


def train(options: argparse.Namespace) -> None:
    """Train by the clock, save, evaluate, save what was found."""
    system = SYSTEMS[options.system]
    session = new_session(options, system)
    session.train(60 * options.minutes)
    written = notes(options, system, session)
    save(system, session, written, options.out)
    tokenizer = session.documents.text.file
    if tokenizer is not None:
        shutil.copy(tokenizer, options.out / TOKENIZER)
    if options.keys:
        save(system, session, written | evaluated(options, system, session), options.out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    parser.add_argument("--tasks", type=Asked.parse, default="passkey,needles,mary,lm")
    parser.add_argument("--data", type=Path, required=True, help="what text.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="a folder that an earlier run wrote")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--finish", action="store_true", help="let the learning rate fall to zero")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--keys", type=int, default=64, help="documents per evaluation; 0: none")
    parser.add_argument(
        "--held-out", nargs="+", default=["books"], choices=get_args(Array)[1:], help="evaluated"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--compute", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: slower")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
