"""Who the kernels are compared with: found on this machine, or left out by name.

    for peer in PEERS["ssd"]:
        call = peer.prepare(inputs)      # raises PeerMissing: not installed, or not for this length
        outputs = peer.finish(inputs, call())

What a peer wants in another layout is laid out before the clock starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from fused_peers import FUSED_PEERS
from kernel_case import Inputs, Outputs, named
from peer import Peer, PeerMissing, Prepared, import_inside
from torch.nn.functional import conv1d, rms_norm, scaled_dot_product_attention, silu, softplus

from longspan.kernels.selective_scan import selective_scan

# state-spaces/mamba's default for Mamba-2.
MAMBA_CHUNK = 256
FLEX_BLOCK = 128
# A mask of this many tokens squared takes 256 MiB.
WHOLE_MASK_TOKENS = 16384


def _mamba_ssd(inputs: Inputs) -> Prepared:
    module = import_inside("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm")
    given = {name: inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")}
    call: Prepared = partial(
        module.mamba_chunk_scan_combined,
        **given,
        chunk_size=MAMBA_CHUNK,
        dt_softplus=True,
        return_final_states=True,
    )
    return call


def _mamba_ssd_finish(inputs: Inputs, outputs: Outputs) -> Outputs:
    """Its state is [B, H, P, N]."""
    return outputs[0], outputs[1].transpose(2, 3)


def _fla_ssd(inputs: Inputs) -> Prepared:
    module = import_inside("fla.ops.simple_gla.chunk", "fla.ops")
    x, heads = inputs["x"], inputs["x"].shape[2]
    step = softplus(inputs["dt"].float() + inputs["dt_bias"])
    q, k = (inputs[name].expand(-1, -1, heads, -1).contiguous() for name in ("C", "B"))
    call: Prepared = partial(
        module.chunk_simple_gla,
        q=q,
        k=k,
        v=(x * step[..., None]).to(x.dtype),
        g=step * inputs["A"],
        scale=1.0,
        output_final_state=True,
    )
    return call


def _fla_ssd_finish(inputs: Inputs, outputs: Outputs) -> Outputs:
    """It has no skip."""
    y, state = outputs
    return y + inputs["D"][:, None] * inputs["x"], state


def _mamba_scan(inputs: Inputs) -> Prepared:
    """The CUDA extension of mamba_ssm, or a module `peer_scan` with the same kernel."""
    x, dt, z = (inputs[name].transpose(1, 2).contiguous() for name in ("x", "dt", "z"))
    B, C = (inputs[name].transpose(1, 2)[:, None].contiguous() for name in ("B", "C"))
    A, D, bias = inputs["A"].contiguous(), inputs["D"], inputs["dt_bias"]
    if importlib.util.find_spec("selective_scan_cuda") is not None:
        extension = import_inside("selective_scan_cuda")
        return lambda: (extension.fwd(x, dt, A, B, C, D, z, bias, True)[2],)
    if importlib.util.find_spec("peer_scan") is None:
        raise PeerMissing("neither selective_scan_cuda (of mamba_ssm) nor peer_scan is installed")
    if x.dtype != torch.bfloat16:
        raise PeerMissing(f"peer_scan takes bfloat16, not {x.dtype}")
    kernel = import_inside("peer_scan").selective_scan_cuda
    return lambda: (kernel(x, dt, A, B, C, D, z, bias),)


def _mamba_scan_finish(inputs: Inputs, outputs: Outputs) -> Outputs:
    """Its output is [B, E, L], and its states lie within a scratch buffer."""
    return (outputs[0].transpose(1, 2),)


def _own_mamba1(inputs: Inputs) -> Prepared:
    """longspan's selective scan over as many channels and states."""
    x, B = inputs["x"], inputs["B"]
    batch, _, heads, width = x.shape
    N = B.shape[3]
    like = {
        "x": x.flatten(2),
        "dt": inputs["dt"].repeat_interleave(width, dim=2),
        "A": inputs["A"].repeat_interleave(width)[:, None].repeat(1, N),
        "B": B[:, :, 0],
        "C": inputs["C"][:, :, 0],
        "D": inputs["D"].repeat_interleave(width),
        "dt_bias": inputs["dt_bias"].repeat_interleave(width),
        "state": torch.zeros(batch, heads * width, N, device=x.device),
    }
    return partial(named(selective_scan), like)


def _own_mamba1_finish(inputs: Inputs, outputs: Outputs) -> Outputs:
    """The channels of a head side by side, states before them."""
    y, state = outputs
    _, _, heads, width = inputs["x"].shape
    batch, length, _, N = (*y.shape, state.shape[2])
    by_head = state.view(batch, heads, width, N)
    return y.view(batch, length, heads, width), by_head.transpose(2, 3)


