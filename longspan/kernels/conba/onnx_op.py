"""Conba as ``longspan::Conba``, a node that `longspan.export.scans` writes out as an ONNX Scan.

ONNX Runtime has no operator for the recurrence. What needs no state stays outside of the loop: the
two weights of the delay, D u, and without a gain C x, too. Vectors are columns, [H, N, 1], so that
the loop's products are MatMul without a transposition. All of it is float32, batch 1.

The node's inputs are what is carried, what comes token by token, and what the loop only reads;
its outputs what is carried, then what comes token by token.
"""

from __future__ import annotations

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
    now = (1 / (1 + w.abs()))[..., None]
    weights = (now, w[..., None] * now)
    carried = (state.x[0, ..., None], state.delay[0, ..., None])
    by_token: Tensors = (s.float()[0, ..., None], a[0, ..., None])
    if state.gain is None or state.error is None or r is None or update_every is None:
        x, delay, rows = _node(carried, by_token, weights, by_token[0], activation=activation)
        y = torch.matmul(rows[..., 0].transpose(0, 1), C.transpose(1, 2)).transpose(0, 1)
        after = ConbaState(x=x[None, ..., 0], delay=delay[None, ..., 0])
        return (y[None] + skip).to(dtype), after

    goal = (r.float() - skip)[0, ..., None]
    by_token = (*by_token, goal)
    if state.position is not None:
        read = state.position + torch.arange(1, length + 1, device=s.device)
        by_token = (*by_token, read % update_every == 0)
    x, delay, gain, error, y = _node(
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


def _node(
    carried: Tensors,
    by_token: Tensors,
    weights: Tensors,
    like: torch.Tensor,
    **attributes: int | float | str,
) -> Tensors:
    """One node; what it gives token by token has the shape of `like`."""
    results = torch.onnx.ops.symbolic_multi_out(
        "longspan::Conba",
        (*carried, *by_token, *weights),
        {
            "carried": len(carried),
            "scanned": len(by_token),
            "delay": carried[1].shape[0],
            **attributes,
        },
        dtypes=(torch.float32,) * (len(carried) + 1),
        shapes=(*(tensor.shape for tensor in carried), like.shape),
        version=1,
    )
    return tuple(results)
