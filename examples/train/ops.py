"""Implementations of longspan's ops that have gradients, put in place of its kernels in a `with`.

The model that trains is `longspan.models.decoder.Decoder`, layer for layer; only how an op computes
differs. Everything here gives what `longspan.kernels` gives, within rounding.

    with differentiable():
        logits, state = decoder(tokens, keep, state)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType

import torch
from attention_blocks import full_attention, window_attention
from conba_chunks import conba
from ssd_chunks import ssd
from torch.nn import functional as F

from longspan.kernels import override
from longspan.kernels.choice import Implementation, Name
from longspan.kernels.selective_scan.reference import selective_scan as token_by_token


def add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    kind: str,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.add_norm.add_norm`."""
    total = x if y is None else x + y.to(x.dtype)
    if kind == "layer":
        return total, F.layer_norm(total, weight.shape, weight, bias, eps).to(dtype)
    normed = F.rms_norm(total, weight.shape, weight, eps)
    return total, (normed if bias is None else normed + bias).to(dtype)


def swiglu(gate: torch.Tensor, x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """See `longspan.kernels.swiglu.swiglu`; it overwrites nothing."""
    del overwrite
    return F.silu(gate) * x


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tail: torch.Tensor,
    *,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.causal_conv`: Triton on CUDA as Mamba calls it, else plain torch."""
    length = x.shape[1]
    inputs = torch.cat([tail.to(x.dtype), x], dim=1)
    if x.is_cuda and activation == "silu" and bias is not None:
        # Triton is imported where it is used: a machine without CUDA need not have it.
        from differentiable_conv import differentiable_conv

        return differentiable_conv(inputs, weight, bias), inputs[:, length:].to(tail.dtype)
    y = torch.zeros_like(x) if bias is None else bias.to(x.dtype).expand_as(x)
    for j, tap in enumerate(weight[:, 0].to(x.dtype).unbind(-1)):
        y = torch.addcmul(y, inputs[:, j : j + length], tap)
    return F.silu(y) if activation == "silu" else y, inputs[:, length:].to(tail.dtype)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.selective_scan`: Triton on CUDA, plain torch elsewhere."""
    if not x.is_cuda:
        return token_by_token(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, state=state)
    from differentiable_scan import differentiable_scan

    return differentiable_scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, state=state)


IMPLEMENTATIONS: Mapping[str, Name | Implementation] = MappingProxyType(
    {
        "add_norm": add_norm,
        "causal_conv": causal_conv,
        "conba": conba,
        "full_attention": full_attention,
        "linear": "reference",
        "moe": "reference",
        # Made of the ops of this table.
        "linear_conv": "reference",
        "rms_norm": "reference",
        "rope": "reference",
        "selective_scan": selective_scan,
        "ssd": ssd,
        "ssd_norm_linear": "reference",
        "swiglu": swiglu,
        "window_attention": window_attention,
    }
)


@contextmanager
def differentiable(seen: torch.Tensor | None = None) -> Iterator[None]:
    """Run longspan's ops so that gradients pass, inside the ``with`` block.

    Args:
        seen: bool [B, 1, L, C], what full attention sees; None for every token before.
    """
    with ExitStack() as stack:
        for op, implementation in IMPLEMENTATIONS.items():
            stack.enter_context(override(op, implementation))
        if seen is not None:
            stack.enter_context(override("full_attention", partial(full_attention, seen=seen)))
        yield
