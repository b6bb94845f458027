"""How many bytes of tensors live at once, counted at every operation of torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that were made inside, and of those it was told about.

    Args:
        known: tensors that were made before, and count.
        weights: those that do not, nor views of them.

    Attributes:
        bytes: that live now.
        peak: the most that lived after an operation.
    """

    def __init__(
        self, known: Iterable[torch.Tensor] = (), *, weights: Iterable[torch.Tensor] = ()
    ) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._weights = {each.untyped_storage().data_ptr() for each in weights}
        self._tensors: dict[int, int] = {}
        for tensor in known:
            self._count(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it gives."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        self.peak = max(self.peak, self.bytes)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._weights:
            return
        if address not in self._tensors:
            self._tensors[address] = 0
            self.bytes += size
        self._tensors[address] += 1
        weakref.finalize(tensor, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._tensors[address] -= 1
        if not self._tensors[address]:
            del self._tensors[address]
            self.bytes -= size
