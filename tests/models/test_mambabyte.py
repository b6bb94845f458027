"""MambaByte: LayerNorm and the head are decided by the tensors, whatever the config says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import (
    MAMBA_CONFIG,
    VOCABULARY,
    WIDTH,
    backbone_shapes,
    random_weights,
    refusal,
    write_config,
    write_mamba,
    write_mambabyte,
    write_weights,
)

from longspan.models.checkpoint import load_decoder
from longspan.models.config import MambaConfig, ModelConfig
from longspan.models.families import open_checkpoint
from longspan.models.norm import LayerNorm

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

# float32 sums in another order; the logits are near 3.
LOGITS_ATOL = 2e-5
TRAINED = {
    "backbone.embedding.": "mambabyte.token_embedding.",
    "backbone.norm_f.": "mambabyte.final_norm.",
    "backbone.": "mambabyte.",
}


def oracle(folder: Path, config: dict[str, object], *, tied: bool) -> torch.nn.Module:
    """transformers' Mamba with torch's LayerNorm in the place of every norm; saved as mamba_ssm."""
    sizes = {"vocab_size": 256, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": 2}
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(**sizes, time_step_rank=3, tie_word_embeddings=tied)
    )
    for block in model.backbone.layers:
        block.norm = torch.nn.LayerNorm(WIDTH, eps=1e-5)
    model.backbone.norm_f = torch.nn.LayerNorm(WIDTH, eps=1e-5)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        near_one = ("norm" in name and "weight" in name) or ".D" in name
        parameter.copy_(torch.randn_like(parameter) * 0.3 + near_one)
    weights = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    write_config(folder, config)
    write_weights(folder, weights, "bin")
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_logits_equal_mamba_with_torchs_layer_norm(tmp_path: Path, tied: bool) -> None:
    config = MAMBA_CONFIG | {"vocab_size": 256, "rms_norm": True, "pad_id": 0}
    model = oracle(tmp_path, config, tied=tied)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.byte_tokens) == ("mambabyte", True)
    assert (checkpoint.config.norm, checkpoint.config.tied) == ("layer", tied)
    decoder, tokens = load_decoder(checkpoint), torch.randint(256, (1, 11))
    expected = model(tokens).logits

    logits, last = decoder(tokens, torch.arange(11), decoder.new_state())
    torch.testing.assert_close(logits, expected, atol=LOGITS_ATOL, rtol=0)

    for cuts in ([1] * 11, [4, 1, 6], [10, 1]):
        state, start = decoder.new_state(), 0
        for tokens_now in cuts:
            part = tokens[:, start : start + tokens_now]
            logits, state = decoder(part, torch.arange(tokens_now), state)
            theirs = expected[:, start : start + tokens_now]
            torch.testing.assert_close(logits, theirs, atol=LOGITS_ATOL, rtol=0)
            start += tokens_now
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, last[name], atol=LOGITS_ATOL, rtol=0)


def test_steps_equal_its_own_steps(tmp_path: Path) -> None:
    model = oracle(tmp_path, MAMBA_CONFIG | {"vocab_size": 256}, tied=False)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens, state, cache = torch.randint(256, (1, 6)), decoder.new_state(), None
    for t in range(6):
        out = model(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
        cache = out.cache_params
        logits, state = decoder(tokens[:, t : t + 1], None, state)
        torch.testing.assert_close(logits, out.logits, atol=LOGITS_ATOL, rtol=0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_layer_norm_is_the_papers_in_every_dtype(device: str) -> None:
    """(x - mean) / sqrt(variance + eps) * weight + bias, statistics in float32."""
    x = (torch.randn(2, 5, WIDTH) * 100 + 30).to(device)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        norm = LayerNorm(WIDTH, eps=1e-5, dtype=dtype).requires_grad_(False).to(device)
        norm.weight.copy_(torch.randn(WIDTH))
        norm.bias.copy_(torch.randn(WIDTH))
        wide = x.double()
        centred = wide - wide.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = expected * norm.weight.double() + norm.bias.double()
        _, found = norm(x, None, dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=atol)


def test_the_training_classs_names(tmp_path: Path) -> None:
    weights = write_mambabyte(tmp_path / "published")
    write_mambabyte(tmp_path / "trained")
    for theirs, its in TRAINED.items():
        weights = {name.replace(theirs, its): tensor for name, tensor in weights.items()}
    assert "mambabyte.layers.1.mixer.A_log" in weights
    write_weights(tmp_path / "trained", weights, "bin")
    one, two = (
        dict(open_checkpoint(tmp_path / name).tensors()) for name in ("published", "trained")
    )
    assert one.keys() == two.keys() >= {"head", "norm.bias", "layers.1.norm.bias"}
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("rms_norm", [True, False])
def test_a_larger_vocabulary_is_mamba_with_layer_norm(tmp_path: Path, rms_norm: bool) -> None:
    write_mamba(tmp_path, rms_norm=rms_norm)
    weights = random_weights(backbone_shapes(embedding="embedding", norms=("weight", "bias")))
    write_weights(tmp_path, weights, "bin")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.byte_tokens) == ("mamba", False)
    assert (checkpoint.config.norm, checkpoint.config.vocab_size) == ("layer", VOCABULARY)
    assert torch.equal(checkpoint.read("norm.bias"), weights["backbone.norm_f.bias"])


def test_bytes_after_rms_norm(tmp_path: Path) -> None:
    write_mambabyte(tmp_path)
    write_weights(
        tmp_path, random_weights(backbone_shapes(embedding="embedding", vocabulary=256)), "bin"
    )
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.config.norm, checkpoint.config.tied) == (
        "mambabyte", "rms", True,
    )  # fmt: skip


def test_layer_norm_without_a_bias_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path, rms_norm=False)
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin lacks the tensor 'backbone.layers.0.norm.bias'. A mamba "
        "checkpoint of this config must have it. Check that config and weights belong together."
    )


def test_a_bias_that_is_missing_is_named(tmp_path: Path) -> None:
    weights = write_mambabyte(tmp_path)
    del weights["backbone.norm_f.bias"]
    write_weights(tmp_path, weights, "bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin lacks the tensor 'backbone.norm_f.bias'. A mambabyte "
        "checkpoint of this config must have it. Check that config and weights belong together."
    )


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    write_mambabyte(tmp_path, pad_ids=0)
    assert refusal(tmp_path) == (
        f"{tmp_path}/config.json has the key 'pad_ids', which a mambabyte config does not have "
        "(the nearest known key is 'pad_id'). Every key must be known, because an ignored one "
        "could change the model. Correct or remove it."
    )


def test_the_norm_is_in_the_manifest_and_old_ones_open() -> None:
    layer = MambaConfig(d_inner=8, d_state=4, d_conv=4, dt_rank=1)
    old = ModelConfig(family="mamba", vocab_size=8, d_model=4, layers=(layer,))
    data = json.loads(json.dumps(old.to_json()))
    assert ModelConfig.from_json(data) == old
    del data["norm"], data["layers"][0]["bcdt_norm_eps"]
    assert ModelConfig.from_json(data) == old
    assert old.identity() == {
        "family": "mamba",
        "vocab_size": 8,
        "d_model": 4,
        "layers": [{"kind": "mamba", "d_inner": 8, "d_state": 4, "d_conv": 4, "dt_rank": 1}],
    }
    new = replace(old, norm="layer", layers=(replace(layer, conv_bias=False),))
    assert ModelConfig.from_json(json.loads(json.dumps(new.to_json()))) == new
    assert new.identity()["norm"] == "layer"
    assert new.identity()["layers"][0]["conv_bias"] is False
    with pytest.raises(ValueError, match="norm 'batch' is unknown; it is one of rms and layer"):
        ModelConfig.from_json(old.to_json() | {"norm": "batch"})
