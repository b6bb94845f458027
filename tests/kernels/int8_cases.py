"""Attention over caches in int8: calls of the three ops, with random caches of any filling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.attention import window_attention
from longspan.kernels.attention.int8_rows import Int8Rows, Rows, quantize_rows, tensors_of
from longspan.kernels.full_attention import full_attention

Arguments = tuple[Any, ...]
Call = Callable[[Arguments], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        op: its name.
        length: new tokens.
        entries: of the cache.
        used: entries that hold something: of a window the last, otherwise the first.
        anchors: of the cache, and of the call.
        heads, groups, width: H, G and P.
    """

    op: str
    length: int
    entries: int
    used: int
    anchors: tuple[int, tuple[int, ...]] = (0, ())
    heads: int = 4
    groups: int = 2
    width: int = 24

    def __str__(self) -> str:
        shape = f"{self.heads}x{self.groups}x{self.width}"
        return f"{self.op}-{self.length}-{self.used}of{self.entries}-{self.anchors}-{shape}"

    def call(self, arguments: Arguments) -> tuple[Any, ...]:
        """The output, the next caches and counters."""
        if self.op == "window_attention":
            return window_attention(*arguments, window=self.entries + 1)
        return {"full_attention": full_attention, "anchor_attention": anchor_attention}[self.op](
            *arguments
        )

    def arguments(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 2
    ) -> Arguments:
        """Random ones; what no query may read is NaN."""

        def rows(tokens: int, heads: int) -> torch.Tensor:
            # Heads of different size, so that a scale of another head or token shows.
            sizes = torch.rand(batch, tokens, heads, 1, device=device) + 0.1
            drawn = torch.randn(batch, tokens, heads, self.width, device=device)
            return (sizes * drawn).to(dtype)

        new = (rows(self.length, self.heads), *(rows(self.length, self.groups) for _ in "kv"))
        past = [quantize_rows(rows(self.entries, self.groups), dtype) for _ in "kv"]
        empty = self.entries - self.used
        unused = slice(0, empty) if self.op == "window_attention" else slice(self.used, None)
        for each in past:
            each.values[:, unused], each.scale[:, unused] = 99, float("nan")
        return (*new, *past, *self._counters(device))

    def _counters(self, device: str) -> tuple[torch.Tensor, ...]:
        used = torch.tensor([self.used], device=device)
        if self.op != "anchor_attention":
            return (used,)
        before, of_call = self.anchors
        flags = torch.zeros(self.length, dtype=torch.bool, device=device)
        flags[list(of_call)] = True
        return torch.tensor([before], device=device), used, flags

    def used_after(self, after: tuple[Any, ...]) -> slice:
        """The entries of the next caches that have a meaning."""
        if self.op == "window_attention":
            return slice(max(0, self.entries - self.used - self.length), None)
        if self.op == "full_attention":
            return slice(self.used + self.length)
        return slice(int(after[4]))


def widened(argument: Any) -> Any:
    """An argument in float64; int8 rows keep their values, and their scales the dtype.

    So new rows are quantized to scales of the same dtype as in the call that is checked. The
    reference weighs a window's unwritten entries with zero: they must be finite.
    """
    if isinstance(argument, Int8Rows):
        return argument._replace(scale=argument.scale.nan_to_num())
    return argument.double() if argument.is_floating_point() else argument


def equal(found: Rows, expected: Rows, part: slice) -> bool:
    """Whether two caches hold the same bits in these entries."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return all(torch.equal(one[:, part], two[:, part]) for one, two in pairs)


def case(op: str, length: int, entries: int, used: int, **changes: Any) -> Case:
    """A case in few words."""
    return Case(op=op, length=length, entries=entries, used=used, **changes)


WIDE = {"heads": 6, "groups": 2, "width": 33}
ALONE = {"heads": 2, "groups": 2, "width": 16}
MANY = {"heads": 4, "groups": 1, "width": 20}
CASES = [
    case("window_attention", 1, 0, 0, **ALONE),
    case("window_attention", 1, 300, 300, **MANY),
    case("window_attention", 3, 129, 60, **ALONE),
    case("window_attention", 35, 33, 33, **WIDE),
    case("full_attention", 1, 1, 0, **ALONE),
    case("full_attention", 1, 300, 280),
    case("full_attention", 3, 40, 33, **MANY),
    case("full_attention", 35, 70, 4, **WIDE),
    case("anchor_attention", 1, 9, 8, anchors=(3, ()), **WIDE),
    case("anchor_attention", 1, 300, 299, anchors=(150, (0,)), **MANY),
    case("anchor_attention", 35, 40, 31, anchors=(20, (0, 1, 2, 15, 32, 33))),
    case("anchor_attention", 33, 33, 0, anchors=(0, (32,)), **ALONE),
]
# The ways that the next caches take to their place.
IN_PLACE = [CASES[i] for i in (1, 3, 5, 7, 8, 9)]
