"""A model in training, from and to the checkpoint that its format's own project would write.

A family of `longspan.models.families` says how each parameter is made from a checkpoint's tensors.
Given numbers in place of weights, the same rules tell where every weight came from; so they are
followed backwards here, and no format is described twice.

    write(system, decoder, folder)
    read(system, decoder, folder)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from step import Model
from systems import System
from torch import nn
from torch.nn.utils import parametrize

from longspan.models.checkpoint import Weight
from longspan.models.tensor_files import PickleFile, TensorFiles, open_tensors

CONFIG = "config.json"
DECAY = "A"


class NegativeExp(nn.Module):
    """A = -exp(A_log): what is trained is its logarithm, so that it stays below zero."""

    def forward(self, log: torch.Tensor) -> torch.Tensor:
        """A from A_log."""
        return -torch.exp(log)

    def right_inverse(self, decay: torch.Tensor) -> torch.Tensor:
        """A_log from A."""
        return torch.log(-decay)


def train_logarithms(model: nn.Module) -> None:
    """Train A_log in place of each A."""
    for module in list(model.modules()):
        if DECAY in module._parameters:
            parametrize.register_parametrization(module, DECAY, NegativeExp())


def trained_name(name: str) -> str:
    """What training calls the parameter `name` of a decoder."""
    prefix, _, last = name.rpartition(".")
    return f"{prefix}.parametrizations.{DECAY}.original" if last == DECAY else name


def write(system: System, model: Model, folder: Path) -> None:
    """Write `config.json` and the weights, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for weight in system.layout[1]:
        parts = taken_apart(weight, trained[trained_name(weight.name)])
        tensors |= {name: part.contiguous().clone() for name, part in parts.items()}
    (folder / CONFIG).write_text(json.dumps(dict(system.config), indent=2) + "\n", encoding="utf-8")
    if system.file.endswith(".pth"):
        torch.save({"model": tensors}, folder / system.file)
    else:
        save_file(tensors, folder / system.file, metadata={"format": "pt"})


@torch.no_grad()
def read(system: System, model: Model, folder: Path) -> None:
    """Take the weights of a checkpoint that `write` wrote, bit for bit."""
    path = folder / system.file
    files = PickleFile(path, key="model") if path.suffix == ".pth" else open_tensors(path)
    parameters = dict(model.named_parameters())
    for weight in system.layout[1]:
        target = parameters[trained_name(weight.name)]
        target.copy_(_put_together(weight, files))


def _put_together(weight: Weight, files: TensorFiles) -> torch.Tensor:
    parts = [files.read(name) for name in weight.sources]
    if weight.name.endswith(f".{DECAY}"):
        return parts[0]
    return weight.make(*parts)


def taken_apart(weight: Weight, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that `weight` is made from, out of what it makes of them; of A, A_log itself."""
    if weight.name.endswith(f".{DECAY}"):
        return dict.fromkeys(weight.sources, parameter)
    places, end = [], 0
    for shape in weight.sources.values():
        size = torch.Size(shape).numel()
        places.append(torch.arange(end, end + size).view(shape))
        end += size
    flat = torch.empty(end, dtype=parameter.dtype)
    flat[weight.make(*places).flatten()] = parameter.flatten()
    return {name: flat[place] for name, place in zip(weight.sources, places, strict=True)}
