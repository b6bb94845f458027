"""Samba against its equations, token by token in float64, over the checkpoint's own names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import (
    GLA_HEADS,
    SAMBA_CONFIG,
    SAMBA_VARIANTS,
    samba_mixer,
    write_samba,
)

from longspan.models.checkpoint import load_decoder
from longspan.models.config import WindowAttentionConfig
from longspan.models.decoder import Decoder
from longspan.models.families import open_checkpoint
from longspan.models.families.samba import split_packed_qkv

Weights = dict[str, torch.Tensor]
TOKENS = 13
# The decoder computes in float64 from float32 weights; A is rounded to float32 once.
ATOL = 1e-5


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-5) * weight


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def mamba(rows: list[torch.Tensor], w: Weights, at: str) -> list[torch.Tensor]:
    """The recurrence, channel by channel and state by state; one row of width D a token."""
    rank, states = w[f"{at}dt_proj.weight"].shape[1], w[f"{at}A_log"].shape[1]
    inner, taps = w[f"{at}D"].shape[0], w[f"{at}conv1d.weight"].shape[2]
    pairs = [w[f"{at}in_proj.weight"] @ row for row in rows]
    h, out = torch.zeros(inner, states, dtype=torch.float64), []
    for t, pair in enumerate(pairs):
        convolved = w[f"{at}conv1d.bias"].clone()
        for j in range(taps):
            if t - taps + 1 + j >= 0:
                convolved += w[f"{at}conv1d.weight"][:, 0, j] * pairs[t - taps + 1 + j][:inner]
        u = silu(convolved)
        low = w[f"{at}x_proj.weight"] @ u
        delta, B, C = low[:rank], low[rank : rank + states], low[rank + states :]
        step = torch.log1p(torch.exp(w[f"{at}dt_proj.weight"] @ delta + w[f"{at}dt_proj.bias"]))
        for e in range(inner):
            for n in range(states):
                decay = math.exp(-step[e] * math.exp(w[f"{at}A_log"][e, n]))
                h[e, n] = decay * h[e, n] + step[e] * B[n] * u[e]
        y = h @ C + w[f"{at}D"] * u
        out.append(w[f"{at}out_proj.weight"] @ (y * silu(pair[inner:])))
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


def attention(
    rows: list[torch.Tensor], w: Weights, at: str, config: dict[str, Any], block: int
) -> list[torch.Tensor]:
    heads, groups, window = config["n_head"], config["n_query_groups"], config["local_window"]
    every = config.get("full_per_layer", 1000)
    if window < 1 or block % every == every - 1:
        window = len(rows)
    per_group, head = heads // groups, len(rows[0]) // heads
    base = None if config.get("nope") else config.get("rope_base", 10000.0)
    packed = [(w[f"{at}attn.weight"] @ row).view(groups, per_group + 2, head) for row in rows]
    out = []
    for t, now in enumerate(packed):
        mixed = []
        for h in range(heads):
            g, seen = h // per_group, range(max(0, t - window + 1), t + 1)
            q = rope(now[g, h % per_group], t, base)
            scores = torch.stack([q @ rope(packed[s][g, -2], s, base) for s in seen])
            weights = torch.softmax(scores / math.sqrt(head), dim=0)
            mixed.append(sum(p * packed[s][g, -1] for p, s in zip(weights, seen, strict=True)))
        out.append(w[f"{at}proj.weight"] @ torch.cat(mixed))
    return out


def mlp(rows: list[torch.Tensor], w: Weights, at: str) -> list[torch.Tensor]:
    gate, up, down = (w[f"{at}swiglu.{name}.weight"] for name in ("w1", "w2", "w3"))
    return [down @ (silu(gate @ row) * (up @ row)) for row in rows]


def gla(rows: list[torch.Tensor], w: Weights, at: str) -> list[torch.Tensor]:
    """Gated linear attention, or without a gate retention, row by row of the state."""
    keys = w[f"{at}q_proj.weight"].shape[0] // GLA_HEADS
    values = w[f"{at}v_proj.weight"].shape[0] // GLA_HEADS
    S = torch.zeros(GLA_HEADS, keys, values, dtype=torch.float64)
    gated = f"{at}gk_proj.0.weight" in w
    out = []
    for t, row in enumerate(rows):
        q, k = ((w[f"{at}{name}_proj.weight"] @ row).view(GLA_HEADS, keys) for name in "qk")
        v, gate = ((w[f"{at}{name}_proj.weight"] @ row).view(GLA_HEADS, values) for name in "vg")
        logits = torch.zeros(GLA_HEADS, keys, dtype=torch.float64)
        if gated:
            low = w[f"{at}gk_proj.0.weight"] @ row
            logits = (w[f"{at}gk_proj.1.weight"] @ low + w[f"{at}gk_proj.1.bias"]).view(-1, keys)
        heads = []
        for h in range(GLA_HEADS):
            query, key = (q[h], k[h]) if gated else (rope(q[h], t, 10000.0), rope(k[h], t, 10000.0))
            for c in range(keys):
                kept = (
                    (1 / (1 + math.exp(-logits[h, c]))) ** (1 / 16) if gated else 1 - 2 ** (-5 - h)
                )
                S[h, c] = kept * S[h, c] + key[c] * v[h]
            y = sum(query[c] * S[h, c] for c in range(keys)) / math.sqrt(keys)
            heads.append(norm(y, w[f"{at}g_norm_swish_gate.weight"]) * silu(gate[h]))
        out.append(w[f"{at}o_proj.weight"] @ torch.cat(heads))
    return out


MIXERS = {"mamba": mamba, "mlp": mlp, "gla": gla, "retention": gla, "attention": attention}


def samba(tokens: list[int], weights: Weights, config: dict[str, Any]) -> torch.Tensor:
    w = {name: weight.double() for name, weight in weights.items()}
    rows = [w["transformer.wte.weight"][token] for token in tokens]
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        mixer = MIXERS[samba_mixer(config, i)]
        parts = [("norm_1", "attn", mixer), ("norm_2", "mlp", mlp)]
        if config.get("mamba_swa_mlp"):
            parts = [("norm_m", "mb", mamba), ("norm_attn", "attn", attention), parts[1]]
        for norm_name, module, mix in parts:
            normed = [norm(row, w[f"{at}{norm_name}.weight"]) for row in rows]
            more = (config, i) if mix is attention else ()
            mixed = mix(normed, w, f"{at}{module}.", *more)
            rows = [row + new for row, new in zip(rows, mixed, strict=True)]
    final = [norm(row, w["transformer.ln_f.weight"]) for row in rows]
    head = w.get("lm_head.weight", w["transformer.wte.weight"])
    return torch.stack([head @ row for row in final])


def read(decoder: Decoder, tokens: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in decoder.new_state(capacity=tokens.shape[1]).items()
    }
    logits = []
    for part in tokens.split(cuts, dim=1):
        rows, state = decoder(part, torch.arange(part.shape[1]), state)
        logits.append(rows[0])
    return torch.cat(logits)


@pytest.mark.parametrize("changes", SAMBA_VARIANTS.values(), ids=SAMBA_VARIANTS.keys())
def test_decoder_equals_the_equations(tmp_path: Path, changes: dict[str, Any]) -> None:
    weights = write_samba(tmp_path, **changes)
    tokens = torch.randint(24, (1, TOKENS))
    expected = samba(tokens[0].tolist(), weights, SAMBA_CONFIG | changes)
    decoder = load_decoder(open_checkpoint(tmp_path), compute=torch.float64).double()
    for cuts in ([TOKENS], [1] * TOKENS, [4, 1, 6, 2], [5, 5, 3]):
        found = read(decoder, tokens, cuts)
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def test_a_token_outside_the_window_is_not_seen(tmp_path: Path) -> None:
    """Two blocks of attention with a window of 5: token 8 hears of token 0, token 9 does not."""
    write_samba(tmp_path, mb_per_layer=-1)
    decoder = load_decoder(open_checkpoint(tmp_path), compute=torch.float64).double()
    tokens = torch.randint(1, 24, (1, 10))
    other = tokens.clone()
    other[0, 0] = 0
    apart = (read(decoder, tokens, [10]) - read(decoder, other, [10])).abs().amax(-1)
    assert bool((apart[:9] > 1e-6).all())
    assert float(apart[9]) == 0.0


def test_qkv_rows_are_sorted_by_kind() -> None:
    config = WindowAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=1, window=2)
    names = ["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]
    packed = torch.arange(8.0)[:, None]
    order = [names[int(row)] for row in split_packed_qkv(packed, config)]
    assert order == ["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]
