"""Memory at an address as a tensor that ONNX Runtime takes in place, in the format of DLPack.

    value = ort_value(address, spec.shape, spec.dtype, device="cuda", freed=give_back)

See dlpack.h of DLPack 0.8, whose structures these are.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime as ort

from longspan.engines import Device
from longspan.runtime.backends.callbacks import callback
from longspan.tensors import DTYPE_BYTES, DType

_DEVICES: dict[Device, int] = {"cpu": 1, "cuda": 2}
# A dtype's kind: DLDataTypeCode. Weights of 8 and 4 bits are bytes.
_KINDS: dict[DType, int] = {"int64": 0, "float32": 2, "float16": 2, "bfloat16": 4, "uint8": 1}


class _Tensor(ctypes.Structure):
    """DLTensor, with its DLDevice and DLDataType."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


# What a value that lives points to, by the address of its structure, and whom to tell of its end.
_alive: dict[int, tuple[Any, Any, Callable[[], None]]] = {}


def _delete(managed: int) -> None:
    _, _, freed = _alive.pop(managed)
    freed()


_DELETER = callback(ctypes.CFUNCTYPE(None, ctypes.c_void_p), _delete)


def ort_value(
    address: int, shape: Sequence[int], dtype: DType, *, device: Device, freed: Callable[[], None]
) -> ort.OrtValue:
    """A contiguous tensor at `address`, which stays there until `freed` is called.

    Args:
        address: of its first byte, on `device`.
        shape: of the tensor.
        dtype: of its numbers.
        device: that has the memory.
        freed: is called when ONNX Runtime needs it no longer, in any thread.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    bits = 8 * DTYPE_BYTES[dtype]
    tensor = _Tensor(
        data=address if math.prod(shape) else None,
        device_type=_DEVICES[device],
        dimensions=len(shape),
        kind=_KINDS[dtype],
        bits=bits,
        lanes=1,
        shape=ctypes.addressof(sizes),
    )
    managed = _Managed(tensor=tensor, deleter=ctypes.cast(_DELETER, ctypes.c_void_p))
    at = ctypes.addressof(managed)
    _alive[at] = managed, sizes, freed
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return ort.OrtValue.from_dlpack(new_capsule(at, b"dltensor", None))
