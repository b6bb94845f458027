"""Every refusal of a file or a folder, its message whole."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    HF_CONFIG,
    SAMBA_CONFIG,
    random_weights,
    refusal,
    samba_shapes,
    write_config,
    write_hf,
    write_mamba,
    write_samba,
)

from longspan.models.families import FAMILIES, open_checkpoint


class Evil:
    """What a pickle can hide."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this must not be printed",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    write_mamba(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=zipped)
    assert refusal(tmp_path) == (
        f"{path} was asked for as weights and cannot be read safely: it names print. Only a "
        "dict of plain tensors is read, because a pickle of anything else can run any code. "
        "Save the tensors alone, best as safetensors."
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 a torn zip", pickle.dumps([1])])
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    write_mamba(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert refusal(tmp_path).startswith(
        f"{tmp_path}/pytorch_model.bin was asked for as weights and "
    )


def test_a_pickle_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    torch.save(weights | {"epoch": 3}, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin was asked for as weights and its entry 'epoch' is of type "
        "int. Every entry must be a tensor. Save model.state_dict() alone."
    )


def test_a_whole_model_in_a_pickle_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path)
    torch.save(torch.zeros(2), tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin was asked for as weights and holds a Tensor. "
        "It must be a dict of tensors. Save model.state_dict(), not the model."
    )


def test_a_pth_without_the_model_is_refused(tmp_path: Path) -> None:
    weights = write_samba(tmp_path)
    torch.save(weights, tmp_path / "samba.pth")
    names = ", ".join(sorted(weights)[:5])
    assert refusal(tmp_path) == (
        f"{tmp_path}/samba.pth was asked for its entry 'model' and holds the keys {names}. "
        "The file must be a dict whose entry 'model' is a dict of tensors. Save it as "
        "torch.save({'model': state_dict}, path)."
    )


def test_a_samba_of_unknown_size_needs_a_config(tmp_path: Path) -> None:
    write_samba(tmp_path)
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}/samba.pth was asked for as a samba checkpoint, has no config.json beside it, "
        "and its shapes are none of the published sizes (Samba_421M, Samba_1.3B, Samba_1.7B, "
        "Samba_3.8B, Mamba_SWA_MLP_400M, Mamba_SWA_MLP_1.3B, Samba_421M_abl_mamba, "
        "Samba_1.3B_abl_mamba, LLaMA_438M_SWA_gla, LLaMA_1.2B_SWA_gla, LLaMA_446M_SWA_ret, "
        "LLaMA_1.4B_SWA_ret). Heads and window cannot be read from shapes. Put lit_gpt's Config "
        "beside it as config.json, or give config=FILE (--config)."
    )


def test_a_published_samba_is_known_by_its_shapes(tmp_path: Path) -> None:
    sizes = {"n_layer": 12, "n_head": 12, "n_query_groups": 12, "intermediate_size": 4096}
    shapes = samba_shapes(SAMBA_CONFIG | sizes)
    wide = {"transformer.wte.weight": (32000, 1536)}
    for name in shapes:
        if "swiglu" in name:
            wide[name] = (1536, 4096) if ".w3." in name else (4096, 1536)
        elif name.endswith("attn.attn.weight"):
            wide[name] = (36 * 128, 1536)
        elif name.endswith("attn.proj.weight"):
            wide[name] = (1536, 1536)
    mixer = {
        "in_proj.weight": (6144, 1536), "conv1d.weight": (3072, 1, 4), "conv1d.bias": (3072,),
        "x_proj.weight": (128, 3072), "dt_proj.weight": (3072, 96), "dt_proj.bias": (3072,),
        "A_log": (3072, 16), "D": (3072,), "out_proj.weight": (1536, 3072),
    }  # fmt: skip
    for i in range(0, 12, 2):
        wide |= {f"transformer.h.{i}.attn.{name}": shape for name, shape in mixer.items()}
    zero = torch.zeros(())
    model = {name: zero.expand(wide.get(name, (1536,))) for name in shapes}
    torch.save({"model": model}, tmp_path / "samba.pth")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.layers_by_kind() == {"mamba": 6, "mlp": 12, "window_attention": 6}
    assert sum(math.prod(spec.shape) for spec in checkpoint.specs()) == 421_793_280


def test_two_pth_files_are_refused(tmp_path: Path) -> None:
    write_samba(tmp_path)
    torch.save({"model": random_weights({})}, tmp_path / "other.pth")
    assert refusal(tmp_path) == (
        f"{tmp_path} was asked for as a samba checkpoint and holds 2 .pth files (other.pth, "
        "samba.pth). It must hold one. Name the file itself."
    )


def test_a_shard_that_lacks_its_tensor_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path, kind="sharded safetensors")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text(encoding="utf-8"))
    data["weight_map"]["backbone.extra"] = "0-model.safetensors"
    index.write_text(json.dumps(data), encoding="utf-8")
    assert refusal(tmp_path) == (
        f"{index} puts the tensor 'backbone.extra' into 0-model.safetensors, and "
        "0-model.safetensors does not hold it. Index and shards must belong together. "
        "Download the checkpoint again."
    )


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path, kind="sharded bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.bin"}}), encoding="utf-8")
    assert refusal(tmp_path) == (
        f"{index} names a shard outside its own folder. Shards must be plain file names beside the "
        "index. Download the checkpoint again, from its publisher."
    )


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path, kind="sharded safetensors")
    (tmp_path / "1-model.safetensors").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}/1-model.safetensors is named as a file of weights and is not there. Every "
        "shard must be beside its index. Download the checkpoint again."
    )


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors was asked for as safetensors and cannot be read (Error "
        "while deserializing header: header too small). Its header must describe every byte of the "
        "file. Download or save the checkpoint again."
    )


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, HF_CONFIG)
    assert refusal(tmp_path) == (
        f"{tmp_path} was asked for as a checkpoint and holds no weights. A checkpoint has one of "
        "model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json. Check that the download is complete."
    )


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"model_type": "bert"}, "its config says model_type 'bert'"),
        ({"b": 1, "a": 2}, "its config has the keys a, b"),
        (None, "has no config.json"),
    ],
)
def test_an_unknown_family_is_refused(
    tmp_path: Path, data: dict[str, object] | None, found: str
) -> None:
    if data is not None:
        write_config(tmp_path, data)
    known = "; ".join(f"{family.name} ({family.what})" for family in FAMILIES)
    assert known.startswith("samba (microsoft/Samba, a .pth with the key 'model'); hf_mamba (")
    assert refusal(tmp_path) == (
        f"{tmp_path} was asked for as a checkpoint and {found}. This longspan reads: {known}. "
        "Check that this is the right folder, or give a config with config=FILE (--config)."
    )


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == (
        f"{tmp_path}/no was asked for as a checkpoint and is not there. A checkpoint is a folder, "
        "or a file of weights. Check the path."
    )


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    where = write_config(tmp_path, [1])
    assert refusal(tmp_path) == (
        f"{where} was asked for as a config and holds a list. It must be a JSON object. "
        "Download the file again."
    )
