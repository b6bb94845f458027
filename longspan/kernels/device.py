"""What a Triton kernel may ask about the device it runs on."""

from __future__ import annotations

import torch
from triton.runtime import driver


def shared_memory_bytes(device: torch.device) -> int:
    """Shared memory that one program may have, in bytes; 0 where Triton is interpreted."""
    if device.type != "cuda":
        return 0
    properties = driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])
