"""Tensors in and out of ONNX Runtime, on the CPU or CUDA, and one run of a session over them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from longspan.errors import BudgetExceeded
from longspan.runtime.backends.onnx_session import ORT_ERRORS
from longspan.runtime.nvidia import copy_to_host
from longspan.tensors import DType, TensorSpec

# onnx.TensorProto's numbers.
_ELEMENT_TYPES: dict[DType, int] = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
NUMPY_DTYPES: dict[DType, type[np.generic]] = {
    "float32": np.float32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
# How onnxruntime's allocators say that a limit was met.
_OUT_OF_MEMORY = (
    "Available memory of",
    "Failed to allocate memory",
    "bad allocation",
    # cuda_allocator.cc, where a `SessionMemory` has no room.
    "CUDAExternalAllocator",
)


def to_value(array: NDArray[Any], spec: TensorSpec) -> ort.OrtValue:
    """A copy in host memory; a binding takes it to the session's device."""
    return _value_over(np.array(array, NUMPY_DTYPES[spec.dtype], order="C"), spec)


def empty_values(specs: Iterable[TensorSpec]) -> dict[str, ort.OrtValue]:
    """Tensors in host memory for what a run will write, by name, outside of any arena.

    A run gives them back as values that do not own them: whoever reads on holds these.
    """
    return {
        spec.name: _value_over(np.empty(spec.shape, NUMPY_DTYPES[spec.dtype]), spec)
        for spec in specs
    }


def _value_over(array: NDArray[Any], spec: TensorSpec) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ELEMENT_TYPES[spec.dtype])


def to_array(value: ort.OrtValue, spec: TensorSpec) -> NDArray[Any]:
    """A copy in host memory; of a cache, the first entries."""
    array = np.empty(spec.shape, NUMPY_DTYPES[spec.dtype])
    wanted = spec if spec.counter is None else spec.with_capacity(value.shape()[1])
    assert tuple(value.shape()) == wanted.shape, f"{spec.name} has the shape {value.shape()}"
    read_into(array, value)
    return array


def read_into(array: NDArray[Any], value: ort.OrtValue) -> None:
    """Copy the first bytes of `value` over `array`: OrtValue.numpy() knows no bfloat16."""
    if not array.size:
        return
    if value.device_name() == "cpu":
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    else:
        copy_to_host(value.data_ptr(), array.ctypes.data, array.nbytes)


def run_bound(session: Any, binding: Any, *, tokens: int, options: Any = None) -> None:
    """Run `session` over what is bound.

    Args:
        session: an onnxruntime.InferenceSession.
        binding: its IOBinding.
        tokens: how many tokens it reads, for the message.
        options: an onnxruntime.RunOptions.

    Raises:
        BudgetExceeded: the device's allocator refused to pass its limit.
    """
    try:
        session.run_with_iobinding(binding, options)
    except ORT_ERRORS as error:
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            what = "A step" if tokens == 1 else f"A chunk of {tokens} tokens"
            raise BudgetExceeded(
                f"{what} needs more memory than the budget leaves: {error}. Give a larger --budget."
            ) from error
        raise
