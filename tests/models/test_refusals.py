"""Every refusal of a config or a tensor, its message whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    HF_CONFIG,
    MAMBA_CONFIG,
    SAMBA_CONFIG,
    refusal,
    write_config,
    write_hf,
    write_mamba,
    write_samba,
    write_weights,
)

from longspan.errors import BadCheckpoint
from longspan.models.families import open_checkpoint

BELONG = "Check that config and weights belong together."
WRITERS = {"mamba": write_mamba, "hf_mamba": write_hf, "samba": write_samba}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": MAMBA_CONFIG,
    "hf_mamba": HF_CONFIG,
    "samba": SAMBA_CONFIG,
}


@pytest.mark.parametrize("family", WRITERS)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, family: str) -> None:
    WRITERS[family](tmp_path)
    where = write_config(tmp_path, CONFIGS[family] | {"vocab_sizes": 3})
    assert refusal(tmp_path) == (
        f"{where} has the key 'vocab_sizes', which a {family} config does not have (the nearest "
        "known key is 'vocab_size'). Every key must be known, because an ignored one could change "
        "the model. Correct or remove it."
    )


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    write_hf(tmp_path)
    data = {key: value for key, value in HF_CONFIG.items() if key != "hidden_size"}
    where = write_config(tmp_path, data)
    assert refusal(tmp_path) == (
        f"{where} lacks the key 'hidden_size'. A hf_mamba config must have it. Add it."
    )


@pytest.mark.parametrize(
    ("family", "key", "value", "supported"),
    [
        ("hf_mamba", "hidden_act", "gelu", 'only "silu"'),
        ("samba", "bias", True, "only false"),
        ("samba", "rotary_percentage", 0.25, "only 1.0"),
        ("samba", "_norm_class", "LayerNorm", 'only "RMSNorm" or "FusedRMSNorm"'),
        ("samba", "use_mega", True, "only false"),
    ],
)
def test_an_unsupported_value_is_named(
    tmp_path: Path, family: str, key: str, value: object, supported: str
) -> None:
    WRITERS[family](tmp_path)
    where = write_config(tmp_path, CONFIGS[family] | {key: value})
    assert refusal(tmp_path) == (
        f"{where} has {key} = {json.dumps(value)}; longspan supports {supported} for a {family} "
        "model. This checkpoint cannot be exported by this version."
    )


def test_a_layer_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path)
    where = write_config(tmp_path, MAMBA_CONFIG | {"ssm_cfg": {"layer": "Mamba3"}})
    assert refusal(tmp_path) == (
        f'{where}, ssm_cfg has layer = "Mamba3"; longspan supports only "Mamba1" for a mamba '
        "model. This checkpoint cannot be exported by this version."
    )


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num_hidden_layers", 0, "a positive int"),
        ("num_hidden_layers", "2", "a positive int"),
        ("use_bias", 1, "a bool"),
        ("layer_norm_epsilon", -1e-5, "a positive float"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    tmp_path: Path, key: str, value: object, rule: str
) -> None:
    write_hf(tmp_path)
    where = write_config(tmp_path, HF_CONFIG | {key: value})
    assert (
        refusal(tmp_path)
        == f"{where} has {key} = {json.dumps(value)}; it must be {rule}. Correct it."
    )


def test_a_missing_tensor_is_named_with_the_nearest(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["backbone.norm.weight"] = weights.pop("backbone.norm_f.weight")
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin lacks the tensor 'backbone.norm_f.weight' (the nearest it "
        f"has is 'backbone.norm.weight'). A mamba checkpoint of this config must have it. {BELONG}"
    )


def test_an_unknown_tensor_is_named_with_the_nearest(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["backbone.norm_f.bias"] = torch.zeros(1)
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin has the tensor 'backbone.norm_f.bias', which a mamba "
        "checkpoint of this config does not have (the nearest known is 'backbone.norm_f.weight'). "
        f"Every tensor must be used, because an ignored one could change the model. {BELONG}"
    )


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["backbone.norm_f.weight"] = torch.ones(3)
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin has the tensor 'backbone.norm_f.weight' with shape [3]; its "
        f"config asks for [16]. {BELONG}"
    )


def test_a_wrong_dtype_is_named(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["backbone.norm_f.weight"] = torch.ones(16, dtype=torch.float64)
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin has the tensor 'backbone.norm_f.weight' in torch.float64; "
        "longspan reads float32, float16 and bfloat16. Convert the checkpoint to one of them."
    )


def test_a_tied_head_must_be_the_embedding(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["lm_head.weight"] += 1
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin has a tensor 'lm_head.weight' that differs from "
        "'backbone.embedding.weight', but its config says that they are tied. Tied tensors must be "
        "equal. Say in the config that they are not tied."
    )


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    weights["backbone.norm_f.weight"][3] = float("nan")
    write_weights(tmp_path, weights, "bin")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(BadCheckpoint) as caught:
        checkpoint.read("norm.weight")
    assert str(caught.value) == (
        f"{tmp_path}/pytorch_model.bin holds values that are not finite in backbone.norm_f.weight. "
        "A model with such weights may answer nothing but NaN. Use an earlier checkpoint of this "
        "training, or take the weights as they are with allow_nonfinite=True (--allow-nonfinite)."
    )
    assert checkpoint.read("norm.weight", allow_nonfinite=True).isnan().sum() == 1


def test_a_tied_head_may_have_the_nan_of_the_embedding(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path)
    for name in ("lm_head.weight", "backbone.embedding.weight"):
        weights[name][3] = float("nan")
    write_weights(tmp_path, weights, "bin")
    assert open_checkpoint(tmp_path).config.tied
