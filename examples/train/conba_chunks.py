"""Conba without a gain, in chunks, with gradients for everything (docs/mixcon.md, (3) to (5)).

With a delay of one token x_k = alpha_k x_{k-1} + beta_k x_{k-2} + s_k is linear in what was before
its chunk. So all chunks are walked at once from three starts: nothing, x_{k-1} = 1 and x_{k-2} = 1;
a short walk over the chunks then tells how much of the last two each of them has.
Whatever is not linear (a gain, tanh) or has a longer delay is walked token by token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from longspan.kernels.conba import Activation, ConbaState
from longspan.kernels.conba.reference import conba as token_by_token

CHUNK = 32


def conba(
    s: torch.Tensor,
    a: torch.Tensor,
    u: torch.Tensor,
    r: torch.Tensor | None,
    w_tau: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    *,
    state: ConbaState,
    activation: Activation,
    update_every: int | None,
    eta: float,
    k_max: float,
) -> tuple[torch.Tensor, ConbaState]:
    """See `longspan.kernels.conba.conba`."""
    if update_every is not None or activation != "identity" or state.delay.shape[1] > 1:
        return token_by_token(
            s, a, u, r, w_tau, C, D,
            state=state, activation=activation, update_every=update_every, eta=eta, k_max=k_max,
        )  # fmt: skip
    wide = state.x.dtype
    w = w_tau.to(wide)
    now = a / (1 + w.abs())
    x = _walk(now, now * w, s.to(wide), state.x, state.delay[:, 0])
    y = torch.einsum("blhn,hpn->blhp", x, C.to(wide)) + D.to(wide) * u.to(wide)
    before_last = x[:, -2] if x.shape[1] > 1 else state.x
    return y.to(s.dtype), replace(state, x=x[:, -1], delay=before_last[:, None])


def _walk(
    alpha: torch.Tensor,
    beta: torch.Tensor,
    s: torch.Tensor,
    last: torch.Tensor,
    before_last: torch.Tensor,
) -> torch.Tensor:
    """All x [B, L, H, N] of the recurrence, from the two before it [B, H, N]."""
    rows, length, heads, states = s.shape
    alpha, beta, s = (
        pad(each, (0, 0, 0, 0, 0, -length % CHUNK)).view(rows, -1, CHUNK, heads, states)
        for each in (alpha, beta, s)
    )
    nothing, one = torch.zeros_like(s[:, :, 0]), torch.ones_like(s[:, :, 0])
    two_ago = torch.stack([nothing, nothing, one])
    one_ago = torch.stack([nothing, one, nothing])
    entering = torch.stack([s, torch.zeros_like(s), torch.zeros_like(s)])
    walked = []
    for k in range(CHUNK):
        x = alpha[:, :, k] * one_ago + beta[:, :, k] * two_ago + entering[:, :, :, k]
        two_ago, one_ago = one_ago, x
        walked.append(x)
    alone, of_last, of_before_last = torch.stack(walked, dim=3).unbind(0)

    starts = []
    for chunk in range(s.shape[1]):
        starts.append(torch.stack([last, before_last], dim=1))
        ends = (
            alone[:, chunk, k]
            + of_last[:, chunk, k] * last
            + of_before_last[:, chunk, k] * before_last
            for k in (-1, -2)
        )
        last, before_last = ends
    start = torch.stack(starts, dim=1)[:, :, :, None]
    x = alone + of_last * start[:, :, 0] + of_before_last * start[:, :, 1]
    return x.flatten(1, 2)[:, :length]
