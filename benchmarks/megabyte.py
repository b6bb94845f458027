"""MegaByte (arXiv 2305.07185), the baseline of MambaByte's claims.

    python benchmarks/megabyte.py                                   # counts of the published sizes
    python benchmarks/megabyte.py --size 758M+262M --generate 512 --device cuda

A global transformer reads patches of P bytes, a local one the bytes of a patch. No weights were
published, so these are random: for memory and speed, not for words. What the paper leaves open is
as in GPT-2: LayerNorm before each part, GELU, biases, an MLP of four times the width.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from megabyte_sizes import (
    MLP_RATIO,
    PUBLISHED,
    PUBLISHED_RATIOS,
    VALUES,
    Sizes,
    Stage,
    mambabyte,
    nominal_flops_per_byte,
    parameters_of,
)
from report import markdown_table
from torch import nn
from torch.nn.functional import embedding, gelu, scaled_dot_product_attention

from longspan.sizes import format_bytes

Cache = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Causal attention and an MLP, each after a LayerNorm and with a residual of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """Read x [B, n, D] after the positions whose keys and values [B, H, m, D / H] are kept."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        past = k.shape[2] - length
        seen = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(gelu(self.up(self.mlp_norm(x)))), (k, v)


class Transformer(nn.Module):
    """Blocks and a last LayerNorm; it goes on from the caches of its blocks."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(stage.width, stage.heads) for _ in range(stage.layers))
        self.norm = nn.LayerNorm(stage.width)

    def forward(
        self, x: torch.Tensor, caches: tuple[Cache, ...] | None = None
    ) -> tuple[torch.Tensor, tuple[Cache, ...]]:
        """Read x [B, n, D] after what the caches hold; None for nothing."""
        kept = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, None if caches is None else caches[i])
            kept.append(cache)
        return self.norm(x), tuple(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is carried from byte to byte.

    Attributes:
        length: bytes read.
        patches: keys and values of all patches that were begun.
        inside: keys and values of the current patch's bytes; they start anew with each patch.
        output: h^go of the current patch [B, P, D_G].
        read: h^emb of the current patch's bytes so far [B, n, D_G].
    """

    length: int
    patches: tuple[Cache, ...]
    inside: tuple[Cache, ...]
    output: torch.Tensor
    read: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        caches = [tensor for cache in (*self.patches, *self.inside) for tensor in cache]
        return sum(tensor.nbytes for tensor in (*caches, self.output, self.read))


