"""Layers of every kind with random sizes, of models of width `WIDTH`, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    MoeConfig,
    WindowAttentionConfig,
)

# Wide enough that tensors of a token outweigh what is small and fixed.
WIDTH = 64


@st.composite
def _heads(draw: st.DrawFn) -> dict[str, Any]:
    """What every kind of attention has: heads in groups, an even width where RoPE turns pairs."""
    n_kv = draw(st.integers(1, 3))
    return {
        "n_heads": n_kv * draw(st.integers(1, 4)),
        "n_kv_heads": n_kv,
        "head_dim": 2 * draw(st.integers(2, 20)),
        "rope_base": draw(st.sampled_from([None, 10000.0])),
        "rope_interleaved": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
        "out_bias": draw(st.booleans()),
    }


@st.composite
def _mamba(draw: st.DrawFn) -> LayerConfig:
    return MambaConfig(
        d_inner=draw(st.integers(32, 200)),
        d_state=draw(st.integers(4, 24)),
        d_conv=draw(st.integers(2, 4)),
        dt_rank=draw(st.integers(1, 12)),
        conv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        bcdt_norm_eps=draw(st.sampled_from([None, 1e-6])),
    )


@st.composite
def _mamba2(draw: st.DrawFn) -> LayerConfig:
    groups = draw(st.integers(1, 3))
    return Mamba2Config(
        n_heads=groups * draw(st.integers(1, 4)),
        head_dim=draw(st.integers(4, 40)),
        n_groups=groups,
        d_state=draw(st.integers(4, 40)),
        d_conv=draw(st.integers(2, 4)),
        conv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
    )


@st.composite
def _gla(draw: st.DrawFn) -> LayerConfig:
    gated = draw(st.booleans())
    return GlaConfig(
        n_heads=draw(st.integers(1, 4)),
        key_dim=2 * draw(st.integers(4, 24)),
        value_dim=draw(st.integers(8, 80)),
        gate_rank=draw(st.integers(2, 24)) if gated else None,
        rope_base=draw(st.sampled_from([None, 10000.0])),
    )


@st.composite
def _conba(draw: st.DrawFn) -> LayerConfig:
    gain = draw(st.sampled_from(["token", "chunk", "off"]))
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    return ConbaConfig(
        n_heads=heads,
        head_dim=WIDTH // heads,
        d_state=draw(st.integers(4, 24)),
        d_select=draw(st.integers(16, 96)),
        delay=draw(st.integers(1, 3)),
        gain=gain,
        gain_chunk=16 if gain == "chunk" else None,
    )


@st.composite
def _attention(draw: st.DrawFn) -> LayerConfig:
    heads = draw(_heads())
    return draw(
        st.sampled_from(
            [
                WindowAttentionConfig(**heads, window=draw(st.integers(4, 80))),
                FullAttentionConfig(**heads),
                AnchorAttentionConfig(**heads, anchor_every=1024),
            ]
        )
    )


@st.composite
def _mlp(draw: st.DrawFn) -> LayerConfig:
    experts = draw(st.integers(0, 6))
    if experts < 2:
        return MlpConfig(d_ff=draw(st.integers(32, 256)), bias=draw(st.booleans()))
    return MoeConfig(
        n_experts=experts, top_k=draw(st.integers(1, experts)), d_ff=draw(st.integers(32, 128))
    )


random_layers: st.SearchStrategy[LayerConfig] = st.one_of(
    _mamba(), _mamba2(), _gla(), _conba(), _attention(), _attention(), _mlp(), _mlp()
)
