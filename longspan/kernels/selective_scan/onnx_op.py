"""The selective scan as ``com.microsoft::LinearAttention``: every channel is a head of width one.

LinearAttention, rule "gated"        here, for head e
S_t = exp(g_t) S_{t-1} + k_t v_t^T   h_t[e] = exp(step_t[e] A[e]) h_{t-1}[e] + B_t step_t[e] x_t[e]
o_t = scale q_t^T S_t                C_t . h_t[e], with one query head for all channels

The rule wants a key for each head, so B is repeated E times; `longspan.export.cpu_scan` undoes
that for the CPU. All of it is float32: ONNX Runtime 1.31 on CUDA wants the state in the dtype of
the inputs, although the operator's schema allows two, and a log decay has no use for 8 bits.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu, softplus


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.selective_scan.selective_scan`."""
    batch, length, width = x.shape
    states = A.shape[1]
    dtype = x.dtype
    x, B, C = x.float(), B.float(), C.float()
    step = softplus(dt.float() if dt_bias is None else dt.float() + dt_bias.float())
    keys = B[:, :, None, :].expand(batch, length, width, states)
    decay = step[..., None] * A
    y, new_state = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (
            C,
            keys.reshape(batch, length, width * states),
            step * x,
            state[..., None],
            decay.reshape(batch, length, width * states),
        ),
        {"q_num_heads": 1, "kv_num_heads": width, "update_rule": "gated", "scale": 1.0},
        dtypes=(torch.float32, torch.float32),
        shapes=(x.shape, (batch, width, states, 1)),
        version=1,
    )
    if D is not None:
        y = y + D.float() * x
    if z is not None:
        y = y * silu(z.float())
    return y.to(dtype), new_state[..., 0]
