"""How many anchors a budget holds: the arithmetic of ``--anchors every=auto``.

With an anchor every N tokens, a document of T tokens takes about T / N + N entries: its anchors and
one segment. That is least at N = sqrt(T); below it, a smaller N keeps more anchors and takes more.

    chosen = choose_interval(describe, tokens=262_144, budget="12GiB")
    chosen.every, chosen.entries
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from longspan.bundle import TOKENIZER, Manifest, file_sha256, write_manifest
from longspan.engines import Engine
from longspan.errors import BadInput, DoesNotFit
from longspan.models.config.cache_use import Segments
from longspan.runtime.budget import Budget
from longspan.runtime.plan_entries import RESERVE_TOKENS
from longspan.runtime.plan_items import MIB
from longspan.sizes import format_bytes

# With an anchor at every token, no token would see another.
LEAST_INTERVAL = 2
# What a process holds before any model differs from one to the next (by 0.2 MiB on a CPU): a
# document that fits here must fit there.
SPREAD_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What was chosen, and for what.

    Attributes:
        every: tokens from one anchor to the next, N.
        tokens: of the document.
        entries: that it takes in each cache.
        most_entries: that the budget holds for a document.
        budget: the budget.
        engine: that it was divided for.
    """

    every: int
    tokens: int
    entries: int
    most_entries: int
    budget: Budget
    engine: Engine

    def text(self) -> str:
        """The arithmetic in words."""
        words = (
            f"An anchor every {self.every:,} tokens: {self.tokens:,} tokens take {self.entries:,} "
            f"entries, of {self.most_entries:,} that {self.budget} hold on {self.engine}."
        )
        if self.tokens > self.most_entries:
            return words
        return f"{words} They hold every token, too: without --anchors nothing is dropped."


def choose_interval(
    describe: Callable[[int], Manifest],
    *,
    tokens: int,
    budget: str | int,
    tokenizer: bytes | None = None,
) -> Interval:
    """The smallest interval, and so the most anchors, with which a document fits this machine.

    Args:
        describe: gives the manifest of the bundle with an anchor every so many tokens.
        tokens: length of the document, >= 1.
        budget: what the process that reads it may hold, on the device that reads by default.
        tokenizer: content of the bundle's tokenizer file; None without one.

    Raises:
        BadInput: `budget` is no size, or the machine's default device cannot be used.
        DoesNotFit: the document fits with no interval; with the arithmetic.
    """
    read = tokens + RESERVE_TOKENS
    needed = {every: _entries(every, read) for every in _candidates(read)}
    # Of equals, the one nearest to the square root.
    best = min(needed, key=lambda every: (needed[every], abs(every * every - read)))
    limit, manifest = Budget(budget), describe(best)
    plan = _planned(manifest, tokenizer, tokens, max(1, limit.bytes - SPREAD_BYTES))
    most, engine = plan["most_entries"], plan["engine"]
    entries, together, each = _entries(best, tokens), needed[best], manifest.cache_entry_bytes
    room = most + together - entries
    for every, taken in needed.items():
        if taken <= room:
            alone = _entries(every, tokens)
            return Interval(
                every=every,
                tokens=tokens,
                entries=alone,
                most_entries=room - (taken - alone),
                budget=limit,
                engine=engine,
            )
    least = f"{-(-(plan['smallest_budget_bytes'] + SPREAD_BYTES) // MIB)}MiB"
    raise DoesNotFit(
        f"every=auto was asked for, for {tokens:,} tokens and a budget of {limit}. An anchor every "
        f"N tokens takes tokens / N + N entries, about; least of all N = {best:,}: "
        f"{entries:,} entries and {together - entries:,} for a question and its answer, "
        f"{together:,} x {each:,} bytes = {format_bytes(together * each)} a copy. Beside the "
        f"model, {engine} has room for {most:,} entries of a document. The smallest budget that "
        f"would do is {least}. Give --budget {least}, or fewer --tokens."
    )


def _candidates(tokens: int) -> range:
    """Intervals worth trying: beyond the square root of the length, entries only grow."""
    return range(LEAST_INTERVAL, max(LEAST_INTERVAL, isqrt(tokens)) + 2)


def _entries(every: int, tokens: int) -> int:
    entries = Segments(anchor_every=every).most_after(tokens)
    assert entries is not None, "without ids, the length tells the entries"
    return entries


def _planned(
    manifest: Manifest, tokenizer: bytes | None, tokens: int, budget_bytes: int
) -> dict[str, Any]:
    """What ``longspan plan --fit`` says: in a process of its own, since this one exports."""
    with tempfile.TemporaryDirectory() as folder:
        path, files = Path(folder), {}
        if tokenizer is not None:
            (path / TOKENIZER).write_bytes(tokenizer)
            files[TOKENIZER] = file_sha256(path / TOKENIZER)
        write_manifest(path, replace(manifest, files=files))
        sizes = ["--tokens", str(tokens), "--budget", str(budget_bytes)]
        command = [sys.executable, "-m", "longspan", "plan", folder, *sizes, "--fit", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, DoesNotFit.exit_code):
        raise BadInput(f"every=auto needs a plan, and there is none: {done.stderr.strip()}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
