"""Train MegaByte (arXiv 2305.07185), MambaByte's baseline, on the same bytes in the same loop.

    python examples/train/train_megabyte.py --data .data --minutes 4 --out out/megabyte
    python examples/train/train.py --system mambabyte --tasks lm --finish \\
        --data .data --minutes 4 --out out/mambabyte

No family of longspan's is MegaByte, so its model is that of `benchmarks/megabyte.py`, and its
checkpoint is its own: `sizes.json`, float32 weights in pieces, what it cost in `training.json`. A
byte costs it about as many FLOPs as it costs MambaByte (7.5M, `benchmarks/megabyte_sizes.py`; 7.1M
in MambaByte's matrices, 0.6M in its scan), so after as many bytes both have had the same compute:
`--like` reads how many those were, and ends when MegaByte has read them, in the same batches.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from evaluate import loss_of_words
from loop import Run, Session
from safetensors.torch import save_file
from saving import NOTES, in_pieces
from stages import stages_of
from step import State, new_optimizer
from systems import SYSTEMS
from tasks import Documents
from text import Text
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from megabyte import MegaByte
from megabyte_sizes import Sizes, Stage

SIZES = Sizes(
    patch_bytes=4,
    context_bytes=8192,
    over_patches=Stage(width=384, layers=3, heads=6),
    in_patch=Stage(width=192, layers=4, heads=6),
)


class Trained(nn.Module):
    """MegaByte as the loop calls a decoder: from the start of a text, without a state."""

    def __init__(self, sizes: Sizes, compute: torch.dtype) -> None:
        super().__init__()
        self.inner = MegaByte(sizes)
        self.compute = compute

    def new_state(self, batch: int, *, capacity: int) -> State:
        """Nothing: a text is read from its start."""
        del batch, capacity
        return {}

    def forward(
        self, tokens: torch.Tensor, keep: torch.Tensor | None, state: State
    ) -> tuple[torch.Tensor, State]:
        """Logits float32 [B, n, 256] of the bytes after the positions `keep`; None for the last."""
        reduced = self.compute != torch.float32
        # A cache of cast weights would outlive the recording of a CUDA graph.
        with torch.autocast(tokens.device.type, self.compute, enabled=reduced, cache_enabled=False):
            # MegaByte's row t is the guess at byte t; the loop's is that of the byte after t.
            more = nn.functional.pad(tokens, (0, 1))[:, : self.inner.sizes.context_bytes]
            logits = self.inner(more)[:, 1:]
        if keep is None:
            return logits[:, -1:].float(), state
        return logits.index_select(1, keep).float(), state


def new_session(options: argparse.Namespace, sizes: Sizes) -> Session:
    """A model at its start, and MambaByte's stages of words alone."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model = Trained(sizes, getattr(torch, options.compute)).to(options.device)
    stages = stages_of(SYSTEMS["mambabyte"], (), lm=True)
    length = min(stages[0].length, sizes.context_bytes)
    run = Run(
        tasks=(),
        stages=(replace(stages[0], length=length),),
        lr=options.lr,
        graphs=options.device == "cuda",
        finish=True,
    )
    documents = Documents(Text(options.data, "bytes"), "train", options.device)
    return Session(run, model, new_optimizer(model, options.lr), documents)


def save(session: Session, notes: dict[str, Any], sizes: Sizes, folder: Path) -> None:
    """Write sizes, weights and notes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.removeprefix("inner."): parameter.detach().cpu()
        for name, parameter in session.model.named_parameters()
    }
    for number, piece in enumerate(in_pieces(tensors)):
        save_file(piece, folder / f"megabyte-{number}.safetensors")
    (folder / "sizes.json").write_text(json.dumps(asdict(sizes), indent=1) + "\n", encoding="utf-8")
    (folder / NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def bytes_read(folder: Path) -> int:
    """How many bytes the model of a folder of `train.py` was trained on."""
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    return int(notes["tokens"])


def train(options: argparse.Namespace, sizes: Sizes = SIZES) -> None:
    """Train by the clock or on as many bytes as another model, evaluate, save."""
    session = new_session(options, sizes)
    wanted = None if options.like is None else bytes_read(options.like)
    session.train(60 * options.minutes, wanted)
    held_out = Documents(Text(options.data, "bytes"), "books", options.device)
    length = min(session.run.stages[0].length, sizes.context_bytes)
    loss = loss_of_words(session.model, held_out, length=length, rows=16)
    print(f"bytes of books: {loss:.4f} nats a byte of {length:,}")
    on_gpu = options.device == "cuda"
    notes = {
        "system": "megabyte",
        "parameters": sizes.parameters,
        "flops_per_byte": sizes.flops_per_byte(),
        "tokens": session.progress.tokens,
        "tokens_asked": wanted,
        "gpu_minutes": session.progress.seconds / 60 if on_gpu else 0.0,
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "seed": options.seed,
        "nats_a_byte": loss,
        "log": session.log,
    }
    save(session, notes, sizes, options.out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what text.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--like", type=Path, help="a folder of train.py: end after as many bytes")
    parser.add_argument("--minutes", type=float, default=4.0, help="at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--compute", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
