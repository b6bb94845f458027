"""Caches on their way in and out of a backend: only the entries in use, or as many as have room.

`to_arrays` gives what is in use, so that a `.span` file holds no more and goes on in a backend of
another capacity; `from_arrays` puts zeros after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.errors import DoesNotFit
from longspan.tensors import TensorSpec

# Why ONNX Runtime has no caches of another dtype.
FIXED_CACHES = "a graph of ONNX Runtime keeps them in the dtype that it was exported with"


def padded(arrays: Mapping[str, NDArray[Any]], spec: TensorSpec) -> NDArray[Any]:
    """The array of `spec` among `arrays`, a cache with zeros up to its capacity.

    Raises:
        DoesNotFit: it has more entries than that.
    """
    array = arrays[spec.name]
    require_capacity(array, spec)
    if spec.counter is None or array.shape == spec.shape:
        return array
    wide = np.zeros(spec.shape, array.dtype)
    wide[:, : array.shape[1]] = array
    return wide


def require_capacity(array: NDArray[Any], spec: TensorSpec) -> None:
    """Refuse more entries than the cache of `spec` has room for.

    Raises:
        DoesNotFit: there are more.
    """
    if spec.counter is None:
        return
    used, capacity = array.shape[1], spec.shape[1]
    if used > capacity:
        raise DoesNotFit(
            f"The state has {used:,} entries in use in the cache {spec.name}, and the caches here "
            f"have room for {capacity:,}. Load the model with cache_entries={used} or more, and a "
            "budget that holds them."
        )
