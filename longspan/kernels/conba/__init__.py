"""Conba as longspan defines it: a delayed, scaled state under an adaptive gain (docs/mixcon.md).

No public code or formula of MixCon's Conba exists; this is longspan's own definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from longspan.kernels.checks import require_dtype, require_shape
from longspan.kernels.choice import implementation

__all__ = ["Activation", "ConbaState", "conba"]

Activation = Literal["identity", "tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConbaState:
    """What is carried from token to token; nothing in it grows.

    Attributes:
        x: float32 [B, H, N], the state.
        delay: float32 [B, T, H, N], the T states before it, oldest first.
        gain: float32 [B, H, N, P], the matrix K; None where the gain is off.
        error: float32 [B, H, P], the last tracking error; None where the gain is off.
        position: int64 [1], tokens read; only where the gain is not updated at every token.
    """

    x: torch.Tensor
    delay: torch.Tensor
    gain: torch.Tensor | None = None
    error: torch.Tensor | None = None
    position: torch.Tensor | None = None


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
    activation: Activation = "identity",
    update_every: int | None = 1,
    eta: float = 0.01,
    k_max: float = 1.0,
) -> tuple[torch.Tensor, ConbaState]:
    """Run the recurrence over L tokens; equations (3) to (7) of docs/mixcon.md.

    With k the token's position, for each of H heads:

        xd_k    = (x_k + w_tau x_{k-T}) / (1 + |w_tau|)
        x_{k+1} = f(a_k xd_k + s_k + K_k e_k)
        y_k     = C x_{k+1} + D u_k
        e_{k+1} = r_k - y_k
        K_{k+1} = K_k + eta (C^T e_{k+1}) e_k^T / (1 + |e_k|^2), its Frobenius norm at most k_max

    Args:
        s: float [B, L, H, N], what enters the state, L >= 1.
        a: float32 [B, L, H, N], the scaling, in (0, 1).
        u: dtype of `s` [B, L, H, P], the layer's input.
        r: dtype of `s` [B, L, H, P], the desired output; None where the gain is off.
        w_tau: float [H, N], weight of the delayed state.
        C: float [H, P, N], from the state to the output.
        D: float [H, P], the skip.
        state: before the first token.
        activation: f.
        update_every: the gain is updated by the tokens after which a multiple of so many tokens
            has been read: 1 for every token; None for no gain, K e being zero.
        eta: learning rate of the gain.
        k_max: largest Frobenius norm of a head's gain.

    Returns:
        y, dtype of `s` [B, L, H, P], and the state after the last token.

    Raises:
        ValueError: a shape, a dtype or a number does not fit, or the state is of another mode.
    """
    op = "conba"
    batch, length, heads, states = s.shape
    width, delay = C.shape[1], state.delay.shape[1]
    for name, tensor, shape in (
        ("a", a, (batch, length, heads, states)),
        ("u", u, (batch, length, heads, width)),
        ("r", r, (batch, length, heads, width)),
        ("w_tau", w_tau, (heads, states)),
        ("C", C, (heads, width, states)),
        ("D", D, (heads, width)),
        ("state.x", state.x, (batch, heads, states)),
        ("state.delay", state.delay, (batch, delay, heads, states)),
        ("state.gain", state.gain, (batch, heads, states, width)),
        ("state.error", state.error, (batch, heads, width)),
        ("state.position", state.position, (1,)),
    ):
        if tensor is not None:
            require_shape(op, name, tensor, shape)
    require_dtype(op, "u", u, s.dtype)
    require_dtype(op, "a", a, torch.float32)
    require_dtype(op, "state.x", state.x, torch.float32)
    if delay < 1:
        raise ValueError("conba: state.delay holds no state; it must hold one or more")
    if activation not in get_args(Activation):
        known = ", ".join(get_args(Activation))
        raise ValueError(f"conba: activation is {activation!r}; it must be one of {known}")
    if eta < 0 or k_max <= 0:
        raise ValueError(
            f"conba: eta is {eta} and k_max {k_max}; the first must be 0 or more, the second above"
        )
    _check_mode(r, state, update_every)
    result: tuple[torch.Tensor, ConbaState] = implementation(op, s)(
        s, a, u, r, w_tau, C, D,
        state=state, activation=activation, update_every=update_every, eta=eta, k_max=k_max,
    )  # fmt: skip
    return result


def _check_mode(r: torch.Tensor | None, state: ConbaState, update_every: int | None) -> None:
    """Refuse a desired output or a state that the mode does not have, or that it lacks."""
    if update_every is not None and update_every < 1:
        raise ValueError(f"conba: update_every is {update_every}; it must be 1 or more, or None")
    for name, tensor, wanted in (
        ("r", r, update_every is not None),
        ("state.gain", state.gain, update_every is not None),
        ("state.error", state.error, update_every is not None),
        ("state.position", state.position, update_every is not None and update_every > 1),
    ):
        if (tensor is not None) != wanted:
            found, rule = ("None", "be given") if wanted else ("given", "be None")
            raise ValueError(
                f"conba: {name} is {found} with update_every={update_every}; it must {rule}"
            )
