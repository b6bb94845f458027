"""What the formulas of all layers share."""

from __future__ import annotations

from longspan.tensors import DTYPE_BYTES, DType

F32, I64 = DTYPE_BYTES["float32"], DTYPE_BYTES["int64"]


def widened(numbers: int, dtype: DType) -> int:
    """Bytes of the float32 copy that torch makes on CPUs of what has a lower precision."""
    return 0 if dtype == "float32" else F32 * numbers
