"""The state-space dual as ``com.microsoft::LinearAttention``, which is the same recurrence.

LinearAttention, rule "gated"        here, for head h
S_t = exp(g_t) S_{t-1} + k_t v_t^T   h_t = exp(step_t A) h_{t-1} + B_t (step_t x_t)^T
o_t = scale q_t^T S_t                C_t . h_t

Its state is [B, heads, d_k, d_v] = [B, H, N, P], its decay may be one number a head, and B and C
keep their G groups: ONNX Runtime gives head h the key and the query of group h // (H / G). All of
it is float32, as in `longspan.kernels.selective_scan.onnx_op`. `longspan.export.cpu_scan` knows a
selective scan by the Expand before its keys, and leaves this node as it is.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import softplus


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.ssd.ssd`."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    dtype = x.dtype
    x, B, C = x.float(), B.float(), C.float()
    step = softplus(dt.float() if dt_bias is None else dt.float() + dt_bias.float())
    if dt_limit != (0.0, math.inf):
        step = step.clamp(*dt_limit)
    y, new_state = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (
            C.reshape(batch, length, groups * states),
            B.reshape(batch, length, groups * states),
            (step[..., None] * x).reshape(batch, length, heads * width),
            state,
            step * A,
        ),
        {"q_num_heads": groups, "kv_num_heads": heads, "update_rule": "gated", "scale": 1.0},
        dtypes=(torch.float32, torch.float32),
        shapes=((batch, length, heads * width), state.shape),
        version=1,
    )
    y = y.reshape(batch, length, heads, width)
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).float() * x
    return y.to(dtype), new_state
