"""Whether the caches have room for what is to be read: counted on the host, before it is read.

room = Room.of(manifest, capacity=plan.capacity)
room.after(tokens).require("The question")      # or DoesNotFit, with the arithmetic
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from longspan.bundle import Manifest
from longspan.errors import DoesNotFit
from longspan.models.config import CacheUse
from longspan.runtime.documents import Document
from longspan.runtime.reading import Chunk
from longspan.runtime.tokens import Tokenizer, Tokens, tokenize
from longspan.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The capacity of the caches, and what is taken of it.

    Attributes:
        manifest: of the model.
        capacity: entries of each cache; a state of fixed size takes none, and always has room.
        use: what is taken.
    """

    manifest: Manifest
    capacity: int
    use: CacheUse

    @classmethod
    def of(
        cls, manifest: Manifest, capacity: int, state: Mapping[str, NDArray[Any]] | None = None
    ) -> Room:
        """The room beside `state`, as `Backend.to_arrays` gives it; None for nothing read."""
        use = CacheUse.of(manifest.config, state)
        return cls(manifest=manifest, capacity=capacity, use=use)

    @property
    def limited(self) -> bool:
        """Whether what can be read is limited at all."""
        return self.manifest.cache_entry_bytes > 0

    @property
    def fits(self) -> bool:
        """Whether what is taken is there."""
        return self.use.entries <= self.capacity

    def beside(self, state: Mapping[str, NDArray[Any]]) -> Room:
        """The room of the same caches beside another state."""
        return Room.of(self.manifest, self.capacity, state)

    def after(self, tokens: Tokens) -> Room:
        """The room once `tokens` int64 [L] are read."""
        return replace(self, use=self.use.after(tokens))

    def after_document(
        self, document: Document, tokenizer: Tokenizer, *, continues: bool
    ) -> tuple[Room, int]:
        """The room once a document is read, and its tokens; it is tokenized, in pieces.

        Args:
            document: one that can be read again.
            tokenizer: of the model.
            continues: whether other text stands before it.
        """
        room, tokens = self, 0
        for piece in tokenize(document.pieces(), tokenizer, continues=continues):
            room, tokens = room.after(piece.tokens), tokens + len(piece.tokens)
        return room, tokens

    def require(self, what: str) -> None:
        """Refuse what does not fit.

        Args:
            what: is to be read, for the message.

        Raises:
            DoesNotFit: the caches are too small for it.
        """
        if self.fits:
            return
        each = self.manifest.cache_entry_bytes
        raise DoesNotFit(
            f"{what} takes the caches to {self.use.entries:,} entries, and they have room for "
            f"{self.capacity:,}: {self.capacity:,} x {each:,} bytes = "
            f"{format_bytes(self.capacity * each)} a copy. Nothing of it was read. {self._advice()}"
        )

    def _advice(self) -> str:
        """What to do where the caches are too small."""
        entries = self.use.entries
        if self.manifest.config.anchor_layers:
            return (
                f"Load the bundle with cache_entries={entries} or more, and a budget that holds "
                "them; or export the checkpoint with --anchors every=auto --tokens N --budget "
                "SIZE, to have as many anchors as fit."
            )
        return (
            f"Load the bundle with tokens={entries} or more; longspan plan --tokens {entries} "
            "--fit tells the budget that needs."
        )

    def checked(self, chunks: Iterable[Chunk], tokens: int) -> Iterator[Chunk]:
        """The chunks, each checked before it is given out.

        Args:
            chunks: of one document.
            tokens: of the document that are read already.

        Raises:
            DoesNotFit: the caches are too small for the next one.
        """
        room = self
        for chunk in chunks:
            room = room.after(chunk.tokens)
            room.require(f"The next chunk, after {tokens:,} tokens of the document,")
            tokens += len(chunk.tokens)
            yield chunk
