"""How many anchors a budget holds: the arithmetic of ``--anchors every=auto``.

With an anchor every N tokens, a document of T tokens takes about T / N + N entries: its anchors and
one segment. That is least at N = sqrt(T); below it, a smaller N keeps more anchors and takes more.

    chosen = choose_interval(manifest, tokens=262_144, budget="12GiB")
    chosen.every, chosen.entries
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from math import isqrt

from longspan.bundle import Manifest
from longspan.engines import Engine
from longspan.errors import DoesNotFit
from longspan.models.config.cache_use import Segments
from longspan.runtime.backends.choice import choose_engine
from longspan.runtime.budget import Budget
from longspan.runtime.plan import RESERVE_ENTRIES, Plan, make_plan
from longspan.runtime.plan_items import MIB
from longspan.sizes import format_bytes

# With an anchor at every token, no token would see another.
LEAST_INTERVAL = 2
# What a process holds before any model differs by up to 1 MiB from one to the next on the CPU: a
# document that fits here must fit there.
SPREAD_BYTES = 4 * MIB


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
    manifest: Manifest, *, tokens: int, budget: str | int, tokenizer_file_bytes: int = 0
) -> Interval:
    """The smallest interval, and so the most anchors, with which a document fits this machine.

    Args:
        manifest: of the bundle, whose layers have an anchor every so many tokens, whatever many.
        tokens: length of the document, >= 1.
        budget: what the process that reads it may hold, on the device that reads by default.
        tokenizer_file_bytes: size of the bundle's tokenizer file.

    Raises:
        BadInput: `budget` is no size.
        DoesNotFit: the document fits with no interval; with the arithmetic.
    """
    engine = choose_engine(device="auto", backend="auto").engine
    limit, baseline_bytes = Budget(budget), _baseline_bytes(engine) + SPREAD_BYTES

    def plan_for(entries: int) -> Plan:
        return make_plan(
            manifest,
            engine=engine,
            budget_bytes=limit.bytes,
            baseline_bytes=baseline_bytes,
            tokens=tokens,
            cache_entries=entries,
            tokenizer_file_bytes=tokenizer_file_bytes,
        )

    needed = {every: _entries(every, tokens) for every in _candidates(tokens)}
    best = min(needed, key=lambda every: (needed[every], abs(every * every - tokens)))
    plan = plan_for(needed[best])
    most = plan.most_entries or 0
    for every, entries in needed.items():
        if entries <= most:
            return Interval(
                every=every,
                tokens=tokens,
                entries=entries,
                most_entries=most,
                budget=limit,
                engine=engine,
            )
    together, each = needed[best] + RESERVE_ENTRIES, manifest.cache_entry_bytes
    least = f"{-(-plan.smallest_budget_bytes // MIB)}MiB"
    raise DoesNotFit(
        f"every=auto was asked for, for {tokens:,} tokens and a budget of {limit}. An anchor every "
        f"N tokens takes tokens / N + N entries, about; least of all N = {best:,}: "
        f"{needed[best]:,} entries and {RESERVE_ENTRIES:,} for a question and its answer, "
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


def _baseline_bytes(engine: Engine) -> int:
    """What a process that reads holds before the model: a fresh one, since this one exports."""
    # The command line is among it.
    code = (
        "import longspan.cli; from longspan.runtime.baseline import measure_baseline; "
        f"print(measure_baseline({engine!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)
