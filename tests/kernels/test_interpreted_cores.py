"""Products on tensor cores without a GPU: Triton's interpreter, and its PTX by `ptx`.

Lanes lie as `test_tensor_cores` finds them in the compiled kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from longspan.kernels import override
from longspan.kernels.deferred_norm import DeferredNorm
from longspan.kernels.linear import triton_product
from longspan.kernels.linear_conv import linear_conv
from longspan.kernels.quantized_linear import blocks, laid_out, quantized_linear
from tests.kernels import ptx, test_linear_conv
from tests.kernels.devices import wide
from tests.kernels.layer_pairs import LayerPair
from tests.kernels.quantized import PACKINGS, stored

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with CUDA, Triton is not interpreted"
)
# The interpreter cuts numbers off where a GPU rounds them to bfloat16.
TOLERANCE = {"rtol": 2e-2, "atol": 2e-2}
EPS = 1e-5


def registers(block: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A block's numbers as each warp's lanes have them: uint32 [warps, registers, 32]."""
    data = np.ascontiguousarray(np.broadcast_to(block.handle.data, shape))
    words = data.view(np.uint32).reshape(shape[0] // 8, ptx.LANES, -1)
    return words.transpose(0, 2, 1)


def inline_asm(
    asm: Any, constraints: str, args: list[Any], dtype: Any, is_pure: bool, pack: int, **_: Any
) -> Any:
    """What `tl.inline_asm_elementwise` gives for blocks [lines, 4, 4]."""
    assert pack == 4
    several = isinstance(dtype, (tuple, tl.tuple))
    dtypes = [tl.core._unwrap_if_constexpr(each) for each in (dtype if several else [dtype])]
    shape = tuple(max(each.shape[i] for each in args) for i in range(3))
    operands = np.concatenate([registers(each, shape) for each in args], axis=1)
    text = tl.core._unwrap_if_constexpr(asm)
    found = np.stack([ptx.run(text, warp, pack * len(dtypes)) for warp in operands])
    blocks = []
    for i, each in enumerate(dtypes):
        own = found[:, pack * i : pack * (i + 1)].transpose(0, 2, 1).reshape(shape)
        data = np.ascontiguousarray(own).view(np.float32 if each == tl.float32 else np.int32)
        blocks.append(tl.tensor(TensorHandle(data, each), tl.block_type(each, list(shape))))
    return tl.tuple(blocks) if several else blocks[0]


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_product, "_has_tensor_cores", lambda *_: True)
    monkeypatch.setattr(tl, "inline_asm_elementwise", inline_asm)


@pytest.mark.parametrize("width", [200, 40])
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
def test_a_layer(width: int, bits: int, block: int, symmetric: bool) -> None:
    given = test_linear_conv.arguments("cpu", torch.bfloat16, width=width)
    outputs = given["weight"].shape[0]
    given |= stored(
        outputs, width, bits=bits, block=block, symmetric=symmetric, dtype=torch.bfloat16
    ).named
    s = torch.randn(1, 1, width)
    x = DeferredNorm(row=s.to(torch.bfloat16), squares=s.square(), eps=EPS)
    with override("linear_conv", "triton"):
        found = linear_conv(**given | {"x": x})
    expected = linear_conv(**wide(given) | {"x": replace(x, row=x.row.double())})
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part.double(), wanted, **TOLERANCE)


