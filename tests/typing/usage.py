"""The documented calls, as a type checker sees them; never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import longspan


def pages() -> Iterator[str]:
    yield "text"


def documented_calls(path: Path) -> None:
    report = longspan.export_bundle(path, "bundle/", weights="bfloat16")
    assert_type(report.weight_bytes, int)
    with longspan.load("bundle/", budget="2GiB", device="auto") as runtime:
        assert_type(runtime, longspan.Runtime)
        assert_type(runtime.plan.total_bytes, int)
        memory = runtime.read("book.txt")
        assert_type(memory, longspan.Memory)
        for source in (path, [path, path], pages()):
            runtime.read(source, memory=memory)
        answer = runtime.ask(memory, "Who?", temperature=0.7, top_p=0.9, seed=1)
        assert_type(list(answer), list[str])
        memory.save("book.span")
        assert_type(runtime.open("book.span"), longspan.Memory)
        assert_type(runtime.logits([12, 7, 93]), NDArray[np.float32])
        assert_type(runtime.measured.peak_bytes, int)
    with longspan.load("bundle/", draft="small/", budget="4GiB") as runtime:
        assert runtime.draft is not None
        answer = runtime.ask(memory, "Who?", draft_memory=runtime.draft.open("small.span"))
        assert answer.draft is not None
        assert_type(answer.draft.acceptance_rate, float | None)
        assert_type(memory.ranges[0].first_byte, int)
    assert_type(longspan.builtin_bundle(), Path)
    assert_type(longspan.Budget("3GiB").bytes, int)
