"""States of the torch backend in and out of host memory, where caches in int8 become float again.

Arrays and `.span` files hold keys and values in the manifest's dtype, whatever the device keeps
them in, so a memory goes on in any backend. Quantized again, they have the same bits
(`longspan.kernels.attention.int8_rows`). Both ways go in slices: no cache has a wide copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longspan.kernels.attention.int8_rows import (
    Int8Rows,
    dequantize_rows,
    entries,
    quantize_rows,
)
from longspan.runtime.backends import State
from longspan.runtime.backends.caches import padded, require_capacity
from longspan.tensors import TensorSpec

# Of a slice in float32, with what quantizing makes of it on the way: some 12 MiB.
SLICE_NUMBERS = 2**20


def to_array(state: State, spec: TensorSpec) -> NDArray[Any]:
    """A copy of a state tensor as `spec` describes it; of a cache, the entries in use."""
    tensor: torch.Tensor = state[spec.name]
    used = slice(None if spec.counter is None else int(state[spec.counter]))
    if tensor.dtype == torch.int8:
        rows = entries(Int8Rows(tensor, state[_scale(spec)]), used)
        assert isinstance(rows, Int8Rows), "a part of rows in int8 is in int8"
        host = _dequantized(rows, getattr(torch, spec.dtype))
    else:
        host = (tensor if spec.counter is None else tensor[:, used]).detach()
        host = host.to("cpu", copy=True).contiguous()
    array: NDArray[Any] = (
        host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()
    )
    return array


def to_tensor(
    arrays: Mapping[str, NDArray[Any]], spec: TensorSpec, device: torch.device
) -> torch.Tensor:
    """A state tensor on the device, a cache with zeros up to its capacity.

    Raises:
        DoesNotFit: a cache has more entries in use than there is room for.
    """
    return _tensor(padded(arrays, spec), spec).to(device)


def to_int8(
    arrays: Mapping[str, NDArray[Any]], spec: TensorSpec, device: torch.device
) -> dict[str, torch.Tensor]:
    """Keys or values, which `spec` describes in a float dtype, as the state's two tensors in int8.

    Raises:
        DoesNotFit: a cache has more entries in use than there is room for.
    """
    array, dtype = arrays[spec.name], getattr(torch, spec.dtype)
    require_capacity(array, spec)
    values = torch.zeros(spec.shape, dtype=torch.int8, device=device)
    scale = torch.zeros(spec.shape[:-1], dtype=dtype, device=device)
    for part in _slices(array.shape):
        rows = quantize_rows(_tensor(array[:, part], spec).to(device), dtype)
        values[:, part], scale[:, part] = rows
    return {spec.name: values, _scale(spec): scale}


def _dequantized(rows: Int8Rows, dtype: torch.dtype) -> torch.Tensor:
    """The rows in host memory."""
    host = torch.empty(rows.values.shape, dtype=dtype)
    for part in _slices(rows.values.shape):
        of_part = Int8Rows(rows.values[:, part], rows.scale[:, part])
        host[:, part] = dequantize_rows(of_part, dtype).cpu()
    return host


def _slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Entries [1, C, G, P], some at a time."""
    _, length, heads, width = shape
    step = max(1, SLICE_NUMBERS // (heads * width))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _scale(spec: TensorSpec) -> str:
    return f"{spec.name}_scale"


def _tensor(array: NDArray[Any], spec: TensorSpec) -> torch.Tensor:
    tensor = torch.tensor(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if spec.dtype == "bfloat16" else tensor
