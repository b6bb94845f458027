"""Who the kernels around the matrix products are compared with; see `kernel_peers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from kernel_case import Inputs, Outputs
from peer import Peer, PeerMissing, Prepared, import_inside
from torch.nn.functional import rms_norm, silu

MAX_INT32 = 2**31 - 1


def _mamba_add_norm(inputs: Inputs) -> Prepared:
    module = import_inside("mamba_ssm.ops.triton.layer_norm", "mamba_ssm")
    x, y, weight, eps = (inputs[name] for name in ("x", "y", "weight", "eps"))
    call: Prepared = partial(
        module.rms_norm_fn,
        y,
        weight,
        None,
        residual=x,
        eps=eps,
        prenorm=True,
        residual_in_fp32=True,
    )
    return call


def _torch_add_norm(inputs: Inputs) -> Prepared:
    x, y, weight, dtype = (inputs[name] for name in ("x", "y", "weight", "dtype"))
    wide = weight.float()

    def call() -> Outputs:
        total = x + y
        return rms_norm(total, wide.shape, wide, inputs["eps"]).to(dtype), total

    return call


def _mamba_gated_norm(inputs: Inputs) -> Prepared:
    module = import_inside("mamba_ssm.ops.triton.layernorm_gated", "mamba_ssm")
    x, weight, z = (inputs[name] for name in ("x", "weight", "gate"))
    if z.stride(1) * z.shape[1] > MAX_INT32:
        raise PeerMissing("its offsets have 32 bits, and the last rows of the gate lie beyond")
    return lambda: (
        module.rmsnorm_fn(x, weight, None, z=z, eps=inputs["eps"], norm_before_gate=False),
    )


def _torch_gated_norm(inputs: Inputs) -> Prepared:
    x, gate, weight = inputs["x"], inputs["gate"], inputs["weight"].float()

    def call() -> Outputs:
        gated = x.float() * silu(gate.float())
        return (rms_norm(gated, weight.shape, weight, inputs["eps"]).to(x.dtype),)

    return call


FUSED_PEERS: Mapping[str, Sequence[Peer]] = {
    "add_norm": (
        Peer(name="state-spaces/mamba, Triton", prepare=_mamba_add_norm),
        Peer(name="torch add, rms_norm, cast", prepare=_torch_add_norm),
    ),
    "gated_norm": (
        Peer(name="state-spaces/mamba, Triton", prepare=_mamba_gated_norm),
        Peer(name="torch silu, product, rms_norm", prepare=_torch_gated_norm),
    ),
    "swiglu": (
        Peer(
            name="torch silu, product",
            prepare=lambda inputs: lambda: (silu(inputs["gate"]) * inputs["x"],),
        ),
    ),
}
