"""A bundle that is loaded under a budget: read, ask, save, go on. Made by `longspan.load`.

memory = runtime.read("book.txt")
for piece in runtime.ask(memory, "Who is the captain?"):
    print(piece, end="")
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longspan.errors import BadInput
from longspan.runtime.asking import DEFAULT_MAX_TOKENS, Answer, Ending, format_question
from longspan.runtime.backends import State
from longspan.runtime.byte_tokens import id_dtype
from longspan.runtime.checkpoint import DEFAULT_SECONDS, Keeper, partial_path
from longspan.runtime.documents import Document, DocumentRange, Source, open_document
from longspan.runtime.drafting import DEFAULT_DRAFT_TOKENS
from longspan.runtime.loaded_model import LoadedModel
from longspan.runtime.memory import (
    DocumentRead,
    Memory,
    check_memory,
    load_memory,
    timestamp,
)
from longspan.runtime.reader import OnNotice, Reader, token_pieces
from longspan.runtime.reading import OnProgress, ReadResult, check_tokens, feed
from longspan.runtime.report import ReadReport
from longspan.runtime.sampling import Sampler, new_rng
from longspan.runtime.span_file import require_writable
from longspan.runtime.speculative import NO_DRAFT, with_drafts
from longspan.runtime.tokens import Tokens


class Runtime(LoadedModel):
    """A loaded bundle; close it, or use it in a `with`.

    Attributes and what needs no text are `LoadedModel`'s.
    """

    def read(
        self,
        source: Source,
        *,
        memory: Memory | None = None,
        on_progress: OnProgress | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = DEFAULT_SECONDS,
        on_notice: OnNotice = warnings.warn,
        chunk_tokens: int | None = None,
    ) -> Memory:
        """Read a document of any length, in chunks.

        Args:
            source: see `longspan.runtime.documents.open_document`.
            memory: read on from here; None for a new memory. It is not changed.
            on_progress: called after each chunk.
            checkpoint: a file for the state between two chunks. An interrupted reading leaves it
                behind; the next reading of the same text goes on from it, and removes it.
            checkpoint_seconds: time between two checkpoints.
            on_notice: told when a checkpoint is resumed, or not used and why.
            chunk_tokens: tokens that go through the model together, 1 to the plan's; None for
                these. The result is the same.

        Raises:
            BadDocument: the source is missing, empty, or not UTF-8 text.
            BadInput: the bundle has no tokenizer, the checkpoint cannot be written, or the chunk is
                larger than planned.
            BadMemory: `memory` is another model's.
            BudgetExceeded: the process holds more than the budget; what the reading held is freed,
                and the runtime goes on.
            DoesNotFit: the caches have no room for the document.
        """
        document = open_document(source)
        keeper = self._keeper(checkpoint, checkpoint_seconds, memory) if checkpoint else None
        reader = self._reader(on_progress, memory, keeper, chunk_tokens)
        after = self._read(document, reader, memory, on_notice)
        if keeper is not None:
            keeper.remove()
        return after

    def read_to(
        self,
        path: str | Path,
        source: Source,
        *,
        on_progress: OnProgress | None = None,
        on_notice: OnNotice = warnings.warn,
        chunk_tokens: int | None = None,
    ) -> ReadReport:
        """Read a document and save the memory; interrupted, the same call goes on.

        Args:
            path: the `.span` file to write. ``PATH.partial`` holds the checkpoints meanwhile.
            source: as for `read`.
            on_progress, on_notice, chunk_tokens: as for `read`.

        Raises:
            BadInput: `path` cannot be written; and whatever `read` raises.
        """
        path = Path(path)
        require_writable(path)
        keeper = self._keeper(partial_path(path), DEFAULT_SECONDS, None)
        reader = self._reader(on_progress, None, keeper, chunk_tokens)
        memory = self._read(open_document(source), reader, None, on_notice)
        memory.save(path)
        keeper.remove()
        return ReadReport.of(path, memory, reader, self.plan, self.measured.peak_bytes)

    def read_tokens(
        self,
        pieces: Iterable[NDArray[np.int64]],
        *,
        memory: Memory | None = None,
        on_progress: OnProgress | None = None,
        chunk_tokens: int | None = None,
    ) -> Memory:
        """Read token ids, int64 [n] a piece, as `read` reads text.

        Where the model's tokens are all the bytes and no others, that is any file's content.

        Raises:
            BadInput: an id is not in the vocabulary.
            BadMemory: `memory` is another model's.
            BudgetExceeded: the process holds more than the budget.
            DoesNotFit: the caches have no room for the next chunk.
        """
        reader = self._reader(on_progress, memory, None, chunk_tokens)
        ids = (check_tokens(piece, self._vocab_size) for piece in pieces)
        checked = token_pieces(ids, dtype=id_dtype(self.bundle.manifest))
        with self._recovering():
            result = reader.read_pieces(checked, self._start(memory))
        return self._remember(reader, result, memory, "tokens")

    def ask(
        self,
        memory: Memory,
        question: str,
        *,
        template: str | None = None,
        stop: str | Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        draft_memory: Memory | None = None,
        draft_tokens: int = DEFAULT_DRAFT_TOKENS,
    ) -> Answer:
        """Ask about what was read; the memory is not changed.

        Args:
            memory: what was read.
            question: text.
            template: how the question is put, with ``{question}`` in it; None for the bundle's.
            stop: a text that ends the answer, or several; None for the bundle's.
            max_tokens: most tokens of the answer.
            temperature: 0 for the most probable token each time, above 0 to draw.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the most probable tokens that together reach p.
            seed: of the drawing; None for a fresh one.
            draft_memory: what the draft model read; None for the question and the answer alone.
            draft_tokens: how many tokens, in its own, the draft model guesses at once.

        Returns:
            The answer, computed while it is iterated.

        Raises:
            BadInput: a value is out of its range, or the bundle has no tokenizer.
            BadMemory: a memory is another model's.
            DoesNotFit: the caches have no room for the question.
        """
        manifest = self.bundle.manifest
        ending = Ending.of(manifest, stop=stop, max_tokens=max_tokens)
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
        template = manifest.prompt.template if template is None else template
        text = format_question(template, question)
        check_memory(memory, manifest)
        tokens = check_tokens(
            self.tokenizer.encode(text, continues=memory.tokens > 0), self._vocab_size
        )
        room = self._room(memory).after(tokens)
        room.require("The question")
        decoding = self._decoding(sampler, ending, new_rng(seed), room)
        if self.draft is not None:
            drafter = self.draft.drafter(text, draft_memory, self.bundle, self.tokenizer)
            decoding = with_drafts(decoding, drafter, draft_tokens, self.plan.chunk_tokens)
        elif draft_memory is not None:
            raise BadInput(NO_DRAFT)
        return Answer(
            lambda: self._after(memory, tokens),
            decoding,
            self.tokenizer.stream(),
            on_end=self._count,
        )

    def open(self, path: str | Path) -> Memory:
        """Read a memory that `Memory.save` wrote.

        Raises:
            BadMemory: the file is missing, no memory, damaged, newer, or of another model or
                tokenizer.
        """
        return load_memory(path, self.bundle.manifest)

    def _reader(
        self,
        on_progress: OnProgress | None,
        memory: Memory | None,
        keeper: Keeper | None,
        chunk_tokens: int | None,
    ) -> Reader:
        room, most = self._room(memory), self.plan.chunk_tokens
        chunk = most if chunk_tokens is None else chunk_tokens
        if not 1 <= chunk <= most:
            raise BadInput(
                f"chunk_tokens is {chunk:,}, and the plan has room for chunks of 1 to {most:,} "
                "tokens. For longer ones, load the bundle with them, or call set_budget."
            )
        return Reader(self._backend, self._watch, room, chunk, on_progress, keeper)

    def _keeper(self, path: str | Path, seconds: float, memory: Memory | None) -> Keeper:
        before = () if memory is None else memory.documents
        return Keeper(path=Path(path), seconds=seconds, origin=self._origin, before=before)

    def _read(
        self, document: Document, reader: Reader, memory: Memory | None, on_notice: OnNotice
    ) -> Memory:
        manifest, keeper = self.bundle.manifest, reader.keeper
        with self._recovering():
            result = reader.read(
                document,
                self.tokenizer,
                self._start(memory),
                found=None if keeper is None else keeper.find(manifest, on_notice),
                continues=memory is not None,
                on_notice=on_notice,
            )
        return self._remember(reader, result, memory, document.name, document.parts())

    def _remember(
        self,
        reader: Reader,
        result: ReadResult,
        memory: Memory | None,
        name: str,
        parts: tuple[DocumentRange, ...] = (),
    ) -> Memory:
        self._prefill.add(reader.tokens, reader.seconds)
        document = DocumentRead(
            name=name,
            sha256=result.end.text_sha256,
            bytes=result.end.text_bytes,
            tokens=result.tokens,
            parts=parts,
        )
        return Memory(
            state=self._backend.to_arrays(result.state),
            last_logits=result.logits,
            documents=(*(() if memory is None else memory.documents), document),
            origin=self._origin,
            created=timestamp(),
        )

    def _after(self, memory: Memory, tokens: Tokens) -> tuple[NDArray[np.float32], State]:
        """Logits float32 [V] and the state after a prompt; it may be empty."""
        start = self._start(memory)
        if not len(tokens):
            return memory.last_logits, start()
        with self._recovering():
            chunk_tokens = self.plan.chunk_tokens
            logits, state = feed(self._backend, start(), tokens, chunk_tokens, donate=True)
            self._watch.require()
        return logits, state
