"""Names, shapes and dtypes of tensors, without any tensor library.

The bundle's manifest, the planner and every backend describe state with the same
`TensorSpec`. It knows nothing of torch or ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

DType = Literal["float32", "float16", "bfloat16", "int64", "int8", "uint8"]

# What keys and values are kept in, where it is not the dtype of the weights.
CacheDType = Literal["int8"]
# What weights are stored in.
WEIGHT_DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16")
DTYPE_BYTES: dict[DType, int] = {
    "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1, "uint8": 1,
}  # fmt: skip
# What a bundle's safetensors file calls them.
STORED_NAMES: dict[DType, str] = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8",
}  # fmt: skip


def dtype_name(name: str) -> DType:
    """Check that `name` is a dtype that longspan stores.

    Raises:
        ValueError: `name` is none of them.
    """
    if name not in get_args(DType):
        raise ValueError(f"dtype {name!r} is not one of {', '.join(get_args(DType))}")
    return cast(DType, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named tensor. The first dimension of a state tensor is the batch, 1.

    Attributes:
        name: within the model or the layer.
        shape: of a cache, axis 1 is its capacity: 0 here until `with_capacity`.
        dtype: of its numbers.
        counter: None for a tensor of fixed size; a cache has the name of the int64 [1] state
            tensor that tells how many of its entries are in use, the first ones.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    counter: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of a cache; 0 for a tensor of fixed size."""
        return 0 if self.counter is None else self.with_capacity(1).nbytes

    def with_capacity(self, entries: int) -> TensorSpec:
        """A cache with room for `entries`; a tensor of fixed size as it is."""
        if self.counter is None:
            return self
        batch, _, *rest = self.shape
        return replace(self, shape=(batch, entries, *rest))
