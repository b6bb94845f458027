"""The PTX of packed products: every lane's sum, as a warp of lanes computes it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from longspan.kernels.quantized_linear import tensor_cores
from tests.kernels.ptx import LANES, run

CASES = [(bits, kind) for bits in (4, 8) for kind in ("bf16", "f16")]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def _program(name: str, bits: int, kind: str) -> str:
    program: str = getattr(tensor_cores, f"{name}_OF_{bits}_BITS_{kind.upper()}")
    return program


def _halves(numbers: torch.Tensor) -> np.ndarray:
    """Numbers of 16 bits as words, the first in the low half: uint32 [count / 2]."""
    return numbers.contiguous().view(torch.int16).numpy().view(np.uint32)


@pytest.mark.parametrize("size", [1.0, 2.0**-20, 2.0**14])
@pytest.mark.parametrize(("bits", "kind"), CASES)
def test_a_lane_has_the_product_of_its_own_numbers(bits: int, kind: str, size: float) -> None:
    rng = np.random.default_rng(0)
    numbers = 32 // bits  # of a word
    count, units = 4 * numbers, 16 // bits // 2
    words = rng.integers(0, 2**32, (4, LANES), dtype=np.uint32)
    words[:, 0], words[:, 1] = 0, 2**32 - 1
    zero = rng.integers(0, 2**bits, LANES, dtype=np.uint32)
    # Lanes of one place meet the same x.
    x = (torch.rand(4, count) * size).to(DTYPES[kind])
    fours = np.zeros((units, 4, LANES), dtype=np.uint32)
    for lane in range(LANES):
        row, place = divmod(lane, 4)
        if row // 2 == place:
            for unit in range(units):
                fours[unit, :, lane] = _halves(x[place][(row % 2 * units + unit) * 8 :][:8])
    pairs = np.concatenate([run(_program("PAIRS", bits, kind), each, 4) for each in fours])
    taken = [
        np.broadcast_to((zero * np.uint32(pair)) | np.uint32(0x80008000), (4, LANES))
        for pair in (0x00010001, 0x00100010)[: 8 // bits]
    ]
    unpacked = run(_program("NUMBERS", bits, kind), np.concatenate([words, *taken]), 8 * units)
    products = np.concatenate([unpacked, pairs])
    sums = run(_program("PRODUCTS", bits, kind), products, 4).view(np.float32)
    found = sums[0].astype(np.float64) + sums[3]

    packed = words.T.copy().view(np.uint8)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(LANES, count)
    q = packed.astype(np.float64) - zero[:, None]
    expected = (q * x.double().numpy()[np.arange(LANES) % 4]).sum(axis=1)
    factor = getattr(tensor_cores, f"RESULT_FACTOR_{kind.upper()}")
    np.testing.assert_allclose(
        found * factor, expected, rtol=1e-5, atol=1e-7 * size * 2**bits * count
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_two_rows_meet_whole_numbers(bits: int) -> None:
    """Sums of a lane's first two words and of its last two, of both rows; exact."""
    rng = np.random.default_rng(0)
    units = 16 // bits // 2
    words = rng.integers(0, 2**32, (2, 4, LANES), dtype=np.uint32)
    words[:, :, 0], words[:, :, 1] = 0, 2**32 - 1
    # What bytes meet, of 4 bits all eight bits and the lower four: by place, upper halves, lower.
    meets = rng.integers(-(2**15) + 128, 2**15 - 128, (4, 4 * units, 4))
    upper = (meets + 128) >> 8
    halves = np.stack([upper, meets - 256 * upper], axis=1).astype(np.int8)
    x = np.zeros((4 * units, LANES), dtype=np.uint32)
    for lane in range(LANES):
        row, place = divmod(lane, 4)
        if row // 2 == place:
            x[:, lane] = halves[place, row % 2].reshape(-1).view(np.uint32)
    program = getattr(tensor_cores, f"WHOLE_PRODUCTS_OF_{bits}_BITS")
    operands = np.concatenate([words[0], words[1], x])
    found = run(program, operands, 4).view(np.int32).reshape(2, 2, LANES)

    packed = words.transpose(0, 2, 1).copy().view(np.uint8).astype(np.int64)
    packed = packed.reshape(2, LANES, 4, 1, 4)
    if bits == 4:
        packed = np.concatenate([packed, packed & 15], axis=3)
    by_place = meets.reshape(4, 4, units, 4)[np.arange(LANES) % 4]
    sums = (packed * by_place).sum(axis=(3, 4)).reshape(2, LANES, 2, 2).sum(axis=3)
    assert np.array_equal(found, sums.transpose(0, 2, 1))


def test_lanes_have_the_words_that_the_ptx_takes_them_for() -> None:
    """Lane 4 g + t has four words of row g and place t, wherever x and scales lie."""
    environment = {name: each for name, each in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.packed_layout"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        f"{warps} #ttg.blocked<{{sizePerThread = [1, 1, 4], threadsPerWarp = [8, 4, 1], "
        f"warpsPerCTA = [{warps}, 1, 1], order = [2, 1, 0]}}>"
        for warps in (1, 4, 8)
    }
