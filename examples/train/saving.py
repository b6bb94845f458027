"""What a run leaves: a checkpoint in its format, what it cost, and what resuming needs.

Every file stays below 15 MiB, so that a run can go on elsewhere: moments of the optimizer lie in as
many pieces as that takes, weights in the published checkpoint itself.

    save(system, session, cost, folder)
    resume(system, session, folder)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loop import Progress, Session
from published import read, write
from safetensors.torch import load_file, save_file
from systems import System

# 15 MiB, less what the names and shapes at the head of a file take.
PIECE_BYTES = 15 * 2**20 - 2**16
NOTES = "training.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(system: System, session: Session, notes: Mapping[str, Any], folder: Path) -> None:
    """Write the checkpoint, `training.json`, and `resume-0.safetensors` and so on.

    Args:
        system: what is trained.
        session: where it stands.
        notes: what else `training.json` is to say.
        folder: written to, made if missing.
    """
    write(system, session.model, folder)
    written = {**notes, "progress": asdict(session.progress), "log": session.log}
    (folder / NOTES).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for old in folder.glob("resume-*.safetensors"):
        old.unlink()
    for number, piece in enumerate(in_pieces(_resumed(session))):
        save_file(piece, folder / f"resume-{number}.safetensors")


def resume(system: System, session: Session, folder: Path) -> None:
    """Continue from what `save` wrote, bit for bit on the same kind of device."""
    read(system, session.model, folder)
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    session.progress, session.log = Progress(**notes["progress"]), notes["log"]
    tensors: dict[str, torch.Tensor] = {}
    for piece in sorted(folder.glob("resume-*.safetensors")):
        tensors |= load_file(piece)
    for name, parameter in session.model.named_parameters():
        state = session.optimizer.state[parameter]
        state["step"].fill_(session.progress.step)
        for moment in MOMENTS:
            state[moment].copy_(tensors[f"{moment}.{name}"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _resumed(session: Session) -> dict[str, torch.Tensor]:
    """Moments of the optimizer and states of the random generators, on the host."""
    tensors = {
        f"{moment}.{name}": session.optimizer.state[parameter][moment].cpu().clone()
        for name, parameter in session.model.named_parameters()
        for moment in MOMENTS
    }
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def in_pieces(
    tensors: Mapping[str, torch.Tensor], limit: int = PIECE_BYTES
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in as few dicts of at most `limit` bytes as come of taking the largest first."""
    waiting = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    while waiting:
        room = limit
        piece: dict[str, torch.Tensor] = {}
        for name in waiting:
            if tensors[name].nbytes <= room or not piece:
                piece[name] = tensors[name]
                room -= tensors[name].nbytes
        waiting = [name for name in waiting if name not in piece]
        yield piece
