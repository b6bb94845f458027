"""A `DeviceHeap` in place of ONNX Runtime's arena, and tensors in it that no session owns.

memory = SessionMemory(DeviceHeap(DevicePages(), limit_bytes=2**30))
weights = memory.weights(path, names)
providers = [("CUDAExecutionProvider", {..., **memory.options})]
memory.close()      # the heap goes with the last value that lies in it
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from longspan.engines import Device
from longspan.errors import BudgetExceeded
from longspan.runtime.backends.callbacks import callback
from longspan.runtime.backends.dlpack import ort_value
from longspan.runtime.device_heap import DeviceHeap
from longspan.runtime.nvidia import copy_to_device
from longspan.sizes import format_bytes
from longspan.tensors import TensorSpec
from longspan.weights_file import StoredTensor, stored_tensors

_TAKE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)
_GIVE_BACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class SessionMemory:
    """What a session on CUDA allocates through, and what lies beside it.

    Args:
        heap: of this session alone: what one stream frees, another may not take.
        device: whose addresses the heap has.
        copy: bytes from a host address, its first argument, to one of the device.

    Attributes:
        heap: as given.
        options: of the session's CUDAExecutionProvider.
    """

    def __init__(
        self,
        heap: DeviceHeap,
        *,
        device: Device = "cuda",
        copy: Callable[[int, int, int], None] = copy_to_device,
    ) -> None:
        self.heap = heap
        self._device: Device = device
        self._copy = copy
        # A session's values are freed when nothing reads them, long after it was closed maybe.
        self.options = {
            "gpu_external_alloc": _address(callback(_TAKE, heap.take)),
            "gpu_external_free": _address(callback(_GIVE_BACK, self._give_back)),
        }

    def empty(self, specs: Iterable[TensorSpec]) -> dict[str, ort.OrtValue]:
        """Tensors for what a run will write, by name.

        Raises:
            BudgetExceeded: the heap may not hold as much.
        """
        return {spec.name: self._value(spec)[0] for spec in specs}

    def weights(self, path: Path, is_wanted: Callable[[str], bool]) -> dict[str, ort.OrtValue]:
        """The tensors of a safetensors file whose names are wanted, by name.

        Raises:
            BudgetExceeded: the heap may not hold as much.
        """
        file = np.memmap(path, np.uint8, "r")
        found = [each for each in stored_tensors(path) if is_wanted(each.name)]
        return {each.name: self._filled(each, file.ctypes.data) for each in found}

    def close(self) -> None:
        """Give the memory back, once the last value is gone."""
        self.heap.close()

    def _give_back(self, address: int | None) -> None:
        # A tensor without numbers has no address, and is freed all the same.
        if address is not None:
            self.heap.give_back(address)

    def _filled(self, tensor: StoredTensor, file_address: int) -> ort.OrtValue:
        value, address = self._value(tensor)
        if tensor.nbytes:
            self._copy(file_address + tensor.offset, address, tensor.nbytes)
        return value

    def _value(self, like: TensorSpec | StoredTensor) -> tuple[ort.OrtValue, int]:
        """A tensor of that shape and dtype, and its address."""
        address = self.heap.take(like.nbytes)
        if address is None:
            raise BudgetExceeded(
                f"A tensor of {format_bytes(like.nbytes)} needs more memory than the budget "
                "leaves. Give a larger --budget."
            )
        freed = partial(self.heap.give_back, address)
        value = ort_value(address, like.shape, like.dtype, device=self._device, freed=freed)
        return value, address


def _address(function: Any) -> str:
    return str(ctypes.cast(function, ctypes.c_void_p).value)