class MegaByte(nn.Module):
    """The equations of section 2: E^g, E^pos, E^local and the paddings are `embed_*` and `*_pad`.

    `to_local` is w^GL. Both transformers carry keys and values: the global one those of patches,
    the local one those of the current patch's bytes.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        D_G, D_L = sizes.byte_width, sizes.in_patch.width
        self.embed_global = nn.Parameter(torch.randn(VALUES, D_G) * 0.02)
        self.embed_position = nn.Parameter(torch.randn(sizes.context_bytes, D_G) * 0.02)
        self.embed_local = nn.Parameter(torch.randn(VALUES, D_L) * 0.02)
        self.global_pad = nn.Parameter(torch.randn(sizes.over_patches.width) * 0.02)
        self.local_pad = nn.Parameter(torch.randn(D_L) * 0.02)
        self.to_local = nn.Linear(D_G, D_L, bias=False)
        self.over_patches = Transformer(sizes.over_patches)
        self.in_patch = Transformer(sizes.in_patch)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits float [B, T, 256] of every byte from those before it; tokens int64 [B, T]."""
        P = self.sizes.patch_bytes
        batch, length = tokens.shape
        # Bytes after the last are seen by none before them, so zeros may fill the last patch.
        full = nn.functional.pad(tokens, (0, -length % P))
        K = full.shape[1] // P
        embedded = self._embedded(full, 0).view(batch, K, -1)
        pad = self.global_pad.expand(batch, 1, -1)
        output, _ = self.over_patches(torch.cat([pad, embedded[:, :-1]], dim=1))
        before = embedding(full.view(batch * K, P)[:, :-1], self.embed_local)
        before = torch.cat([self.local_pad.expand(batch * K, 1, -1), before], dim=1)
        local, _ = self.in_patch(self.to_local(output.view(batch * K, P, -1)) + before)
        logits: torch.Tensor = local @ self.embed_local.T
        return logits.view(batch, K * P, VALUES)[:, :length]

    def start(self, batch: int = 1) -> tuple[torch.Tensor, State]:
        """Logits [B, 256] of the first byte, and the state before it."""
        first = self.global_pad.expand(batch, 1, -1)
        return self._begin_patch(first, length=0, patches=None)

    def step(self, byte: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Logits [B, 256] of the byte after `byte` int64 [B], and the state after it."""
        read = torch.cat([state.read, self._embedded(byte[:, None], state.length)], dim=1)
        length = state.length + 1
        if read.shape[1] == self.sizes.patch_bytes:
            return self._begin_patch(read.flatten(1)[:, None], length=length, patches=state.patches)
        within = length % self.sizes.patch_bytes
        x = self.to_local(state.output[:, within]) + embedding(byte, self.embed_local)
        local, inside = self.in_patch(x[:, None], state.inside)
        after = replace(state, length=length, inside=inside, read=read)
        return local[:, 0] @ self.embed_local.T, after

    @torch.inference_mode()
    def generate(self, prompt: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        """Read `prompt` int64 [B, n], n >= 0, and give the likeliest next byte, `count` times."""
        logits, state = self.start(prompt.shape[0])
        for byte in prompt.unbind(1):
            logits, state = self.step(byte, state)
        for _ in range(count):
            byte = logits.argmax(-1)
            yield byte
            logits, state = self.step(byte, state)

    def _embedded(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """h^emb [B, n, D_G] of bytes that stand at `first` and after it."""
        last = first + tokens.shape[1]
        if last > self.sizes.context_bytes:
            raise ValueError(
                f"MegaByte was asked to read {last:,} bytes; its learned positions end at "
                f"{self.sizes.context_bytes:,}"
            )
        embedded: torch.Tensor = embedding(tokens, self.embed_global)
        return embedded + self.embed_position[first:last]

    def _begin_patch(
        self, patch: torch.Tensor, *, length: int, patches: tuple[Cache, ...] | None
    ) -> tuple[torch.Tensor, State]:
        """Run the global transformer on the patch before, and the local one on its padding."""
        output, patches = self.over_patches(patch, patches)
        output = output.view(patch.shape[0], self.sizes.patch_bytes, -1)
        local, inside = self.in_patch((self.to_local(output[:, 0]) + self.local_pad)[:, None])
        state = State(
            length=length, patches=patches, inside=inside, output=output, read=output[:, :0]
        )
        return local[:, 0] @ self.embed_local.T, state


def counts() -> str:
    """The published sizes against MambaByte, as Markdown."""
    rows = []
    for (name, other), ratio in PUBLISHED_RATIOS.items():
        sizes, config = PUBLISHED[name], mambabyte(other)
        flops = 2 * parameters_of(config)
        mamba_bytes = sum(spec.nbytes for spec in config.state_layout("bfloat16"))
        rows.append(
            (
                f"{name} : {other}",
                f"{sizes.parameters / 1e6:,.0f}M",
                f"{sizes.flops_per_byte() / flops:.2f}",
                f"{nominal_flops_per_byte(sizes) / flops:.2f}",
                f"{ratio:.2f}",
                format_bytes(sizes.state_bytes(8191, 2)),
                format_bytes(mamba_bytes),
            )
        )
    columns = (
        "MegaByte : MambaByte", "parameters", "FLOPs, counted", "FLOPs, by name", "published",
        "state at 8,191 bytes, bfloat16", "MambaByte's",
    )  # fmt: skip
    return "\n".join(markdown_table(columns, rows))


def main() -> None:
    """Print the counts; time generation where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="758M+262M", choices=PUBLISHED)
    parser.add_argument("--generate", type=int, default=0, metavar="BYTES")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    print(counts())
    if not options.generate:
        return
    torch.manual_seed(0)
    with torch.device(options.device):
        model = MegaByte(PUBLISHED[options.size]).to(getattr(torch, options.dtype)).eval()
        prompt = torch.zeros(1, 0, dtype=torch.int64)
    started = time.perf_counter()
    last = [int(byte) for byte in model.generate(prompt, options.generate)]
    seconds = time.perf_counter() - started
    print(f"{len(last):,} bytes in {seconds:.2f} s, {len(last) / seconds:,.1f} a second")


if __name__ == "__main__":
    main()
