"""Every onnx_op, exported once with a dynamic L, against the reference at several L in a chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from longspan.export.cpu_scan import scan_on_cpu
from longspan.export.scans import expand_scans
from longspan.kernels.add_norm import add_norm
from longspan.kernels.attention import window_attention
from longspan.kernels.attention.scratch import WINDOW_BLOCK_QUERIES
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.gla import gla
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.rope import rope
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.ssd import ssd
from longspan.kernels.swiglu import swiglu
from tests.kernels.onnx_sessions import open_session, run_session
from tests.tolerances import assert_close

pytestmark = [
    # torch's exporter warns of its own use of torch, and that two inputs share the length.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. L will not be used:UserWarning"),
]

E, N, H, G, P, WINDOW = 24, 5, 4, 2, 12, 6
Tensors = tuple[torch.Tensor, ...]
Shapes = tuple[tuple[int, ...], ...]


class Layer(torch.nn.Module):
    """One op with a few weights, as a module that the exporter takes."""

    def __init__(self, run: Callable[..., Tensors]) -> None:
        super().__init__()
        self.run = run
        self.A = torch.nn.Parameter(-torch.rand(E, N) * 4, requires_grad=False)
        self.vector = torch.nn.Parameter(torch.randn(E), requires_grad=False)
        self.taps = torch.nn.Parameter(torch.randn(E, 1, 4), requires_grad=False)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Run the op on its inputs followed by its state."""
        return self.run(self, *tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An op: how it runs, its inputs' shapes after [1, L], and the shapes of its state."""

    run: Callable[..., Tensors]
    inputs: Shapes
    state: Shapes = ()


def _norm(layer: Layer, x: torch.Tensor) -> Tensors:
    return (rms_norm(x, layer.vector, eps=1e-5),)


def _norm_bare(layer: Layer, x: torch.Tensor) -> Tensors:
    return (rms_norm(x, None, eps=1e-5),)


def _norm_gated(layer: Layer, x: torch.Tensor, gate: torch.Tensor) -> Tensors:
    return (rms_norm(x, layer.vector, eps=1e-5, gate=gate, gate_first=True),)


def _norm_groups(layer: Layer, x: torch.Tensor, gate: torch.Tensor) -> Tensors:
    weight = layer.taps.reshape(-1, P)[:H]
    return (rms_norm(x, weight, eps=1e-5, gate=gate.view(x.shape)),)


def _add_norm(layer: Layer, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    return (torch.cat(add_norm(x, y, layer.vector, kind="rms", eps=1e-5), dim=-1),)


def _add_layer_norm(layer: Layer, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    weight, bias = layer.vector, layer.A[:, 0]
    return (torch.cat(add_norm(x, y, weight, bias, kind="layer", eps=1e-5), dim=-1),)


def _swiglu(_: Layer, gate: torch.Tensor, x: torch.Tensor) -> Tensors:
    return (swiglu(gate, x),)


def _rope(_: Layer, q: torch.Tensor, k: torch.Tensor) -> Tensors:
    position = torch.full((1,), 3, dtype=torch.int64, device=q.device)
    return (torch.cat(rope(q, k, position, base=100.0, dims=P - 2), dim=2),)


def _conv(layer: Layer, x: torch.Tensor, tail: torch.Tensor) -> Tensors:
    return causal_conv(x, layer.taps, layer.vector, tail, activation="silu")


def _conv_bare(layer: Layer, x: torch.Tensor, tail: torch.Tensor) -> Tensors:
    return causal_conv(x, layer.taps, None, tail)


def _scan(
    layer: Layer,
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
) -> Tensors:
    vector = layer.vector
    return selective_scan(x, dt, layer.A, B, C, D=vector, z=z, dt_bias=vector, state=state)


def _scan_bare(
    layer: Layer,
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> Tensors:
    return selective_scan(x, dt, layer.A, B, C, state=state)


def _ssd(
    layer: Layer,
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> Tensors:
    A, vector, limit = layer.A[:H, 0], layer.vector[:H], (0.1, 0.9)
    return ssd(x, dt, A, B, C, D=vector, dt_bias=vector, dt_limit=limit, state=state)


def _ssd_skip_by_channel(layer: Layer, *tensors: torch.Tensor) -> Tensors:
    x, dt, B, C, state = tensors
    return ssd(x, dt, layer.A[:H, 0], B, C, D=layer.taps.reshape(-1, P)[:H], state=state)


def _ssd_bare(layer: Layer, *tensors: torch.Tensor) -> Tensors:
    x, dt, B, C, state = tensors
    return ssd(x, dt, layer.A[:H, 0], B, C, state=state)


def _attend(layer: Layer, q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor) -> Tensors:
    v, past_k, past_v = rest
    position = torch.full((1,), 0, dtype=torch.int64, device=q.device)
    return window_attention(q, k, v, past_k, past_v, position, window=WINDOW)


def _attend_from_the_middle(layer: Layer, *tensors: torch.Tensor) -> Tensors:
    q, k, v, past_k, past_v = tensors
    position = torch.full((1,), 3, dtype=torch.int64, device=q.device)
    return window_attention(q, k, v, past_k, past_v, position, window=WINDOW)


def _gla(layer: Layer, *tensors: torch.Tensor) -> Tensors:
    q, k, v, decay, state = tensors
    return gla(q, k, v, -decay.float().abs(), state=state)


def _retention(layer: Layer, *tensors: torch.Tensor) -> Tensors:
    q, k, v, state = tensors
    return gla(q, k, v, layer.A[:H, 0], scale=0.7, state=state)


FLOAT32_STATE = ("selective_scan", "ssd", "gla")
CASES = {
    "rms_norm": Case(run=_norm, inputs=((E,),)),
    "rms_norm, no weight": Case(run=_norm_bare, inputs=((E,),)),
    "rms_norm, gated": Case(run=_norm_gated, inputs=((E,), (E,))),
    "rms_norm, gated groups": Case(run=_norm_groups, inputs=((H, P), (H * P,))),
    "add_norm": Case(run=_add_norm, inputs=((E,), (E,))),
    "add_norm, LayerNorm": Case(run=_add_layer_norm, inputs=((E,), (E,))),
    "swiglu": Case(run=_swiglu, inputs=((E,), (E,))),
    "rope": Case(run=_rope, inputs=((H, P), (G, P))),
    "causal_conv": Case(run=_conv, inputs=((E,),), state=((3, E),)),
    "causal_conv, no bias": Case(run=_conv_bare, inputs=((E,),), state=((3, E),)),
    "selective_scan": Case(run=_scan, inputs=((E,), (E,), (N,), (N,), (E,)), state=((E, N),)),
    "selective_scan, bare": Case(run=_scan_bare, inputs=((E,), (E,), (N,), (N,)), state=((E, N),)),
    "ssd": Case(run=_ssd, inputs=((H, P), (H,), (G, N), (G, N)), state=((H, N, P),)),
    "ssd, one group, D by channel": Case(
        run=_ssd_skip_by_channel, inputs=((H, P), (H,), (1, N), (1, N)), state=((H, N, P),)
    ),
    "ssd, a group a head, bare": Case(
        run=_ssd_bare, inputs=((H, P), (H,), (H, N), (H, N)), state=((H, N, P),)
    ),
    "ssd, heads of width one": Case(
        run=_ssd_bare, inputs=((H, 1), (H,), (1, N), (1, N)), state=((H, N, 1),)
    ),
    "gla": Case(run=_gla, inputs=((H, N), (H, N), (H, P), (H, N)), state=((H, N, P),)),
    "gla, one head": Case(run=_gla, inputs=((1, N), (1, N), (1, P), (1, N)), state=((1, N, P),)),
    "gla, values in parts": Case(
        run=_gla, inputs=((2, 160), (2, 160), (2, 192), (2, 160)), state=((2, 160, 192),)
    ),
    "gla, a decay a head": Case(
        run=_retention, inputs=((H, N), (H, N), (H, P)), state=((H, N, P),)
    ),
    "gla, a decay a head, values in parts": Case(
        run=_retention, inputs=((H, 160), (H, 160), (H, 192)), state=((H, 160, 192),)
    ),
    "window_attention": Case(
        run=_attend, inputs=((H, P), (G, P), (G, P)), state=((WINDOW - 1, G, P),) * 2
    ),
    "window_attention, position 3": Case(
        run=_attend_from_the_middle,
        inputs=((H, P), (G, P), (G, P)),
        state=((WINDOW - 1, G, P),) * 2,
    ),
}


def _inputs(case: Case, length: int, dtype: torch.dtype) -> Tensors:
    return tuple(torch.randn(1, length, *shape).to(dtype) for shape in case.inputs)


def _first_state(name: str, dtype: torch.dtype) -> Tensors:
    kept = torch.float32 if name.startswith(FLOAT32_STATE) else dtype
    return tuple(torch.randn(1, *shape).to(kept) for shape in CASES[name].state)


@cache
def _traced(name: str, dtype: torch.dtype) -> tuple[Layer, onnx.ModelProto]:
    case = CASES[name]
    layer = Layer(case.run).eval()
    inputs, state = _inputs(case, 9, dtype), _first_state(name, dtype)
    length = torch.export.Dim("L")
    dynamic: list[dict[int, Any] | None] = [{1: length} for _ in inputs]
    program = torch.onnx.export(
        layer,
        (*inputs, *state),
        dynamo=True,
        dynamic_shapes=((*dynamic, *[None for _ in state]),),
        input_names=[f"in_{i}" for i in range(len(inputs) + len(state))],
        opset_version=23,
        verbose=False,
    )
    assert program is not None, "dynamo export returns a program"
    return layer, program.model_proto


def _exported(name: str, dtype: torch.dtype) -> tuple[Layer, onnx.ModelProto]:
    layer, model = _traced(name, dtype)
    return layer, expand_scans(model, device="cuda")


def _row(name: str) -> str:
    return f"onnx {name.split(',')[0]}" if name.startswith(FLOAT32_STATE) else "onnx"


def _compare_in_a_chain(
    name: str,
    dtype: torch.dtype,
    layer: Layer,
    session: onnxruntime.InferenceSession,
    lengths: tuple[int, ...] = (1, 2, 7, 63, 1, 9),
) -> None:
    """Run lengths one after another, each side with the state it made itself."""
    found_state = expected_state = _first_state(name, dtype)
    for length in lengths:
        inputs = _inputs(CASES[name], length, dtype)
        y, *found = run_session(session, (*inputs, *found_state))
        expected_y, *expected = layer(*inputs, *expected_state)
        assert_close(_row(name), y, expected_y)
        for one, other in zip(found, expected, strict=True):
            if dtype == torch.float32 or one.dtype == dtype:
                assert_close(_row(name), one, other)
        found_state, expected_state = tuple(found), tuple(expected)


@pytest.mark.parametrize("name", CASES)
def test_float32_on_the_cpu(name: str) -> None:
    layer, model = _exported(name, torch.float32)
    _compare_in_a_chain(name, torch.float32, layer, open_session(model, "CPUExecutionProvider"))


WINDOWS = [name for name in CASES if name.startswith("window_attention")]
BLOCK = WINDOW_BLOCK_QUERIES


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_in_blocks_of_queries(name: str) -> None:
    layer, traced = _traced(name, torch.float32)
    model = expand_scans(traced, device="cpu")
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("If"), kinds.count("Softmax")) == (1, 0)
    lengths = (BLOCK - 1, BLOCK, BLOCK + 1, 1, 2, 63, 2 * BLOCK, 3 * BLOCK + 7)
    session = open_session(model, "CPUExecutionProvider")
    _compare_in_a_chain(name, torch.float32, layer, session, lengths)


@pytest.mark.parametrize("name", ["selective_scan", "selective_scan, bare"])
def test_scan_on_cpu(name: str) -> None:
    layer, model = _exported(name, torch.float32)
    before = model.SerializeToString()
    quick = scan_on_cpu(model)
    assert model.SerializeToString() == before
    kinds = [node.op_type for node in quick.graph.node]
    assert kinds.count("Scan") == 1
    assert "LinearAttention" not in kinds
    assert "Expand" not in kinds
    onnx.checker.check_model(quick)
    for kind in ("input", "output"):
        assert list(getattr(quick.graph, kind)) == list(getattr(model.graph, kind))
    _compare_in_a_chain(name, torch.float32, layer, open_session(quick, "CPUExecutionProvider"))


RECURRENT = [name for name in CASES if name.startswith(("ssd", "gla"))]


@pytest.mark.parametrize("name", ["causal_conv", *RECURRENT])
def test_scan_on_cpu_leaves_other_graphs_alone(name: str) -> None:
    _, model = _exported(name, torch.float32)
    assert scan_on_cpu(model) == model


@pytest.mark.parametrize("name", [name for name in CASES if "ssd" in name])
def test_ssd_repeats_no_key(name: str) -> None:
    _, model = _exported(name, torch.float32)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LinearAttention") == 1
    assert not {"Expand", "Gather", "Tile", "Transpose"}.intersection(kinds)


def test_scan_on_cpu_names_what_it_does_not_know() -> None:
    _, model = _exported("selective_scan", torch.float32)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    scan = next(node for node in changed.graph.node if node.op_type == "LinearAttention")
    scan.name = "scan_0"
    scan.input[4] = changed.graph.input[0].name
    message = (
        "scan_on_cpu: 'in_0', read by LinearAttention 'scan_0', comes from an input or "
        "initializer; it must come from Reshape, as the onnx_op of selective_scan writes it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scan_on_cpu(changed)


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_on_cuda(name: str, dtype: torch.dtype) -> None:
    onnxruntime.preload_dlls()
    layer, model = _exported(name, dtype)
    _compare_in_a_chain(name, dtype, layer, open_session(model, "CUDAExecutionProvider"))
