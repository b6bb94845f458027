"""Ops whose onnx_op becomes a Scan: exported with a dynamic L, against the reference in a chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from longspan.export.cpu_scan import scan_on_cpu
from longspan.export.scans import expand_scans
from longspan.kernels.conba import ConbaState, conba, scratch
from longspan.kernels.moe import Packed, moe
from tests.kernels.onnx_sessions import open_session, run_session
from tests.kernels.quantized import stored
from tests.tolerances import assert_close

pytestmark = [
    # torch's exporter warns of its own use of torch, and that inputs share the length.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. L will not be used:UserWarning"),
]

H, N, P, T = 3, 5, 4, 3
D, F, E = 8, 12, 5
PARTS = ("weight", "scales", "zeros")
Tensors = tuple[torch.Tensor, ...]
STATE = {"x": (H, N), "delay": (T, H, N), "gain": (H, N, P), "error": (H, P)}


class Layer(torch.nn.Module):
    """One op with its weights, as a module that the exporter takes."""

    def __init__(self, run: Callable[..., Tensors], dtype: torch.dtype) -> None:
        super().__init__()
        self.run = run
        shapes = {
            "w_tau": (H, N), "C": (H, P, N), "skip": (H, P), "gate_up": (E, 2 * F, D),
            "down": (E, D, F),
        }  # fmt: skip
        for name, shape in shapes.items():
            weight = torch.nn.Parameter(torch.randn(shape).to(dtype) / 2, requires_grad=False)
            self.register_parameter(name, weight)
        for name in ("gate_up", "down"):
            experts, outputs, width = shapes[name]
            drawn = stored(experts * outputs, width, bits=4, block=32, symmetric=False, dtype=dtype)
            for part, tensor in zip(PARTS, drawn.tensors, strict=True):
                assert tensor is not None
                self.register_buffer(f"{name}_{part}", tensor.unflatten(0, (experts, outputs)))

    def packed(self, name: str, *, zeros: bool) -> Packed:
        """Experts' matrices in 4 bits."""
        weight, scales, stored_zeros = (self.get_buffer(f"{name}_{part}") for part in PARTS)
        return Packed(weight=weight, scales=scales, zeros=stored_zeros if zeros else None, bits=4)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Run the op on its inputs followed by its state."""
        return self.run(self, *tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An op: how it runs, its inputs' shapes after [1, L], and the names of its state."""

    run: Callable[..., Tensors]
    inputs: tuple[tuple[int, ...], ...]
    state: tuple[str, ...] = ()
    float32: tuple[int, ...] = (1,)
    delay: int = T


def _conba(**options: Any) -> Callable[..., Tensors]:
    def run(layer: Any, s: torch.Tensor, a: torch.Tensor, *rest: torch.Tensor) -> Tensors:
        adaptive = options["update_every"] is not None
        u, r, *carried = rest if adaptive else (rest[0], None, *rest[1:])
        state = ConbaState(**dict(zip(_carried(options["update_every"]), carried, strict=True)))
        y, after = conba(
            s, a.sigmoid(), u, r, layer.w_tau, layer.C, layer.skip, state=state, eta=0.1, **options
        )
        tensors = (getattr(after, field.name) for field in fields(ConbaState))
        return y, *(tensor for tensor in tensors if tensor is not None)

    return run


def _carried(every: int | None) -> tuple[str, ...]:
    names = ("x", "delay") if every is None else tuple(STATE)
    return (*names, "position") if every and every > 1 else names


def _conba_case(every: int | None, activation: str, delay: int = T) -> Case:
    tracking = () if every is None else ((H, P),)
    return Case(
        run=_conba(update_every=every, activation=activation),
        inputs=((H, N), (H, N), (H, P), *tracking),
        state=_carried(every),
        delay=delay,
    )


def _moe(renormalise: bool) -> Callable[..., Tensors]:
    def run(layer: Any, x: torch.Tensor, logits: torch.Tensor) -> Tensors:
        return (moe(x, logits, layer.gate_up, layer.down, top_k=2, renormalise=renormalise),)

    return run


