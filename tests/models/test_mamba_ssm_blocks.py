"""mamba_ssm's blocks with attention and gated MLPs, against their equations in float64.

The Mamba mixers have oracles of their own (test_hf_mamba.py, test_hf_mamba2.py); here they are
taken from the decoder. Norms, residuals, attention and MLP are written out from modules/block.py,
mha.py and mlp.py of state-spaces/mamba, over the checkpoint's own names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    MAMBA2_CONFIG,
    RANK,
    STATES,
    VOCABULARY,
    WIDTH,
    mixer2_shapes,
    mixer_shapes,
    random_weights,
    refusal,
    write_config,
    write_weights,
)
from torch.nn.functional import silu

from longspan.export import export_bundle
from longspan.models.checkpoint import load_decoder
from longspan.models.config import FullAttentionConfig, MlpConfig
from longspan.models.decoder import Decoder
from longspan.models.families import open_checkpoint

Weights = dict[str, torch.Tensor]
TOKENS = 21
CUTS = ([TOKENS], [1] * TOKENS, [4, 1, 2, 9, 3, 2])
# The decoder computes in float64 from float32 weights; A is rounded to float32 once.
ATOL = 1e-5
ATTENTION = {
    "causal": True,
    "num_heads": 4,
    "num_heads_kv": 2,
    "head_dim": 6,
    "d_conv": 4,
    "rotary_emb_dim": 4,
}
# The second of three blocks attends; each block has an MLP of 100, rounded up to 128.
HYBRID_CONFIG: dict[str, Any] = MAMBA2_CONFIG | {
    "n_layer": 3,
    "d_intermediate": 100,
    "attn_layer_idx": [1],
    "attn_cfg": ATTENTION,
}
MAMBA1 = {"d_state": STATES, "dt_rank": RANK}
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "as mamba2attn is": {
        "d_intermediate": 0,
        "attn_cfg": ATTENTION | {"qkv_proj_bias": False, "out_proj_bias": False},
    },
    "in pairs": {"attn_cfg": ATTENTION | {"rotary_emb_interleaved": True}},
    "whole heads, another base": {
        "attn_cfg": ATTENTION | {"rotary_emb_dim": 6, "rotary_emb_base": 30.0}
    },
    "no RoPE, no convolution": {"attn_cfg": {"causal": True, "num_heads": 4}},
    "two taps": {"attn_cfg": ATTENTION | {"d_conv": 2}},
    "attention first and last": {"attn_layer_idx": [0, 2]},
    "an MLP after each Mamba": {"ssm_cfg": MAMBA1, "attn_layer_idx": [], "d_intermediate": 256},
    "Mamba and attention": {"ssm_cfg": MAMBA1},
}


def hybrid_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of mamba_ssm's blocks: mixers or attention, and gated MLPs."""
    mixer = mixer2_shapes if config["ssm_cfg"].get("layer") == "Mamba2" else mixer_shapes
    d_ff, attention = -(-config["d_intermediate"] // 128) * 128, config["attn_cfg"]
    shapes: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (VOCABULARY, WIDTH)}
    for i in range(config["n_layer"]):
        at = f"backbone.layers.{i}."
        shapes[f"{at}norm.weight"] = (WIDTH,)
        attends = i in config["attn_layer_idx"]
        shapes |= mha_shapes(f"{at}mixer.", attention) if attends else mixer(f"{at}mixer.")
        if d_ff:
            shapes |= {
                f"{at}norm2.weight": (WIDTH,),
                f"{at}mlp.fc1.weight": (2 * d_ff, WIDTH),
                f"{at}mlp.fc2.weight": (WIDTH, d_ff),
            }
    return shapes | {"backbone.norm_f.weight": (WIDTH,)}


