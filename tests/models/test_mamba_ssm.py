"""mamba_ssm folders: every way the weights may be stored gives the same decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_checkpoints import VOCABULARY, WIDTH, write_hf, write_mamba

from longspan.errors import BadCheckpoint
from longspan.models.checkpoint import is_float32, load_decoder
from longspan.models.families import open_checkpoint

KINDS = ("bin", "safetensors", "sharded bin", "sharded safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_found(tmp_path: Path, kind: str) -> None:
    weights = write_mamba(tmp_path, kind=kind)
    found = dict(open_checkpoint(tmp_path).tensors())
    theirs = "backbone.layers.1.mixer."
    assert torch.equal(found["embedding"], weights["backbone.embedding.weight"])
    assert torch.equal(found["layers.1.mixer.conv_weight"], weights[f"{theirs}conv1d.weight"])
    assert torch.equal(found["layers.1.mixer.dt_bias"], weights[f"{theirs}dt_proj.bias"])
    assert torch.equal(found["layers.1.mixer.A"], -torch.exp(weights[f"{theirs}A_log"]))
    assert torch.equal(found["norm.weight"], weights["backbone.norm_f.weight"])
    assert "head" not in found


def test_the_vocabulary_is_padded(tmp_path: Path) -> None:
    write_mamba(tmp_path)
    config = open_checkpoint(tmp_path).config
    assert (config.family, config.vocab_size, config.d_model) == ("mamba", VOCABULARY, WIDTH)


def test_an_untied_head_is_a_parameter(tmp_path: Path) -> None:
    weights = write_mamba(tmp_path, tie_embeddings=False)
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("head"), weights["lm_head.weight"])


def test_transformers_naming_gives_the_same_logits(tmp_path: Path) -> None:
    write_mamba(tmp_path / "ours")
    write_hf(tmp_path / "theirs")
    tokens, logits = torch.randint(VOCABULARY, (1, 9)), []
    for name in ("ours", "theirs"):
        decoder = load_decoder(open_checkpoint(tmp_path / name))
        logits.append(decoder(tokens, None, decoder.new_state())[0])
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


def test_half_precision_keeps_the_recurrence_in_float32(tmp_path: Path) -> None:
    write_hf(tmp_path, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == "bfloat16"
    for name, tensor in checkpoint.tensors():
        assert tensor.dtype == (torch.float32 if is_float32(name) else torch.bfloat16), name
    for spec in checkpoint.specs("float16"):
        assert spec.dtype == ("float32" if is_float32(spec.name) else "float16")


def test_tokenizer_and_end_token_come_from_the_folder(tmp_path: Path) -> None:
    write_hf(tmp_path, eos_token_id=[5, 6])
    assert open_checkpoint(tmp_path).tokenizer is None
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer == tmp_path / "tokenizer.json"
    assert checkpoint.eos == 5


@pytest.mark.parametrize("value", ["x", 1.5, True, [5, "x"]])
def test_an_end_token_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    write_hf(tmp_path, eos_token_id=value)
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'config.json'} has eos_token_id {value!r}. It must be the id of the token "
        "that ends a text, a list of such ids, or null. Mend the config, or leave the key out."
    )


def test_a_config_may_lie_elsewhere(tmp_path: Path) -> None:
    write_mamba(tmp_path / "weights")
    moved = (tmp_path / "weights/config.json").rename(tmp_path / "mamba.json")
    assert json.loads(moved.read_text(encoding="utf-8"))
    assert open_checkpoint(tmp_path / "weights", moved).family == "mamba"
    assert open_checkpoint(tmp_path / "weights/pytorch_model.bin", moved).family == "mamba"
