"""Full attention as a graph, exported once with dynamic L and capacity, against the reference."""

from __future__ import annotations

from functools import cache

import onnx
import onnxruntime
import pytest
import torch

from longspan.kernels.full_attention import full_attention
from tests.kernels.onnx_sessions import open_session, run_session
from tests.tolerances import assert_close

pytestmark = [
    # torch's exporter warns of its own use of torch, and that several inputs share a length.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning"),
]

H, G, P = 4, 2, 12
Tensors = tuple[torch.Tensor, ...]


class Attend(torch.nn.Module):
    """The op, which tells the next position too."""

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Run it."""
        q, k, v, past_k, past_v, position = tensors
        outputs = full_attention(q, k, v, past_k, past_v, position)
        return *outputs, position + q.shape[1]


def inputs(length: int, dtype: torch.dtype, kept: torch.dtype) -> Tensors:
    """Queries, and keys and values rounded as the cache will hold them."""
    q, k, v = (torch.randn(1, length, heads, P) for heads in (H, G, G))
    return q.to(dtype), k.to(kept).to(dtype), v.to(kept).to(dtype)


def empty(capacity: int, dtype: torch.dtype) -> Tensors:
    caches = torch.zeros(2, 1, capacity, G, P, dtype=dtype)
    return *caches.unbind(), torch.zeros(1, dtype=torch.int64)


@cache
def exported(dtype: torch.dtype, kept: torch.dtype) -> onnx.ModelProto:
    length, capacity = torch.export.Dim("length"), torch.export.Dim("capacity")
    program = torch.onnx.export(
        Attend().eval(),
        (*inputs(7, dtype, kept), *empty(11, kept)),
        dynamo=True,
        dynamic_shapes=((*[{1: length}] * 3, {1: capacity}, {1: capacity}, None),),
        input_names=["q", "k", "v", "past_k", "past_v", "position"],
        output_names=["y", "new_k", "new_v", "next"],
        opset_version=23,
        verbose=False,
    )
    assert program is not None, "dynamo export returns a program"
    model: onnx.ModelProto = program.model_proto
    return model


def compare_in_a_chain(
    dtype: torch.dtype, kept: torch.dtype, provider: str, capacity: int, lengths: list[int]
) -> None:
    """Run lengths one after another, each side with the state it made itself."""
    session = open_session(exported(dtype, kept), provider)
    found_state = expected_state = empty(capacity, kept)
    for length in lengths:
        new = inputs(length, dtype, kept)
        y, *found = run_session(session, (*new, *found_state))
        expected_y, *expected = Attend()(*new, *expected_state)
        assert_close("onnx", y, expected_y)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert torch.equal(one, other)
        found_state, expected_state = tuple(found), tuple(expected)


@pytest.mark.parametrize(
    ("capacity", "lengths"),
    [(1, [1]), (5, [1, 4]), (90, [1, 2, 7, 63, 1, 9]), (90, [90]), (64, [3])],
    ids=str,
)
def test_float32_on_the_cpu(capacity: int, lengths: list[int]) -> None:
    compare_in_a_chain(torch.float32, torch.float32, "CPUExecutionProvider", capacity, lengths)


def test_a_cache_narrower_than_the_computation() -> None:
    compare_in_a_chain(torch.float32, torch.float16, "CPUExecutionProvider", 12, [5, 1, 3])


def test_the_capacity_is_one_dimension() -> None:
    graph = exported(torch.float32, torch.float32).graph
    dims = {value.name: value.type.tensor_type.shape.dim for value in [*graph.input, *graph.output]}
    for name in ("past_k", "past_v", "new_k", "new_v"):
        assert dims[name][1].dim_param == "capacity"


def test_one_index_an_entry() -> None:
    kinds = [node.op_type for node in exported(torch.float32, torch.float32).graph.node]
    assert kinds.count("ScatterND") == 2
    assert not {"ScatterElements", "NonZero", "Loop", "If"}.intersection(kinds)


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_cuda(dtype: torch.dtype) -> None:
    onnxruntime.preload_dlls()
    compare_in_a_chain(dtype, dtype, "CUDAExecutionProvider", 90, [1, 2, 7, 63, 1, 9])
