"""Linear layer of 8 or 4 bits: the Triton kernel and ONNX Runtime against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from longspan.kernels import choose, override
from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.linear import triton_product
from longspan.kernels.quantized_linear import blocks, quantized_linear, scratch, triton_kernel
from longspan.kernels.quantized_linear.reference import quantized_linear as reference
from longspan.kernels.ssd.triton_kernel import STEP_REGISTERS
from tests.kernels.devices import DEVICE_DTYPES, DEVICES, wide
from tests.kernels.quantized import PACKINGS, Stored, stored
from tests.tolerances import assert_close


def _check(
    x: torch.Tensor, matrix: Stored, bias: torch.Tensor | None = None, op: str = "quantized_linear"
) -> torch.Tensor:
    """Compare with the reference in float64."""
    wide = None if bias is None else bias.to(x.dtype).double()
    expected = reference(x.double(), *matrix.tensors, wide, bits=matrix.bits)
    with override("quantized_linear", "triton"):
        y = quantized_linear(x, *matrix.tensors, bias, bits=matrix.bits)
    assert (y.dtype, y.shape) == (x.dtype, expected.shape)
    assert_close(op, y, expected)
    return y


@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (7, 63), (9, 2049)])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_one_row(
    device: str,
    dtype: torch.dtype,
    bits: int,
    block: int,
    symmetric: bool,
    outputs: int,
    width: int,
) -> None:
    matrix = stored(
        outputs, width, bits=bits, block=block, symmetric=symmetric, device=device, dtype=dtype
    )
    bias = torch.randn(outputs, device=device).to(dtype) if outputs > 1 else None
    _check(torch.randn(1, 1, width, device=device).to(dtype), matrix, bias)


@pytest.mark.parametrize("shape", [(2, 4), (1, 9)], ids=str)
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_several_rows(
    device: str, dtype: torch.dtype, bits: int, block: int, symmetric: bool, shape: tuple[int, ...]
) -> None:
    matrix = stored(21, 144, bits=bits, block=block, symmetric=symmetric, device=device)
    bias = torch.randn(21, device=device)
    rows = torch.Size(shape).numel()
    op = "quantized_linear" if rows <= triton_kernel.STEP_ROWS else "quantized_linear of scratch"
    _check(torch.randn(*shape, 144, device=device).to(dtype), matrix, bias, op)


@pytest.mark.parametrize("device", DEVICES)
def test_a_scratch_matrix_in_parts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SCRATCH_NUMBERS", 8 * 40 + 39)
    assert scratch.scratch_numbers(21, 40) == 8 * 40
    assert list(scratch.scratch_parts(21, 40)) == [slice(0, 8), slice(8, 16), slice(16, 21)]
    matrix = stored(21, 40, bits=4, block=32, symmetric=False, device=device)
    _check(torch.randn(2, 9, 40, device=device), matrix, op="quantized_linear of scratch")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("view", ["half of a split", "strided", "rows of a wider one"])
def test_views(device: str, view: str, rows: int) -> None:
    x = torch.randn(2, rows, 140, device=device)
    matrix = stored(30, 70, bits=4, block=32, symmetric=True, device=device)
    views = {
        "half of a split": x[:1, :, 70:],
        "strided": x[:1, :, ::2],
        "rows of a wider one": x[1:, :, 3:73],
    }
    _check(views[view], matrix, op="quantized_linear of scratch")


@pytest.mark.parametrize("rows", [8, 16, 32])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_rows_longer_than_what_is_loaded_ahead(
    device: str, dtype: torch.dtype, bits: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1, 2 and 4 rows a lane, two warps, and several passes."""

    def block(outputs: int, row_words: int, x_rows: int, *, laid_out: bool) -> dict[str, int]:
        return {"ROWS": rows, "BLOCK": 32, "DEPTH": 2, "num_warps": 2}

    monkeypatch.setattr(triton_product, "word_block", block)
    matrix = stored(37, 520, bits=bits, block=32, symmetric=False, device=device, dtype=dtype)
    _check(torch.randn(2, 520, device=device).to(dtype), matrix)


def test_a_row_is_on_its_way_at_once_or_in_even_parts() -> None:
    # ROWS, BLOCK, DEPTH and warps of Mamba-2 2.7B in 4 bits: in_proj, head, out_proj; and others.
    assert list(blocks.word_block(10_576, 320).values()) == [16, 64, 5, 4]
    assert list(blocks.word_block(50_280, 320).values()) == [16, 64, 5, 4]
    assert list(blocks.word_block(10_576, 320, 8).values()) == [8, 64, 5, 4]
    assert list(blocks.word_block(2560, 640).values()) == [8, 128, 5, 8]
    assert list(blocks.word_block(2560, 768).values()) == [8, 128, 3, 8]
    assert list(blocks.word_block(7, 8).values()) == [8, 16, 1, 1]


def test_of_a_row_that_is_laid_out_programs_are_fewer() -> None:
    """Mamba-2 2.7B in 4 bits: 331 of in_proj, 160 of out_proj; in 8 that takes two turns."""
    in_proj = {"ROWS": 32, "BLOCK": 64, "DEPTH": 5, "num_warps": 4, "maxnreg": 152}
    assert blocks.word_block(10_576, 320, laid_out=True) == in_proj
    assert list(blocks.word_block(10_576, 640, laid_out=True).values()) == [16, 128, 5, 8, 96]
    # More than have room at once.
    assert list(blocks.word_block(50_280, 320, laid_out=True).values()) == [16, 64, 5, 4]
    assert blocks.word_block(2560, 640, laid_out=True)["ROWS"] == 16
    assert blocks.word_block(2560, 640)["ROWS"] == 8
    assert blocks.word_block(2560, 1280, laid_out=True)["ROWS"] == 8
    assert blocks.word_block(768, 192, laid_out=True)["ROWS"] == 16
    assert blocks.word_block(256, 64, laid_out=True)["ROWS"] == 8


