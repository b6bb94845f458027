"""MixCon against its equations, token by token in float64, over the checkpoint's own names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    HEADS,
    MIXCON_CONFIG,
    STATES,
    VOCABULARY,
    WIDTH,
    refusal,
    write_config,
    write_mixcon,
)

from longspan.models.checkpoint import load_decoder
from longspan.models.config import (
    ConbaConfig,
    FullAttentionConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from longspan.models.decoder import Decoder
from longspan.models.families import open_checkpoint
from longspan.models.families.mixcon_config import model_config

Weights = dict[str, torch.Tensor]
Rows = list[torch.Tensor]
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "gain by chunks": {"conba": {"gain": "chunk", "gain_chunk": 3, "tau": 1}},
    "no gain": {"conba": {"gain": "off"}},
    "tanh, small gain": {"conba": {"f": "tanh", "k_max": 0.05}},
    "rope": {"rope_theta": 500.0},
    "renormalised, tied": {"norm_topk_prob": True, "tie_word_embeddings": True},
    "pure Conba": {"attn_layer_period": 9, "attn_layer_offset": 8},
}
TOKENS = 13
# The decoder computes in float64 from float32 weights; A is rounded to float32 once.
ATOL = 1e-5


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-5) * weight


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def conba(rows: Rows, w: Weights, at: str, config: dict[str, Any]) -> Rows:
    """Equations (1) to (7) of docs/mixcon.md, head by head."""
    own = config["conba"]
    heads, gain, tau = w[f"{at}C"].shape[0], own.get("gain", "token"), own["tau"]
    outputs: list[Rows] = [[] for _ in rows]
    for h in range(heads):
        C, D, width = w[f"{at}C"][h], w[f"{at}D"][h], own["head_dim"]
        w_tau, rate = w[f"{at}w_tau"][h], torch.exp(w[f"{at}A_log"][h])
        own_states = slice(h * STATES, (h + 1) * STATES)
        part = slice(h * width, (h + 1) * width)
        history = [torch.zeros(STATES, dtype=torch.float64)] * (tau + 1)
        K, e = torch.zeros(STATES, width, dtype=torch.float64), torch.zeros(width).double()
        for k, u in enumerate(rows):
            gate, up = (w[f"{at}select_{name}_proj.weight"] @ u for name in ("gate", "up"))
            s = (w[f"{at}select_down_proj.weight"] @ (silu(gate) * up))[own_states]  # (1)
            scale = (w[f"{at}scale_proj.weight"] @ u + w[f"{at}scale_proj.bias"])[own_states]
            a = torch.exp(-torch.log1p(torch.exp(scale)) * rate)  # (2)
            delayed = (history[-1] + w_tau * history[-1 - tau]) / (1 + w_tau.abs())  # (3)
            x = a * delayed + s + K @ e  # (4)
            history.append(torch.tanh(x) if own.get("f") == "tanh" else x)
            y = C @ history[-1] + D * u[part]  # (5)
            outputs[k].append(y)
            if gain != "off":
                last, e = e, (w[f"{at}desired_proj.weight"] @ u)[part] - y  # (6)
                if gain == "token" or (k + 1) % own["gain_chunk"] == 0:
                    K = K + own["eta"] * torch.outer(C.T @ e, last) / (1 + last @ last)  # (7)
                    K = K * min(1.0, own.get("k_max", 1.0) / max(float(K.norm()), 1e-30))
    out = []
    for u, ys in zip(rows, outputs, strict=True):
        ones = torch.ones(own["head_dim"]).double()
        normed = torch.cat([norm(y, ones) for y in ys]) * w[f"{at}norm.weight"]
        gated = normed * silu(w[f"{at}gate_proj.weight"] @ u)
        out.append(w[f"{at}out_proj.weight"] @ gated)
    return out


def rope(u: torch.Tensor, position: int, base: float | None) -> torch.Tensor:
    if base is None:
        return u
    half, result = len(u) // 2, u.clone()
    for i in range(half):
        angle = position * base ** (-2 * i / len(u))
        a, b = u[i], u[half + i]
        result[i] = a * math.cos(angle) - b * math.sin(angle)
        result[half + i] = b * math.cos(angle) + a * math.sin(angle)
    return result


def attention(rows: Rows, w: Weights, at: str, config: dict[str, Any]) -> Rows:
    groups, head = config["num_key_value_heads"], WIDTH // HEADS
    q, k, v = (
        [(w[f"{at}{name}_proj.weight"] @ row).view(-1, head) for row in rows] for name in "qkv"
    )
    base, out = config.get("rope_theta"), []
    for t in range(len(rows)):
        mixed = []
        for h in range(HEADS):
            g = h * groups // HEADS
            query = rope(q[t][h], t, base)
            scores = torch.stack([query @ rope(k[i][g], i, base) for i in range(t + 1)])
            weights = torch.softmax(scores / math.sqrt(head), dim=0)
            mixed.append(sum(p * v[i][g] for i, p in enumerate(weights)))
        out.append(w[f"{at}o_proj.weight"] @ torch.cat(mixed))
    return out


def mlp(rows: Rows, w: Weights, at: str) -> Rows:
    gate, up, down = (w[f"{at}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return [down @ (silu(gate @ row) * (up @ row)) for row in rows]


def moe(rows: Rows, w: Weights, at: str, config: dict[str, Any]) -> Rows:
    out = []
    for row in rows:
        p = torch.softmax(w[f"{at}router.weight"] @ row, dim=0)
        best, second = sorted(range(len(p)), key=lambda i: -float(p[i]))[:2]
        total = p[best] + p[second] if config.get("norm_topk_prob") else 1.0
        y = torch.zeros_like(row)
        for i in (best, second):
            gate, up = (w[f"{at}experts.gate_up_proj"][i] @ row).chunk(2)
            y = y + p[i] / total * (w[f"{at}experts.down_proj"][i] @ (silu(gate) * up))
        out.append(y)
    return out


def mixcon(tokens: list[int], weights: Weights, config: dict[str, Any]) -> torch.Tensor:
    w = {name: weight.double() for name, weight in weights.items()}
    rows = [w["model.embed_tokens.weight"][token] for token in tokens]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        normed = [norm(row, w[f"{at}input_layernorm.weight"]) for row in rows]
        if f"{at}self_attn.q_proj.weight" in w:
            mixed = attention(normed, w, f"{at}self_attn.", config)
        else:
            mixed = conba(normed, w, f"{at}conba.", config)
        rows = [row + new for row, new in zip(rows, mixed, strict=True)]
        normed = [norm(row, w[f"{at}pre_ff_layernorm.weight"]) for row in rows]
        if f"{at}feed_forward.router.weight" in w:
            mixed = moe(normed, w, f"{at}feed_forward.", config)
        else:
            mixed = mlp(normed, w, f"{at}feed_forward.")
        rows = [row + new for row, new in zip(rows, mixed, strict=True)]
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return torch.stack([head @ norm(row, w["model.final_layernorm.weight"]) for row in rows])


def read(decoder: Decoder, tokens: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in decoder.new_state(capacity=TOKENS + 2).items()
    }
    logits = []
    for part in tokens.split(cuts, dim=1):
        rows, state = decoder(part, torch.arange(part.shape[1]), state)
        logits.append(rows[0])
    return torch.cat(logits)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_decoder_equals_the_equations(tmp_path: Path, changes: dict[str, Any]) -> None:
    weights = write_mixcon(tmp_path, **changes)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    expected = mixcon(tokens[0].tolist(), weights, config)
    decoder = load_decoder(open_checkpoint(tmp_path), compute=torch.float64).double()
    for cuts in ([TOKENS], [1] * TOKENS, [4, 1, 6, 2]):
        found = read(decoder, tokens, cuts)
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def test_the_layers_of_a_block() -> None:
    """Eight: attention at 2 and 6, Conba elsewhere; experts at odd ones, an MLP at even ones."""
    data = {
        "model_type": "mixcon", "vocab_size": 262144, "hidden_size": 4096, "num_hidden_layers": 32,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    }  # fmt: skip
    config = model_config(data, "config.json")
    kinds = [layer.kind for layer in config.layers[:16]]
    assert kinds == [
        "conba", "mlp", "conba", "moe", "full_attention", "mlp", "conba", "moe",
        "conba", "mlp", "conba", "moe", "full_attention", "mlp", "conba", "moe",
    ]  # fmt: skip
    assert config.layers[16:] == config.layers[:16] * 3
    first, _, _, experts, attention, *_ = config.layers
    assert first == ConbaConfig(n_heads=64, head_dim=64, d_state=64, d_select=4096)
    assert experts == MoeConfig(n_experts=16, top_k=2, d_ff=14336)
    assert attention == FullAttentionConfig(n_heads=32, n_kv_heads=8, head_dim=128, rope_base=None)
    assert (config.tied, config.norm_eps, config.layers[1]) == (False, 1e-5, MlpConfig(d_ff=14336))


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("gain", ["token", "chunk", "off"])
def test_state_bytes(gain: Any, delay: int) -> None:
    """4 H N (1 + T + P) + 4 H P with a gain, whatever was read; one position more by chunks."""
    heads, states, width = 6, 16, 8
    config = ConbaConfig(
        n_heads=heads, head_dim=width, d_state=states, d_select=4, delay=delay, gain=gain,
        gain_chunk=4 if gain == "chunk" else None,
    )  # fmt: skip
    found = {spec.name: spec.nbytes for spec in config.state("bfloat16")}
    position_bytes = found.pop("position", 0)
    assert position_bytes == (8 if gain == "chunk" else 0)
    with_gain = 4 * heads * states * (1 + delay + width) + 4 * heads * width
    without = 4 * heads * states * (1 + delay)
    assert sum(found.values()) == (without if gain == "off" else with_gain)
    model = ModelConfig(family="t", vocab_size=5, d_model=48, layers=(config,))
    state = Decoder(model, dtype=torch.bfloat16).new_state()
    assert sum(tensor.nbytes for tensor in state.values()) == sum(found.values()) + position_bytes


def test_the_config_survives_json() -> None:
    layers = (
        ConbaConfig(
            n_heads=2, head_dim=2, d_state=3, d_select=4, delay=2, gain="chunk", gain_chunk=8,
            eta=0.5, k_max=2.0, activation="tanh",
        ),
        MoeConfig(n_experts=4, top_k=2, d_ff=3, renormalise=True),
    )  # fmt: skip
    config = ModelConfig(family="t", vocab_size=5, d_model=4, layers=layers)
    text = json.dumps(config.to_json(), allow_nan=False)
    assert ModelConfig.from_json(json.loads(text)) == config


def test_every_parameter_is_found(tmp_path: Path) -> None:
    weights = write_mixcon(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    found = dict(checkpoint.tensors())
    at = "model.layers.1."
    rows = ("select_gate", "select_up", "scale", "desired", "gate")
    in_proj = torch.cat([weights[f"{at}conba.{name}_proj.weight"] for name in rows])
    assert torch.equal(found["layers.2.mixer.in_proj.weight"], in_proj)
    bias = weights[f"{at}conba.scale_proj.bias"].view(2, STATES)
    assert torch.equal(found["layers.2.mixer.dt_bias"], bias)
    assert torch.equal(found["layers.2.mixer.A"], -torch.exp(weights[f"{at}conba.A_log"]))
    experts = weights[f"{at}feed_forward.experts.gate_up_proj"]
    assert torch.equal(found["layers.3.mixer.gate_up_proj.weight"], experts)
    assert (checkpoint.family, checkpoint.eos) == ("mixcon", 5)


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    write_mixcon(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens = torch.randint(VOCABULARY, (3, 9))
    together, _ = decoder(tokens, None, decoder.new_state(batch=3, capacity=9))
    for row in range(3):
        alone, _ = decoder(tokens[row : row + 1], None, decoder.new_state(capacity=12))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_a_desired_output_without_a_gain_is_refused(tmp_path: Path) -> None:
    write_mixcon(tmp_path)
    conba = MIXCON_CONFIG["conba"] | {"gain": "off"}
    write_config(tmp_path, MIXCON_CONFIG | {"conba": conba})
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors has the tensor 'model.layers.0.conba.desired_proj.weight', "
        "which a mixcon checkpoint of this config does not have (the nearest known is "
        "'model.layers.0.conba.scale_proj.weight'). Every tensor must be used, because an ignored "
        "one could change the model. Check that config and weights belong together."
    )


def test_experts_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    write_mixcon(tmp_path)
    write_config(tmp_path, MIXCON_CONFIG | {"num_experts": 3})
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors has the tensor 'model.layers.1.feed_forward.router.weight' "
        "with shape [4, 16]; its config asks for [3, 16]. Check that config and weights belong "
        "together."
    )


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (
        {"num_expert": 4},
        (
            " has the key 'num_expert', which a mixcon config does not have (the nearest known key "
            "is 'num_experts'). Every key must be known, because an ignored one could change the "
            "model. Correct or remove it."
        ),
    ),
    "an unknown key of conba": (
        {"conba": {"taus": 2}},
        (
            ", conba has the key 'taus', which a mixcon config does not have (the nearest known "
            "key is 'tau'). Every key must be known, because an ignored one could change the "
            "model. Correct or remove it."
        ),
    ),
    "g": (
        {"conba": {"g": "mlp"}},
        (
            ', conba has g = "mlp"; longspan supports only "identity" for a mixcon model. This '
            "checkpoint cannot be exported by this version."
        ),
    ),
    "f": (
        {"conba": {"f": "mlp"}},
        (
            ', conba has f = "mlp"; longspan supports only "identity" or "tanh" for a mixcon '
            "model. This checkpoint cannot be exported by this version."
        ),
    ),
    "head_dim of conba": (
        {"conba": {"head_dim": 5}},
        (
            ", conba has hidden_size = 16 and head_dim = 5; the second must divide the first. "
            "Correct them."
        ),
    ),
    "eta": (
        {"conba": {"eta": -1}},
        ", conba has eta = -1; it must be 0 or more. Correct it.",
    ),
    "k_max": (
        {"conba": {"k_max": 0}},
        ", conba has k_max = 0; it must be a positive float. Correct it.",
    ),
    "gain_chunk without chunks": (
        {"conba": {"gain_chunk": 4}},
        (
            ', conba has gain = "token" and gain_chunk = 4; gain_chunk must be 2 or more where '
            'gain is "chunk", and left out elsewhere. Correct them.'
        ),
    ),
    "chunks without gain_chunk": (
        {"conba": {"gain": "chunk"}},
        (
            ', conba has gain = "chunk" and gain_chunk = null; gain_chunk must be 2 or more where '
            'gain is "chunk", and left out elsewhere. Correct them.'
        ),
    ),
    "placement": (
        {"attn_layer_period": 2},
        (
            " has attn_layer_period = 2 and attn_layer_offset = 2; the second must be from 0 to "
            "one below the first. Correct them."
        ),
    ),
    "experts": (
        {"num_experts_per_tok": 5},
        (
            " has num_experts = 4 and num_experts_per_tok = 5; the second must be at most the "
            "first. Correct them."
        ),
    ),
    "key heads": (
        {"num_key_value_heads": 3},
        (
            " has num_attention_heads = 4 and num_key_value_heads = 3; the second must divide the "
            "first. Correct them."
        ),
    ),
    "heads": (
        {"num_attention_heads": 3},
        (
            " has hidden_size = 16 and num_attention_heads = 3; the second must divide the first. "
            "Correct them."
        ),
    ),
    "rope over odd heads": (
        {"head_dim": 3, "rope_theta": 100.0},
        (
            " has a rope_theta and attention heads of width 3; it must be even, because RoPE turns "
            "one half against the other. Correct head_dim, or leave rope_theta out."
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = REFUSALS[name]
    write_mixcon(tmp_path)
    where = write_config(
        tmp_path,
        MIXCON_CONFIG | changes | {"conba": MIXCON_CONFIG["conba"] | changes.get("conba", {})},
    )
    assert refusal(tmp_path) == where + message