def mha_shapes(prefix: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """An attention layer's tensors, as an ``attn_cfg`` has them."""
    heads = config["num_heads"]
    head = config.get("head_dim", WIDTH // heads)
    rows = (heads + 2 * config.get("num_heads_kv", heads)) * head
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (rows, WIDTH),
        "out_proj.weight": (WIDTH, heads * head),
    }
    if config.get("qkv_proj_bias", True):
        shapes["in_proj.bias"] = (rows,)
    if config.get("out_proj_bias", True):
        shapes["out_proj.bias"] = (WIDTH,)
    if config.get("d_conv"):
        shapes |= {"conv1d.weight": (rows, 1, config["d_conv"]), "conv1d.bias": (rows,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def write_hybrid(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A mamba_ssm folder whose blocks are not all of one kind."""
    folder.mkdir(parents=True, exist_ok=True)
    config = HYBRID_CONFIG | changes
    write_config(folder, config)
    weights = random_weights(hybrid_shapes(config))
    write_weights(folder, weights, "safetensors")
    return weights


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def mlp(x: torch.Tensor, w: Weights, at: str) -> torch.Tensor:
    up, gate = (x @ w[f"{at}fc1.weight"].T).chunk(2, dim=-1)
    return (up * silu(gate)) @ w[f"{at}fc2.weight"].T


def convolved(rows: torch.Tensor, w: Weights, at: str) -> torch.Tensor:
    """Each channel's last K inputs; no activation."""
    taps, out = w[f"{at}conv1d.weight"][:, 0], []
    for t in range(len(rows)):
        total = w[f"{at}conv1d.bias"].clone()
        for j in range(taps.shape[1]):
            source = t - taps.shape[1] + 1 + j
            if source >= 0:
                total += taps[:, j] * rows[source]
        out.append(total)
    return torch.stack(out)


def turned(u: torch.Tensor, position: int, config: dict[str, Any]) -> torch.Tensor:
    """RoPE of the first channels of one head."""
    dims, base = config.get("rotary_emb_dim", 0), config.get("rotary_emb_base", 10000.0)
    result = u.clone()
    for i in range(dims // 2):
        pair = config.get("rotary_emb_interleaved", False)
        a, b = (2 * i, 2 * i + 1) if pair else (i, dims // 2 + i)
        angle = position * base ** (-2 * i / dims)
        result[a] = u[a] * math.cos(angle) - u[b] * math.sin(angle)
        result[b] = u[b] * math.cos(angle) + u[a] * math.sin(angle)
    return result


def attention(x: torch.Tensor, w: Weights, at: str, config: dict[str, Any]) -> torch.Tensor:
    heads = config["num_heads"]
    groups, head = config.get("num_heads_kv", heads), config.get("head_dim", x.shape[1] // heads)
    rows = x @ w[f"{at}in_proj.weight"].T + w.get(f"{at}in_proj.bias", 0.0)
    if config.get("d_conv"):
        rows = convolved(rows, w, at)
    cut = rows.view(len(x), heads + 2 * groups, head)
    out = []
    for t in range(len(x)):
        mixed = []
        for h in range(heads):
            key = heads + h // (heads // groups)
            q = turned(cut[t, h], t, config)
            scores = torch.stack([q @ turned(cut[s, key], s, config) for s in range(t + 1)])
            weights = torch.softmax(scores / math.sqrt(head), dim=0)
            mixed.append(weights @ cut[: t + 1, key + groups])
        out.append(w[f"{at}out_proj.weight"] @ torch.cat(mixed) + w.get(f"{at}out_proj.bias", 0.0))
    return torch.stack(out)


def blocks(
    tokens: torch.Tensor, weights: Weights, config: dict[str, Any], decoder: Decoder
) -> torch.Tensor:
    """Logits [L, V] of one pass."""
    w = {name: weight.double() for name, weight in weights.items()}
    x, layer = w["backbone.embedding.weight"][tokens], 0
    for i in range(config["n_layer"]):
        at = f"backbone.layers.{i}."
        normed = norm(x, w[f"{at}norm.weight"])
        if i in config["attn_layer_idx"]:
            x = x + attention(normed, w, f"{at}mixer.", config["attn_cfg"])
        else:
            state = {
                name.removeprefix(f"layers.{layer}."): tensor.double()
                for name, tensor in decoder.new_state().items()
                if name.startswith(f"layers.{layer}.")
            }
            x = x + decoder.layers[layer].mixer(normed[None], state)[0][0]
        layer += 1
        if config["d_intermediate"]:
            x = x + mlp(norm(x, w[f"{at}norm2.weight"]), w, f"{at}mlp.")
            layer += 1
    return norm(x, w["backbone.norm_f.weight"]) @ w["backbone.embedding.weight"].T


def read(decoder: Decoder, tokens: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in decoder.new_state(capacity=len(tokens) + 2).items()
    }
    logits = []
    for part in tokens[None].split(list(cuts), dim=1):
        rows, state = decoder(part, torch.arange(part.shape[1]), state)
        logits.append(rows[0])
    return torch.cat(logits)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_decoder_equals_the_equations(tmp_path: Path, changes: dict[str, Any]) -> None:
    weights = write_hybrid(tmp_path, **changes)
    decoder = load_decoder(open_checkpoint(tmp_path), compute=torch.float64).double()
    tokens = torch.randint(VOCABULARY, (TOKENS,))
    expected = blocks(tokens, weights, HYBRID_CONFIG | changes, decoder)
    assert float(expected.std()) > 0.1
    for cuts in CUTS:
        torch.testing.assert_close(read(decoder, tokens, cuts), expected, atol=ATOL, rtol=0)


def test_the_layers_of_a_hybrid(tmp_path: Path) -> None:
    write_hybrid(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    kinds = [layer.kind for layer in checkpoint.config.layers]
    assert kinds == ["mamba2", "mlp", "full_attention", "mlp", "mamba2", "mlp"]
    assert checkpoint.config.layers[1] == MlpConfig(d_ff=128)
    attention_layer = checkpoint.config.layers[2]
    assert isinstance(attention_layer, FullAttentionConfig)
    state = {spec.name: spec for spec in attention_layer.state("bfloat16")}
    assert (state["conv"].shape, state["conv"].dtype) == ((1, 3, (4 + 2 * 2) * 6), "bfloat16")


def test_a_published_hybrid(tmp_path: Path) -> None:
    """state-spaces/mamba2attn-2.7b."""
    from longspan.models.families.mamba2 import model_config

    where = write_config(
        tmp_path,
        {
            "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277,
            "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [9, 18, 27, 36, 45, 56],
            "attn_cfg": {"causal": True, "d_conv": 4, "head_dim": 128, "num_heads": 30,
                         "out_proj_bias": False, "qkv_proj_bias": False, "rotary_emb_dim": 64},
            "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
            "pad_vocab_size_multiple": 16, "tie_embeddings": True,
        },
    )  # fmt: skip
    config = model_config(json.loads(Path(where).read_text(encoding="utf-8")), where)
    assert config.layers_by_kind() == {"mamba2": 58, "full_attention": 6}
    assert config.layers[56] == FullAttentionConfig(
        n_heads=30, n_kv_heads=30, head_dim=128, rope_dims=64, d_conv=4
    )


def test_export_agrees(tmp_path: Path) -> None:
    write_hybrid(tmp_path / "checkpoint", n_layer=2)
    report = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", weights="float16")
    assert [check.skipped for check in report.checks] == [None] * 5
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attn_layer_idx": [1, 3]},
            (
                " has attn_layer_idx = [1, 3]; it must be a list of different whole numbers from 0 "
                "to 2, one for each layer with attention. Correct it."
            ),
        ),
        (
            {"d_intermediate": -1},
            (
                " has d_intermediate = -1; it must be 0, for no MLP, or the width of one. Correct "
                "it."
            ),
        ),
        (
            {"attn_cfg": ATTENTION | {"causal": False}},
            (
                ", attn_cfg has causal = false; longspan supports only true for a mamba2 model. "
                "This checkpoint cannot be exported by this version."
            ),
        ),
        (
            {"attn_cfg": {"num_heads": 4}},
            ", attn_cfg lacks the key 'causal'. A mamba2 config must have it. Add it.",
        ),
        (
            {"attn_cfg": ATTENTION | {"mlp_dim": 256}},
            (
                ", attn_cfg has mlp_dim = 256; longspan supports only 0 for a mamba2 model. This "
                "checkpoint cannot be exported by this version."
            ),
        ),
        (
            {"attn_cfg": ATTENTION | {"num_heads_kv": 3}},
            (
                ", attn_cfg has num_heads = 4, num_heads_kv = 3 and d_model = 16; num_heads must "
                "be a multiple of num_heads_kv, and d_model of num_heads unless head_dim is given. "
                "Correct them."
            ),
        ),
        (
            {"attn_cfg": ATTENTION | {"rotary_emb_dim": 8}},
            (
                ", attn_cfg has rotary_emb_dim = 8; it must be even, and at most the width of a "
                "head, 6. Correct it."
            ),
        ),
        (
            {"attn_cfg": ATTENTION | {"d_conv": 1}},
            (
                ", attn_cfg has d_conv = 1; it must be 0, for no convolution, or its width, at "
                "least 2. Correct it."
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_hybrid(tmp_path)
    where = write_config(tmp_path, HYBRID_CONFIG | changes)
    assert refusal(tmp_path) == where + message
