"""Gated linear attention in Triton: within a chunk matrix products, between chunks the recurrence.

Many tokens take four launches for each segment of 16 chunks (the chunk form of arXiv 2312.06635,
section 4; the kernels of `triton_chunks.py`), so that the states between chunks need no more
memory for a longer text. A few tokens take one launch, `_walk_tokens`, with a part of the state in
registers.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import new_like
from longspan.kernels.gla.scratch import BLOCK_TOKENS, scratch_shapes, segment_tokens
from longspan.kernels.gla.triton_chunks import (
    chunk_outputs,
    chunk_scores,
    chunk_states,
    log2_decays,
    walk_chunks,
)

# Tokens whose scores `chunk_outputs` multiplies at once: with 64 it spilled registers on sm_86.
OUTPUT_TOKENS = 32
# Values of a state that a program of `walk_chunks` and of `_walk_tokens` holds.
WALK_VALUES = 512
TOKEN_VALUES = 4096


@triton.jit(do_not_specialize=["scale", "length"])
def _walk_tokens(
    q_ptr,
    k_ptr,
    v_ptr,
    log_decay_ptr,
    state_ptr,
    y_ptr,
    new_state_ptr,
    scale,
    length,
    stride_q_batch,
    stride_q,
    stride_q_head,
    stride_k_batch,
    stride_k,
    stride_k_head,
    stride_v_batch,
    stride_v,
    stride_v_head,
    stride_decay_batch,
    stride_decay,
    stride_decay_head,
    stride_state_batch,
    stride_state_head,
    stride_state_key,
    stride_state,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    FIXED: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    c = tl.arange(0, KEYS)
    p = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    real = (c < K)[:, None] & (p < V)[None, :]
    q_ptr += batch * stride_q_batch + head * stride_q_head + c
    k_ptr += batch * stride_k_batch + head * stride_k_head + c
    v_ptr += batch * stride_v_batch + head * stride_v_head + p
    log_decay_ptr += batch * stride_decay_batch + head * stride_decay_head

    source = state_ptr + batch * stride_state_batch + head * stride_state_head
    source += c.to(tl.int64)[:, None] * stride_state_key + p.to(tl.int64)[None, :] * stride_state
    state = tl.load(source, mask=real, other=0.0).to(tl.float32)
    for token in range(length):
        t = tl.cast(token, tl.int64)
        q = tl.load(q_ptr + t * stride_q, mask=c < K, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + t * stride_k, mask=c < K, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + t * stride_v, mask=p < V, other=0.0).to(tl.float32)
        if FIXED:
            state *= tl.exp2(log2_decays(tl.load(log_decay_ptr)))
        else:
            decays = tl.load(log_decay_ptr + t * stride_decay + c, mask=c < K, other=0.0)
            state *= tl.exp2(log2_decays(decays))[:, None]
        state += k[:, None] * v[None, :]
        y = scale * tl.sum(state * q[:, None], axis=0)
        target = y_ptr + ((batch * length + t) * H + head) * V + p
        tl.store(target, y, mask=p < V)
    target = new_state_ptr + (batch * H + head) * (K * V) + c[:, None] * V + p[None, :]
    # The new state may lie where the old one does: no warp stores before all have loaded.
    tl.debug_barrier()
    tl.store(target, state, mask=real)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _decay_strides(log_decay: torch.Tensor) -> tuple[int, int, int]:
    """Strides by sequence, token and head; a decay a head has only the last."""
    if log_decay.dim() == 1:
        return 0, 0, log_decay.stride(0)
    batch, token, head, _ = log_decay.stride()
    return batch, token, head


def _blocks(dtype: torch.dtype, keys: int) -> dict[str, int | str]:
    """Key channels of a tile, the precision of products, warps and stages."""
    # Decays make float32 numbers of both sides. For bfloat16 inputs each is split in two bfloat16
    # numbers, 16 bits; for float16, whose range would not do, in two of TF32.
    precision = {torch.bfloat16: "bf16x3", torch.float16: "tf32x3"}.get(dtype, "ieee")
    return {
        "KEYS": min(32, max(16, triton.next_power_of_2(keys))),
        "PRECISION": precision,
        "num_warps": 4,
        # K = 192 is six tiles; a third stage would cost shared memory only.
        "num_stages": 2,
    }


def _tile_width(dtype: torch.dtype, values: int) -> int:
    """Value channels of a tile."""
    # float32 has no tensor cores, and three products of TF32 hold twice the registers.
    widest = 64 if dtype == torch.bfloat16 else 32
    width: int = min(widest, max(16, triton.next_power_of_2(values)))
    return width


def _walk_segment(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    scale: float,
    state: torch.Tensor,
    y: torch.Tensor,
    new_state: torch.Tensor,
    scratch: list[torch.Tensor],
) -> None:
    """Fill `y` and `new_state` by the four launches; `new_state` may be `state`."""
    batch, length, H, K = q.shape
    V = v.shape[3]
    states, sums, scores = scratch
    chunk = scores.shape[-1]
    chunks = triton.cdiv(length, chunk)
    fixed = log_decay.dim() == 1
    sizes = {"H": H, "K": K, "CHUNK": chunk, "FIXED": fixed, **_blocks(q.dtype, K)}
    width = _tile_width(q.dtype, V)
    widths = triton.cdiv(V, width)
    decays = _decay_strides(log_decay)
    chunk_scores[(chunks * (chunk // BLOCK_TOKENS), H, batch)](
        q,
        k,
        log_decay,
        scores,
        length,
        chunks,
        *q.stride()[:3],
        *k.stride()[:3],
        *decays,
        BLOCK=BLOCK_TOKENS,
        **sizes,
    )
    chunk_states[(chunks * triton.cdiv(K, sizes["KEYS"]) * widths, H, batch)](
        k,
        v,
        log_decay,
        states,
        sums,
        length,
        chunks,
        *k.stride()[:3],
        *v.stride()[:3],
        *decays,
        V=V,
        WIDTH=width,
        **sizes,
    )
    walk_chunks[(triton.cdiv(K * V, WALK_VALUES), H, batch)](
        state, sums, states, new_state, chunks, *state.stride(), H=H, K=K, V=V, VALUES=WALK_VALUES
    )
    chunk_outputs[(chunks * widths, H, batch)](
        q,
        v,
        log_decay,
        scores,
        states,
        y,
        scale,
        length,
        chunks,
        *q.stride()[:3],
        *v.stride()[:3],
        *decays,
        *y.stride()[:3],
        TOKENS=OUTPUT_TOKENS,
        V=V,
        WIDTH=width,
        **sizes,
    )


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
    batch, length, H, K = q.shape
    V = v.shape[3]
    q, k, v = _rows(q), _rows(k), _rows(v)
    fixed = log_decay.dim() == 1
    log_decay = log_decay if fixed else _rows(log_decay)
    y = torch.empty(v.shape, dtype=torch.float32, device=q.device)
    shapes = scratch_shapes(batch, length, heads=H, key_width=K, value_width=V)
    in_chunks = shapes[0][1] > 0
    new_state = new_like(state, in_place=True)
    if in_chunks:
        scratch = [torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes]
        for start in range(0, length, segment_tokens()):
            part = slice(start, start + segment_tokens())
            decays = log_decay if fixed else log_decay[:, part]
            parts = (q[:, part], k[:, part], v[:, part], decays)
            _walk_segment(*parts, scale, state, y[:, part], new_state, scratch)
            state = new_state
        return y, new_state

    keys = triton.next_power_of_2(K)
    width = max(1, min(32, TOKEN_VALUES // keys, triton.next_power_of_2(V)))
    _walk_tokens[(triton.cdiv(V, width), H, batch)](
        q,
        k,
        v,
        log_decay,
        state,
        y,
        new_state,
        scale,
        length,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *_decay_strides(log_decay),
        *state.stride(),
        H=H,
        K=K,
        V=V,
        KEYS=keys,
        WIDTH=width,
        FIXED=fixed,
    )
    return y, new_state
