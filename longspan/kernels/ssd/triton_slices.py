"""Many tokens of the state-space dual: which kernels are launched for a slice, and with what.

A slice takes the launches of `triton_chunks.py`. In bfloat16, where heads share B and C, those of
`triton_stacked.py` do nearly all of the work, and `walk_segments` what they leave.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton

from longspan.kernels.device import shared_memory_bytes
from longspan.kernels.ssd import scratch
from longspan.kernels.ssd.triton_chunks import chunk_sums, segment_states, walk_segments
from longspan.kernels.ssd.triton_stacked import add_within, chunk_products, stacked_states, stacked_walk

# `chunk_sums` reads this many neighbouring heads of a token together.
SUM_HEADS = 16
# Two stages take 90 KiB, and two programs to a multiprocessor hide each other's waiting.
STAGED_BYTES = 160 * 1024
STACKED = {"walk": (2, 8, 3, 1, {}), "state": (2, 8, 3, 1, {})}


def _tile(x: torch.Tensor) -> dict[str, Any]:
    """Channels of a head's tile; precision of products, stages of the pipeline, and warps."""
    if x.dtype != torch.bfloat16:
        # float16 is widened (`dot_rounded`), float32 is split in three: registers hold both down.
        return {"WIDTH": 16, "PRECISION": "tf32x3", "STAGES": 1, "num_warps": 8}
    width = min(64, max(16, triton.next_power_of_2(x.shape[3])))
    stages = 2 if shared_memory_bytes(x.device) >= STAGED_BYTES else 1
    return {"WIDTH": width, "PRECISION": "tf32", "STAGES": stages, "num_warps": 4}


def _named(**tensors: torch.Tensor) -> dict[str, Any]:
    """A tensor's pointer and its strides but the last, by the names that the kernels have."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        batch, token, head = tensor.stride()[:3]
        last = "head" if name == "x" else "group"
        found |= {f"{name}_ptr": tensor, f"stride_{name}_batch": batch, f"stride_{name}": token}
        found[f"stride_{name}_{last}"] = head
    return found


def scan_in_slices(
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
    dtype_name = str(x.dtype).removeprefix("torch.")
    most = min(length, scratch.SLICE_TOKENS)
    cut = scratch.cut_slice(batch, most, heads=H, d_state=N, dtype=dtype_name)
    stacked = scratch.stacked_heads(heads=H, groups=G, head_width=P, d_state=N, dtype=dtype_name)
    make = partial(torch.empty, dtype=torch.float32, device=x.device)
    rows = batch * cut.chunks * H * cut.chunk
    steps, sums = make(2, rows)
    starts, ends = make(2, rows) if stacked else (None, None)
    products = make(batch * cut.chunks * G * cut.chunk**2, dtype=x.dtype) if stacked else None
    states, totals = make(batch * cut.segments * H * N * P), make(batch * cut.segments * H)
    padded, tile = max(16, triton.next_power_of_2(N)), _tile(x)
    sizes = {"H": H, "REPEATS": H // G, "N": N, "P": P, "CHUNK": cut.chunk, "STATES": padded}
    sizes |= {"HEADS": max(1, stacked), "MOST": triton.next_power_of_2(scratch.SLICE_TOKENS // cut.chunk)}
    scaled = {"steps_ptr": steps, "sums_ptr": sums}
    factors = {"sums_ptr": sums, "ends_ptr": ends}
    passed = {"states_ptr": states, "totals_ptr": totals}
    skip = {"D_ptr": D}
    skip["stride_D_head"], skip["stride_D"] = (0, 0) if D is None else D.stride()
    for start in range(0, length, most):
        part = slice(start, min(start + most, length))
        tokens = part.stop - part.start
        chunks = triton.cdiv(tokens, cut.chunk)
        segments = triton.cdiv(chunks, cut.chunks_per_segment)
        even = tokens % cut.chunk == 0 and padded == N
        u, b, c = x[:, part], B[:, part], C[:, part]
        # Not in place: a walk may end before another has read the state it starts from.
        after = new_state if part.stop == length else torch.empty_like(new_state)
        span = {"length": tokens, "chunks": chunks, "each": cut.chunks_per_segment}
        inputs = _named(x=u, B=b, C=c)
        without_C = {name: value for name, value in inputs.items() if "C" not in name}
        kept = {
            "state_ptr": state,
            "new_state_ptr": after,
            "y_ptr": y[:, part],
            "stride_y_batch": y.stride(0),
        }
        names = ("batch", "head", "n")
        kept |= {f"stride_state_{name}": state.stride(i) for i, name in enumerate(names)}
        kept["stride_state"] = state.stride(3)
        chunk_sums[(chunks, triton.cdiv(H, SUM_HEADS), batch)](
            dt[:, part], A, dt_bias, steps, sums, starts, ends, *dt_limit, tokens, *dt.stride(),
            H=H, HEADS=SUM_HEADS, CHUNK=cut.chunk,
        )  # fmt: skip
        if stacked:
            shared = {name: value for name, value in inputs.items() if "x" not in name}
            chunk_products[(chunks, G, batch)](
                **shared, products_ptr=products, length=tokens, N=N, CHUNK=cut.chunk,
                STATES=padded, EVEN=even,
            )  # fmt: skip
            if segments > 1:
                hs, warps, stages, parts, opt = STACKED["state"]
                sizes["HEADS"] = hs
                stacked_states[((segments - 1)*parts, H // hs, batch)](
                    **without_C, **factors, **passed, **span, **sizes, EVEN=even, num_warps=warps,
                    STAGES=stages, PARTS=parts, **opt
                )  # fmt: skip
            hs, warps, stages, var, opt = STACKED["walk"]
            sizes["HEADS"] = hs
            stacked_walk[(segments, H // hs, batch)](
                **inputs, **skip, **factors, **passed, **kept, **span, **sizes, EVEN=even,
                starts_ptr=starts, products_ptr=products, num_warps=warps, STAGES=stages,
                VARIANT=var, **opt
            )  # fmt: skip
            add_within[(chunks, triton.cdiv(H, SUM_HEADS), batch)](
                u, products, steps, sums, y[:, part], tokens, *u.stride()[:3], y.stride(0),
                H=H, REPEATS=H // G, P=P, CHUNK=cut.chunk, HEADS=SUM_HEADS,
            )  # fmt: skip
        width = tile["WIDTH"]
        rest = {"EVEN": even and P % width == 0, **tile}
        widths = triton.cdiv(P, width)
        if segments > 1 and not stacked:
            less = {k: v for k, v in sizes.items() if k not in ("HEADS", "MOST")}
            segment_states[((segments - 1) * widths, H, batch)](
                **without_C, **scaled, **passed, **span, **less, **rest
            )
        if not stacked:
          less = {k: v for k, v in sizes.items() if k not in ("HEADS", "MOST")}
          walk_segments[(segments * widths, H, batch)](
            **inputs, **skip, **scaled, **passed, **kept, **span, **less, **rest,
            SKIP_ON_DIAGONAL=D is not None and D.stride(1) == 0,
        )  # fmt: skip
        state = after
