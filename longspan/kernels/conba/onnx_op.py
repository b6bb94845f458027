"""Conba as a ``longspan`` node that `longspan.export.scans` writes out as ONNX Scans.

ONNX Runtime has no operator for the recurrence. What needs no state stays outside of the loop: the
two weights of the delay, D u, and without a gain C x, too. Without a gain, with a delay of one
token and f the identity it is ``ConbaInChunks``, over [H, N]; else ``Conba``, whose vectors are
columns, [H, N, 1], so that the loop's products are MatMul without a transposition. All of it is
float32, batch 1.

The node's inputs are what is carried, what comes token by token, and what the loop only reads;
its outputs what is carried, then what comes token by token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from longspan.kernels.conba import Activation, ConbaState

Tensors = tuple[torch.Tensor, ...]


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
    dtype, length = s.dtype, s.shape[1]
    w, C, skip = w_tau.float(), C.float(), D.float() * u.float()
    now = 1 / (1 + w.abs())
    then = w * now
    if update_every is None and activation == "identity" and state.delay.shape[1] == 1:
        x, past, states = _node(
            "ConbaInChunks",
            (state.x[0], state.delay[0, 0]),
            (s.float()[0], a[0], now, then),
            s[0],
            {},
        )
        y = _outputs(states, C) + skip
        return y.to(dtype), ConbaState(x=x[None], delay=past[None, None])

    weights = (now[..., None], then[..., None])
    carried = (state.x[0, ..., None], state.delay[0, ..., None])
    by_token: Tensors = (s.float()[0, ..., None], a[0, ..., None])
    if state.gain is None or state.error is None or r is None or update_every is None:
        x, delay, states = _scan(carried, by_token, weights, by_token[0], activation=activation)
        y = _outputs(states[..., 0], C) + skip
        return y.to(dtype), ConbaState(x=x[None, ..., 0], delay=delay[None, ..., 0])

    goal = (r.float() - skip)[0, ..., None]
    by_token = (*by_token, goal)
    if state.position is not None:
        read = state.position + torch.arange(1, length + 1, device=s.device)
        by_token = (*by_token, read % update_every == 0)
    x, delay, gain, error, y = _scan(
        (*carried, state.gain[0], state.error[0, ..., None]),
        by_token,
        (*weights, C, C.transpose(1, 2)),
        goal,
        activation=activation,
        eta=eta,
        k_max=k_max,
    )
    after = ConbaState(
        x=x[None, ..., 0],
        delay=delay[None, ..., 0],
        gain=gain[None],
        error=error[None, ..., 0],
        position=None if state.position is None else state.position + length,
    )
    return (y[None, ..., 0] + skip).to(dtype), after


def _outputs(states: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """C x of all tokens [1, L, H, P], from their states [L, H, N]."""
    return torch.matmul(states.transpose(0, 1), C.transpose(1, 2)).transpose(0, 1)[None]


def _scan(
    carried: Tensors,
    by_token: Tensors,
    weights: Tensors,
    like: torch.Tensor,
    **attributes: int | float | str,
) -> Tensors:
    """A node that becomes one loop over tokens."""
    counts = {"carried": len(carried), "scanned": len(by_token), "delay": carried[1].shape[0]}
    return _node("Conba", carried, (*by_token, *weights), like, attributes | counts)


def _node(
    op_type: str,
    carried: Tensors,
    others: Tensors,
    like: torch.Tensor,
    attributes: Mapping[str, int | float | str],
) -> Tensors:
    """One node; what it gives token by token has the shape of `like`."""
    results = torch.onnx.ops.symbolic_multi_out(
        f"longspan::{op_type}",
        (*carried, *others),
        {**attributes},
        dtypes=(torch.float32,) * (len(carried) + 1),
        shapes=(*(tensor.shape for tensor in carried), like.shape),
        version=1,
    )
    return tuple(results)
