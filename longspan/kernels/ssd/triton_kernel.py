"""The state-space dual in Triton: within a chunk matrix products, between chunks the recurrence.

Many tokens take four launches a slice (arXiv 2405.21060, section 6; the kernels of
`triton_chunks.py`). A few take one, `_scan_tokens`, which walks the tokens with a part of the state
in registers.
"""

# The arguments of a kernel have Triton's types, and Triton ships no annotations.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from longspan.kernels.donation import moved_into, new_like
from longspan.kernels.launch import overlap_options, start_next_launch, wait_for_last_launch
from longspan.kernels.quantized_linear.laid_out import store_laid_out
from longspan.kernels.ssd import scratch
from longspan.kernels.ssd.triton_math import LOG2_E, softplus_step
from longspan.kernels.ssd.triton_slices import Inputs, scan_in_slices

# Values of a state that a program of `_scan_tokens` holds.
TOKEN_VALUES = 2048
# Registers of a thread that takes one step: then a program has room beside three of the product
# before it (`quantized_linear.blocks`), and its state is on the way. Measured; docs/kernels.md.
STEP_REGISTERS = 48


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
    z_ptr,
    norm_ptr,
    squares_ptr,
    sums_ptr,
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
    stride_z_batch,
    stride_z,
    H: tl.constexpr,
    REPEATS: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    ONE: tl.constexpr,
    BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next_launch(OVERLAP)
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
    if norm_ptr is not None:
        norm = tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    source = state_ptr + batch * stride_state_batch + head * stride_state_head
    source += n.to(tl.int64)[:, None] * stride_state_n + p.to(tl.int64)[None, :] * stride_state
    h = tl.load(source, mask=real, other=0.0).to(tl.float32)
    wait_for_last_launch(OVERLAP)
    # Without a loop, addresses are computed before the wait.
    for token in range(1 if ONE else length):
        t = tl.cast(token, tl.int64)
        x = tl.load(x_ptr + t * stride_x, mask=p < P, other=0.0)
        B = tl.load(B_ptr + t * stride_B, mask=n < N, other=0.0)
        C = tl.load(C_ptr + t * stride_C, mask=n < N, other=0.0)
        if z_ptr is not None:
            z_row = z_ptr + batch * stride_z_batch + t * stride_z + head * P
            z = tl.load(z_row + p, mask=p < P, other=0.0)
        # Otherwise the compiler asks for B and C when dt has come, and its step is computed.
        tl.debug_barrier()
        step = softplus_step(tl.load(dt_ptr + t * stride_dt).to(tl.float32) + dt_bias, low, high)
        x, B, C = x.to(tl.float32), B.to(tl.float32), C.to(tl.float32)
        if z_ptr is not None:
            gate = z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))
        h = tl.exp2(step * A) * h + B[:, None] * (step * x)[None, :]
        y = tl.sum(h * C[:, None], axis=0) + D * x
        row = (batch * length + t) * H + head
        if z_ptr is not None:
            # As it would be rounded on its way to the norm.
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32) * gate
            square = squares_ptr + row * tl.num_programs(0) + tl.program_id(0)
            tl.store(square, tl.sum(y * y, axis=0))
            if norm_ptr is not None:
                y *= norm
        if sums_ptr is not None:
            first = row * P + tl.program_id(0) * WIDTH
            store_laid_out(y_ptr, sums_ptr, y, first, (row + 1) * P, BITS)
        else:
            tl.store(y_ptr + row * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)
    target = new_state_ptr + (batch * H + head) * (N * P) + n[:, None] * P + p[None, :]
    # The new state may lie where the old one does: no warp stores before all have loaded.
    tl.debug_barrier()
    tl.store(target, h, mask=real)


def token_width(N: int, P: int) -> int:
    """Channels of a program of `scan_few_tokens`, all of one head."""
    width: int = min(32, TOKEN_VALUES // triton.next_power_of_2(N), triton.next_power_of_2(P))
    return max(1, width)


def scan_few_tokens(
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
    z: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    bits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Walk the tokens in one launch; the arguments are those of `longspan.kernels.ssd.ssd`.

    Args:
        x, dt, A, B, C, D, dt_bias, dt_limit, state: see there.
        z: dtype of `x` [B, L, H P], a gate; None for none.
        norm_weight: float [H P] of the gated norm, which multiplies its row already; None for not.
        sums: float32 as `laid_out.new_sums` gives it, filled where that row is to be `laid_out`,
            P and `token_width` being multiples of a group; None for a plain row.
        bits: of the packed numbers that will read it; None for a plain row.

    Returns:
        y, dtype of `x` [B, L, H, P]; with a gate y silu(z) in float32, of a y that was rounded
        first, or with a norm's weight, too, that times the weight in the dtype of `x`; then the
        squares of y silu(z), summed up in parts of each head, float32 [B, L, H, parts], or None
        without a gate; then the state, float32 [B, H, N, P].
    """
    batch, length, H, P = x.shape
    N = B.shape[3]
    overlap = overlap_options(x, A, D, dt_bias, state, norm_weight)
    x, B, C = (each if each.stride(-1) == 1 else each.contiguous() for each in (x, B, C))
    if z is not None and z.stride(-1) != 1:
        z = z.contiguous()
    D = D[:, None].expand(H, P) if D is not None and D.dim() == 1 else D
    states = triton.next_power_of_2(N)
    width = token_width(N, P)
    parts = triton.cdiv(P, width)
    as_x = z is None or norm_weight is not None
    y = torch.empty(x.shape, dtype=x.dtype if as_x else torch.float32, device=x.device)
    squares = (
        None
        if z is None
        else torch.empty(batch, length, H, parts, dtype=torch.float32, device=x.device)
    )
    new_state = new_like(state, in_place=True)
    _scan_tokens[(parts, H, batch)](
        x,
        dt,
        A.contiguous(),
        B,
        C,
        D,
        None if dt_bias is None else dt_bias.contiguous(),
        state,
        y,
        new_state,
        z,
        None if norm_weight is None else norm_weight.contiguous(),
        squares,
        sums,
        *dt_limit,
        length,
        *x.stride()[:3],
        *dt.stride(),
        *B.stride()[:3],
        *C.stride()[:3],
        *((0, 0) if D is None else D.stride()),
        *state.stride(),
        *((0, 0) if z is None else z.stride()[:2]),
        H=H,
        REPEATS=H // B.shape[2],
        N=N,
        P=P,
        STATES=states,
        WIDTH=width,
        ONE=length == 1,
        BITS=bits or 0,
        maxnreg=STEP_REGISTERS if length == 1 else None,
        **overlap,
    )
    return y, squares, new_state


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
    length, H, P = x.shape[1:]
    if length <= scratch.ONE_PASS_TOKENS:
        y, _, new_state = scan_few_tokens(
            x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit, state=state
        )
        return y, new_state
    x, B, C = (each if each.stride(-1) == 1 else each.contiguous() for each in (x, B, C))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_state = new_like(state, in_place=False)
    scan_in_slices(
        Inputs(
            x=x,
            dt=dt,
            A=A.contiguous(),
            B=B,
            C=C,
            D=D[:, None].expand(H, P) if D is not None and D.dim() == 1 else D,
            dt_bias=None if dt_bias is None else dt_bias.contiguous(),
            dt_limit=dt_limit,
            state=state,
            y=y,
            new_state=new_state,
        )
    )
    return y, moved_into(state, new_state)
