"""From trained checkpoints to bundles in a temporary folder, with what their training cost.

    with bundles(Path(".ckpt"), ["samba", "window"]) as found:
        found["samba"].path, found["samba"].training["gpu_minutes"], found.missing

Each is exported once, by longspan's own export, in a process of its own: what exporting holds is
none of the budget under which the bundle is read.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import LongspanError

MEGABYTE = "megabyte"
WITHOUT_ANCHORS = "anllm-full"
# What a table reads. The same AnLLM is read through its anchors, and with a full cache.
SYSTEMS_OF: Mapping[str, tuple[str, ...]] = {
    "samba": ("samba", "window", "llama"),
    "mambabyte": ("mambabyte", MEGABYTE),
    "mixcon": ("mixcon", "conba", "llama"),
    "mamba2": ("mamba2", "mamba"),
    "anllm": ("anllm", WITHOUT_ANCHORS, "llama"),
}
NOTES = "training.json"
COSTS = ("parameters", "tokens", "gpu_minutes", "cpu_minutes", "seed", "device", "tasks",
         "flops_per_byte", "compute", "finished")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle of a checkpoint, or MegaByte's checkpoint as it is.

    Attributes:
        path: its folder.
        training: what `training.json` says of the cost.
    """

    path: Path
    training: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """What could be exported, by the system's name, and why the rest could not."""

    found: Mapping[str, Bundle]
    missing: Mapping[str, str]

    def __contains__(self, system: str) -> bool:
        return system in self.found

    def __getitem__(self, system: str) -> Bundle:
        return self.found[system]


def checkpoint_of(system: str) -> str:
    """The folder that a system's checkpoint lies in."""
    return "anllm" if system == WITHOUT_ANCHORS else system


def training(folder: Path) -> dict[str, Any]:
    """What a checkpoint cost, as far as `training.json` says it."""
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    return {name: notes[name] for name in COSTS if name in notes}


def export(checkpoint: Path, bundle: Path, anchors: str | None) -> str | None:
    """Export a checkpoint; why it cannot be, or None."""
    from longspan.export import export_bundle

    try:
        export_bundle(checkpoint, bundle, anchors=anchors)
    except LongspanError as error:
        return str(error)
    return None


@contextmanager
def bundles(
    checkpoints: Path, systems: Sequence[str], workers: int | None = None
) -> Iterator[Bundles]:
    """Export the checkpoints of `systems`, several at once; they are gone in the end.

    Args:
        checkpoints: a folder with a folder for each system, as `examples/train/train.py` writes it.
        systems: names; `anllm-full` is the checkpoint of `anllm`, exported without anchors.
        workers: processes; None for half of the cores.
    """
    there = {name: checkpoints / checkpoint_of(name) for name in systems}
    missing = {
        name: f"no checkpoint at {folder.name}/"
        for name, folder in there.items()
        if not (folder / NOTES).is_file()
    }
    with tempfile.TemporaryDirectory() as kept:
        jobs = {
            name: (folder, Path(kept) / name, "ac" if name == "anllm" else None)
            for name, folder in there.items()
            if name not in missing and name != MEGABYTE
        }
        for name, why in _exported(jobs, workers).items():
            if why is not None:
                missing[name] = why
        yield Bundles(
            found={
                name: Bundle(
                    path=jobs[name][1] if name in jobs else folder, training=training(folder)
                )
                for name, folder in there.items()
                if name not in missing
            },
            missing=missing,
        )


def _threads(count: int) -> None:
    """Let torch take its share of the cores, not all of them in each process."""
    import torch

    torch.set_num_threads(count)


def _exported(
    jobs: Mapping[str, tuple[Path, Path, str | None]], workers: int | None
) -> dict[str, str | None]:
    if not jobs:
        return {}
    cores = os.cpu_count() or 2
    several = min(workers or max(1, cores // 2), len(jobs))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(several, spawn, _threads, (max(1, cores // several),)) as pool:
        running = {name: pool.submit(export, *job) for name, job in jobs.items()}
        return {name: each.result() for name, each in running.items()}
