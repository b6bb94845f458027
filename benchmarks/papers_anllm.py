"""AnLLM beside itself with a full cache: bytes and seconds of five-shot prompts.

    for row in five_shot(runtime, material, anchor, shots=5, length=256, task="needles", ...): ...

A demonstration is filler with a fact, its question and its answer. Two prompts are read: with an
anchor after every sentence, as the model was trained; and with one at the end of each demonstration
alone, as the paper's prompts have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from papers_documents import Asked, Material, Story, Task, Tokens, stories
from papers_recall import Row, answered, memory_facts
from papers_words import cached_bytes

from longspan.runtime.memory import Memory
from longspan.runtime.runtime import Runtime

ANSWER_TOKENS = 8


def demonstration(material: Material, story: Story, length: int, start: int) -> Tokens:
    """Filler of about `length` tokens in all, the fact in its middle, question and answer."""
    asked = story.asked[0]
    said = material.encode(f"{asked.question} {asked.answer}\n")
    return np.concatenate([material.document(story, length, [0.5], start), said])


def prompts(
    material: Material,
    anchor: int,
    *,
    shots: int,
    length: int,
    number: int,
    seed: int,
    task: Task,
) -> dict[str, tuple[Tokens, Asked | None]]:
    """A prompt of `shots` demonstrations and a last text with its question, by its anchors."""
    told = stories(task, rows=shots + 1, facts=1, seed=seed)
    starts = [material.start(number * (shots + 1) + i, 1000, length) for i in range(shots + 1)]
    shown = [
        demonstration(material, story, length, start)
        for story, start in zip(told[:-1], starts, strict=False)
    ]
    last = material.document(told[-1], length, [0.5], starts[-1])
    each = [np.append(demo[demo != anchor], anchor) for demo in shown]
    asked = told[-1].asked[0]
    return {
        "an anchor a sentence": (np.concatenate([*shown, last]), asked),
        "an anchor a demonstration": (np.concatenate([*each, last[last != anchor]]), asked),
        "the demonstrations alone": (np.concatenate(each), None),
    }


def five_shot(
    runtime: Runtime,
    material: Material,
    anchor: int,
    *,
    shots: int,
    length: int,
    task: Task,
    trials: int,
    seed: int,
) -> Iterator[Row]:
    """Bytes of the cache after prompts, exact answers, and seconds of reading and answering.

    `uncached_seconds` is what the answer takes where nothing is kept: everything before is read
    anew for each of its tokens.
    """
    drawn = partial(prompts, material, anchor, shots=shots, length=length, task=task)
    for kind in drawn(number=0, seed=seed):
        exact, cached, tokens = 0, 0, 0
        seconds, uncached = [], []
        for trial in range(trials):
            prompt, asked = drawn(number=trial, seed=seed + trial)[kind]
            started = time.perf_counter()
            memory = runtime.read_tokens([prompt])
            if asked is not None:
                exact += answered(runtime, material, memory, asked)
            seconds.append(time.perf_counter() - started)
            cached, tokens = cached + cached_bytes(memory), tokens + len(prompt)
            if trial == 1:
                uncached.append(without_cache(runtime, prompt, memory))
        yield {
            "what": "five-shot",
            "kind": kind,
            "tokens": round(tokens / trials),
            "cached_bytes": round(cached / trials),
            "exact": exact,
            "trials": 0 if asked is None else trials,
            # The first trial warms up.
            "seconds": float(np.median(seconds[1:] or seconds)),
            "uncached_seconds": uncached[0] if uncached else None,
        } | memory_facts(runtime)


def without_cache(runtime: Runtime, prompt: Tokens, memory: Memory) -> float:
    """Seconds of `ANSWER_TOKENS` tokens, for each of which all before it is read from the start."""
    answer = int(memory.last_logits.argmax())
    started = time.perf_counter()
    for _ in range(ANSWER_TOKENS):
        prompt = np.append(prompt, answer)
        answer = int(runtime.read_tokens([prompt]).last_logits.argmax())
    return time.perf_counter() - started
