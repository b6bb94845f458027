"""The state-space dual in Triton: within a chunk matrix products, between chunks the recurrence.

Many tokens take four launches a slice (arXiv 2405.21060, section 6; the kernels of
`triton_chunks.py`). A few take one, `_scan_tokens`, which walks the tokens with a part of the state
in registers.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from longspan.kernels.device import shared_memory_bytes
from longspan.kernels.donation import new_like
from longspan.kernels.ssd import scratch
from longspan.kernels.ssd.triton_chunks import (
    chunk_sums,
    segment_states,
    walk_segments,
)
from longspan.kernels.ssd.triton_math import LOG2_E, softplus_step

# `chunk_sums` reads this many neighbouring heads of a token together.
SUM_HEADS = 16
# Values of a state that a program of `_scan_tokens` holds.
TOKEN_VALUES = 4096
# Two stages take 90 KiB, and two programs to a multiprocessor hide each other's waiting.
STAGED_BYTES = 160 * 1024


@triton.jit(do_not_specialize=["length"])
def _scan_tokens(
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    dt_bias_ptr,
    state_ptr,
    y_ptr,
    new_state_ptr,
    low,
    high,
    length,
    stride_x_batch,
    stride_x,
    stride_x_head,
    stride_dt_batch,
    stride_dt,
    stride_dt_head,
    stride_B_batch,
    stride_B,
    stride_B_group,
    stride_C_batch,
    stride_C,
    stride_C_group,
    stride_D_head,
    stride_D,
    stride_state_batch,
    stride_state_head,
    stride_state_n,
    stride_state,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    p = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    real = (n < N)[:, None] & (p < P)[None, :]
    x_ptr += batch * stride_x_batch + head * stride_x_head + p
    dt_ptr += batch * stride_dt_batch + head * stride_dt_head
    B_ptr += batch * stride_B_batch + head // REPEATS * stride_B_group + n
    C_ptr += batch * stride_C_batch + head // REPEATS * stride_C_group + n

    A = tl.load(A_ptr + head).to(tl.float32) * LOG2_E
    dt_bias = 0.0
    if dt_bias_ptr is not None:
        dt_bias = tl.load(dt_bias_ptr + head).to(tl.float32)
    D = tl.zeros([WIDTH], dtype=tl.float32)
    if D_ptr is not None:
        D_row = D_ptr + head * stride_D_head + p * stride_D
        D = tl.load(D_row, mask=p < P, other=0.0).to(tl.float32)
    source = state_ptr + batch * stride_state_batch + head * stride_state_head
    source += n.to(tl.int64)[:, None] * stride_state_n + p.to(tl.int64)[None, :] * stride_state
    h = tl.load(source, mask=real, other=0.0).to(tl.float32)
    for token in range(length):
        t = tl.cast(token, tl.int64)
        step = softplus_step(tl.load(dt_ptr + t * stride_dt).to(tl.float32) + dt_bias, low, high)
        x = tl.load(x_ptr + t * stride_x, mask=p < P, other=0.0).to(tl.float32)
        B = tl.load(B_ptr + t * stride_B, mask=n < N, other=0.0).to(tl.float32)
        C = tl.load(C_ptr + t * stride_C, mask=n < N, other=0.0).to(tl.float32)
        h = tl.exp2(step * A) * h + B[:, None] * (step * x)[None, :]
        y = tl.sum(h * C[:, None], axis=0) + D * x
        target = y_ptr + ((batch * length + t) * H + head) * P + p
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=p < P)
    target = new_state_ptr + (batch * H + head) * (N * P) + n[:, None] * P + p[None, :]
    # The new state may lie where the old one does: no warp stores before all have loaded.
    tl.debug_barrier()
    tl.store(target, h, mask=real)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dimension is contiguous, as the kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tile(x: torch.Tensor) -> tuple[int, dict[str, Any]]:
    """Channels of a tile; the precision of products, stages of the pipeline, and warps."""
    if x.dtype != torch.bfloat16:
        # float16 is widened (`dot_rounded`), float32 is split in three: registers hold both down.
        return 16, {"PRECISION": "tf32x3", "STAGES": 1, "num_warps": 8}
    width = min(64, max(16, triton.next_power_of_2(x.shape[3])))
    stages = 2 if shared_memory_bytes(x.device) >= STAGED_BYTES else 1
    return width, {"PRECISION": "tf32", "STAGES": stages, "num_warps": 4}


def _scan_in_slices(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
    y: torch.Tensor,
    new_state: torch.Tensor,
) -> None:
    """Fill `y` and `new_state`, slice by slice over the same scratch."""
    batch, length, H, P = x.shape
    G, N = B.shape[2:]
    most = min(length, scratch.SLICE_TOKENS)
    dtype_name = str(x.dtype).removeprefix("torch.")
    cut = scratch.cut_slice(batch, most, heads=H, d_state=N, dtype=dtype_name)
    make = partial(torch.empty, dtype=torch.float32, device=x.device)
    steps, sums = make(2, batch * cut.chunks * H * cut.chunk)
    states = make(batch * cut.segments * H * N * P)
    totals = make(batch * cut.segments * H)
    width, tile = _tile(x)
    widths, padded = triton.cdiv(P, width), max(16, triton.next_power_of_2(N))
    stated = {"H": H, "REPEATS": H // G, "N": N, "P": P, "CHUNK": cut.chunk, "STATES": padded}
    stated |= {"WIDTH": width, **tile}
    for start in range(0, length, most):
        part = slice(start, min(start + most, length))
        tokens = part.stop - part.start
        chunks = triton.cdiv(tokens, cut.chunk)
        segments = triton.cdiv(chunks, cut.chunks_per_segment)
        stated["EVEN"] = (tokens % cut.chunk, padded - N, P % width) == (0, 0, 0)
        u, b, c = x[:, part], B[:, part], C[:, part]
        # Not in place: a walk may end before another has read the state it starts from.
        after = new_state if part.stop == length else torch.empty_like(new_state)
        chunk_sums[(chunks, triton.cdiv(H, SUM_HEADS), batch)](
            dt[:, part],
            A,
            dt_bias,
            steps,
            sums,
            *dt_limit,
            tokens,
            *dt.stride(),
            H=H,
            HEADS=SUM_HEADS,
            CHUNK=cut.chunk,
        )
        if segments > 1:
            segment_states[((segments - 1) * widths, H, batch)](
                u,
                b,
                steps,
                sums,
                states,
                totals,
                tokens,
                chunks,
                cut.chunks_per_segment,
                *u.stride()[:3],
                *b.stride()[:3],
                **stated,
            )
        walk_segments[(segments * widths, H, batch)](
            u,
            b,
            c,
            D,
            steps,
            sums,
            states,
            totals,
            state,
            y[:, part],
            after,
            tokens,
            chunks,
            cut.chunks_per_segment,
            *u.stride()[:3],
            *b.stride()[:3],
            *c.stride()[:3],
            *((0, 0) if D is None else D.stride()),
            *state.stride(),
            y.stride(0),
            SKIP_ON_DIAGONAL=D is not None and D.stride(1) == 0,
            **stated,
        )
        state = after


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
    batch, length, H, P = x.shape
    N = B.shape[3]
    x, B, C, A = _rows(x), _rows(B), _rows(C), A.contiguous()
    D = D[:, None].expand(H, P) if D is not None and D.dim() == 1 else D
    dt_bias = None if dt_bias is None else dt_bias.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    one_pass = length <= scratch.ONE_PASS_TOKENS
    new_state = new_like(state, in_place=one_pass)
    if not one_pass:
        _scan_in_slices(x, dt, A, B, C, D, dt_bias, dt_limit, state, y, new_state)
        return y, new_state

    states = triton.next_power_of_2(N)
    width = max(1, min(32, TOKEN_VALUES // states, triton.next_power_of_2(P)))
    _scan_tokens[(triton.cdiv(P, width), H, batch)](
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        state,
        y,
        new_state,
        *dt_limit,
        length,
        *x.stride()[:3],
        *dt.stride(),
        *B.stride()[:3],
        *C.stride()[:3],
        *((0, 0) if D is None else D.stride()),
        *state.stride(),
        H=H,
        REPEATS=H // B.shape[2],
        N=N,
        P=P,
        STATES=states,
        WIDTH=width,
    )
    return y, new_state