def _by_head(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """q, k and v as torch's attention wants them [B, H, L, P]: views."""
    return tuple(inputs[name].transpose(1, 2) for name in ("q", "k", "v"))


def _by_token(inputs: Inputs, outputs: Outputs) -> Outputs:
    """[B, L, H, P] of [B, H, L, P]."""
    return (outputs[0].transpose(1, 2),)


def band_blocks(tokens: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks of queries and keys a band touches in part, and which it covers: bool [n, n]."""
    blocks = -(-tokens // FLEX_BLOCK)
    row = torch.arange(blocks)[:, None] * FLEX_BLOCK
    column = torch.arange(blocks)[None, :] * FLEX_BLOCK
    last = FLEX_BLOCK - 1
    touched = (column <= row + last) & (column + last > row - window)
    whole = (column + last <= row) & (column > row + last - window)
    return touched & ~whole, touched & whole


def _flex_window(inputs: Inputs) -> Prepared:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    window, (q, k, v) = inputs["window"], _by_head(inputs)
    if q.device.type != "cuda":
        raise PeerMissing("flex_attention is compiled for CUDA")

    def ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = blocks.sum(-1, dtype=torch.int32)
        order = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
        return counts[None, None].to(q.device), order[None, None].to(q.device)

    def band(b: Any, h: Any, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = (column <= row) & (column > row - window)
        return seen

    # By hand: create_block_mask looks at every pair of tokens.
    part, whole = band_blocks(q.shape[2], window)
    mask = BlockMask.from_kv_blocks(
        *ordered(part),
        *ordered(whole),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=band,
        seq_lengths=(q.shape[2], q.shape[2]),
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: (compiled(q, k, v, block_mask=mask),)


def _band(rows: int, columns: int, first: int, window: int, device: torch.device) -> torch.Tensor:
    """Bool [rows, columns]; row i stands at `first` + i among the columns."""
    row = first + torch.arange(rows, device=device)[:, None]
    column = torch.arange(columns, device=device)[None, :]
    seen: torch.Tensor = (column <= row) & (column > row - window)
    return seen


def _sdpa_band(inputs: Inputs) -> Prepared:
    q, k, v = _by_head(inputs)
    tokens = q.shape[2]
    if tokens > WHOLE_MASK_TOKENS:
        raise PeerMissing(f"a mask of {tokens:,} x {tokens:,} does not fit")
    mask = _band(tokens, tokens, 0, inputs["window"], q.device)
    return lambda: (
        scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=_groups(q, k)),
    )


def _sdpa_band_in_blocks(inputs: Inputs) -> Prepared:
    """Queries by the window, each block against its own keys and those of the block before."""
    q, k, v = _by_head(inputs)
    tokens, window = q.shape[2], inputs["window"]
    mask = _band(window, 2 * window, window, window, q.device)

    def call() -> Outputs:
        y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for start in range(0, tokens, window):
            first, stop = max(0, start - window), min(start + window, tokens)
            seen = mask[: stop - start, first - start + window : stop - start + window]
            y[:, :, start:stop] = scaled_dot_product_attention(
                q[:, :, start:stop],
                k[:, :, first:stop],
                v[:, :, first:stop],
                attn_mask=seen,
                enable_gqa=_groups(q, k),
            )
        return (y,)

    return call


def _groups(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether there are fewer heads of keys than of queries."""
    return q.shape[1] != k.shape[1]


def _sdpa_causal(inputs: Inputs) -> Prepared:
    q, k, v = _by_head(inputs)
    return lambda: (
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=_groups(q, k)),
    )


def _sdpa_step(inputs: Inputs) -> Prepared:
    """One query over caches that hold its own key and value already."""
    q = inputs["q"].transpose(1, 2)
    k, v = (
        torch.cat([inputs[f"past_{name}"][:, :-1], inputs[name]], dim=1).transpose(1, 2)
        for name in ("k", "v")
    )
    return lambda: (scaled_dot_product_attention(q, k, v, enable_gqa=_groups(q, k)),)


def _causal_conv1d(inputs: Inputs) -> Prepared:
    function = import_inside("causal_conv1d").causal_conv1d_fn
    x, weight = inputs["x"].transpose(1, 2), inputs["weight"][:, 0]
    return lambda: (function(x, weight, inputs["bias"], activation="silu"),)


def _torch_conv(inputs: Inputs) -> Prepared:
    x, weight, bias = inputs["x"].transpose(1, 2), inputs["weight"], inputs["bias"]
    channels, _, taps = weight.shape
    length = x.shape[2]
    return lambda: (silu(conv1d(x, weight, bias, padding=taps - 1, groups=channels)[..., :length]),)


def _torch_norm(inputs: Inputs) -> Prepared:
    x, weight, dtype = inputs["x"], inputs["weight"].float(), inputs["dtype"]
    return lambda: (rms_norm(x, (x.shape[-1],), weight, inputs["eps"]).to(dtype),)


_SSD = (
    Peer(name="state-spaces/mamba, Triton", prepare=_mamba_ssd, finish=_mamba_ssd_finish),
    Peer(name="flash-linear-attention", prepare=_fla_ssd, finish=_fla_ssd_finish),
)
PEERS: Mapping[str, Sequence[Peer]] = {
    "ssd": _SSD,
    "ssd_large_steps": _SSD,
    "selective_scan": (
        Peer(name="state-spaces/mamba, CUDA", prepare=_mamba_scan, finish=_mamba_scan_finish),
    ),
    "mamba2_against_mamba1": (
        Peer(name="longspan's selective scan", prepare=_own_mamba1, finish=_own_mamba1_finish),
    ),
    "window_attention": (
        Peer(name="torch flex_attention", prepare=_flex_window, finish=_by_token),
        Peer(name="torch SDPA, band mask", prepare=_sdpa_band, finish=_by_token),
        Peer(name="torch SDPA, band in blocks", prepare=_sdpa_band_in_blocks, finish=_by_token),
    ),
    # Every token sees all before it.
    "anchor_attention": (Peer(name="torch SDPA, dense causal", prepare=_sdpa_causal, same=False),),
    "full_attention": (Peer(name="torch SDPA, causal", prepare=_sdpa_causal, finish=_by_token),),
    "full_attention_step": (Peer(name="torch SDPA", prepare=_sdpa_step, finish=_by_token),),
    "conv": (
        Peer(name="causal-conv1d", prepare=_causal_conv1d, finish=_mamba_scan_finish),
        Peer(name="torch conv1d, silu", prepare=_torch_conv, finish=_mamba_scan_finish),
    ),
    "norm": (Peer(name="torch rms_norm, cast", prepare=_torch_norm),),
    **FUSED_PEERS,
}
