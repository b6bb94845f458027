"""What a Triton kernel may ask about the device it runs on."""

from __future__ import annotations

from functools import cache

import torch
from triton.runtime import driver

# Of every NVIDIA multiprocessor since Volta, which is the first that Triton compiles for.
SCHEDULERS_OF_MULTIPROCESSOR = 4


def shared_memory_bytes(device: torch.device) -> int:
    """Shared memory that one program may have, in bytes; 0 where Triton is interpreted."""
    return _property(device, "max_shared_mem")


def scheduler_count(device: torch.device) -> int:
    """Warp schedulers of the device, each of which runs a warp; 0 where Triton is interpreted."""
    return SCHEDULERS_OF_MULTIPROCESSOR * _property(device, "multiprocessor_count")


@cache
def _property(device: torch.device, name: str) -> int:
    if device.type != "cuda":
        return 0
    # The driver takes half a millisecond to answer.
    return int(driver.active.utils.get_device_properties(device.index or 0)[name])
