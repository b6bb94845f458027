"""The command `ask`, with what it needs to find what was read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longspan import cli_options as opt
from longspan import render
from longspan.builtin import named_bundle
from longspan.errors import BadInput

if TYPE_CHECKING:
    from longspan.runtime.memory import Memory
    from longspan.runtime.runtime import Runtime


def ask(
    bundle: opt.BundleArgument,
    questions: opt.Questions,
    memory: opt.MemoryFile = None,
    document: opt.DocumentFile = None,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = None,
    seed: opt.Seed = None,
    max_tokens: opt.MaxTokens = 128,
    stop: opt.Stop = None,
    template: opt.Template = None,
    draft: opt.DraftBundle = None,
    draft_memory: opt.DraftMemory = None,
    draft_tokens: opt.DraftTokens = 4,
    budget: opt.BudgetOption = None,
    device: opt.DeviceOption = opt.Device.AUTO,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    cache: opt.CacheOption = None,
    json: opt.Json = False,
) -> None:
    """Ask about what was read; answers are streamed."""
    from longspan.runtime.runtime import load_for

    _check_sources(memory=memory, document=document, draft=draft, draft_memory=draft_memory)
    with load_for(
        named_bundle(bundle),
        document=document,
        memory=memory,
        answer_tokens=max_tokens,
        draft=None if draft is None else named_bundle(draft),
        budget=budget,
        device=device.value,
        backend=backend.value,
        cache_dtype=None if cache is None else cache.value,
    ) as runtime:
        read = _read_or_opened(runtime, memory, document, json=json)
        draft_read = runtime.draft.open(draft_memory) if runtime.draft and draft_memory else None
        answers = []
        for question in questions:
            answer = runtime.ask(
                read,
                question,
                template=template,
                stop=stop or None,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                draft_memory=draft_read,
                draft_tokens=draft_tokens,
            )
            render.stream_answer(question, answer, quiet=json)
            answers.append(render.answer_facts(question, answer))
        if json:
            facts = {"answers": answers, "documents": read.ranges}
            render.print_json(facts | {"peak_bytes": runtime.measured.peak_bytes})


def _check_sources(
    *, memory: Path | None, document: Path | None, draft: Path | None, draft_memory: Path | None
) -> None:
    if (memory is None) == (document is None):
        found = "both" if memory else "neither"
        raise BadInput(
            f"Give what to ask about, either --memory FILE.span or --document FILE: found {found}."
        )
    if draft_memory is not None and draft is None:
        raise BadInput(
            f"--draft-memory {draft_memory} is what a draft model read, and there is no draft "
            "model. Name its bundle with --draft BUNDLE."
        )


def _read_or_opened(
    runtime: Runtime, memory: Path | None, document: Path | None, *, json: bool
) -> Memory:
    if memory is not None:
        read = runtime.open(memory)
    else:
        assert document is not None, "one of the two is there"
        with render.reading_progress(quiet=json) as show:
            read = runtime.read(document, on_progress=show)
    if read.byte_tokens and not json:
        render.notice("\n".join(place.text() for place in read.ranges))
    return read
