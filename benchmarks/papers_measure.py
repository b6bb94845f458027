"""The measuring part of `papers.py`: one paper after another, rows of numbers, and what was not.

    for row in measured("samba", bundles, options): ...

A row says what it is (`what`, `system`, `task`, `tokens`), and what was found. A system without a
checkpoint, or that cannot be read within the budget, gives a row with `what` "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from papers_anllm import five_shot
from papers_bundles import MEGABYTE, SYSTEMS_OF, Bundles, checkpoint_of
from papers_bytes import (
    PROMPT_BYTES,
    load_megabyte,
    mambabyte_speed,
    mambabyte_words,
    megabyte_speed,
    megabyte_words,
    published_speeds,
)
from papers_documents import SYSTEMS, Material, Task
from papers_mixcon import computed_caches, throughput
from papers_recall import Row, passkeys, recall
from papers_words import growth, step_ms, timed_read, words

from longspan.engines import Device
from longspan.errors import LongspanError
from longspan.runtime.runtime import Runtime, load

TASK_TOKENS = (2048, 4096, 16_384, 65_536)
WORDS_TOKENS = (2048, 4096, 8192, 16_384, 32_768, 65_536)
STATE_TOKENS = (2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
# What models whose cache grows were trained on, and a little more.
CACHED_TOKENS = (512, 2048, 4096)
LONGEST_CACHE_WORDS = 16_384
PAPER_TOKENS, PROMPT_TOKENS, OUTPUT_TOKENS = 262_144, 131_072, 512
SHOTS, SHOT_TOKENS = 5, 256
FACTS = 8
BYTES_OF_A_TEXT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        data: the folder that `examples/train/text.py` wrote.
        device: where.
        budget: of the whole process, for trained checkpoints.
        random_budget: of the same, for random weights in a published shape.
        systems: of these alone.
        tokens: lengths of the pass-key documents; no other document is longer than the longest.
        depths, keys: places of a pass key, keys at each.
        documents: of each length of the other tasks.
        text_tokens: of the text whose perplexity is taken.
        byte_texts: texts of 8,192 bytes whose bits are counted.
        generated: bytes that are timed.
        shapes: whether random weights in published shapes are timed, too.
        seed: of facts and places.
    """

    data: Path
    device: Device
    budget: str
    random_budget: str
    systems: tuple[str, ...]
    tokens: tuple[int, ...]
    depths: int
    keys: int
    documents: int
    text_tokens: int
    byte_texts: int
    generated: int
    shapes: bool
    seed: int

    def up_to_longest(self, lengths: Sequence[int]) -> list[int]:
        """The lengths that are no longer than the longest; that one if all are."""
        longest = max(self.tokens)
        return [length for length in lengths if length <= longest] or [longest]