def _packed_moe(gate_up_zeros: bool | None, down_zeros: bool | None) -> Callable[..., Tensors]:
    """Of 4 bits, but for what has None."""
    how = {"gate_up": gate_up_zeros, "down": down_zeros}

    def run(layer: Any, x: torch.Tensor, logits: torch.Tensor) -> Tensors:
        matrices = (
            getattr(layer, name) if zeros is None else layer.packed(name, zeros=zeros)
            for name, zeros in how.items()
        )
        return (moe(x, logits, *matrices, top_k=2),)

    return run


# Chunks of four tokens, from seven tokens on.
IN_CHUNKS = "conba, no gain, in chunks"
CASES = {
    IN_CHUNKS: _conba_case(None, "identity", delay=1),
    "conba": _conba_case(1, "identity"),
    "conba, tanh, in chunks": _conba_case(3, "tanh"),
    "conba, no gain": _conba_case(None, "identity"),
    "conba, no gain, tanh": _conba_case(None, "tanh"),
    "moe": Case(run=_moe(renormalise=False), inputs=((D,), (E,))),
    "moe, renormalised": Case(run=_moe(renormalise=True), inputs=((D,), (E,))),
    "moe, int4": Case(run=_packed_moe(True, True), inputs=((D,), (E,))),
    "moe, int4, symmetric down": Case(run=_packed_moe(True, False), inputs=((D,), (E,))),
    "moe, int4, plain down": Case(run=_packed_moe(False, None), inputs=((D,), (E,))),
}
PACKED = [name for name in CASES if "int4" in name]


def _inputs(case: Case, length: int, dtype: torch.dtype) -> Tensors:
    return tuple(
        torch.randn(1, length, *shape).to(torch.float32 if i in case.float32 else dtype)
        for i, shape in enumerate(case.inputs)
    )


def _first_state(case: Case) -> Tensors:
    shapes = STATE | {"delay": (case.delay, H, N)}
    return tuple(
        torch.tensor([4]) if name == "position" else torch.randn(1, *shapes[name]) / 4
        for name in case.state
    )


@cache
def _traced(name: str, dtype: torch.dtype) -> tuple[Layer, onnx.ModelProto]:
    case = CASES[name]
    layer = Layer(case.run, dtype).eval()
    inputs, state = _inputs(case, 9, dtype), _first_state(case)
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


@cache
def _exported(name: str, dtype: torch.dtype) -> tuple[Layer, onnx.ModelProto]:
    layer, model = _traced(name, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "ONE_PASS_TOKENS", 6)
        patch.setattr(scratch, "CHUNK_TOKENS", 4)
        return layer, expand_scans(model, device="cuda")


def _compare_in_a_chain(
    name: str, dtype: torch.dtype, provider: str, graph: onnx.ModelProto | None = None
) -> None:
    """Run lengths one after another, each side with the state it made itself."""
    case, (layer, model) = CASES[name], _exported(name, dtype)
    session = open_session(graph or model, provider)
    row = "onnx conba" if name.startswith("conba") else "onnx"
    found_state = expected_state = _first_state(case)
    for length in (1, 2, 7, 63, 1, 9):
        inputs = _inputs(case, length, dtype)
        y, *found = run_session(session, (*inputs, *found_state))
        expected_y, *expected = layer(*inputs, *expected_state)
        assert y.dtype == dtype
        assert_close(row, y, expected_y)
        for state, one, other in zip(case.state, found, expected, strict=True):
            if state == "position":
                assert torch.equal(one, other)
            else:
                assert_close("onnx conba", one, other)
        found_state, expected_state = tuple(found), tuple(expected)


@pytest.mark.parametrize("name", CASES)
def test_float32_on_the_cpu(name: str) -> None:
    _compare_in_a_chain(name, torch.float32, "CPUExecutionProvider")


@pytest.mark.parametrize("name", ["conba", IN_CHUNKS, "moe"])
def test_float16_on_the_cpu(name: str) -> None:
    _compare_in_a_chain(name, torch.float16, "CPUExecutionProvider")


