"""Full attention as graphs, exported once with dynamic L and capacity, against the reference."""

from __future__ import annotations

from functools import cache

import onnx
import onnxruntime
import pytest
import torch

from longspan.engines import Device
from longspan.export.scans import expand_scans
from longspan.kernels.attention.scratch import block_queries
from longspan.kernels.full_attention import full_attention
from tests.kernels.onnx_sessions import open_session, run_session
from tests.tolerances import assert_close

pytestmark = [
    # torch's exporter warns of its own use of torch, and that several inputs share a length.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning"),
]

H, G, P = 4, 2, 12
BLOCK = block_queries(H // G)
AROUND_A_BLOCK = [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]
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
def traced(dtype: torch.dtype, kept: torch.dtype) -> onnx.ModelProto:
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


def exported(dtype: torch.dtype, kept: torch.dtype, device: Device) -> onnx.ModelProto:
    return expand_scans(traced(dtype, kept), device=device)


def compare_in_a_chain(
    model: onnx.ModelProto,
    dtype: torch.dtype,
    kept: torch.dtype,
    provider: str,
    capacity: int,
    lengths: list[int],
) -> None:
    """Run lengths one after another, each side with the state it made itself."""
    session = open_session(model, provider)
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
    [
        (1, [1]),
        (5, [1, 4]),
        (90, [1, 2, 7, 63, 1, 9]),
        (90, [90]),
        (64, [3]),
        (sum(AROUND_A_BLOCK) + 3, [2, *AROUND_A_BLOCK, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_on_the_cpu(device: Device, capacity: int, lengths: list[int]) -> None:
    kept = torch.float32
    model = exported(kept, kept, device)
    compare_in_a_chain(model, kept, kept, "CPUExecutionProvider", capacity, lengths)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cache_narrower_than_the_computation(device: Device) -> None:
    dtype, kept = torch.float32, torch.float16
    model = exported(dtype, kept, device)
    compare_in_a_chain(model, dtype, kept, "CPUExecutionProvider", 50, [5, 1, 3, 40, 1])


def test_on_cpus_entries_not_in_use_are_not_read() -> None:
    model = exported(torch.float32, torch.float32, "cpu")
    session = open_session(model, "CPUExecutionProvider")
    new = inputs(3, torch.float32, torch.float32)
    past = [each.fill_(torch.nan) for each in empty(64, torch.float32)[:2]]
    for each in past:
        each[:, :5] = torch.randn(1, 5, G, P)
    y, *_ = run_session(session, (*new, *past, torch.tensor([5])))
    expected, *_ = full_attention(*new, *past, torch.tensor([5]))
    assert_close("onnx", y, expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_capacity_is_one_dimension(device: Device) -> None:
    graph = exported(torch.float32, torch.float32, device).graph
    dims = {value.name: value.type.tensor_type.shape.dim for value in [*graph.input, *graph.output]}
    for name in ("past_k", "past_v", "new_k", "new_v"):
        assert dims[name][1].dim_param == "capacity"


def test_for_cuda_one_index_an_entry_and_no_loop() -> None:
    model = exported(torch.float32, torch.float32, "cuda")
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("ScatterND") == 2
    assert not {"ScatterElements", "NonZero", "Loop", "If", "Scan"}.intersection(kinds)


def test_for_cpus_one_loop_and_no_scores_around_it() -> None:
    model = exported(torch.float32, torch.float32, "cpu")
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Scan") == 1
    assert not {"Softmax", "FusedMatMul", "MatMul"}.intersection(kinds)


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_cuda(dtype: torch.dtype) -> None:
    onnxruntime.preload_dlls()
    model, lengths = exported(dtype, dtype, "cuda"), [1, 2, 7, 63, 1, 9]
    compare_in_a_chain(model, dtype, dtype, "CUDAExecutionProvider", 90, lengths)
