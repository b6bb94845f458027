"""A checkpoint of the trainer becomes the built-in model by one command, if it may."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import package as command
import pytest
from package import Candidate, answered, chosen, package, parser
from small import small, write_text
from train import parser as train_parser
from train import train

from longspan.bundle import open_bundle
from longspan.errors import BadInput
from longspan.tasks import PROMPT


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "trained"
    write_text(folder / "data", "words")
    options = ["--system", "samba", "--data", str(folder / "data"), "--device", "cpu"]
    options += ["--minutes", "0.005", "--keys", "0", "--compute", "float32"]
    monkeypatch.setattr("train.SYSTEMS", {"samba": small("samba")})
    train(train_parser().parse_args([*options, "--out", str(folder / "out")]))
    return folder / "out"


def asked(checkpoint: Path, into: Path, *options: str) -> Namespace:
    few = ["--lengths", "512", "--documents", "1", *options]
    return parser().parse_args([str(checkpoint), "--into", str(into), *few])


@pytest.mark.slow
def test_a_checkpoint_becomes_the_built_in_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package(asked(checkpoint, tmp_path, "--required", "0"))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.dtype == "float32"
    assert bundle.manifest.prompt.template == PROMPT
    notes = json.loads((tmp_path / "training.json").read_text())
    assert notes["answers"] == ["passkey", "needles", "mary"]
    assert notes["system"] == "samba"
    assert notes["exact"].keys() == set(notes["answers"])
    assert not {"log", "progress"} & notes.keys()
    said = capsys.readouterr().out
    assert "float32 " in said
    assert "int8 " in said
    assert "passkey       512 tokens: " in said


def candidates(tmp_path: Path, exact: int) -> dict[str, Candidate]:
    found = {}
    for weights, right in (("float32", 9), ("int8", exact)):
        folder = tmp_path / weights
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
        found[weights] = Candidate(
            weights=weights, folder=folder, exact={"passkey": {2048: right, 16384: 9}}
        )
    return found


def test_int8_ships_where_the_score_stays(tmp_path: Path) -> None:
    both = candidates(tmp_path, exact=9)
    assert chosen(both, "int8").weights == "int8"
    assert chosen(both, "float32").weights == "float32"
    assert both["int8"].share("passkey", 10) == 0.9


def test_only_what_is_answered_is_claimed(tmp_path: Path) -> None:
    found = Candidate(
        weights="int8", folder=tmp_path, exact={"passkey": {512: 1}, "mary": {512: 0}}
    )
    assert answered(found, asked(tmp_path, tmp_path)) == ("passkey",)
    with pytest.raises(BadInput) as refused:
        answered(replace(found, exact={"mary": {512: 0}}), asked(tmp_path, tmp_path))
    assert str(refused.value) == (
        "No task has 90% of its answers right, so the model cannot ship. Train it for longer, or "
        "see --required."
    )


def test_int8_does_not_ship_where_it_answers_less(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        chosen(candidates(tmp_path, exact=8), "int8")
    assert str(refused.value) == (
        "--weights int8 was asked for, and it answers fewer questions than float32: passkey at "
        "2,048 tokens (8 after 9). Ship float32."
    )


def test_what_ships_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST_BYTES", 99)
    with pytest.raises(BadInput) as refused:
        chosen(candidates(tmp_path, exact=9), "float32")
    assert str(refused.value) == (
        "The bundle in float32 has 100 bytes; what ships has at most 99. Try --weights int8, or "
        "train a smaller model."
    )


def test_a_checkpoint_without_notes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="which tells what a checkpoint was trained for"):
        package(asked(tmp_path, tmp_path))
    (tmp_path / "training.json").write_text('{"tasks": ["lm"]}', encoding="utf-8")
    with pytest.raises(BadInput, match="was trained for lm; the built-in model answers at least"):
        package(asked(tmp_path, tmp_path))
