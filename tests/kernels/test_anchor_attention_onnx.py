"""The exported anchor attention, L and capacity dynamic, against the reference in a chain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx
import onnxruntime
import pytest
import torch

from longspan.engines import Device
from longspan.export.scans import expand_scans
from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.anchor_attention.reference import anchor_attention as reference
from longspan.kernels.attention.scratch import block_queries
from longspan.runtime.backends.onnx_session import HOST_OPS
from tests.kernels.onnx_sessions import open_session, run_session
from tests.tolerances import assert_close

pytestmark = [
    # torch's exporter warns of its own use of torch, and that inputs share their axes.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. [LC] will not be used:UserWarning"),
]

H, G, P = 4, 2, 12
BLOCK = block_queries(H // G)
Tensors = tuple[torch.Tensor, ...]

# Calls one after another: tokens, and which of them are anchors.
CALLS: dict[str, list[tuple[int, list[int]]]] = {
    "from nothing": [(1, []), (1, [0]), (1, []), (7, [2, 3, 6]), (2, [1]), (30, [0, 29]), (5, [])],
    "no anchor": [(9, []), (1, []), (20, [])],
    "anchors only": [(3, [0, 1, 2]), (1, [0]), (2, [0, 1])],
    "one token": [(1, [])],
    "around a block": [
        (BLOCK - 1, []),
        (BLOCK, [0, BLOCK - 1]),
        (BLOCK + 1, [BLOCK]),
        (2, []),
    ],
    "many": [(63, [5, 9, 40]), (1, [0]), (1, []), (1, []), (64, [63]), (2, [])],
}


class Layer(torch.nn.Module):
    """The op alone, as a module that the exporter takes."""

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Run the op."""
        return anchor_attention(*tensors)


def _tokens(length: int, at: Sequence[int], dtype: torch.dtype) -> Tensors:
    """q, k, v and is_anchor of one call."""
    q, k, v = (torch.randn(1, length, heads, P).to(dtype) for heads in (H, G, G))
    is_anchor = torch.zeros(length, dtype=torch.bool)
    is_anchor[list(at)] = True
    return q, k, v, is_anchor


def _new_cache(capacity: int, dtype: torch.dtype) -> Tensors:
    # One tensor given twice would be one input of the graph.
    past_k, past_v = (torch.zeros(1, capacity, G, P, dtype=dtype) for _ in range(2))
    return past_k, past_v, torch.tensor([0]), torch.tensor([0])


@cache
def _traced(dtype: torch.dtype, kept: torch.dtype) -> onnx.ModelProto:
    q, k, v, is_anchor = _tokens(9, [4], dtype)
    length, capacity = torch.export.Dim("L"), torch.export.Dim("C")
    program = torch.onnx.export(
        Layer().eval(),
        (q, k, v, *_new_cache(20, kept), is_anchor),
        dynamo=True,
        dynamic_shapes=((*[{1: length}] * 3, *[{1: capacity}] * 2, None, None, {0: length}),),
        input_names=["q", "k", "v", "past_k", "past_v", "anchors", "entries", "is_anchor"],
        output_names=["y", "new_k", "new_v", "new_anchors", "new_entries"],
        opset_version=23,
        verbose=False,
    )
    assert program is not None, "dynamo export returns a program"
    return program.model_proto


def _exported(dtype: torch.dtype, kept: torch.dtype, device: Device) -> onnx.ModelProto:
    return expand_scans(_traced(dtype, kept), device=device)


def _largest(calls: Sequence[tuple[int, list[int]]]) -> int:
    """Entries of the fullest cache between the calls."""
    anchors = entries = largest = 0
    for length, at in calls:
        anchors += len(at)
        entries = anchors + length - 1 - max(at) if at else entries + length
        largest = max(largest, entries)
    return largest


def _compare_in_a_chain(
    session: onnxruntime.InferenceSession,
    calls: Sequence[tuple[int, list[int]]],
    *,
    capacity: int,
    dtype: torch.dtype,
    kept: torch.dtype,
) -> None:
    """Run the calls one after another, each side with the cache it made itself."""
    found_cache = expected_cache = _new_cache(capacity, kept)
    for length, at in calls:
        q, k, v, is_anchor = _tokens(length, at, dtype)
        y, *found = run_session(session, (q, k, v, *found_cache, is_anchor))
        expected_y, *expected = reference(q, k, v, *expected_cache, is_anchor)
        assert_close("onnx", y, expected_y)
        assert found[2:] == expected[2:]
        entries = int(expected[3])
        for one, other in zip(found[:2], expected[:2], strict=True):
            assert one.shape == other.shape
            assert one.isfinite().all()
            assert torch.equal(one[:, :entries], other[:, :entries])
        found_cache, expected_cache = tuple(found), tuple(expected)


@pytest.mark.parametrize("kept", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("spare", [0, 17])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_on_the_cpu(device: Device, name: str, spare: int, kept: torch.dtype) -> None:
    session = open_session(_exported(torch.float32, kept, device), "CPUExecutionProvider")
    calls = CALLS[name]
    capacity = _largest(calls) + spare
    _compare_in_a_chain(session, calls, capacity=capacity, dtype=torch.float32, kept=kept)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_graph_knows_no_length(device: Device) -> None:
    model = _exported(torch.float32, torch.float32, device)
    onnx.checker.check_model(model)
    dimensions = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dimensions["q"] == dimensions["y"] == [1, "L", H, P]
    assert dimensions["is_anchor"] == ["L"]
    for name in ("past_k", "past_v", "new_k", "new_v"):
        assert dimensions[name] == [1, "C", G, P]
    # Sizes that depend on values would need these; ONNX Runtime allocates after a synchronisation.
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"NonZero", "Compress", "Unique", "If", "Loop"}
    assert ("Scan" in kinds) == (device == "cpu")
    assert ("Softmax" in kinds) == (device == "cuda")


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_cuda(dtype: torch.dtype) -> None:
    onnxruntime.preload_dlls()
    session = open_session(
        _exported(dtype, dtype, "cuda"),
        "CUDAExecutionProvider",
        config={"session.record_ep_graph_assignment_info": "1"},
    )
    on_host = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }
    assert on_host <= HOST_OPS
    for calls in CALLS.values():
        capacity = _largest(calls) + 3
        _compare_in_a_chain(session, calls, capacity=capacity, dtype=dtype, kept=dtype)