@pytest.mark.parametrize(
    ("heads", "width", "outputs", "rows"),
    [(4, 16, 96, 16), (2, 64, 32, 16), (8, 8, 160, 32), (4, 16, 96, 32)],
)
@pytest.mark.parametrize(("bits", "block", "symmetric"), PACKINGS)
def test_a_layer_after_a_layer(
    bits: int,
    block: int,
    symmetric: bool,
    heads: int,
    width: int,
    outputs: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows between launches are laid out for the products that read them."""

    def block_of(*given: Any, **more: Any) -> dict[str, int]:
        return blocks.word_block(*given, **more) | {"ROWS": rows, "maxnreg": 152}

    monkeypatch.setattr(triton_product, "word_block", block_of)

    packing = {"bits": bits, "block": block, "symmetric": symmetric}
    pair = LayerPair.random(
        "cpu", torch.bfloat16, heads=heads, width=width, outputs=outputs, **packing
    )
    pair.check(laid_out=True, **TOLERANCE)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_divides_the_last_norm(bits: int) -> None:
    """Of several tiles and several passes, beside a row whose parts differ much in size."""
    given = test_linear_conv.arguments("cpu", torch.bfloat16, width=64 * 32)
    size = 10.0 ** torch.randint(-3, 3, (64,)).repeat_interleave(32)
    s = torch.randn(1, 1, 64 * 32) * size
    row = torch.empty(1, 1, 64 * 32, dtype=torch.bfloat16)
    sums = laid_out.new_sums(row, bits)
    for first in range(0, 64 * 32, 16):
        part = s[0, 0, first : first + 16].clone()
        _store[(1,)](row, sums, part, first, 64 * 32, BITS=bits)
    outputs = given["weight"].shape[0]
    matrix = stored(
        outputs, 64 * 32, bits=bits, block=32, symmetric=False, dtype=torch.bfloat16
    ).named
    norm = DeferredNorm(row=row, squares=s.square(), eps=EPS, sums=sums)
    with override("quantized_linear", "triton"):
        found = quantized_linear(norm, **matrix)
    plain = DeferredNorm(row=s.double(), squares=s.double().square(), eps=EPS)
    expected = quantized_linear(**wide(matrix) | {"x": plain})
    torch.testing.assert_close(found.double(), expected, **TOLERANCE)


def read_laid_out(row: torch.Tensor, sums: torch.Tensor, bits: int) -> torch.Tensor:
    """What a row [1, 1, D] that is laid out says of x, for products with it: float64 [D]."""
    halves = row.view(torch.int8).view(-1, 2, 128 // bits).long()
    whole = halves[:, 0] * 256 + halves[:, 1]
    if bits == 4:
        high, low = whole.view(-1, 2, 4).unbind(dim=1)
        # Of n + 16 m and n: x n and y m.
        whole = torch.stack((low + high, 16 * high), dim=-1)
    groups = whole.reshape(-1, 64 // bits)
    factors, totals = sums.view(-1, 2).double().unbind(dim=1)
    torch.testing.assert_close(totals, factors * groups.sum(dim=1), rtol=1e-6, atol=1e-30)
    return (groups * factors[:, None]).flatten()


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_that_is_laid_out_has_all_its_numbers(bits: int, scale: float) -> None:
    """More exact than bfloat16, beside the largest of each group."""
    row = (torch.randn(1, 1, 64) * scale).float()
    row[..., 32:48] = 0
    stored_row = torch.full((1, 1, 64), float("nan"), dtype=torch.bfloat16)
    sums = laid_out.new_sums(stored_row, bits)
    for first in (0, 16, 32, 48):
        part = row[0, 0, first : first + 16].clone()
        _store[(1,)](stored_row, sums, part, first, 64, BITS=bits)
    found = read_laid_out(stored_row, sums, bits)
    expected = row.double().flatten()
    largest = expected.view(-1, 64 // bits).abs().amax(dim=1, keepdim=True)
    error = (found - expected).view(largest.shape[0], -1).abs()
    assert bool((error <= largest / 2**11).all())
    # Of 4 bits every second number has 16 bits.
    exact = error[:, 0::2] if bits == 4 else error
    assert bool((exact <= largest / 2**14).all())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_number_stays_none(bits: int, wrong: float) -> None:
    row = torch.randn(64)
    row[5] = wrong
    stored_row = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    sums = laid_out.new_sums(stored_row, bits)
    for first in range(0, 64, 16):
        _store[(1,)](stored_row, sums, row[first : first + 16].clone(), first, 64, BITS=bits)
    groups = sums.view(-1, 2).isfinite().all(dim=1)
    assert not bool(groups[0])
    assert bool(groups[1:].all())


@triton.jit
def _store(row_ptr, sums_ptr, part_ptr, first, end, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.load(part_ptr + tl.arange(0, 16))
    laid_out.store_laid_out(row_ptr, sums_ptr, row, first, end, BITS)
