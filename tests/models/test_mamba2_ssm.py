"""mamba_ssm folders of Mamba-2 layers: names, options of the mixer, and what is refused."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    HEAD_DIM,
    HEADS,
    HF_MAMBA2_CONFIG,
    INNER,
    MAMBA2_CONFIG,
    MAMBA2_SSM,
    STATES,
    VOCABULARY,
    WIDTH,
    refusal,
    write_config,
    write_hf_mamba2,
    write_mamba2,
)

from longspan.models.checkpoint import load_decoder
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.families import open_checkpoint

MIXER = "backbone.layers.1.mixer."


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    decoder = load_decoder(open_checkpoint(folder))
    logits, _ = decoder(tokens, torch.arange(tokens.shape[1]), decoder.new_state())
    return logits


def test_every_parameter_is_found(tmp_path: Path) -> None:
    weights = write_mamba2(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    found = dict(checkpoint.tensors())
    for ours, theirs in (
        ("in_proj.weight", "in_proj.weight"),
        ("conv_weight", "conv1d.weight"),
        ("conv_bias", "conv1d.bias"),
        ("dt_bias", "dt_bias"),
        ("D", "D"),
        ("norm.weight", "norm.weight"),
        ("out_proj.weight", "out_proj.weight"),
    ):
        assert torch.equal(found[f"layers.1.mixer.{ours}"], weights[MIXER + theirs]), ours
    assert torch.equal(found["layers.1.mixer.A"], -torch.exp(weights[f"{MIXER}A_log"]))
    assert (checkpoint.family, checkpoint.config.vocab_size) == ("mamba2", VOCABULARY)


def test_transformers_naming_gives_the_same_logits(tmp_path: Path) -> None:
    write_mamba2(tmp_path / "ours")
    write_hf_mamba2(tmp_path / "theirs")
    tokens = torch.randint(VOCABULARY, (1, 9))
    expected = logits_of(tmp_path / "theirs", tokens)
    torch.testing.assert_close(logits_of(tmp_path / "ours", tokens), expected, atol=1e-6, rtol=0)


def test_a_published_config(tmp_path: Path) -> None:
    where = write_config(
        tmp_path,
        {
            "d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277,
            "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {},
            "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
            "pad_vocab_size_multiple": 16, "tie_embeddings": True,
        },
    )  # fmt: skip
    from longspan.models.families.mamba2 import model_config

    config = model_config(json.loads(Path(where).read_text(encoding="utf-8")), where)
    mixer = Mamba2Config(n_heads=24, head_dim=64, n_groups=1, d_state=128, d_conv=4)
    assert (config.vocab_size, config.tied, config.layers) == (50288, True, (mixer,) * 24)
    assert mixer.conv_channels == 1792
    conv, ssm = mixer.state("bfloat16")
    assert (conv.shape, conv.dtype) == ((1, 3, 1792), "bfloat16")
    assert (ssm.shape, ssm.dtype) == ((1, 24, 128, 64), "float32")


def test_the_config_survives_json() -> None:
    limited = Mamba2Config(
        n_heads=4, head_dim=2, n_groups=2, d_state=3, d_conv=4, dt_min=0.1, dt_max=2.0,
        norm_eps=None, d_per_channel=True,
    )  # fmt: skip
    open_ended = Mamba2Config(n_heads=4, head_dim=2, n_groups=2, d_state=3, d_conv=4)
    config = ModelConfig(family="t", vocab_size=5, d_model=4, layers=(limited, open_ended))
    text = json.dumps(config.to_json(), allow_nan=False)
    assert ModelConfig.from_json(json.loads(text)) == config
    assert (limited.dt_limit, open_ended.dt_limit) == ((0.1, 2.0), (0.0, inf))


def test_without_the_norm_the_gate_is_left(tmp_path: Path) -> None:
    """One layer written out: with zeros for B there is only the skip, D x silu(z)."""
    weights = write_mamba2(tmp_path, rmsnorm=False, D_has_hdim=True)
    decoder = load_decoder(open_checkpoint(tmp_path))
    mixer = decoder.layers[1].mixer
    assert mixer.norm is None
    assert mixer.D.shape == (HEADS, HEAD_DIM)
    channels = slice(INNER, INNER + 2 * STATES)
    mixer.conv_weight[channels] = 0
    mixer.conv_bias[channels] = 0
    x = torch.randn(1, 1, WIDTH)
    state = {"conv": torch.zeros(1, 3, INNER + 4 * STATES), "ssm": torch.zeros(1, HEADS, 4, 8)}
    found, _ = mixer(x, state)

    z, u, _ = (x @ weights[f"{MIXER}in_proj.weight"].T).split([INNER, INNER + 4 * STATES, HEADS], 2)
    u = u * weights[f"{MIXER}conv1d.weight"][:, 0, -1] + weights[f"{MIXER}conv1d.bias"]
    silu = torch.nn.functional.silu
    y = weights[f"{MIXER}D"] * silu(u[..., :INNER]) * silu(z)
    torch.testing.assert_close(found, y @ weights[f"{MIXER}out_proj.weight"].T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"norm_before_gate": True},
            (
                ", ssm_cfg has norm_before_gate = true; longspan supports only false for a mamba2 "
                "model. This checkpoint cannot be exported by this version."
            ),
        ),
        (
            {"d_ssm": 16},
            (
                ", ssm_cfg has d_ssm = 16; longspan supports only expand * d_model = 32, where all "
                "channels pass the recurrence. This checkpoint cannot be exported by this version."
            ),
        ),
        (
            {"headdim": 5},
            ", ssm_cfg has headdim = 5; it must divide expand * d_model = 32. Correct it.",
        ),
        (
            {"ngroups": 3},
            (
                ", ssm_cfg has expand * d_model / headdim = 4 and ngroups = 3; the second must "
                "divide the first. Correct them."
            ),
        ),
        (
            {"dt_limit": [0.5, 0.1]},
            (
                ", ssm_cfg has dt_limit = [0.5, 0.1]; it must be two numbers, the least step, zero "
                "or more, and a larger one. Correct it."
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_mamba2(tmp_path)
    where = write_config(tmp_path, MAMBA2_CONFIG | {"ssm_cfg": MAMBA2_SSM | changes})
    assert refusal(tmp_path) == where + message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heads": 3},
            (
                " has num_heads * head_dim = 24; it must be expand * hidden_size = 32, as "
                "transformers computes it. Correct one of the four."
            ),
        ),
        (
            {"n_groups": 3},
            " has num_heads = 4 and n_groups = 3; the second must divide the first. Correct them.",
        ),
        (
            {"time_step_limit": [0.0]},
            (
                " has time_step_limit = [0.0]; it must be two numbers, the least step, zero or "
                "more, and a larger one. Correct it."
            ),
        ),
        (
            {"intermediate_size": 64},
            (
                " has intermediate_size = 64; it must be expand * hidden_size = 32, as "
                "transformers computes it. Correct one of the three."
            ),
        ),
        (
            {"rms_norm": False},
            (
                " has rms_norm = false; longspan supports only true for a hf_mamba2 model. This "
                "checkpoint cannot be exported by this version."
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused_of_transformers(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_hf_mamba2(tmp_path)
    where = write_config(tmp_path, HF_MAMBA2_CONFIG | changes)
    assert refusal(tmp_path) == where + message
