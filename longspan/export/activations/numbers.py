"""What the formulas of all layers share."""

from __future__ import annotations

from longspan.tensors import DTYPE_BYTES, DType

F32, I64 = DTYPE_BYTES["float32"], DTYPE_BYTES["int64"]


def widened(numbers: int, dtype: DType) -> int:
    """The float32 copy that torch makes of a weight of lower precision, on the CPU, to use it."""
    return 0 if dtype == "float32" else F32 * numbers