def test_beside_three_programs_of_in_proj_one_of_the_recurrence_has_room() -> None:
    """A multiprocessor of sm_80 to sm_90 has 65,536 registers; a warp takes them 256 at a time."""

    def registers(warps: int, of_a_thread: int) -> int:
        return warps * -(-of_a_thread * 32 // 256) * 256

    in_proj = blocks.word_block(10_576, 320, laid_out=True)
    taken = 3 * registers(in_proj["num_warps"], in_proj["maxnreg"])
    assert taken + registers(4, STEP_REGISTERS) <= 65_536 < taken + registers(4, 64)


@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_a_norm_that_is_divided_here(
    device: str, dtype: torch.dtype, bits: int, block: int, symmetric: bool
) -> None:
    if dtype == torch.float16:
        pytest.skip("norms in float16 are not deferred")
    matrix = stored(
        37, 200, bits=bits, block=block, symmetric=symmetric, device=device, dtype=dtype
    )
    s = torch.randn(1, 1, 200, device=device)
    norm = DeferredNorm(row=s.to(dtype), squares=s.view(1, 1, 5, 40).square().sum(-1), eps=1e-5)
    bias = torch.randn(37, device=device).to(dtype)
    expected = quantized_linear(
        **wide(matrix.named) | {"x": replace(norm, row=norm.row.double()), "bias": bias.double()}
    )
    with override("quantized_linear", "triton"):
        found = quantized_linear(norm, **matrix.named, bias=bias)
    assert found.dtype == dtype
    assert_close("quantized_linear", found, expected)


def test_a_norm_of_several_rows_is_refused() -> None:
    matrix = stored(4, 32, bits=4, block=32, symmetric=True, device="cpu", dtype=torch.float32)
    norm = DeferredNorm(row=torch.ones(1, 2, 32), squares=torch.ones(1, 2, 1), eps=1e-5)
    with pytest.raises(
        ValueError, match=r"^quantized_linear: x is a norm of 2 rows; it must be of one$"
    ):
        quantized_linear(norm, **matrix.named)


@pytest.mark.parametrize("offset", [4, 16])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_weights_anywhere_in_memory(device: str, dtype: torch.dtype, offset: int) -> None:
    matrix = stored(20, 96, bits=4, block=32, symmetric=True, device=device, dtype=dtype)
    room = torch.zeros(offset + matrix.weight.numel(), dtype=torch.uint8, device=device)
    weight = room[offset:].view(matrix.weight.shape).copy_(matrix.weight)
    x = torch.randn(1, 99, device=device).to(dtype)[:, 3:]
    _check(x, replace(matrix, weight=weight))


@pytest.mark.parametrize("device", DEVICES)
def test_large_values_of_x(device: str) -> None:
    """A mean of x far from zero meets the zero points, and cancels."""
    matrix = stored(9, 512, bits=8, block=32, symmetric=True, device=device)
    _check(torch.randn(1, 512, device=device) + 50, matrix, op="quantized_linear of a large mean")


def test_no_rows_dequantise_nothing() -> None:
    matrix = stored(5, 64, bits=4, block=32, symmetric=True)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("called")

    with override("quantized_linear", never):
        y = quantized_linear(torch.zeros(1, 0, 64), *matrix.tensors, bits=4)
    assert y.shape == (1, 0, 5)


@pytest.mark.parametrize("width", [96, 100])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
def test_the_layout_is_that_of_onnxruntime(
    bits: int, block: int, symmetric: bool, width: int
) -> None:
    matrix = stored(11, width, bits=bits, block=block, symmetric=symmetric)
    x = torch.randn(3, width)
    values = [each.numpy() for each in matrix.tensors if each is not None]
    names = ["weight", "scales", "zeros"][: len(values)]
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft",
        K=width, N=11, bits=bits, block_size=block,
    )  # fmt: skip
    kinds = {"weight": TensorProto.UINT8, "scales": TensorProto.FLOAT, "zeros": TensorProto.UINT8}
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, kinds[name], value.shape, value.tobytes(), raw=True)
            for name, value in zip(names, values, strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    expected = reference(x.double(), *matrix.tensors, None, bits=bits)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_the_choice() -> None:
    for rows in (1, 4096):
        chosen = choose("quantized_linear", device_type="cuda", exporting=False, rows=rows)
        assert chosen.name == "triton"
    assert choose("quantized_linear", device_type="cpu", exporting=False).name == "reference"
    assert choose("quantized_linear", device_type="cuda", exporting=True).name == "onnx"


def test_a_bias_that_does_not_fit() -> None:
    matrix = stored(5, 64, bits=4, block=32, symmetric=True)
    with pytest.raises(ValueError, match=r"^quantized_linear: bias has shape \[4\]; it must be"):
        quantized_linear(torch.zeros(1, 64), *matrix.tensors, torch.zeros(4), bits=4)


@pytest.mark.parametrize("rows", [0, 1, 3, 9])
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_result_in_given_memory(
    device: str, dtype: torch.dtype, implementation: str, rows: int
) -> None:
    matrix = stored(33, 64, bits=4, block=32, symmetric=False, device=device, dtype=dtype)
    x = torch.randn(1, rows, 64, device=device, dtype=dtype)
    out = torch.empty(1, rows, 33, device=device)
    with override("quantized_linear", implementation):
        assert quantized_linear(x, *matrix.tensors, bits=4, out=out) is out
        expected = quantized_linear(x, *matrix.tensors, bits=4)
    assert torch.equal(out, expected.float())
