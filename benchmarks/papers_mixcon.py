"""MixCon's caches at the paper's sizes, by arithmetic, and its speed beside attention alone.

    for row in computed_caches(262_144): ...
    for row in throughput("cuda", prompt=131_072, answer=512, budget="40GiB", sizes=PAPER_LIKE): ...

Conba is longspan's own definition (docs/mixcon.md). The paper prints bytes but neither heads nor
widths: the heads of keys and values that give its bytes are said beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from papers_recall import Row, memory_facts
from papers_words import cached_bytes, state_bytes, step_ms
from random_bundle import random_bundle

from longspan.engines import Device
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import (
    ConbaConfig,
    FullAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from longspan.runtime.runtime import load

# Of a block of eight layers, these have attention; every second layer's MLP is of experts.
BLOCK, ATTENTION = 8, (2, 6)
HEAD = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A MixCon.

    Attributes:
        width: D.
        blocks: of eight layers each.
        heads, kv_heads: of attention, 128 wide.
        d_ff: of the MLPs.
        experts, top_k, expert_d_ff: of the mixtures.
        vocab: words.
    """

    width: int
    blocks: int
    heads: int
    kv_heads: int
    d_ff: int
    experts: int
    top_k: int
    expert_d_ff: int
    vocab: int


# A block as the paper draws it, 16 experts of which two compute; narrow enough for seconds.
ONE_BLOCK = Sizes(
    width=2048, blocks=1, heads=16, kv_heads=8, d_ff=5632, experts=16, top_k=2, expert_d_ff=1408,
    vocab=32_000,
)  # fmt: skip


def mixcon(sizes: Sizes, *, attention_only: bool = False) -> ModelConfig:
    """The layers; with `attention_only` every mixer is attention, as in Mixtral."""
    attention = FullAttentionConfig(
        n_heads=sizes.heads, n_kv_heads=sizes.kv_heads, head_dim=HEAD, rope_base=None
    )
    conba = ConbaConfig(
        n_heads=sizes.width // 64, head_dim=64, d_state=64, d_select=sizes.width, gain="off"
    )
    experts = MoeConfig(n_experts=sizes.experts, top_k=sizes.top_k, d_ff=sizes.expert_d_ff)
    layers: list[LayerConfig] = []
    for i in range(BLOCK * sizes.blocks):
        layers.append(attention if attention_only or i % BLOCK in ATTENTION else conba)
        layers.append(experts if i % 2 else MlpConfig(d_ff=sizes.d_ff))
    return ModelConfig(
        family="mixcon", vocab_size=sizes.vocab, d_model=sizes.width, layers=tuple(layers)
    )


def active_parameters(config: ModelConfig) -> int:
    """Numbers that a token meets: all but those of the experts that it does not go to."""
    every = sum(p.numel() for p in empty_decoder(config).parameters())
    idle = sum(
        3 * (layer.n_experts - layer.top_k) * config.d_model * layer.d_ff
        for layer in config.layers
        if isinstance(layer, MoeConfig)
    )
    return every - idle


def equal_attention(sizes: Sizes) -> ModelConfig:
    """Attention in every layer, and MLPs so much wider that as many parameters are active."""
    wanted = active_parameters(mixcon(sizes))
    found = mixcon(sizes, attention_only=True)
    mlps = sum(isinstance(layer, MlpConfig) for layer in found.layers)
    missing = (wanted - active_parameters(found)) // (3 * sizes.width * mlps)
    # Whole multiples of 64, as matrix products like them.
    wider = replace(sizes, d_ff=max(64, sizes.d_ff + 64 * round(missing / 64)))
    return mixcon(wider, attention_only=True)


def key_bytes(config: ModelConfig, tokens: int) -> tuple[int, int]:
    """Bytes of keys and values in bfloat16 after `tokens`, and of the rest of the state."""
    specs = config.state_layout("bfloat16", tokens)
    cached = sum(spec.nbytes for spec in specs if spec.counter)
    return cached, sum(spec.nbytes for spec in specs) - cached


def computed_caches(tokens: int) -> Iterator[Row]:
    """Four blocks, as the paper's test model, and Mixtral's 32 layers of attention."""
    four = Sizes(
        width=4096, blocks=4, heads=32, kv_heads=8, d_ff=14_336, experts=16, top_k=2,
        expert_d_ff=14_336, vocab=256_000,
    )  # fmt: skip
    for name, config in (
        ("Mixtral: 32 layers of attention, 8 heads of keys", mixcon(four, attention_only=True)),
        ("MixCon: attention in 8 of 32 layers, 8 heads of keys", mixcon(four)),
        (
            "MixCon: attention in 8 of 32 layers, 2 heads of keys",
            mixcon(replace(four, kv_heads=2)),
        ),
    ):
        cached, other = key_bytes(config, tokens)
        yield {
            "what": "computed cache",
            "system": name,
            "tokens": tokens,
            "cached_bytes": cached,
            "other_bytes": other,
        }


def throughput(
    device: Device, *, prompt: int, answer: int, budget: str, sizes: Sizes = ONE_BLOCK
) -> Iterator[Row]:
    """Random weights in bfloat16: a prompt is read, an answer follows; MixCon and attention."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(sizes.vocab, size=prompt)
    for name, config in (("mixcon", mixcon(sizes)), ("attention", equal_attention(sizes))):
        with (
            random_bundle(name, "bfloat16", config=config) as path,
            load(
                path, budget=budget, tokens=prompt + answer, device=device, backend="torch"
            ) as runtime,
        ):
            runtime.read_tokens([tokens[: 2 * runtime.plan.chunk_tokens]])
            started = time.perf_counter()
            memory = runtime.read_tokens([tokens])
            read_seconds = time.perf_counter() - started
            ms = step_ms(runtime, memory, max(2, min(64, answer // 3)))
            total = read_seconds + answer * ms / 1e3
            yield {
                "what": "throughput",
                "system": name,
                "tokens": prompt,
                "answer_tokens": answer,
                "active_parameters": active_parameters(config),
                "read_seconds": read_seconds,
                "step_ms": ms,
                "tokens_per_second": (prompt + answer) / total,
                "cached_bytes": cached_bytes(memory),
                "state_bytes": state_bytes(memory),
            } | memory_facts(runtime)
