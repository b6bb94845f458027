"""Checkpoints that cannot be used: the same message from the API, and from a command's exit 1."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import (
    HF_CONFIG,
    refusal,
    write_config,
    write_hf,
    write_mamba,
    write_samba,
    write_weights,
)

import longspan
from longspan.cli import main
from longspan.errors import BadCheckpoint
from longspan.info import describe
from longspan.models.families import FAMILIES

# Runs a command that must exit with status 1; gives what it printed on stderr and on stdout.
Refused = Callable[..., tuple[str, str]]
AGAIN = "Every byte that torch.save wrote must be there. Download or save the checkpoint again."


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def wrong_shapes(folder: Path) -> str:
    write_hf(folder)
    write_config(folder, HF_CONFIG | {"hidden_size": 8})
    return (
        f"{folder}/model.safetensors has the tensor 'backbone.embeddings.weight' with shape "
        "[24, 16]; its config asks for [24, 8]. Check that config and weights belong together."
    )


def missing_shard(folder: Path) -> str:
    write_mamba(folder, kind="sharded safetensors")
    (folder / "0-model.safetensors").unlink()
    return (
        f"{folder}/0-model.safetensors is named as a file of weights and is not there. Every shard "
        "must be beside its index. Download the checkpoint again."
    )


def truncated_safetensors(folder: Path) -> str:
    write_hf(folder)
    half(folder / "model.safetensors")
    return (
        f"{folder}/model.safetensors was asked for as safetensors and cannot be read (Error while "
        "deserializing header: incomplete metadata, file not fully covered). Its header must "
        "describe every byte of the file. Download or save the checkpoint again."
    )


def truncated_bin(folder: Path) -> str:
    write_mamba(folder)
    half(folder / "pytorch_model.bin")
    return (
        f"{folder}/pytorch_model.bin was asked for as weights and cannot be read: it is damaged, "
        f"or no torch.save file. {AGAIN}"
    )


def garbage_pth(folder: Path) -> str:
    write_samba(folder)
    (folder / "samba.pth").write_bytes(bytes(range(256)) * 4)
    return (
        f"{folder}/samba.pth was asked for as weights and cannot be read: it is damaged, or no "
        f"torch.save file. {AGAIN}"
    )


def unknown_model_type(folder: Path) -> str:
    write_hf(folder)
    write_config(folder, HF_CONFIG | {"model_type": "mamba9"})
    known = "; ".join(f"{family.name} ({family.what})" for family in FAMILIES)
    return (
        f"{folder} was asked for as a checkpoint and its config says model_type 'mamba9'. This "
        f"longspan reads: {known}. Check that this is the right folder, or give a config with "
        "config=FILE (--config)."
    )


def nan_in_a_norm(folder: Path) -> str:
    weights = write_mamba(folder)
    weights["backbone.norm_f.weight"][3] = float("nan")
    write_weights(folder, weights, "bin")
    return (
        f"{folder}/pytorch_model.bin holds values that are not finite in backbone.norm_f.weight. "
        "A model with such weights may answer nothing but NaN. Use an earlier checkpoint of this "
        "training, or take the weights as they are with allow_nonfinite=True (--allow-nonfinite)."
    )


DAMAGES: tuple[Callable[[Path], str], ...] = (
    wrong_shapes,
    missing_shard,
    truncated_safetensors,
    truncated_bin,
    garbage_pth,
    unknown_model_type,
)
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
each_unfit = pytest.mark.parametrize(
    "damage", [*DAMAGES, nan_in_a_norm], ids=lambda damage: damage.__name__
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*arguments: str | Path) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["longspan", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        printed = capsys.readouterr()
        return printed.err, printed.out

    return run


@each_damage
def test_opening_refuses(checkpoint: Path, damage: Callable[[Path], str]) -> None:
    message = damage(checkpoint)
    assert refusal(checkpoint) == message
    with pytest.raises(BadCheckpoint) as caught:
        describe(checkpoint)
    assert str(caught.value) == message


@each_unfit
def test_export_refuses(checkpoint: Path, damage: Callable[[Path], str]) -> None:
    message, bundle = damage(checkpoint), checkpoint.with_name("bundle")
    with pytest.raises(BadCheckpoint) as caught:
        longspan.export_bundle(checkpoint, bundle)
    assert str(caught.value) == message
    assert not bundle.exists()


@each_damage
def test_longspan_info_refuses(
    checkpoint: Path, refused: Refused, damage: Callable[[Path], str]
) -> None:
    message = damage(checkpoint)
    assert refused("info", checkpoint) == (message + "\n", "")
    assert json.loads(refused("info", checkpoint, "--json")[1]) == {"error": message}


@each_unfit
def test_longspan_export_refuses(
    checkpoint: Path, refused: Refused, damage: Callable[[Path], str]
) -> None:
    message, bundle = damage(checkpoint), checkpoint.with_name("bundle")
    shown, _ = refused("export", checkpoint, bundle)
    assert shown.endswith(message + "\n")
    assert "Traceback" not in shown
    assert json.loads(refused("export", checkpoint, bundle, "--json")[1]) == {"error": message}
    assert not bundle.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_cut_anywhere_is_refused(checkpoint: Path, zipped: bool) -> None:
    weights = write_mamba(checkpoint)
    path = checkpoint / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for at in [*range(40), *range(40, len(content), len(content) // 50), len(content) - 1]:
        path.write_bytes(content[:at])
        assert refusal(checkpoint).endswith(AGAIN), at


def test_safetensors_cut_anywhere_are_refused(checkpoint: Path) -> None:
    write_hf(checkpoint)
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    for at in [*range(40), *range(40, len(content), len(content) // 50), len(content) - 1]:
        path.write_bytes(content[:at])
        assert refusal(checkpoint).startswith(f"{path} was asked for as safetensors"), at