class Part:
    """What one paper's table needs: bundles, options, and the rows that they give."""

    def __init__(self, bundles: Bundles, options: Options) -> None:
        self.bundles, self.options = bundles, options

    def here(self, system: str) -> bool:
        """Whether a system is asked for and has a bundle."""
        return system in self.options.systems and system in self.bundles

    def material(self, system: str) -> Material:
        """Unseen text in the tokens that the system was trained on."""
        name = "mambabyte" if system == MEGABYTE else checkpoint_of(system)
        return Material.of(self.options.data, SYSTEMS[name].tokens)

    @contextmanager
    def runtime(self, system: str, tokens: int, chunk: int | None = None) -> Iterator[Runtime]:
        """A system's bundle, loaded under the budget for documents of `tokens`."""
        with load(
            self.bundles[system].path,
            budget=self.options.budget,
            tokens=tokens,
            device=self.options.device,
            chunk_tokens=chunk,
        ) as runtime:
            yield runtime

    def taught(self, system: str, tasks: Sequence[Task]) -> list[Task]:
        """Those of the tasks that the system was trained on; all where its notes say none."""
        known = self.bundles[system].training.get("tasks", tasks)
        return [task for task in tasks if task in known]

    def tasks(self, system: str, tasks: Sequence[Task], lengths: Sequence[int]) -> Iterator[Row]:
        """Needles and stories at each length, as far as the system was trained on them."""
        material, options = self.material(system), self.options
        lengths, tasks = options.up_to_longest(lengths), self.taught(system, tasks)
        if not tasks:
            return
        with self.runtime(system, max(lengths)) as runtime:
            for task in tasks:
                # Each of a document's needles is asked for.
                documents = options.documents // (4 if task == "needles" else 1)
                for length in lengths:
                    yield {"system": system} | recall(
                        runtime,
                        material,
                        task,
                        length=length,
                        documents=max(1, documents),
                        facts=FACTS,
                        seed=options.seed,
                    )

    def passkeys(self, system: str, lengths: Sequence[int]) -> Iterator[Row]:
        """The pass key at every depth and length."""
        material, options = self.material(system), self.options
        with self.runtime(system, max(lengths)) as runtime:
            for length in lengths:
                yield {"system": system} | passkeys(
                    runtime,
                    material,
                    length=length,
                    depths=options.depths,
                    keys=options.keys,
                    seed=options.seed,
                )

    def words(self, system: str, lengths: Sequence[int]) -> Iterator[Row]:
        """Perplexity at each length that the text has."""
        material, options = self.material(system), self.options
        most = min(options.text_tokens, len(material.ids))
        lengths = [n for n in options.up_to_longest(lengths) if n <= most]
        with self.runtime(system, max(lengths), chunk=min(2048, max(lengths))) as runtime:
            for length in lengths:
                yield {"system": system} | words(runtime, material, length=length, tokens=most)

    def growth(self, system: str) -> Iterator[Row]:
        """Bytes of the state at each length."""
        lengths = self.options.up_to_longest(STATE_TOKENS)
        with self.runtime(system, max(lengths)) as runtime:
            for row in growth(runtime, self.material(system), lengths):
                yield {"system": system} | row

    def each(self, systems: Sequence[str], work: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
        """The rows of `work` for each system that is here; why not, where one cannot be read."""
        for system in systems:
            if self.here(system):
                yield from attempted(system, work(system))


def attempted(system: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows until longspan refuses; then why."""
    try:
        yield from rows
    except LongspanError as error:
        yield {"what": "not measured", "system": system, "why": str(error)}


def samba(part: Part) -> Iterator[Row]:
    """Pass key and perplexity of Samba, its baselines beside it; needles and stories."""

    def work(system: str) -> Iterator[Row]:
        if system == "llama":
            yield from part.words(system, [n for n in WORDS_TOKENS if n <= LONGEST_CACHE_WORDS])
            return
        yield from part.passkeys(system, part.options.tokens)
        yield from part.words(system, WORDS_TOKENS)
        yield from part.growth(system)
        if system == "samba":
            yield from part.tasks(system, ("needles", "mary"), TASK_TOKENS)

    return part.each(SYSTEMS_OF["samba"], work)


def mambabyte(part: Part) -> Iterator[Row]:
    """Bits per byte and milliseconds a byte, of MambaByte and of MegaByte."""
    options, trained = part.options, "as trained"
    length = min(options.up_to_longest([BYTES_OF_A_TEXT]))

    def work(system: str) -> Iterator[Row]:
        material = part.material(system)
        prompt = material.filler(0, PROMPT_BYTES)
        if system == MEGABYTE:
            model = load_megabyte(part.bundles[system].path, options.device)
            fits = min(length, model.sizes.context_bytes)
            yield megabyte_words(
                model, material, length=fits, texts=options.byte_texts, device=options.device
            )
            room = model.sizes.context_bytes - PROMPT_BYTES - 2
            yield megabyte_speed(model, prompt, min(options.generated, room), trained)
            return
        with part.runtime(system, length) as runtime:
            yield mambabyte_words(runtime, material, length=length, texts=options.byte_texts)
            yield mambabyte_speed(runtime, prompt, options.generated, trained)

    # MegaByte is last: what torch holds then is none of longspan's budget.
    yield from part.each(SYSTEMS_OF["mambabyte"], work)
    if options.shapes:
        rows = published_speeds(options.device, options.generated, options.random_budget)
        yield from attempted("published sizes of MambaByte and MegaByte", rows)


def mixcon(part: Part) -> Iterator[Row]:
    """Caches computed and measured, speed at 128K, recall with and without attention."""

    def work(system: str) -> Iterator[Row]:
        yield from part.growth(system)
        if system != "llama":
            yield from part.passkeys(system, part.options.up_to_longest(CACHED_TOKENS))
            yield from part.tasks(system, ("needles", "mary"), CACHED_TOKENS)

    yield from computed_caches(PAPER_TOKENS)
    yield from part.each(SYSTEMS_OF["mixcon"], work)
    if part.options.shapes:
        rows = throughput(
            part.options.device,
            prompt=PROMPT_TOKENS,
            answer=OUTPUT_TOKENS,
            budget=part.options.random_budget,
        )
        yield from attempted("throughput of MixCon and attention", rows)


def mamba2(part: Part) -> Iterator[Row]:
    """Needles of Mamba-2 and of Mamba, and their states."""

    def work(system: str) -> Iterator[Row]:
        yield from part.tasks(system, ("needles",), TASK_TOKENS)
        yield from part.growth(system)

    return part.each(SYSTEMS_OF["mamba2"], work)


def anllm(part: Part) -> Iterator[Row]:
    """Caches, speed and accuracy of an AnLLM through its anchors and with a full cache."""

    def work(system: str) -> Iterator[Row]:
        options, material = part.options, part.material(system)
        if system == "llama":
            yield from part.passkeys(system, options.up_to_longest(CACHED_TOKENS[:2]))
            return
        anchor = SYSTEMS["anllm"].anchor
        assert anchor is not None, "an AnLLM has a token that stands for its segment"
        yield from part.passkeys(system, options.up_to_longest(CACHED_TOKENS[:2]))
        yield from part.tasks(system, ("needles", "mary"), CACHED_TOKENS[:2])
        yield from part.words(system, CACHED_TOKENS[:2])
        yield from part.growth(system)
        longest = max(options.up_to_longest(STATE_TOKENS[:-1]))
        with part.runtime(system, max(longest, 2 * SHOTS * SHOT_TOKENS)) as runtime:
            for row in five_shot(
                runtime,
                material,
                anchor,
                shots=SHOTS,
                length=SHOT_TOKENS,
                task=next(iter(part.taught(system, ("needles", "passkey"))), "passkey"),
                trials=max(2, options.documents // 2),
                seed=options.seed,
            ):
                yield {"system": system} | row
            document = material.filler(0, longest)
            yield {
                "what": "document",
                "system": system,
                "tokens": longest,
                "read_seconds": timed_read(runtime, document),
                "step_ms": step_ms(runtime, runtime.read_tokens([document]), 32),
            }

    return part.each(SYSTEMS_OF["anllm"], work)


PARTS: Mapping[str, Callable[[Part], Iterator[Row]]] = {
    "samba": samba,
    "mambabyte": mambabyte,
    "mixcon": mixcon,
    "mamba2": mamba2,
    "anllm": anllm,
}


def measured(paper: str, bundles: Bundles, options: Options) -> Iterator[Row]:
    """The rows of one paper's table, those that are missing among them."""
    for system in SYSTEMS_OF[paper]:
        if system in bundles.missing:
            yield {"what": "not measured", "system": system, "why": bundles.missing[system]}
    yield from PARTS[paper](Part(bundles, options))
