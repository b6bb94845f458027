"""A model that is loaded under a budget: what it is, what it holds, what it computes from tokens.

It knows no documents and no questions: those are `longspan.runtime.loaded`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from traceback import clear_frames
from typing import Self

import numpy as np
from numpy.typing import NDArray

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.errors import BadInput, BudgetExceeded
from longspan.runtime.asking import Decoding, Ending
from longspan.runtime.backends import Backend, State
from longspan.runtime.byte_tokens import bundle_tokenizer
from longspan.runtime.drafting import Draft
from longspan.runtime.int8_caches import held_in_int8
from longspan.runtime.measured import BudgetWatch, Measured, Tally
from longspan.runtime.memory import Memory, Origin, check_memory
from longspan.runtime.plan import Plan, replanned, require_fit
from longspan.runtime.reading import check_tokens, every_logits
from longspan.runtime.room import Room
from longspan.runtime.sampling import Sampler
from longspan.runtime.tokens import Tokenizer
from longspan.sizes import parse_bytes


class LoadedModel:
    """A loaded bundle; close it, or use it in a `with`.

    Attributes:
        bundle: what was loaded.
        plan: where the budget's bytes go.
        draft: the model that drafts answers, which are the same in fewer passes; or None.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        backend: Backend,
        watch: BudgetWatch,
        stack: ExitStack,
        draft: Draft | None = None,
    ) -> None:
        self.bundle = bundle
        self.plan = plan
        self.draft = draft
        self._loaded: Backend | None = backend
        self._engine = backend.engine
        self._vocab_size = bundle.manifest.config.vocab_size
        self._watch = watch
        self._stack = stack
        self._prefill = Tally()
        self._decode = Tally()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; what needs it raises `BadInput` after, plan and measurements stay."""
        self._loaded = None
        self._stack.close()

    @property
    def _backend(self) -> Backend:
        if self._loaded is None:
            raise BadInput(
                "The runtime is closed, and its model is freed. Load the bundle again with "
                "longspan.load, or ask inside the `with`."
            )
        return self._loaded

    def set_budget(self, budget: str | int) -> Plan:
        """Hold no more than `budget` from now on; the model stays, chunks become shorter or longer.

        Caches keep their capacity, and memories that were read stay good.

        Args:
            budget: bytes of the whole process on its device, as ``"512MiB"``.

        Returns:
            The plan from now on.

        Raises:
            BadInput: it is no size.
            DoesNotFit: not even the smallest chunk fits it; nothing changed.
        """
        plan = replanned(self.plan, self.bundle.manifest, parse_bytes(budget))
        require_fit(plan)
        self._backend.release(plan.budget_bytes)
        self.plan, self._watch.budget_bytes = plan, plan.budget_bytes
        return plan

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """After a refusal, free what the refused call held, and say what to do.

        Raises:
            BudgetExceeded: as what was called, and what is held now.
        """
        try:
            yield
        except BudgetExceeded as error:
            _clear(error)
            self._backend.release(self.plan.budget_bytes)
            raise BudgetExceeded(
                f"{error} {self._watch.after_refusal()} Read in smaller chunks with chunk_tokens "
                f"below {self.plan.chunk_tokens:,}, or give a larger budget."
            ) from error

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._engine

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
        # No id: anchors take less room than other tokens.
        room.after(np.full(tokens, -1)).require(f"An answer of {tokens:,} tokens")
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
        return lambda: self._backend.from_arrays(memory.state)

    def _room(self, memory: Memory | None) -> Room:
        manifest = self.bundle.manifest
        if memory is not None:
            check_memory(memory, manifest)
        state = None if memory is None else memory.state
        if self.plan.cache_dtype is not None:
            manifest = held_in_int8(manifest, self.engine)
        return Room.of(manifest, self.plan.capacity, state)

    def _decoding(
        self, sampler: Sampler, ending: Ending, rng: np.random.Generator, room: Room
    ) -> Decoding:
        def get_backend() -> Backend:
            return self._backend

        get_backend()  # refuses a closed runtime before the answer is asked for
        return Decoding(get_backend=get_backend, sampler=sampler, rng=rng, ending=ending, room=room)

    def _count(self, decoding: Decoding) -> None:
        self._decode.add(decoding.steps, decoding.seconds)
        self._watch.peak()


def _clear(error: BaseException) -> None:
    """Drop the locals of the frames that an error went through: they hold a chunk's tensors."""
    seen: BaseException | None = error
    while seen is not None:
        clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
