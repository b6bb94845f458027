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

PROGRAMS = {
    (4, "bf16"): (tensor_cores.NUMBERS_OF_4_BITS_BF16, tensor_cores.PRODUCTS_OF_4_BITS_BF16),
    (4, "f16"): (tensor_cores.NUMBERS_OF_4_BITS_F16, tensor_cores.PRODUCTS_OF_4_BITS_F16),
    (8, "bf16"): (tensor_cores.NUMBERS_OF_8_BITS_BF16, tensor_cores.PRODUCTS_OF_8_BITS_BF16),
    (8, "f16"): (tensor_cores.NUMBERS_OF_8_BITS_F16, tensor_cores.PRODUCTS_OF_8_BITS_F16),
}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def _taken(zero: np.ndarray, bits: int, kind: str) -> np.ndarray:
    """What a kernel takes off: minus the mantissa's power of two, and the zero point."""
    zero = zero.astype(np.uint32)
    if (bits, kind) == (8, "bf16"):
        return zero | np.uint32(0xCB000000)
    return (zero * np.uint32(0x00010001)) | np.uint32(0xC300C300 if kind == "bf16" else 0xE400E400)


@pytest.mark.parametrize(("bits", "kind"), PROGRAMS)
def test_a_lane_has_the_product_of_its_own_numbers(bits: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    numbers = 32 // bits  # of a word
    count, units = 4 * numbers, 16 // bits // 2
    words = rng.integers(0, 2**32, (4, LANES), dtype=np.uint32)
    words[:, 0], words[:, 1] = 0, 2**32 - 1
    zero = rng.integers(0, 2**bits, LANES, dtype=np.uint32)
    # Lanes of one place meet the same x.
    x = torch.randn(4, count).to(DTYPES[kind])
    pairs = np.zeros((4 * units, LANES), dtype=np.uint32)
    for lane in range(LANES):
        row, place = divmod(lane, 4)
        if row // 2 == place:
            for unit in range(units):
                eight = x[place][(row % 2 * units + unit) * 8 :][:8].view(torch.int16).numpy()
                low, high = eight[:4].view(np.uint16), eight[4:].view(np.uint16)
                pairs[4 * unit : 4 * unit + 4, lane] = low | (high.astype(np.uint32) << 16)
    taken = np.broadcast_to(_taken(zero, bits, kind), (4, LANES))
    unpack, multiply = PROGRAMS[bits, kind]
    pairs_of_numbers = run(unpack, np.concatenate([words, taken]), 8 * units)
    sums = run(multiply, np.concatenate([pairs_of_numbers, pairs]), 4).view(np.float32)

    packed = words.T.copy().view(np.uint8)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(LANES, count)
    q = packed.astype(np.float64) - zero[:, None]
    expected = (q * x.double().numpy()[np.arange(LANES) % 4]).sum(axis=1)
    np.testing.assert_allclose(sums[0] + sums[3], expected, rtol=1e-5, atol=2e-3)


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
