"""What a caller may get wrong in Python: each is refused, and the next call works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import fake_bundle, fake_runtime
from tokenizers_ import SOURCE

from longspan.builtin import builtin_bundle
from longspan.bundle import Bundle, ChunkBytes
from longspan.errors import BadDocument, BadInput, BadMemory
from longspan.runtime.loaded import Runtime
from longspan.runtime.memory import Memory
from longspan.runtime.runtime import load, plan_bundle

TEXT = SOURCE[:400]
CLOSED = (
    "The runtime is closed, and its model is freed. Load the bundle again with longspan.load, or "
    "ask inside the `with`."
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path, chunk_bytes={"onnx-cpu": (ChunkBytes(per_token=2**10),)})


@pytest.mark.parametrize("call", [load, plan_bundle])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"device": "tpu"},
            "device is 'tpu', which is unknown. It must be one of 'auto', 'cpu', 'cuda'.",
        ),
        (
            {"backend": "jax"},
            "backend is 'jax', which is unknown. It must be one of 'auto', 'torch', 'onnx'.",
        ),
        (
            {"cache_dtype": "int4"},
            "cache_dtype is 'int4', which is unknown. It must be one of None, 'auto', 'int8'.",
        ),
    ],
)
def test_names_that_are_unknown(
    bundle: Bundle, call: Callable[..., Any], wrong: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput) as refusal:
        call(bundle, **wrong)
    assert str(refusal.value) == message


def test_the_bundle_that_ships_has_the_name_that_it_has_on_the_command_line() -> None:
    named = plan_bundle("builtin", budget="1GiB", device="cpu", backend="onnx")
    assert (
        named.chunk_tokens
        == plan_bundle(builtin_bundle(), budget="1GiB", device="cpu").chunk_tokens
    )


@pytest.mark.parametrize("threads", [0, -3])
def test_threads(bundle: Bundle, threads: int) -> None:
    with pytest.raises(BadInput) as refusal:
        load(bundle, threads=threads)
    assert str(refusal.value) == (
        f"threads is {threads}; it must be 1 or more. Leave it out for all cores."
    )


@pytest.mark.parametrize("source", [5, None, b"It rained.", bytearray(b"It rained.")])
def test_what_is_no_document(bundle: Bundle, source: Any) -> None:
    with fake_runtime(bundle) as runtime:
        with pytest.raises(BadDocument) as refusal:
            runtime.read(source)
        assert str(refusal.value) == (
            f"A document was expected, and found {source!r}. Give a text, a path, a list of them, "
            "or an iterator of text; decode bytes first."
        )
        assert runtime.read(TEXT).tokens > 0


@pytest.mark.parametrize("memory", ["book.span", Path("book.span"), 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda runtime, memory: runtime.ask(memory, "Who?"),
        lambda runtime, memory: runtime.read(TEXT, memory=memory),
    ],
)
def test_what_is_no_memory(
    bundle: Bundle, call: Callable[[Runtime, Any], Any], memory: Any
) -> None:
    with fake_runtime(bundle) as runtime:
        with pytest.raises(BadMemory) as refusal:
            call(runtime, memory)
        assert str(refusal.value) == (
            f"A memory was expected, and found {memory!r}. Read a document with runtime.read, or "
            "open a .span file with runtime.open."
        )


def test_a_source_that_fails_leaves_the_runtime_as_it_was(bundle: Bundle) -> None:
    def pieces() -> Iterator[str]:
        yield TEXT * 50
        raise ConnectionError("gone")

    with fake_runtime(bundle) as runtime:
        before = runtime.read(TEXT)
        with pytest.raises(ConnectionError, match="gone"):
            runtime.read(pieces())
        after = runtime.read(TEXT)
        assert (after.last_logits == before.last_logits).all()


def test_a_progress_that_fails_leaves_the_runtime_as_it_was(bundle: Bundle) -> None:
    def fail(progress: Any) -> None:
        raise ZeroDivisionError(progress.tokens)

    with fake_runtime(bundle) as runtime:
        with pytest.raises(ZeroDivisionError):
            runtime.read(TEXT * 50, on_progress=fail)
        assert runtime.read(TEXT).tokens > 0


def test_one_text_may_end_an_answer(bundle: Bundle) -> None:
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(TEXT)
        one = runtime.ask(memory, TEXT[:40], stop="ing", max_tokens=40)
        several = runtime.ask(memory, TEXT[:40], stop=["ing"], max_tokens=40)
        assert one.read() == several.read()
        assert one.finish == several.finish


@pytest.mark.parametrize(
    "call",
    [
        lambda runtime, memory: runtime.read(TEXT),
        lambda runtime, memory: runtime.read(TEXT, memory=memory),
        lambda runtime, memory: runtime.ask(memory, "Who?"),
        lambda runtime, memory: runtime.logits([1, 2]),
        lambda runtime, memory: runtime.decode_seconds(memory, 2),
        lambda runtime, memory: runtime.set_budget("80GiB"),
    ],
)
def test_a_closed_runtime(bundle: Bundle, call: Callable[[Runtime, Memory], Any]) -> None:
    with fake_runtime(bundle) as runtime:
        memory = runtime.read(TEXT)
        later = runtime.ask(memory, "Who?")
    for _ in range(2):
        runtime.close()
        with pytest.raises(BadInput) as refusal:
            call(runtime, memory)
        assert str(refusal.value) == CLOSED
    with pytest.raises(BadInput) as refusal:
        later.read()
    assert str(refusal.value) == CLOSED
    assert runtime.plan.total_bytes > 0
    assert runtime.engine == "onnx-cpu"
    assert runtime.measured.peak_bytes > 0


@pytest.mark.parametrize("tokens", [0, 2])
def test_an_answer_whose_runtime_is_closed_ends_in_a_message(bundle: Bundle, tokens: int) -> None:
    with fake_runtime(bundle) as runtime:
        answer = runtime.ask(runtime.read(TEXT), TEXT[:40], max_tokens=40)
        pieces = iter(answer)
        for _ in range(tokens):
            next(pieces)
    with pytest.raises(BadInput) as refusal:
        next(pieces)
    assert str(refusal.value) == CLOSED
    assert answer.finish == "cancelled"