@pytest.mark.parametrize("name", CASES)
def test_one_scan_of_standard_operators(name: str) -> None:
    _, model = _exported(name, torch.float32)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Scan") + kinds.count("If") == 1
    assert ("If" in kinds) == (name == IN_CHUNKS)
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize("name", PACKED)
def test_for_the_cpu_every_packed_expert_has_nodes_of_its_own(name: str) -> None:
    _, traced = _traced(name, torch.float32)
    model = expand_scans(traced, device="cpu")
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("Scan"), kinds.count("If")) == (0, E)
    _compare_in_a_chain(name, torch.float32, "CPUExecutionProvider", model)


def test_for_the_cpu_chunks_are_one_walk_over_tokens() -> None:
    _, model = _exported(IN_CHUNKS, torch.float32)
    walked = scan_on_cpu(model)
    onnx.checker.check_model(walked)
    kinds = [node.op_type for node in walked.graph.node]
    assert (kinds.count("Scan"), kinds.count("If"), kinds.count("Shape")) == (1, 0, 0)
    _compare_in_a_chain(IN_CHUNKS, torch.float32, "CPUExecutionProvider", walked)


def test_chunks_take_few_turns() -> None:
    """A loop over a chunk's tokens, one over the chunks, one over a chunk's tokens again."""
    _, model = _exported(IN_CHUNKS, torch.float32)
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    branches = {each.name: [node.op_type for node in each.g.node] for each in choice.attribute}
    assert branches["then_branch"] == ["Scan"]
    assert branches["else_branch"].count("Scan") == 3


def test_a_nan_is_not_heard_before_its_token() -> None:
    case, (_, model) = CASES[IN_CHUNKS], _exported(IN_CHUNKS, torch.float32)
    s, *rest = _inputs(case, 23, torch.float32)
    s[0, 9, 0, 1] = math.nan
    session = open_session(model, "CPUExecutionProvider")
    y, x, _ = run_session(session, (s, *rest, *_first_state(case)))
    assert y[:, 9:, 0].isnan().all()
    assert y[:, :9].isfinite().all()
    assert y[:, :, 1:].isfinite().all()
    assert x.isnan().sum() == 1


def test_of_equal_experts_the_lower_numbers_are_taken() -> None:
    layer, model = _exported("moe", torch.float32)
    x, logits = torch.randn(1, 7, D), torch.zeros(1, 7, E)
    logits[..., [1, 3, 4]] = 1.0
    (y,) = run_session(open_session(model, "CPUExecutionProvider"), (x, logits))
    (expected,) = layer(x, logits)
    assert_close("onnx", y, expected)


def test_a_node_without_a_body_is_named() -> None:
    node = onnx.helper.make_node("Comba", [], ["y"], domain="longspan", carried=0, scanned=0)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], []))
    model.opset_import.append(onnx.helper.make_opsetid("longspan", 1))
    message = (
        "expand_scans: there is no body for 'Comba', only for AnchorAttention, Conba, "
        "ConbaInChunks, Experts, FullAttention, PackedExperts, WindowAttention"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        expand_scans(model, device="cpu")


@pytest.mark.slow
def test_the_state_stays_bounded_over_a_million_tokens() -> None:
    """With the gain's feedback, which nothing in the definition bounds but the gain's own norm."""
    case, (_, model) = CASES["conba"], _exported("conba", torch.float32)
    session = open_session(model, "CPUExecutionProvider")
    state, largest = _first_state(case), []
    for _ in range(100):
        y, *after = run_session(session, (*_inputs(case, 10_000, torch.float32), *state))
        state = tuple(after)
        largest.append(max(float(tensor.abs().max()) for tensor in (y, *state)))
    assert max(largest) < 2 * max(largest[:5])


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_on_cuda(name: str, dtype: torch.dtype) -> None:
    onnxruntime.preload_dlls()
    _compare_in_a_chain(name, dtype, "CUDAExecutionProvider")
