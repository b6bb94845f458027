"""What the five papers claim, what is asked of longspan's own small models, and what was found.

    for claim in CLAIMS:
        found = claim.ours(results)      # None where it was not measured
        found.text, found.holds

Figures are the papers' own; their sources stand beside them. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from papers_results import Results, Row, share

from longspan.sizes import format_bytes

PAPERS = {
    "samba": "Samba (arXiv 2406.07522)",
    "mambabyte": "MambaByte (arXiv 2401.13660)",
    "mixcon": "MixCon (ECAI 2024)",
    "mamba2": "Mamba-2 (arXiv 2405.21060)",
    "anllm": "AnLLM (arXiv 2402.07616)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured for a claim.

    Attributes:
        text: for people.
        holds: whether the bar is reached; None where there is no bar.
        runs: numbers of the runs that it comes from.
    """

    text: str
    holds: bool | None
    runs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of a table.

    Attributes:
        name: in the notes file.
        paper: a key of `PAPERS`.
        says: the claim.
        figure: the paper's, with its source.
        bar: what ours must reach.
        systems: whose training it rests on.
        ours: what was found.
    """

    name: str
    paper: str
    says: str
    figure: str
    bar: str
    systems: tuple[str, ...]
    ours: Callable[[Results], Found | None]


def found(text: str, holds: bool | None, *rows: Row) -> Found:
    """What was found, and in which runs."""
    return Found(text=text, holds=holds, runs=tuple(sorted({row["run"] for row in rows})))


def exact(row: Row) -> str:
    """Exact answers for people."""
    return f"{row['exact']} of {row['trials']}"


def passkey(tokens: int, least: float) -> Callable[[Results], Found | None]:
    """Samba's keys at a length, over all depths."""

    def ours(results: Results) -> Found | None:
        row = results.one("recall", system="samba", task="passkey", tokens=tokens)
        if row is None:
            return None
        return found(f"{exact(row)} ({share([row]):.1%})", share([row]) >= least, row)

    return ours


def baseline(results: Results) -> Found | None:
    """Keys of window attention alone, over all lengths."""
    rows = results.of("recall", system="window", task="passkey")
    if not rows:
        return None
    total = sum(row["trials"] for row in rows)
    right = sum(row["exact"] for row in rows)
    return found(f"{right} of {total} ({share(rows):.1%})", share(rows) < 0.4, *rows)


def perplexity(results: Results) -> Found | None:
    """Samba's words at 4K and 32K."""
    rows = results.of("words", system="samba")
    at = {row["tokens"]: row for row in rows}
    if not {4096, 32_768} <= set(at):
        return None
    text = ", ".join(f"{row['perplexity']:.2f} at {row['tokens']:,}" for row in rows)
    return found(text, at[32_768]["perplexity"] <= at[4096]["perplexity"], *rows)


def full_attention_words(results: Results) -> Found | None:
    """Words of full attention from its training length of 2,048 on."""
    rows = [row for row in results.of("words", system="llama") if row["tokens"] >= 2048]
    if len(rows) < 2:
        return None
    text = ", ".join(f"{row['perplexity']:.2f} at {row['tokens']:,}" for row in rows)
    return found(text, rows[-1]["perplexity"] > rows[0]["perplexity"], *rows)


def task(system: str, name: str) -> Callable[[Results], Found | None]:
    """Answers of a system to a task; the papers have no figure at these lengths."""

    def ours(results: Results) -> Found | None:
        rows = results.of("recall", system=system, task=name)
        text = ", ".join(f"{share([row]):.1%} at {row['tokens']:,}" for row in rows)
        return found(text, None, *rows) if rows else None

    return ours


def bits(results: Results) -> Found | None:
    """Bits per byte of MambaByte and MegaByte, and what each cost."""
    pair = results.pair("bytes", "mambabyte", "megabyte")
    if pair is None:
        return None
    mamba, mega = pair
    text = f"{mamba['bits_a_byte']:.3f} against {mega['bits_a_byte']:.3f}"
    flops = mega["flops_per_byte"] / mamba["flops_per_byte"]
    text += f"; FLOPs a byte, MegaByte over MambaByte: {flops:.2f}"
    read = [results.training.get(name, {}).get("tokens", 0) for name in ("mambabyte", "megabyte")]
    text += f"; trained on {read[0] / 1e6:,.0f}M against {read[1] / 1e6:,.0f}M bytes"
    return found(text, mamba["bits_a_byte"] < mega["bits_a_byte"], *pair)


def generation(pair: str) -> Callable[[Results], Found | None]:
    """Milliseconds a byte; `pair` is how the rows' own begins."""

    def ours(results: Results) -> Found | None:
        named = {str(row["pair"]) for row in results.of("generation")}
        for name in sorted(each for each in named if each.startswith(pair)):
            rows = results.pair("generation", "mambabyte", "megabyte", pair=name)
            if rows is not None:
                fast, slow = (row["ms_a_byte"] for row in rows)
                text = (
                    f"{slow / fast:.2f}x: {fast:.3f} ms a byte ({rows[0]['engine']}) against "
                    f"{slow:.3f} ms (eager {rows[1]['engine']})"
                )
                return found(text, slow / fast >= 2.6, *rows)
        return None

    return ours


def computed(results: Results) -> Found | None:
    """Bytes of keys and values at the paper's sizes."""
    rows = results.of("computed cache")
    by_name = {row["system"]: row["cached_bytes"] for row in rows}
    few = [value for name, value in by_name.items() if "2 heads" in name]
    if not rows or not few:
        return None
    text = "; ".join(f"{name}: {format_bytes(value)}" for name, value in by_name.items())
    return found(text, min(few) <= 2 * 2**30 < 32 * 2**30 <= max(by_name.values()), *rows)


