"""How many entries the caches of a model need, counted on the host before anything runs.

use = CacheUse.of(config)               # nothing read
use.after(tokens).entries <= capacity   # whether these tokens may be read
use.entries_after(262_144)              # what any so many tokens need; None where that is open
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.models.config.attention import AnchorAttentionConfig, FullAttentionConfig
from longspan.models.config.model import LayerConfig, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """A text as a cache holds it: the anchors of closed segments, and the open segment.

    Attributes:
        anchor_ids, anchor_every: what ends a segment, as `AnchorAttentionConfig` has it. Nothing
            does where every token is kept: the text is one open segment.
        anchors: of the segments that are closed.
        open_tokens: of the segment that is not.
        position: tokens read.
    """

    anchor_ids: tuple[int, ...] = ()
    anchor_every: int | None = None
    anchors: int = 0
    open_tokens: int = 0
    position: int = 0

    @property
    def entries(self) -> int:
        """Entries of the cache that are in use."""
        return self.anchors + self.open_tokens

    def after(self, tokens: NDArray[np.int64]) -> tuple[Segments, int]:
        """The cache after `tokens` int64 [L], and the most entries that it had on the way."""
        length = len(tokens)
        found = np.isin(tokens, self.anchor_ids)
        if self.anchor_every is not None:
            found[(-self.position - 1) % self.anchor_every :: self.anchor_every] = True
        (places,) = found.nonzero()
        count = len(places)
        end = replace(
            self,
            anchors=self.anchors + count,
            open_tokens=length - 1 - int(places[-1]) if count else self.open_tokens + length,
            position=self.position + length,
        )
        # A segment takes most just before its anchor closes it.
        before = np.diff(places, prepend=-1 - self.open_tokens) - 1
        most = int((self.anchors + np.arange(count) + before).max(initial=0))
        return end, max(most, end.entries)

    def most_after(self, length: int) -> int | None:
        """The most entries on the way through any `length` tokens; None if their ids decide."""
        if self.anchor_ids:
            return None
        every = self.anchor_every
        if every is None or length < (first := every - self.position % every):
            return self.entries + length
        closed, tail = divmod(length - first, every)
        # Before the first anchor, before the last, and at the end.
        peaks = [self.entries + first - 1, self.anchors + closed + 1 + tail]
        if closed:
            peaks.append(self.anchors + closed + every - 1)
        return max(peaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What the caches of one sequence need.

    Attributes:
        entries: the most that any cache has needed so far; every cache has room for as many.
        caches: what is in use of each sort of cache.
    """

    entries: int
    caches: tuple[Segments, ...]

    @classmethod
    def of(cls, config: ModelConfig, state: Mapping[str, NDArray[Any]] | None = None) -> CacheUse:
        """The use of `state`, as `Backend.to_arrays` gives it; None for nothing read."""
        found = (_segments(layer, f"layers.{i}.", state) for i, layer in enumerate(config.layers))
        caches = tuple(dict.fromkeys(each for each in found if each is not None))
        return cls(entries=max((each.entries for each in caches), default=0), caches=caches)

    def after(self, tokens: NDArray[np.int64]) -> CacheUse:
        """The use once `tokens` int64 [L] are read, in chunks of any length."""
        ends = [each.after(tokens) for each in self.caches]
        entries = max((most for _, most in ends), default=0)
        return CacheUse(entries=max(self.entries, entries), caches=tuple(end for end, _ in ends))

    def entries_after(self, length: int) -> int | None:
        """The entries that any `length` tokens need; None if that depends on which they are."""
        counts = [each.most_after(length) for each in self.caches]
        known = [count for count in counts if count is not None]
        return max([self.entries, *known]) if len(known) == len(counts) else None

    @classmethod
    def most_added(cls, config: ModelConfig, length: int) -> int:
        """The most entries that any `length` tokens add, whatever was read before them."""
        entries = cls.of(config).entries_after(length)
        return length if entries is None else entries


def _segments(
    layer: LayerConfig, prefix: str, state: Mapping[str, NDArray[Any]] | None
) -> Segments | None:
    """What the layer's cache holds; None for a layer without one."""

    def counter(name: str) -> int:
        return 0 if state is None else int(state[prefix + name][0])

    if isinstance(layer, FullAttentionConfig):
        return Segments(open_tokens=counter("position"), position=counter("position"))
    if isinstance(layer, AnchorAttentionConfig):
        return Segments(
            anchor_ids=layer.anchor_ids,
            anchor_every=layer.anchor_every,
            anchors=counter("anchors"),
            open_tokens=counter("entries") - counter("anchors"),
            position=counter("position"),
        )
    return None
