"""A run goes through its stages, learns, and goes on from what it saved as if never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import loop
import pytest
import saving
import torch
from loop import Run, Session
from saving import in_pieces
from small import small, write_text
from stages import stages_of
from start import new_model
from step import Stage, new_optimizer, set_lr
from systems import SYSTEMS
from tasks import Documents, Task
from train import parser, train

STAGES = (
    Stage(gap=8, length=96, rows=6, tasks=1, share=0.5),
    Stage(gap=200, length=128, rows=4, segments=2, facts=2, lm=0.1),
)


def new_session(folder: Path, name: str = "samba", lr: float = 1e-2) -> Session:
    torch.manual_seed(0)
    system = small(name)
    model = new_model(system.model, compute=torch.float32, device="cpu")
    stages = tuple(replace(s, segments=1) for s in STAGES) if system.model.has_cache else STAGES
    run = Run(tasks=("passkey", "mary"), stages=stages, lr=lr, anchor=system.anchor)
    documents = Documents(write_text(folder, system.tokens), "train", "cpu")
    return Session(run, model, new_optimizer(model, lr), documents)


def take(session: Session, stage: int, steps: int) -> list[float]:
    """The loss of the answers at each step."""
    trainer, losses = session.trainer(session.run.stages[stage]), []
    set_lr(session.optimizer, session.run.lr)
    for _ in range(steps):
        session.step(trainer, trainer.stage.segments)
        losses.append(float(trainer.losses[0]))
    return losses


@pytest.mark.parametrize("name", ["samba", "anllm"])
def test_a_few_keys_are_learnt_by_heart(name: str, tmp_path: Path) -> None:
    session = new_session(tmp_path, name)
    stage = Stage(gap=8, length=64, rows=4, tasks=1)
    trainer, batch = session.trainer(stage), session.draw(stage, 1)
    set_lr(session.optimizer, session.run.lr)
    trainer.load(batch.tokens, batch.answers)
    for _ in range(30):
        trainer.train()
    assert bool(trainer.right.all())
    assert float(trainer.losses[0]) < 0.1


def test_gradients_that_are_not_finite_leave_the_weights_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session(tmp_path)
    trainer = session.trainer(session.run.stages[0])
    set_lr(session.optimizer, session.run.lr)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    gradients = trainer._gradients

    def overflow() -> None:
        gradients()
        trainer.parameters[0].grad.fill_(float("inf"))

    monkeypatch.setattr(trainer, "_gradients", overflow)
    session.step(trainer, 1)
    assert all(map(torch.equal, trainer.parameters, before))
    monkeypatch.undo()
    session.step(trainer, 1)
    assert not torch.equal(trainer.parameters[0], before[0])
    assert all(parameter.isfinite().all() for parameter in trainer.parameters)


def test_a_step_changes_every_parameter(tmp_path: Path) -> None:
    session = new_session(tmp_path)
    before = [p.clone() for _, p in session.model.named_parameters()]
    take(session, stage=1, steps=2)
    for old, (name, new) in zip(before, session.model.named_parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_going_on_equals_never_stopping(tmp_path: Path) -> None:
    system, session = small("samba"), new_session(tmp_path)
    take(session, stage=1, steps=3)
    saving.save(system, session, {"system": "samba"}, tmp_path / "out")
    want = take(session, stage=1, steps=2)
    resumed = new_session(tmp_path)
    saving.resume(system, resumed, tmp_path / "out")
    assert take(resumed, stage=1, steps=2) == want
    assert resumed.progress == session.progress
    for (name, mine), (_, theirs) in zip(
        resumed.model.named_parameters(), session.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_a_run_moves_through_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "MASTERED", 0.0)
    monkeypatch.setattr(loop, "JUDGED", 4)
    monkeypatch.setattr(loop, "REPORT_STEPS", 2)
    session = new_session(tmp_path)
    session.train(2.0)
    assert session.progress.stage == 1
    assert session.progress.seconds >= 2.0
    assert session.log[0]["mastered"]
    assert set(session.log[0]["exact"]) == {"passkey"}
    assert "stage 0 mastered" in capsys.readouterr().out


def test_pieces_are_small_and_hold_everything() -> None:
    tensors = {str(i): torch.zeros(size) for i, size in enumerate([7, 3, 3, 9, 1, 30])}
    pieces = list(in_pieces(tensors, limit=40))
    assert {name for piece in pieces for name in piece} == set(tensors)
    assert sum(len(piece) for piece in pieces) == len(tensors)
    # Only what is too large by itself is alone above the limit.
    assert [sum(t.nbytes for t in piece.values()) for piece in pieces] == [120, 40, 40, 12]


def test_a_run_ends_after_its_tokens(tmp_path: Path) -> None:
    session = new_session(tmp_path)
    session.run = replace(session.run, finish=True)
    batch = STAGES[0].rows * STAGES[0].length
    session.train(600.0, tokens=5 * batch)
    assert session.progress.tokens == 5 * batch
    assert float(session.optimizer.param_groups[0]["lr"]) < session.run.lr * 0.05


@pytest.mark.parametrize("asked", [get_args(Task), ("passkey",)])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_stage_has_room_for_its_facts(
    name: str, asked: tuple[Task, ...], tmp_path: Path
) -> None:
    system = SYSTEMS[name]
    documents = Documents(write_text(tmp_path, system.tokens), "train", "cpu")
    for stage in stages_of(system, asked, lm=True):
        assert documents.longest_gap(stage.length, 1) > 0
        wanted = documents.most_facts(stage.length, stage.facts)
        assert wanted == stage.facts or stage.length < 300
        assert documents.longest_gap(stage.length, wanted) > 0
        assert stage.segments == 1 or not system.model.has_cache


def test_the_program_writes_a_checkpoint_and_its_cost(tmp_path: Path) -> None:
    write_text(tmp_path / "data", "words")
    arguments = (
        f"--system samba --tasks lm --data {tmp_path / 'data'} --out {tmp_path / 'out'} "
        "--minutes 0 --keys 0 --device cpu --compute float32"
    )
    train(parser().parse_args(arguments.split()))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "samba.pth", "config.json", "tokenizer.json", "training.json",
        "resume-0.safetensors", "resume-1.safetensors",
    }  # fmt: skip
    notes = json.loads((tmp_path / "out" / "training.json").read_text())
    assert notes["system"] == "samba"
    assert notes["tasks"] == ["lm"]
    assert notes["cpu_minutes"] >= 0
    assert notes["gpu_minutes"] == 0


def test_the_program_says_what_held_out_texts_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train as program

    write_text(tmp_path / "data", "sentences")
    monkeypatch.setattr(program, "SYSTEMS", {"anllm": small("anllm")})
    monkeypatch.setattr(program, "SHORT", (128, 256))
    arguments = (
        f"--system anllm --tasks needles,mary,lm --data {tmp_path / 'data'} "
        f"--out {tmp_path / 'out'} --minutes 0 --keys 3 --held-out books modules "
        "--device cpu --compute float32"
    )
    train(parser().parse_args(arguments.split()))
    held_out = json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]
    assert set(held_out) == {"books", "modules"}
    assert set(held_out["books"]["exact"]) == {
        f"{task} {length}" for task in ("needles", "mary") for length in (128, 256)
    }
    assert 7 < held_out["books"]["nats_a_token"] < 10, "log(4,097) is 8.3"