def cache(results: Results) -> Found | None:
    """Bytes of trained MixCon's keys and values beside those of attention alone."""
    pairs = results.pairs("state", "mixcon", "llama")
    if not pairs:
        return None
    mine, theirs = pairs[-1]
    times = theirs["cached_bytes"] / mine["cached_bytes"]
    text = (
        f"at {mine['tokens']:,} tokens {format_bytes(mine['cached_bytes'])} of keys and values "
        f"against {format_bytes(theirs['cached_bytes'])} ({times:.1f}x); whole states "
        f"{format_bytes(mine['state_bytes'])} and {format_bytes(theirs['state_bytes'])}"
    )
    return found(text, times > 1, mine, theirs)


def throughput(results: Results) -> Found | None:
    """Tokens a second of MixCon beside attention of equal active size."""
    pair = results.pair("throughput", "mixcon", "attention")
    if pair is None:
        return None
    mine, theirs = pair
    times = mine["tokens_per_second"] / theirs["tokens_per_second"]
    answers = theirs["step_ms"] / mine["step_ms"]
    text = (
        f"{times:.2f}x of prompt and answer together; reading "
        f"{theirs['read_seconds'] / mine['read_seconds']:.2f}x, answering {answers:.2f}x; "
        f"{mine['active_parameters'] / 1e6:,.0f}M and "
        f"{theirs['active_parameters'] / 1e6:,.0f}M parameters active"
    )
    return found(text, times > 1, *pair)


def beside(
    first: str, second: str, name: str, over: int | None = None
) -> Callable[[Results], Found | None]:
    """A task's answers of two systems at all lengths up to `over`, the first the better."""

    def ours(results: Results) -> Found | None:
        pairs = results.pairs("recall", first, second, task=name)
        pairs = [pair for pair in pairs if over is None or pair[0]["tokens"] <= over]
        if not pairs:
            return None
        text = ", ".join(
            f"{share([a]):.1%} against {share([b]):.1%} at {a['tokens']:,}" for a, b in pairs
        )
        better = share([a for a, _ in pairs]) > share([b for _, b in pairs])
        return found(text, better, *(row for pair in pairs for row in pair))

    return ours


def kernels(results: Results) -> Found | None:
    """The scan of Mamba-2 beside that of Mamba."""
    rows = results.of("kernel ratio")
    if not rows:
        return None
    text = ", ".join(f"{row['ratio']:.1f}x at {row['tokens']:,}" for row in rows)
    text += "; both scans longspan's, at N = 64 (docs/measurements.md)"
    return found(text, min(row["ratio"] for row in rows) >= 2, *rows)


def cut(kind: str, least: float | None) -> Callable[[Results], Found | None]:
    """How much of a cache anchors leave away."""

    def ours(results: Results) -> Found | None:
        pairs = (
            results.pairs("state", "anllm", "anllm-full")[-1:]
            if kind == "document"
            else results.pairs("five-shot", "anllm", "anllm-full", kind=kind)
        )
        if not pairs:
            return None
        mine, theirs = pairs[0]
        saved = 1 - mine["cached_bytes"] / theirs["cached_bytes"]
        text = (
            f"{saved:.1%}: {format_bytes(mine['cached_bytes'])} against "
            f"{format_bytes(theirs['cached_bytes'])}, {mine['tokens']:,} tokens"
        )
        return found(text, None if least is None else saved >= least, mine, theirs)

    return ours


def anchored_speed(results: Results) -> Found | None:
    """Seconds of a five-shot prompt and its answer, beside no cache and a full one."""
    pair = results.pair("five-shot", "anllm", "anllm-full", kind="an anchor a sentence")
    if pair is None or pair[1]["uncached_seconds"] is None:
        return None
    mine, theirs = pair
    times = theirs["uncached_seconds"] / mine["seconds"]
    text = (
        f"{times:.2f}x no cache, {theirs['seconds'] / mine['seconds']:.2f}x a full cache: "
        f"{1e3 * mine['seconds']:.1f} ms against {1e3 * theirs['uncached_seconds']:.1f} and "
        f"{1e3 * theirs['seconds']:.1f} ms"
    )
    return found(text, times >= 3.5, *pair)


def document_speed(results: Results) -> Found | None:
    """Seconds of a long document, and of a step after it."""
    pair = results.pair("document", "anllm", "anllm-full")
    if pair is None:
        return None
    mine, theirs = pair
    text = (
        f"{mine['tokens']:,} tokens in {mine['read_seconds']:.2f} s against "
        f"{theirs['read_seconds']:.2f} s ({theirs['read_seconds'] / mine['read_seconds']:.2f}x); "
        f"a step {mine['step_ms']:.2f} against {theirs['step_ms']:.2f} ms"
    )
    return found(text, mine["read_seconds"] < theirs["read_seconds"], *pair)


def accuracy(baseline: str) -> Callable[[Results], Found | None]:
    """Exact answers through anchors and of a full cache, over all tasks that both were asked."""

    def ours(results: Results) -> Found | None:
        pairs = [
            pair
            for name in ("passkey", "needles", "mary")
            for pair in results.pairs("recall", "anllm", baseline, task=name)
        ]
        if not pairs:
            return None
        mine, theirs = (share([pair[i] for pair in pairs]) for i in (0, 1))
        parts = ", ".join(
            f"{a['task']} at {a['tokens']:,}: {share([a]):.1%} and {share([b]):.1%}"
            for a, b in pairs
        )
        text = f"{mine:.1%} through anchors, {theirs:.1%} with a full cache ({parts})"
        # Where a full cache answers little, nothing is shown.
        holds = theirs >= 0.5 and theirs - mine <= 0.015
        return found(text, holds, *(row for pair in pairs for row in pair))

    return ours
