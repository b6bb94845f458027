"""On a GPU a step is what it is on a CPU, and as a CUDA graph what it is as plain calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import small, write_text
from start import new_model
from step import Stage, Trainer, new_optimizer, set_lr
from systems import SYSTEMS, System
from tasks import Batch, Documents

pytestmark = pytest.mark.gpu
STAGE = Stage(gap=60, length=288, rows=6, lm=0.1)
WIDTH = 13  # at least the tokens of an answer, of words or bytes


def new_trainer(system: System, device: str, compute: torch.dtype, graphs: bool) -> Trainer:
    """The same random weights wherever they are."""
    torch.manual_seed(0)
    model = new_model(system.model, compute=compute, device="cpu").to(device)
    optimizer = new_optimizer(model, 1e-3)
    set_lr(optimizer, 1e-3)
    # A cache has room for one segment.
    stage = STAGE if system.model.has_cache else replace(STAGE, segments=2)
    return Trainer(
        model, optimizer, stage, answer_tokens=WIDTH, anchor=system.anchor, graphs=graphs
    )


def batch_of(folder: Path, system: System) -> Batch:
    documents = Documents(write_text(folder, system.tokens), "train", "cpu")
    batch = documents.draw(("passkey", "mary"), rows=6, length=288, gap=(1, 60), facts=2)
    missing = WIDTH - documents.answer_tokens
    answers = torch.nn.functional.pad(batch.answers, (missing, 0))
    return Batch(tokens=batch.tokens, answers=answers)


def take(trainer: Trainer, batch: Batch, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the last step, and all parameters, on the CPU."""
    for _ in range(steps):
        trainer.reset()
        if trainer.stage.segments > 1:
            trainer.tokens.copy_(batch.tokens)
            trainer.skip()
        trainer.load(batch.tokens, batch.answers)
        trainer.lm_places.copy_(torch.arange(len(trainer.lm_places)))
        trainer.train()
    parameters = [parameter.detach().flatten().cpu() for parameter in trainer.parameters]
    return trainer.losses.cpu(), torch.cat(parameters)


def gradients(trainer: Trainer, batch: Batch) -> torch.Tensor:
    trainer.load(batch.tokens, batch.answers)
    trainer.lm_places.copy_(torch.arange(len(trainer.lm_places)))
    trainer._gradients()
    grads = [p.grad.flatten().cpu() for p in trainer.parameters if p.grad is not None]
    assert len(grads) == len(trainer.parameters)
    return torch.cat(grads)


@pytest.mark.parametrize(
    ("compute", "allowed"),
    [
        pytest.param(torch.float32, 1e-4, id="float32"),
        # Activations are rounded to 2^-9, in layers one after another.
        pytest.param(torch.bfloat16, 1e-1, id="bfloat16"),
    ],
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_are_those_of_the_cpu(
    name: str, compute: torch.dtype, allowed: float, tmp_path: Path
) -> None:
    system = small(name)
    batch = batch_of(tmp_path, system)
    want = gradients(new_trainer(system, "cpu", torch.float32, graphs=False), batch)
    found = gradients(new_trainer(system, "cuda", compute, graphs=False), batch)
    assert float((found - want).norm() / want.norm()) < allowed


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_graph_is_its_plain_calls(name: str, tmp_path: Path) -> None:
    system = small(name)
    batch = batch_of(tmp_path, system)
    plain, graph = (
        take(new_trainer(system, "cuda", torch.float32, graphs=graphs), batch, steps=3)
        for graphs in (False, True)
    )
    torch.testing.assert_close(graph[0], plain[0], rtol=1e-3, atol=1e-3)
    # AdamW moves a weight by the sign of what may be zero but for the order of its sums, so weights
    # are compared together. They moved by about a hundredth.
    moved = float((graph[1] - plain[1]).norm() / plain[1].norm())
    assert moved < 3e-4
