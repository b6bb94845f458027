"""Matrices of 8 or 4 bits as floating point: the kernel and the graph against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.export.quantize import packed
from longspan.kernels import override
from longspan.kernels.dequantize import dequantize
from longspan.kernels.dequantize.reference import dequantize as reference
from longspan.kernels.dequantize.reference import unpacked
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.kernels.quantized import Stored, stored
from tests.tolerances import assert_close

CASES = [(8, 128, False), (4, 32, True), (4, 64, False)]


@given(bits=st.sampled_from([4, 8]), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_numbers_come_out_as_they_were_packed(bits: int, count: int, seed: int) -> None:
    numbers = torch.randint(
        0, 2**bits, (3, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    row = packed(numbers, bits)
    assert row.shape == (3, -(-count * bits // 8))
    assert torch.equal(unpacked(row, bits)[:, :count], numbers)


def test_the_low_half_of_a_byte_comes_first() -> None:
    assert packed(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]


def test_reference_is_the_equation() -> None:
    weight = torch.tensor([[[0x0F] + [0x88] * 15, [0x70] + [0x88] * 15]], dtype=torch.uint8)
    scales = torch.tensor([[0.5, -2.0]])
    found = dequantize(weight, scales, bits=4, width=34, dtype=torch.float32)
    assert found.shape == (1, 34)
    assert found[0, :2].tolist() == [3.5, -4.0]
    assert found[0, 32:].tolist() == [16.0, 2.0]
    zeros = torch.tensor([[0x30]], dtype=torch.uint8)
    found = dequantize(weight, scales, zeros, bits=4, width=34, dtype=torch.float32)
    assert found[0, :2].tolist() == [7.5, 0.0]
    assert found[0, 32:].tolist() == [6.0, -8.0]


@pytest.mark.parametrize("rows", [None, (1, 3)], ids=str)
@pytest.mark.parametrize(("bits", "block", "symmetric"), CASES)
@pytest.mark.parametrize(("device", "dtype"), DEVICE_DTYPES)
def test_kernel(
    device: str,
    dtype: torch.dtype,
    bits: int,
    block: int,
    symmetric: bool,
    rows: tuple[int, ...] | None,
) -> None:
    matrix = stored(17, 300, bits=bits, block=block, symmetric=symmetric, device=device)
    ids = None if rows is None else torch.randint(0, 17, rows, device=device)
    _check(matrix, dtype, ids)


@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (9, 128), (3, 2100)])
@pytest.mark.parametrize("device", DEVICES)
def test_sizes(device: str, outputs: int, width: int) -> None:
    _check(stored(outputs, width, bits=4, block=32, symmetric=False, device=device), torch.float32)


def _check(matrix: Stored, dtype: torch.dtype, rows: torch.Tensor | None = None) -> None:
    options = {"bits": matrix.bits, "width": matrix.width, "rows": rows}
    expected = reference(*matrix.tensors, dtype=torch.float64, **options)
    with override("dequantize", "triton"):
        found = dequantize(*matrix.tensors, dtype=dtype, **options)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert_close("dequantize", found, expected)


@pytest.mark.gpu
def test_a_result_beyond_2_31_numbers() -> None:
    outputs, width = 2**31 // 4096 + 9, 4096
    weight = torch.full((outputs, 128, 16), 0x88, dtype=torch.uint8, device="cuda")
    weight[-9:] = torch.randint(0, 256, (9, 128, 16), dtype=torch.uint8, device="cuda")
    scales = torch.ones(outputs, 128, dtype=torch.bfloat16, device="cuda")
    found = dequantize(weight, scales, bits=4, width=width, dtype=torch.bfloat16)
    assert not found[:-9].any()
    expected = reference(
        weight[-9:], scales[-9:], None, bits=4, width=width, dtype=torch.float64, rows=None
    )
    assert_close("dequantize", found[-9:], expected)


@pytest.mark.parametrize(
    ("weight", "scales", "zeros", "bits", "message"),
    [
        ((5, 2, 16), (5, 2), None, 3, "bits is 3; it must be 4 or 8"),
        ((5, 3, 16), (5, 3), None, 4, r"weight has shape \[5, 3, 16\]; it must be \[any, 2, any\]"),
        ((5, 2, 16), (5, 1), None, 4, r"scales has shape \[5, 1\]; it must be \[5, 2\]"),
        ((5, 2, 16), (5, 2), (5, 2), 4, r"zeros has shape \[5, 2\]; it must be \[5, 1\]"),
    ],
)
def test_what_does_not_fit(
    weight: tuple[int, ...],
    scales: tuple[int, ...],
    zeros: tuple[int, ...] | None,
    bits: int,
    message: str,
) -> None:
    packed_zeros = None if zeros is None else torch.zeros(zeros, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"^dequantize: {message}$"):
        dequantize(
            torch.zeros(weight, dtype=torch.uint8), torch.zeros(scales), packed_zeros,
            bits=bits, width=64, dtype=torch.float32,
        )  # fmt: skip
