"""Exact answers of a bundle, by length and depth, through longspan's runtime under a budget.

    row = passkeys(runtime, material, length=65_536, depths=11, keys=5, seed=0)
    row["exact"], row["trials"], row["by_depth"]

The runtime reads one sequence at a time. Documents that begin alike are read once up to where they
part: the memory there is read on for each depth, which the promise of chunks allows.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from papers_documents import Asked, Material, Story, Task, spread, stories

from longspan.runtime.memory import Memory
from longspan.runtime.runtime import Runtime

ANSWER_TOKENS = 12
Row = dict[str, Any]


def memory_facts(runtime: Runtime) -> Row:
    """What held the budget, and how."""
    measured = runtime.measured
    return {
        "engine": runtime.engine,
        "chunk_tokens": runtime.plan.chunk_tokens,
        "budget_bytes": measured.budget_bytes,
        "planned_bytes": measured.planned_bytes,
        "peak_bytes": measured.peak_bytes,
    }


def answered(runtime: Runtime, material: Material, memory: Memory, asked: Asked) -> bool:
    """Whether the model says the answer and ends the line, asked as in training.

    Where the bundle makes other tokens of a question than training did (an AnLLM that is read
    without its anchors), the question's line is read as tokens and only the last line is asked.
    """
    question = asked.question
    wanted = material.encode(question)
    if not np.array_equal(runtime.tokenizer.encode(question, continues=True), wanted):
        line, last = question.rsplit("\n", 1)
        memory = runtime.read_tokens([material.encode(line)], memory=memory)
        question = f"\n{last}"
    answer = runtime.ask(
        memory, question, template="{question}", stop=("\n",), max_tokens=ANSWER_TOKENS
    )
    return answer.read().strip() == asked.answer


def passkeys(
    runtime: Runtime, material: Material, *, length: int, depths: int, keys: int, seed: int
) -> Row:
    """Hide `keys` fresh keys at each of `depths` places from 0 to 100%, each in filler of its own.

    Returns:
        A row: exact answers in all and by depth, tokens that were read, seconds.
    """
    started, read = time.perf_counter(), 0
    places = [depth / max(1, depths - 1) for depth in range(depths)]
    exact = [0] * depths
    told = stories("passkey", rows=keys * depths, facts=1, seed=seed)
    for key in range(keys):
        room = material.room(told[0], length)
        filler = material.filler(material.start(key, keys, room), room)
        before: Memory | None = None
        reached = 0
        for i, place in enumerate(int(room * place) for place in places):
            story = told[key * depths + i]
            if place > reached:
                before = runtime.read_tokens([filler[reached:place]], memory=before)
                read, reached = read + place - reached, place
            rest = [material.encode(story.facts[0]), filler[place:]]
            memory = runtime.read_tokens(rest, memory=before)
            read += sum(map(len, rest))
            exact[i] += answered(runtime, material, memory, story.asked[0])
    return {
        "what": "recall",
        "task": "passkey",
        "tokens": length,
        "exact": sum(exact),
        "trials": keys * depths,
        "by_depth": [[place, n, keys] for place, n in zip(places, exact, strict=True)],
        "read_tokens": read,
        "seconds": time.perf_counter() - started,
    } | memory_facts(runtime)


def recall(
    runtime: Runtime,
    material: Material,
    task: Task,
    *,
    length: int,
    documents: int,
    facts: int,
    seed: int,
) -> Row:
    """Ask what `documents` say whose facts lie anywhere; of needles, each fact of each document.

    Returns:
        A row: exact answers, tokens that were read, seconds.
    """
    started, read, exact, trials = time.perf_counter(), 0, 0, 0
    rng = np.random.default_rng(seed)
    most = most_facts(material, task, length, facts)
    for number, story in enumerate(stories(task, rows=documents, facts=most, seed=seed)):
        start = material.start(number, documents, length)
        tokens = material.document(story, length, spread(len(story.facts), rng), start)
        memory = runtime.read_tokens([tokens])
        read += len(tokens)
        trials += len(story.asked)
        exact += sum(answered(runtime, material, memory, asked) for asked in story.asked)
    return {
        "what": "recall",
        "task": task,
        "tokens": length,
        "facts": most,
        "exact": exact,
        "trials": trials,
        "read_tokens": read,
        "seconds": time.perf_counter() - started,
    } | memory_facts(runtime)


def most_facts(material: Material, task: Task, length: int, wanted: int) -> int:
    """How many facts take at most half of a document, at least one and at most `wanted`."""
    story: Story = stories(task, rows=1, facts=wanted, seed=0)[0]
    longest = max(len(material.encode(fact)) for fact in story.facts)
    return max(1, min(wanted, length // 2 // longest))
