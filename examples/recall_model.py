"""A small Samba to train: Mamba, MLP, sliding-window attention, MLP, under microsoft/Samba's names.

`model.state_dict()` is the checkpoint that longspan reads: nothing is renamed or packed on the way.
Whole segments only, from a state to a state; not known here: data, loss, optimizer.

    model = Samba(SambaConfig())
    hidden, state = model(tokens, model.new_state(rows))
    logits = model.head(hidden[:, -1])
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from longspan.kernels.selective_scan.reference import selective_scan

State = list[torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SambaConfig:
    """Sizes, in longspan's letters: D model width, E inner width, N state size, K conv width."""

    vocabulary: int = 4096
    blocks: int = 6
    D: int = 192
    E: int = 384
    N: int = 16
    K: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_width: int = 32
    window: int = 32
    mlp_width: int = 512
    rope_base: int = 10_000
    norm_eps: float = 1e-5

    @property
    def dt_rank(self) -> int:
        """R, the width that the step size goes through."""
        return math.ceil(self.D / 16)

    def save(self, path: Path) -> None:
        """Write the sizes as lit_gpt's Config names them."""
        sizes = {
            "name": "Samba_recall",
            "n_layer": self.blocks,
            "n_embd": self.D,
            "n_head": self.heads,
            "n_query_groups": self.kv_heads,
            "head_size": self.head_width,
            "intermediate_size": self.mlp_width,
            "local_window": self.window,
            "mb_per_layer": 2,
            "vocab_size": self.vocabulary,
            "padded_vocab_size": self.vocabulary,
            "norm_eps": self.norm_eps,
            "rope_base": self.rope_base,
            "_norm_class": "RMSNorm",
            "_mlp_class": "LLaMAMLP",
            "rotary_percentage": 1.0,
            "parallel_residual": False,
            "bias": False,
            "tied": True,
        }
        path.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


