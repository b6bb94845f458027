"""How matrices are stored in 8 or 4 bits: in blocks of a row, each with its own scale.

The layout is ONNX Runtime's ``com.microsoft::MatMulNBits``: a matrix [N, K] is uint8
[N, ceil(K / block), block bits / 8], low bits first, beside a scale a block and, where it is
asymmetric, a zero point a block in as many bits. A row's last block is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

BITS = (4, 8)
BLOCKS = (32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Which matrices are quantised, and how.

    Attributes:
        bits: of a weight, 4 or 8.
        block: weights of a row that share a scale: 32, 64 or 128.
        symmetric: whether every zero point is half of the range, 8 or 128, and none is stored.
        embedding: whether the embedding is quantised too.
        head: whether the head is; as the embedding where they are one matrix.
        experts: whether those of mixtures are; bundles of before they could be do not say it.
    """

    bits: int
    block: int = 32
    symmetric: bool = True
    embedding: bool = True
    head: bool = True
    experts: bool = False

    def __post_init__(self) -> None:
        """Check bits and block.

        Raises:
            ValueError: there is no such number of bits or no such block.
        """
        for name, value, known in (("bits", self.bits, BITS), ("block", self.block, BLOCKS)):
            if value not in known:
                listed = ", ".join(map(str, known))
                raise ValueError(f"quantization {name} {value!r} is unknown; it is one of {listed}")

    def takes(self, width: int) -> bool:
        """Whether a matrix of rows of `width` numbers is quantised: one below a block is not.

        Such are the low-rank halves of a step or a decay: small, and most of a block would be
        filling.
        """
        return width >= self.block

    def blocks(self, width: int) -> int:
        """Blocks of a row of `width` numbers."""
        return -(-width // self.block)

    def weight_shape(self, rows: int, width: int) -> tuple[int, int, int]:
        """Shape of a matrix [rows, width] as uint8."""
        return rows, self.blocks(width), self.block * self.bits // 8

    def scales_shape(self, rows: int, width: int) -> tuple[int, int]:
        """Shape of its scales."""
        return rows, self.blocks(width)

    def zeros_shape(self, rows: int, width: int) -> tuple[int, int] | None:
        """Shape of its zero points as uint8; None for a symmetric matrix."""
        return None if self.symmetric else (rows, -(-self.blocks(width) * self.bits // 8))
