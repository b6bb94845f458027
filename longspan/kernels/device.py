"""What a Triton kernel may ask about the device it runs on."""

from __future__ import annotations

from functools import cache

import torch
from triton.runtime import driver


@cache
def shared_memory_bytes(device: torch.device) -> int:
    """Shared memory that one program may have, in bytes; 0 where Triton is interpreted."""
    if device.type != "cuda":
        return 0
    # The driver takes half a millisecond to answer.
    properties = driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])
