"""Conba in plain torch, for CPUs: without a gain, chunks of tokens are walked side by side.

    x_{k+1} = a_k (x_k + w x_{k-1}) / (1 + |w|) + s_k

is linear, so a chunk is a map of the two states before it: what it makes of (0, 0) with s, and of
(1, 0) and (0, 1) without. A walk over the maps tells the two states before each chunk, and all are
walked again from them. No factor is above one, so nothing overflows. What is not linear (a gain,
tanh) or has a longer delay is the reference's, token by token.
"""

from __future__ import annotations

import torch

from longspan.kernels.conba import Activation, ConbaState, scratch
from longspan.kernels.conba.reference import conba as token_by_token


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
    entering, w = s.to(wide), w_tau.to(wide)
    now = 1 / (1 + w.abs())
    then = w * now
    states = torch.empty(s.shape, dtype=wide, device=s.device)
    x, past = state.x, state.delay[:, 0]
    # Turns over the tokens are L, over chunks and their tokens 2 C + L / C.
    turns = scratch.TURNS
    chunks = s.shape[1] // turns
    whole = chunks * turns if chunks > 2 else 0
    if whole:
        by_chunk = (-1, chunks, turns, *s.shape[2:])
        parts = (entering[:, :whole].reshape(by_chunk), a[:, :whole].reshape(by_chunk))
        starts, x, past = _starts(*parts, now, then, x, past)
        _walk(*parts, states[:, :whole].view(by_chunk), now, then, *starts)
    rest = (entering[:, whole:], a[:, whole:], states[:, whole:])
    x, past = _walk(*rest, now, then, x, past)
    y = torch.matmul(states.transpose(1, 2), C.to(wide).transpose(1, 2)).transpose(1, 2)
    y = torch.addcmul(y, D.to(wide), u.to(wide)).to(s.dtype)
    return y, ConbaState(x=x, delay=past[:, None])


def _walk(
    s: torch.Tensor,
    a: torch.Tensor,
    states: torch.Tensor,
    now: torch.Tensor,
    then: torch.Tensor,
    x: torch.Tensor,
    past: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write x after each token into `states` [..., T, H, N]; give the last, and the one before."""
    for token in range(s.shape[-3]):
        delayed = torch.addcmul(now * x, then, past)
        past, x = x, torch.addcmul(s[..., token, :, :], a[..., token, :, :], delayed)
        states[..., token, :, :] = x
    return x, past


def _starts(
    s: torch.Tensor,
    a: torch.Tensor,
    now: torch.Tensor,
    then: torch.Tensor,
    x: torch.Tensor,
    past: torch.Tensor,
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The two states before each chunk of s [B, chunks, T, H, N], and the two after the last."""
    shape = (*s.shape[:2], 3, *s.shape[3:])
    xs, pasts = torch.zeros(2, *shape, dtype=s.dtype, device=s.device)
    xs[:, :, 1] = pasts[:, :, 2] = 1
    for token in range(s.shape[2]):
        mapped = a[:, :, token, None] * torch.addcmul(now * xs, then, pasts)
        mapped[:, :, 0] += s[:, :, token]
        xs, pasts = mapped, xs
    starts = []
    maps = torch.stack([xs, pasts], dim=3)
    both = torch.stack([x, past], dim=1)
    for chunk in range(s.shape[1]):
        starts.append(both)
        own, one, two = maps[:, chunk].unbind(1)
        both = torch.addcmul(torch.addcmul(own, one, both[:, :1]), two, both[:, 1:])
    before = torch.stack(starts, dim=1)
    return (before[:, :, 0], before[:, :, 1]), both[:, 0], both[:, 1]