class Mamba(nn.Module):
    """The Mamba mixer; its state is the conv tail [B, K-1, E] and h [B, E, N]."""

    def __init__(self, config: SambaConfig) -> None:
        """Draw step sizes log-uniformly from three decades: some channels forget late."""
        super().__init__()
        D, E, N, R = config.D, config.E, config.N, config.dt_rank
        self.config = config
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.K, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, N + 1)).repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, D, bias=False)
        step = torch.exp(torch.empty(E).uniform_(math.log(1e-4), math.log(1e-1)))
        self.dt_proj.bias.data = step + torch.log(-torch.expm1(-step))

    def forward(
        self, u: torch.Tensor, tail: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Mix u [B, L, D] from (tail, h)."""
        E, N, R, L = self.config.E, self.config.N, self.config.dt_rank, u.shape[1]
        x, z = self.in_proj(u).split([E, E], dim=-1)
        inputs = torch.cat([tail, x], dim=1)
        taps, bias = self.conv1d.weight[:, 0].unbind(-1), self.conv1d.bias
        assert bias is not None, "the convolution is built with a bias"
        mixed = bias.expand_as(x)
        for j, tap in enumerate(taps):
            mixed = torch.addcmul(mixed, inputs[:, j : j + L], tap)
        x = F.silu(mixed)
        low, B, C = self.x_proj(x).split([R, N, N], dim=-1)
        y, h = scan(
            x,
            F.linear(low, self.dt_proj.weight),
            -torch.exp(self.A_log),
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            state=h,
        )
        return self.out_proj(y), [inputs[:, L:], h]


def scan(
    x: torch.Tensor, *args: torch.Tensor, **more: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The differentiable Triton scan on a GPU, plain torch elsewhere."""
    if x.is_cuda:
        from differentiable_scan import differentiable_scan

        return differentiable_scan(x, *args, **more)
    return selective_scan(x, *args, **more)


class Attention(nn.Module):
    """Sliding-window attention; its state is the last W rotated keys and values [B, W, G, P]."""

    def __init__(self, config: SambaConfig) -> None:
        """Pack the projection per KV group: its queries, its key, its value."""
        super().__init__()
        self.config = config
        rows = (config.heads + 2 * config.kv_heads) * config.head_width
        self.attn = nn.Linear(config.D, rows, bias=False)
        self.proj = nn.Linear(config.heads * config.head_width, config.D, bias=False)

    def forward(
        self, u: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Mix u [B, L, D], first token at `position`; L is a multiple of the window."""
        c, (rows, length, _) = self.config, u.shape
        G, P, W, blocks = c.kv_heads, c.head_width, c.window, length // c.window
        packed = self.attn(u).view(rows, length, G, c.heads // G + 2, P)
        angles = rope_angles(position, length, P, c.rope_base)
        q = rotate(packed[:, :, :, :-2], angles[:, None, None])
        k = torch.cat([keys, rotate(packed[:, :, :, -2], angles[:, None])], dim=1)
        v = torch.cat([values, packed[:, :, :, -1]], dim=1)

        q = q.reshape(rows, blocks, W, c.heads, P).permute(1, 0, 3, 2, 4)
        y = F.scaled_dot_product_attention(
            q.reshape(blocks, rows * c.heads, W, P),
            self._blocks(k, blocks),
            self._blocks(v, blocks),
            attn_mask=band_mask(position, blocks, W),
        )
        y = y.view(blocks, rows, c.heads, W, P).permute(1, 0, 3, 2, 4)
        return self.proj(y.reshape(rows, length, c.heads * P)), [k[:, length:], v[:, length:]]

    def _blocks(self, past_and_new: torch.Tensor, blocks: int) -> torch.Tensor:
        """[B, W+L, G, P] as, per block of W queries, the 2W keys it may see: [L/W, B*H, 2W, P]."""
        c, rows = self.config, past_and_new.shape[0]
        split = past_and_new.view(rows, blocks + 1, c.window, c.kv_heads, c.head_width)
        pairs = torch.cat([split[:, :-1], split[:, 1:]], dim=2).permute(1, 0, 3, 2, 4)
        heads = pairs.repeat_interleave(c.heads // c.kv_heads, dim=2)
        return heads.reshape(blocks, rows * c.heads, 2 * c.window, c.head_width)


def rope_angles(position: torch.Tensor, length: int, width: int, base: int) -> torch.Tensor:
    """Angles [L, P/2] of tokens `position`, `position` + 1, ..."""
    places = position + torch.arange(length, device=position.device)
    powers = torch.arange(0, width, 2, device=position.device, dtype=torch.float32) / width
    return places[:, None].float() * base**-powers


def rotate(u: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, half-split, of u [B, L, ..., P]."""
    a, b = u.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def band_mask(position: torch.Tensor, blocks: int, window: int) -> torch.Tensor:
    """Which of its 2W keys a query sees, bool [L/W, 1, W, 2W].

    The W keys up to the query itself, none from before the document.
    """
    query = torch.arange(window, device=position.device)[:, None] + window
    key = torch.arange(2 * window, device=position.device)
    band = (key <= query) & (key > query - window)
    first = torch.arange(blocks, device=position.device) * window - window + position
    return band & (first[:, None] + key >= 0)[:, None, None]


class Mlp(nn.Module):
    """w3(silu(w1 x) * w2 x)."""

    def __init__(self, config: SambaConfig) -> None:
        """Name the three matrices as xformers' SwiGLU does."""
        super().__init__()
        self.swiglu = nn.ModuleDict(
            {
                "w1": nn.Linear(config.D, config.mlp_width, bias=False),
                "w2": nn.Linear(config.D, config.mlp_width, bias=False),
                "w3": nn.Linear(config.mlp_width, config.D, bias=False),
            }
        )

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Map u [B, L, D]."""
        layer = self.swiglu
        y: torch.Tensor = layer["w3"](F.silu(layer["w1"](u)) * layer["w2"](u))
        return y


class Block(nn.Module):
    """A mixer and an MLP, each with its norm and its residual."""

    def __init__(self, config: SambaConfig, index: int) -> None:
        """Even blocks mix with Mamba, odd ones with attention."""
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.D, config.norm_eps)
        self.attn = Attention(config) if index % 2 else Mamba(config)
        self.norm_2 = nn.RMSNorm(config.D, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(
        self, x: torch.Tensor, state: State, position: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """Map x [B, L, D], from the mixer's state to the state after."""
        place = (position,) if isinstance(self.attn, Attention) else ()
        y, after = self.attn(self.norm_1(x), *state, *place)
        x = x + y
        return x + self.mlp(self.norm_2(x)), after


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: SambaConfig) -> None:
        """Name the parts as lit_gpt does."""
        super().__init__()
        self.wte = nn.Embedding(config.vocabulary, config.D)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.blocks))
        self.ln_f = nn.RMSNorm(config.D, config.norm_eps)


class Samba(nn.Module):
    """The stack, with a head tied to the embedding."""

    def __init__(self, config: SambaConfig) -> None:
        """Draw the weights: std 1/sqrt(fan in), what writes to the residual scaled by depth."""
        super().__init__()
        self.config = config
        self.transformer = Backbone(config)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and not name.endswith("A_log"):
                std = parameter.shape[1] ** -0.5
                if name.endswith(("out_proj.weight", "attn.proj.weight", "w3.weight")):
                    std /= math.sqrt(2 * config.blocks)
                nn.init.normal_(parameter, std=std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.wte.weight.device

    def new_state(self, rows: int) -> State:
        """Zeros: the position, then two tensors a block."""
        c, device = self.config, self.device
        state: State = [torch.zeros((), dtype=torch.long, device=device)]
        for index in range(c.blocks):
            shapes = (
                [(rows, c.window, c.kv_heads, c.head_width)] * 2
                if index % 2
                else [(rows, c.K - 1, c.E), (rows, c.E, c.N)]
            )
            state += [torch.zeros(shape, device=device) for shape in shapes]
        return state

    def forward(self, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Read tokens from a state.

        Args:
            tokens: int64 [B, L], L a multiple of the window.
            state: as `new_state` gives it; it is not changed.

        Returns:
            float32 [B, L, D] for `head`, and the state after the last token, detached.
        """
        position, *rest = state
        x: torch.Tensor = self.transformer.wte(tokens)
        after: State = [position + tokens.shape[1]]
        for index, block in enumerate(self.transformer.h):
            x, kept = block(x, rest[2 * index : 2 * index + 2], position)
            after += [tensor.detach() for tensor in kept]
        hidden: torch.Tensor = self.transformer.ln_f(x)
        return hidden, after

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden [..., D]."""
        return F.linear(hidden, self.transformer.wte.weight)
