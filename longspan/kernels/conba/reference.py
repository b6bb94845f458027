"""Conba as longspan defines it, plain torch, one token after another (docs/mixcon.md).

Definition     here
x_k            state           [B, H, N]
x_{k-T}        past[:, 0]      [B, T, H, N], oldest first
K_k            gain            [B, H, N, P]
e_k            error           [B, H, P], from the token before
g              the identity
"""

from __future__ import annotations

import torch

from longspan.kernels.conba import Activation, ConbaState


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
    wide = state.x.dtype
    inputs, w, C, D = u.to(wide), w_tau.to(wide), C.to(wide), D.to(wide)
    x, past, gain, error = state.x, state.delay, state.gain, state.error
    first = 0 if state.position is None else int(state.position)
    outputs = []
    for t in range(s.shape[1]):
        delayed = (x + w * past[:, 0]) / (1 + w.abs())  # (3)
        past = torch.cat([past[:, 1:], x[:, None]], dim=1)
        x = a[:, t] * delayed + s[:, t].to(wide)  # (4)
        if gain is not None and error is not None:
            x = x + torch.einsum("bhnp,bhp->bhn", gain, error)
        x = torch.tanh(x) if activation == "tanh" else x
        y = torch.einsum("hpn,bhn->bhp", C, x) + D * inputs[:, t]  # (5)
        outputs.append(y)
        if gain is None or error is None or r is None or update_every is None:
            continue
        last, error = error, r[:, t].to(wide) - y  # (6)
        if (first + t + 1) % update_every == 0:
            gain = _updated(gain, last, error, C, eta=eta, k_max=k_max)
    position = None if state.position is None else state.position + s.shape[1]
    after = ConbaState(x=x, delay=past, gain=gain, error=error, position=position)
    return torch.stack(outputs, dim=1).to(s.dtype), after


def _updated(
    gain: torch.Tensor,
    last: torch.Tensor,
    error: torch.Tensor,
    C: torch.Tensor,
    *,
    eta: float,
    k_max: float,
) -> torch.Tensor:
    """Equation (7): a step of normalised LMS, then the clip of the Frobenius norm."""
    descent = torch.einsum("hpn,bhp->bhn", C, error)
    step = eta / (1 + last.square().sum(-1))[..., None, None]
    gain = gain + step * descent[..., None] * last[:, :, None]
    norm: torch.Tensor = torch.linalg.vector_norm(gain, dim=(-2, -1), keepdim=True)
    return gain * (k_max / norm.clamp(min=k_max))
