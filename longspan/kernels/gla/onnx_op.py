"""Gated linear attention as ``com.microsoft::LinearAttention``, which is the same recurrence.

LinearAttention, rule "gated"        here, for head h
S_t = exp(g_t) S_{t-1} + k_t v_t^T   S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T
o_t = scale q_t^T S_t                scale q_t^T S_t

Its decay is one number a head or one a key channel. On CUDA ONNX Runtime keeps a head's whole state
[K, V] in shared memory; a published head, 192 x 384 float32 numbers, fits no card. Columns of V do
not see each other, so each head's are cut into parts, and a part is a head of its own with the
query and the key of the head it was cut from. All of it is float32, as in
`longspan.kernels.selective_scan.onnx_op`. `longspan.export.cpu_scan` knows a selective scan by the
Expand before its keys, and leaves this node as it is.
"""

from __future__ import annotations

import torch

# A block's shared memory where it is least, on sm_86 and sm_89, is 99 KiB.
SHARED_BYTES = 96 * 1024
FLOAT32_BYTES = 4


def value_parts(keys: int, values: int) -> int:
    """Into how many equal parts V columns are cut, so that ONNX Runtime's CUDA kernel runs.

    Args:
        keys: key channels of a head, K.
        values: value channels of a head, V.

    Returns:
        The least divisor of V that leaves a state of K rows, a key and one row of scratch within
        `SHARED_BYTES`; V where none does.
    """
    for parts in range(1, values):
        width = values // parts
        numbers = keys * width + keys + max(keys, width)
        if values % parts == 0 and FLOAT32_BYTES * numbers <= SHARED_BYTES:
            return parts
    return values


def gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    scale: float,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.gla.gla`."""
    batch, length, heads, keys = q.shape
    parts = value_parts(keys, v.shape[3])
    if log_decay.dim() == 1:
        decay = log_decay.repeat_interleave(parts).expand(batch, length, heads * parts)
    else:
        decay = log_decay[:, :, :, None].expand(batch, length, heads, parts, keys).flatten(2)
    cut = _cut(state, parts)
    y, new_state = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (q.float().flatten(2), k.float().flatten(2), v.float().flatten(2), cut, decay),
        {
            "q_num_heads": heads,
            "kv_num_heads": heads * parts,
            "update_rule": "gated",
            "scale": scale,
        },
        dtypes=(torch.float32, torch.float32),
        shapes=((batch, length, heads * v.shape[3]), cut.shape),
        version=1,
    )
    return y.reshape(v.shape), _joined(new_state, parts)


def _cut(state: torch.Tensor, parts: int) -> torch.Tensor:
    """A state [B, H, K, V] as [B, H parts, K, V / parts]."""
    if parts == 1:
        return state
    batch, heads, keys, values = state.shape
    split = state.view(batch, heads, keys, parts, values // parts)
    return split.transpose(2, 3).flatten(1, 2)


def _joined(state: torch.Tensor, parts: int) -> torch.Tensor:
    """What `_cut` cut."""
    if parts == 1:
        return state
    batch, heads, keys, width = state.shape
    split = state.view(batch, heads // parts, parts, keys, width)
    return split.transpose(2, 3).flatten(3)
