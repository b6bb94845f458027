"""Host memory that a CUDA device copies from by itself, or uses where it lies.

torch's own allocator of pinned memory rounds every size up to a power of two; these buffers take
whole pages and no more. On other devices they are plain host memory.

    buffer = HostBuffer(nbytes, device)
    buffer.host.copy_(...)          # uint8 [nbytes] on the host
    slot.copy_(buffer.host, non_blocking=True)
    buffer.close()
"""

from __future__ import annotations

import mmap
import weakref
from typing import Any

import torch

from longspan.errors import DoesNotFit
from longspan.sizes import format_bytes

# cuda_runtime_api.h: usable in every context, and visible to the device.
_HOST_REGISTER_PORTABLE_MAPPED = 1 | 2


class HostBuffer:
    """Bytes in pages of their own, page-locked for a CUDA device.

    Args:
        nbytes: how many, at least 1.
        device: will copy from them.

    Attributes:
        host: uint8 [nbytes] on the host.

    Raises:
        DoesNotFit: the driver cannot lock so much memory.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        page = mmap.PAGESIZE
        locked = -(-nbytes // page) * page
        memory = torch.empty(locked + page, dtype=torch.uint8)
        start = -memory.data_ptr() % page
        self.host = memory[start : start + nbytes]
        self._device = device
        if device.type == "cuda":
            pointer = self.host.data_ptr()
            _lock(pointer, locked)
            # The pages must be unlocked before they are freed, so the memory is an argument.
            self._close = weakref.finalize(self, _unlock, pointer, memory)
            self._close.atexit = False

    def on_device(self) -> torch.Tensor:
        """The same bytes as a tensor of the device, which uses them over the bus each time.

        The pages stay locked as long as the tensor is there, unless the buffer is closed.
        """
        return torch.as_tensor(_Bytes(self), device=self._device)

    def close(self) -> None:
        """Unlock the pages, once the device is through with them. A second call does nothing."""
        if self._device.type == "cuda":
            self._close()


class _Bytes:
    """Host bytes as CUDA's libraries hand each other memory: by its address."""

    def __init__(self, buffer: HostBuffer) -> None:
        self._buffer = buffer

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        host = self._buffer.host
        return {
            "shape": tuple(host.shape),
            "typestr": "|u1",
            "data": (host.data_ptr(), False),
            "version": 3,
        }


def _lock(pointer: int, nbytes: int) -> None:
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(cudart.cudaHostRegister(pointer, nbytes, _HOST_REGISTER_PORTABLE_MAPPED))
    if error:
        raise DoesNotFit(
            f"{format_bytes(nbytes)} of host memory were to be locked for the device to use, and "
            f"CUDA refused with error {error}. Free host memory; or, if weights stream, give a "
            "larger --budget, so that fewer layers do."
        )


def _unlock(pointer: int, memory: torch.Tensor) -> None:
    # What was interrupted between a launch and its wait may still use the pages.
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaHostUnregister(pointer)  # type: ignore[no-untyped-call]
    del memory
