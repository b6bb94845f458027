"""What the formulas of all layers share."""

from __future__ import annotations

from longspan.tensors import DTYPE_BYTES, DType

F32, I64 = DTYPE_BYTES["float32"], DTYPE_BYTES["int64"]


def softplus_on_cpu(numbers: int, dtype: DType) -> int:
    """float32 numbers that ONNX Runtime holds on CPUs while it computes a softplus of so many.

    Of weights in 16 bits the graph has where(x > 20, x, softplus(x)), which makes both parts anew
    before it joins them.
    """
    return (2 if dtype == "float32" else 5) * numbers + (0 if dtype == "float32" else numbers // 4)


def widened(numbers: int, dtype: DType) -> int:
    """Bytes of the float32 copy that torch makes on CPUs of what has a lower precision."""
    return 0 if dtype == "float32" else F32 * numbers
