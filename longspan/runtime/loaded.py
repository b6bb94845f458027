"""A bundle that is loaded under a budget: read, ask, save, go on. Made by `longspan.load`.

memory = runtime.read("book.txt")
for piece in runtime.ask(memory, "Who is the captain?"):
    print(piece, end="")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import BadInput
from longspan.runtime.asking import DEFAULT_MAX_TOKENS, Answer, Decoding, Ending, format_question
from longspan.runtime.backends import Backend, State
from longspan.runtime.checkpoint import DEFAULT_SECONDS, Keeper, partial_path
from longspan.runtime.documents import Document, Source, open_document
from longspan.runtime.measured import BudgetWatch, Measured, Tally
from longspan.runtime.memory import (
    DocumentRead,
    Memory,
    Origin,
    check_origin,
    load_memory,
    timestamp,
)
from longspan.runtime.plan import Plan
from longspan.runtime.reader import OnNotice, Reader, token_pieces
from longspan.runtime.reading import OnProgress, ReadResult, check_tokens, every_logits, feed
from longspan.runtime.report import ReadReport
from longspan.runtime.room import Room
from longspan.runtime.sampling import Sampler
from longspan.runtime.span_file import require_writable
from longspan.runtime.tokens import Detokenizer, Tokenizer, Tokens, bundle_tokenizer


class Runtime:
    """A loaded bundle; close it, or use it in a `with`.

    Attributes:
        bundle: what was loaded.
        plan: where the budget's bytes go.
    """

    def __init__(
        self, bundle: Bundle, plan: Plan, backend: Backend, watch: BudgetWatch, stack: ExitStack
    ) -> None:
        self.bundle = bundle
        self.plan = plan
        self._backend = backend
        self._vocab_size = bundle.manifest.config.vocab_size
        self._watch = watch
        self._stack = stack
        self._prefill = Tally()
        self._decode = Tally()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; the runtime cannot be used after."""
        self._stack.close()

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._backend.engine

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            BadInput: the bundle has none.
        """
        return bundle_tokenizer(self.bundle)

    @property
    def measured(self) -> Measured:
        """Memory beside the plan, and speed, since `load`."""
        return Measured.of(self._watch, self.plan, prefill=self._prefill, decode=self._decode)

    def read(
        self,
        source: Source,
        *,
        memory: Memory | None = None,
        on_progress: OnProgress | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = DEFAULT_SECONDS,
        on_notice: OnNotice = warnings.warn,
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

        Raises:
            BadDocument: the source is missing, empty, or not UTF-8 text.
            BadInput: the bundle has no tokenizer, or the checkpoint cannot be written.
            BadMemory: `memory` is another model's.
            BudgetExceeded: the process holds more than the budget.
            DoesNotFit: the caches have no room for the document.
        """
        document = open_document(source)
        keeper = self._keeper(checkpoint, checkpoint_seconds, memory) if checkpoint else None
        after = self._read(document, self._reader(on_progress, memory, keeper), memory, on_notice)
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
    ) -> ReadReport:
        """Read a document and save the memory; interrupted, the same call goes on.

        Args:
            path: the `.span` file to write. ``PATH.partial`` holds the checkpoints meanwhile.
            source: as for `read`.
            on_progress, on_notice: as for `read`.

        Raises:
            BadInput: `path` cannot be written; and whatever `read` raises.
        """
        path = Path(path)
        require_writable(path)
        keeper = self._keeper(partial_path(path), DEFAULT_SECONDS, None)
        reader = self._reader(on_progress, None, keeper)
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
    ) -> Memory:
        """Read token ids, int64 [n] a piece, as `read` reads text.

        Raises:
            BadInput: an id is not in the vocabulary.
            BadMemory: `memory` is another model's.
            BudgetExceeded: the process holds more than the budget.
            DoesNotFit: the caches have no room for the next chunk.
        """
        reader = self._reader(on_progress, memory)
        checked = token_pieces(check_tokens(piece, self._vocab_size) for piece in pieces)
        result = reader.read_pieces(checked, self._start(memory))
        return self._remember(reader, result, memory, "tokens")

    def ask(
        self,
        memory: Memory,
        question: str,
        *,
        template: str | None = None,
        stop: Sequence[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Ask about what was read; the memory is not changed.

        Args:
            memory: what was read.
            question: text.
            template: how the question is put, with ``{question}`` in it; None for the bundle's.
            stop: texts that end the answer; None for the bundle's.
            max_tokens: most tokens of the answer.
            temperature: 0 for the most probable token each time, above 0 to draw.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the most probable tokens that together reach p.
            seed: of the drawing; None for a fresh one.

        Returns:
            The answer, computed while it is iterated.

        Raises:
            BadInput: a value is out of its range, or the bundle has no tokenizer.
            BadMemory: the memory is another model's.
            DoesNotFit: the caches have no room for the question.
        """
        prompt = self.bundle.manifest.prompt
        ending = Ending(
            stop=prompt.stop if stop is None else tuple(stop),
            eos=self.bundle.manifest.eos,
            max_tokens=max_tokens,
        )
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
        text = format_question(prompt.template if template is None else template, question)
        check_origin("This memory", memory.origin, self.bundle.manifest)
        tokens = check_tokens(
            self.tokenizer.encode(text, continues=memory.tokens > 0), self._vocab_size
        )
        room = self._room(memory).after(tokens)
        room.require("The question")
        return Answer(
            lambda: self._after(memory, tokens),
            self._decoding(sampler, ending, np.random.default_rng(seed), room),
            Detokenizer(self.tokenizer),
            on_end=self._count,
        )

    def open(self, path: str | Path) -> Memory:
        """Read a memory that `Memory.save` wrote.

        Raises:
            BadMemory: the file is missing, no memory, damaged, newer, or of another model or
                tokenizer.
        """
        return load_memory(path, self.bundle.manifest)

    def logits(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits float32 [L, V] after every one of L >= 1 tokens, from the empty state.

        Raises:
            BadInput: there is no token, or an id is not in the vocabulary.
            DoesNotFit: the caches have no room for them.
        """
        ids = check_tokens(np.asarray(tokens), self._vocab_size)
        if not len(ids):
            raise BadInput("There are no tokens to compute logits for. Give at least one id.")
        self._room(None).after(ids).require(f"A text of {len(ids):,} tokens")
        return every_logits(self._backend, ids, self.plan.chunk_tokens)

    def decode_seconds(self, memory: Memory, tokens: int) -> float:
        """Seconds that `tokens` >= 1 steps of the model take from `memory`, whatever it says.

        Raises:
            DoesNotFit: the caches have no room for them.
        """
        ending = Ending(stop=(), eos=None, max_tokens=tokens + 1)
        room = self._room(memory)
        room.after(np.zeros(tokens, np.int64)).require(f"An answer of {tokens:,} tokens")
        decoding = self._decoding(Sampler(), ending, np.random.default_rng(0), room)
        for _ in decoding.run(memory.last_logits, self._backend.from_arrays(memory.state)):
            pass
        self._count(decoding)
        return decoding.seconds

    @cached_property
    def _origin(self) -> Origin:
        return Origin.of(self.bundle.manifest, self.engine)

    def _start(self, memory: Memory | None) -> Callable[[], State]:
        if memory is None:
            return self._backend.new_state
        check_origin("This memory", memory.origin, self.bundle.manifest)
        return lambda: self._backend.from_arrays(memory.state)

    def _room(self, memory: Memory | None) -> Room:
        state = None if memory is None else memory.state
        return Room.of(self.bundle.manifest, self.plan.capacity, state)

    def _reader(
        self, on_progress: OnProgress | None, memory: Memory | None, keeper: Keeper | None = None
    ) -> Reader:
        room, chunk_tokens = self._room(memory), self.plan.chunk_tokens
        return Reader(self._backend, self._watch, room, chunk_tokens, on_progress, keeper)

    def _keeper(self, path: str | Path, seconds: float, memory: Memory | None) -> Keeper:
        before = () if memory is None else memory.documents
        return Keeper(path=Path(path), seconds=seconds, origin=self._origin, before=before)

    def _read(
        self, document: Document, reader: Reader, memory: Memory | None, on_notice: OnNotice
    ) -> Memory:
        manifest, keeper = self.bundle.manifest, reader.keeper
        result = reader.read(
            document,
            self.tokenizer,
            self._start(memory),
            found=None if keeper is None else keeper.find(manifest, on_notice),
            continues=memory is not None,
            on_notice=on_notice,
        )
        return self._remember(reader, result, memory, document.name)

    def _remember(
        self, reader: Reader, result: ReadResult, memory: Memory | None, name: str
    ) -> Memory:
        self._prefill.add(reader.tokens, reader.seconds)
        document = DocumentRead(
            name=name,
            sha256=result.end.text_sha256,
            bytes=result.end.text_bytes,
            tokens=result.tokens,
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
        logits, state = feed(self._backend, start, tokens, self.plan.chunk_tokens)
        self._watch.require()
        return logits, state

    def _decoding(
        self, sampler: Sampler, ending: Ending, rng: np.random.Generator, room: Room
    ) -> Decoding:
        return Decoding(backend=self._backend, sampler=sampler, rng=rng, ending=ending, room=room)

    def _count(self, decoding: Decoding) -> None:
        self._decode.add(decoding.steps, decoding.seconds)
        self._watch.peak()
