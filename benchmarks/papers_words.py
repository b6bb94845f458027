"""Perplexity, bits per byte and the bytes of the state, by length, through longspan's runtime.

    row = words(runtime, material, length=32_768, tokens=65_536)
    row["nats_a_token"], row["perplexity"], row["bits_a_byte"]

Every length reads the same text, in windows of that length: what differs is how much of it a token
has before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from papers_documents import Material, Tokens, windows
from papers_recall import Row, memory_facts

from longspan.runtime.memory import Memory
from longspan.runtime.runtime import Runtime


def nats(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """The sum of the losses of the second and all later of `tokens` [L] under logits [L, V]."""
    loss = torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[1:], reduction="sum")
    return float(loss)


def words(runtime: Runtime, material: Material, *, length: int, tokens: int) -> Row:
    """The mean loss of a text of `tokens` tokens, read in windows of `length` from a zero state.

    Raises:
        ValueError: the text has not one window.
    """
    started, loss, counted, said = time.perf_counter(), 0.0, 0, 0
    for window in windows(material.ids, length, tokens):
        logits = torch.from_numpy(runtime.logits(window))
        loss += nats(logits, torch.from_numpy(window))
        counted += length - 1
        said += len(material.tokenizer.decode(window[1:].tolist()).encode())
    if not counted:
        raise ValueError(
            f"perplexity at {length:,} tokens was asked for; the text has {len(material.ids):,}. "
            "Ask for shorter ones."
        )
    return {
        "what": "words",
        "tokens": length,
        "text_tokens": counted,
        "text_bytes": said,
        "nats_a_token": loss / counted,
        "perplexity": math.exp(loss / counted),
        "bits_a_byte": loss / math.log(2) / said,
        "seconds": time.perf_counter() - started,
    } | memory_facts(runtime)


def state_bytes(memory: Memory) -> int:
    """Bytes of a memory's state, entries of caches in use alone."""
    return sum(array.nbytes for array in memory.state.values())


def cached_bytes(memory: Memory) -> int:
    """Bytes of its keys and values alone."""
    names = ("k", "v", "k_scale", "v_scale")
    return sum(
        array.nbytes for name, array in memory.state.items() if name.rpartition(".")[2] in names
    )


def growth(runtime: Runtime, material: Material, lengths: Sequence[int]) -> Iterator[Row]:
    """One document that is read on to each length: bytes of state and cache, seconds of reading."""
    memory: Memory | None = None
    read, seconds = 0, 0.0
    for length in sorted(lengths):
        started = time.perf_counter()
        memory = runtime.read_tokens([material.filler(read, length - read)], memory=memory)
        seconds += time.perf_counter() - started
        read = length
        yield {
            "what": "state",
            "tokens": length,
            "state_bytes": state_bytes(memory),
            "cached_bytes": cached_bytes(memory),
            "read_seconds": seconds,
        } | memory_facts(runtime)


def step_ms(runtime: Runtime, memory: Memory, steps: int) -> float:
    """Milliseconds of a step after a memory, beyond what an answer begins with."""
    runtime.decode_seconds(memory, 2)
    shorter = runtime.decode_seconds(memory, steps)
    return 1e3 * (runtime.decode_seconds(memory, 2 * steps) - shorter) / steps


def timed_read(runtime: Runtime, tokens: Tokens) -> float:
    """Seconds of reading `tokens` into a new memory, the second time."""
    runtime.read_tokens([tokens])
    started = time.perf_counter()
    runtime.read_tokens([tokens])
    return time.perf_counter() - started
