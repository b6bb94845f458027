"""A bundle for the fake backend, with a manifest and a tokenizer, and a runtime on it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers_ import byte_level, save

from longspan.bundle import TOKENIZER, WEIGHTS, Bundle, Manifest, Prompt, file_sha256
from longspan.errors import BudgetExceeded
from longspan.models.config import ModelConfig
from longspan.runtime.backends import Backend, State
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.drafting import Draft
from longspan.runtime.loaded import Runtime
from longspan.runtime.measured import BudgetWatch
from longspan.runtime.plan import Plan
from longspan.runtime.plan_items import PlanItem
from longspan.tensors import TensorSpec

VOCABULARY = 700
GIB = 2**30


def fake_manifest(vocab_size: int = VOCABULARY, **changes: Any) -> Manifest:
    """What a bundle of `FakeBackend` says."""
    manifest = Manifest(
        config=ModelConfig(family="fake", vocab_size=vocab_size, d_model=1, layers=()),
        dtype="float32",
        parameters=0,
        weight_bytes=0,
        state=(
            TensorSpec(name="last", shape=(1,), dtype="int64"),
            TensorSpec(name="follower", shape=(vocab_size,), dtype="int64"),
            TensorSpec(name="position", shape=(1,), dtype="int64"),
        ),
        chunk_bytes={},
        prompt=Prompt(template="{question}", stop=()),
        files={WEIGHTS: "0" * 64},
        source={},
    )
    return replace(manifest, **changes)


def fake_bundle(folder: Path, *, tokenizer: bool = True, **changes: Any) -> Bundle:
    """A bundle that only `FakeBackend` can run."""
    files = {WEIGHTS: "0" * 64}
    if tokenizer:
        files[TOKENIZER] = file_sha256(save(byte_level(), folder / TOKENIZER))
    return Bundle(path=folder, manifest=fake_manifest(**{"files": files, **changes}))


def byte_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle that only `FakeBackend` can run, whose tokens are bytes."""
    return Bundle(path=folder, manifest=fake_manifest(256, tokenizer="bytes", **changes))


def cached_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle that only a `FakeBackend` with a capacity can run."""
    config = FakeBackend(VOCABULARY, capacity=0).config
    state = (*fake_manifest().state, *config.state_layout("float32"))
    return fake_bundle(folder, config=config, state=state, **changes)


@contextmanager
def fake_runtime(
    bundle: Bundle,
    *,
    chunk_tokens: int = 64,
    backend: Backend | None = None,
    budget_bytes: int = 64 * GIB,
    capacity: int = 0,
    draft: Draft | None = None,
) -> Iterator[Runtime]:
    """A runtime on `FakeBackend`, or on another backend."""
    plan = fake_plan(chunk_tokens, budget_bytes, capacity)
    with ExitStack() as stack:
        watch = stack.enter_context(BudgetWatch("cpu", budget_bytes))
        vocab_size, cached = bundle.manifest.config.vocab_size, bundle.manifest.cache_entry_bytes
        model = backend or FakeBackend(vocab_size, capacity=capacity if cached else None)
        stack.callback(model.close)
        with Runtime(bundle, plan, model, watch, stack.pop_all(), draft) as runtime:
            yield runtime


def fake_plan(chunk_tokens: int, budget_bytes: int = 64 * GIB, capacity: int = 0) -> Plan:
    """A plan of one item."""
    return Plan(
        engine="onnx-cpu",
        budget_bytes=budget_bytes,
        chunk_tokens=chunk_tokens,
        items=(PlanItem(name="all", bytes=GIB),),
        smallest_budget_bytes=GIB,
        fastest_budget_bytes=GIB,
        capacity=capacity,
    )


def fake_draft(bundle: Bundle, backend: Backend | None = None, *, chunk_tokens: int = 64) -> Draft:
    """A draft model on `FakeBackend`, or on another backend."""
    model = backend or FakeBackend(bundle.manifest.config.vocab_size)
    return Draft(bundle=bundle, plan=fake_plan(chunk_tokens), backend=model)


class Recorder(FakeBackend):
    """Remembers each call, and may stop one of them.

    Attributes:
        lengths: tokens of each call.
        kept: positions that each call wanted.
        stop_at: the call in which Ctrl-C comes, counted from 1.
        stops: how often it comes.
        fail_at: the call that has no memory, counted from 1: its state is lost.
    """

    def __init__(
        self,
        vocab_size: int = VOCABULARY,
        *,
        stop_at: int | None = None,
        stops: int = 1,
        fail_at: int | None = None,
    ) -> None:
        super().__init__(vocab_size)
        self.lengths: list[int] = []
        self.kept: list[list[int]] = []
        self.stop_at, self.stops, self.fail_at = stop_at, stops, fail_at

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """As `FakeBackend` does."""
        self.lengths.append(len(tokens))
        self.kept.append(list(keep))
        if len(self.lengths) == self.fail_at:
            if donate:
                state.clear()
            raise BudgetExceeded("The chunk has no room.")
        if len(self.lengths) == self.stop_at:
            for _ in range(self.stops):
                signal.raise_signal(signal.SIGINT)
        return super().forward(tokens, state, keep=keep, donate=donate)


def same_state(one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]]) -> None:
    """Assert that two states are equal, name by name and bit by bit."""
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        np.testing.assert_array_equal(array, two[name], err_msg=name)
