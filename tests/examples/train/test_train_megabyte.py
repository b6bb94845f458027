"""MegaByte trains in the loop of the others, on the byte after each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from small import write_text
from step import set_lr
from systems import SYSTEMS
from train_megabyte import SIZES, Trained, new_session, parser, save, train

from longspan.models.checkpoint import empty_decoder

# After conftest and train_megabyte have put benchmarks on the path.
from megabyte import MegaByte  # isort: skip
from megabyte_sizes import Sizes, Stage  # isort: skip

TINY = Sizes(
    patch_bytes=4,
    context_bytes=64,
    over_patches=Stage(width=32, layers=1, heads=4),
    in_patch=Stage(width=16, layers=1, heads=2),
)


def test_row_t_is_the_guess_at_the_byte_after_t() -> None:
    model = Trained(TINY, torch.float32)
    tokens = torch.randint(256, (2, 61))
    keep = torch.tensor([0, 7, 59])
    logits, state = model(tokens, keep, model.new_state(2, capacity=64))
    assert state == {}
    torch.testing.assert_close(logits, model.inner(tokens)[:, keep + 1])


def test_it_costs_as_much_as_mambabyte() -> None:
    mambabyte = SYSTEMS["mambabyte"].model
    matrices = 2 * sum(p.numel() for p in empty_decoder(mambabyte).parameters())
    assert 1.0 < SIZES.flops_per_byte() / matrices < 1.1


def test_it_learns_and_its_pieces_are_the_model(tmp_path: Path) -> None:
    write_text(tmp_path, "bytes")
    arguments = f"--data {tmp_path} --out {tmp_path} --device cpu --compute float32 --lr 0.01"
    session = new_session(parser().parse_args(arguments.split()), TINY)
    trainer = session.trainer(session.run.stages[0])
    set_lr(session.optimizer, session.run.lr)
    for _ in range(60):
        session.step(trainer, 1)
    assert float(trainer.losses[1]) < 3.5, "log(256) is 5.5"

    save(session, {"system": "megabyte"}, TINY, tmp_path)
    assert json.loads((tmp_path / "training.json").read_text()) == {"system": "megabyte"}
    model = MegaByte(TINY)
    model.load_state_dict(load_file(tmp_path / "megabyte-0.safetensors"))
    tokens = torch.randint(256, (1, 20))
    want, _ = session.model(tokens, torch.arange(19), {})
    torch.testing.assert_close(model(tokens)[:, 1:], want)


def test_the_program_writes_what_it_cost(tmp_path: Path) -> None:
    write_text(tmp_path, "bytes")
    arguments = f"--data {tmp_path} --out {tmp_path} --minutes 0 --device cpu --compute float32"
    train(parser().parse_args(arguments.split()), TINY)
    notes = json.loads((tmp_path / "training.json").read_text())
    assert notes["flops_per_byte"] == TINY.flops_per_byte()
    assert 5.0 < notes["nats_a_byte"] < 6.0, "log(256) is 5.5"


def test_it_reads_as_many_bytes_as_mambabyte_did(tmp_path: Path) -> None:
    write_text(tmp_path, "bytes")
    mambabyte = tmp_path / "mambabyte"
    mambabyte.mkdir()
    (mambabyte / "training.json").write_text(json.dumps({"tokens": 3000}))
    arguments = f"--data {tmp_path} --out {tmp_path} --like {mambabyte} --device cpu"
    train(parser().parse_args([*arguments.split(), "--compute", "float32"]), TINY)
    notes = json.loads((tmp_path / "training.json").read_text())
    batch = 8 * TINY.context_bytes
    assert notes["tokens_asked"] == 3000
    assert notes["tokens"] == -(-3000 // batch) * batch
