"""A budget that is broken, lowered or shared: a clear refusal, and a runtime that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bundles import GIB, VOCABULARY, cached_bundle, fake_bundle, fake_runtime, same_state
from numpy.typing import NDArray
from stand_in import DEMO, write_bundle
from tokenizers_ import SOURCE

from longspan.bundle import Bundle, ChunkBytes
from longspan.engines import Engine
from longspan.errors import BadInput, BudgetExceeded, DoesNotFit
from longspan.runtime import measured, planning
from longspan.runtime import runtime as runtime_module
from longspan.runtime.backends import State
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.device_memory import Reading
from longspan.runtime.plan import make_plan, replanned
from longspan.runtime.runtime import load

MIB = 2**20


class Refusing(FakeBackend):
    """Has room for so many tokens a call.

    Attributes:
        released: the limits that it was given after refusals.
    """

    def __init__(self, most_tokens: int) -> None:
        super().__init__(VOCABULARY)
        self.most_tokens = most_tokens
        self.released: list[int | None] = []

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """As `FakeBackend` does, or a refusal."""
        if len(tokens) > self.most_tokens:
            raise BudgetExceeded(f"A chunk of {len(tokens)} tokens needs more memory.")
        return super().forward(tokens, state, keep=keep, donate=donate)

    def release(self, memory_limit_bytes: int | None) -> None:
        """Remember."""
        self.released.append(memory_limit_bytes)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path, chunk_bytes={"onnx-cpu": (ChunkBytes(per_token=2**12),)})


def test_after_a_refusal_a_smaller_chunk_reads(bundle: Bundle) -> None:
    backend = Refusing(most_tokens=20)
    with fake_runtime(bundle, backend=backend) as runtime:
        with pytest.raises(BudgetExceeded) as refusal:
            runtime.read(SOURCE)
        message = str(refusal.value)
        assert message.startswith(
            "A chunk of 64 tokens needs more memory. It is given back: the process holds "
        )
        assert message.endswith(
            "Read in smaller chunks with chunk_tokens below 64, or give a larger budget."
        )
        assert backend.released == [64 * GIB]
        memory = runtime.read(SOURCE, chunk_tokens=20)
        other = runtime.read_tokens([np.arange(50)], chunk_tokens=7)
    with fake_runtime(bundle) as runtime:
        same_state(memory.state, runtime.read(SOURCE).state)
        same_state(other.state, runtime.read_tokens([np.arange(50)]).state)


@pytest.mark.parametrize("chunk_tokens", [0, 65])
def test_chunks_are_within_the_plan(bundle: Bundle, chunk_tokens: int) -> None:
    with fake_runtime(bundle) as runtime, pytest.raises(BadInput) as refusal:
        runtime.read(SOURCE, chunk_tokens=chunk_tokens)
    assert str(refusal.value) == (
        f"chunk_tokens is {chunk_tokens}, and the plan has room for chunks of 1 to 64 tokens. For "
        "longer ones, load the bundle with them, or call set_budget."
    )


def test_others_on_the_device_are_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(bytes=GIB, source="a test")
    monkeypatch.setattr(measured, "memory_now", lambda device: reading)
    monkeypatch.setattr(measured, "free_bytes", lambda device: 3 * GIB)
    with (
        fake_runtime(bundle, backend=Refusing(1)) as runtime,
        pytest.raises(BudgetExceeded, match="left, less than the budget: others hold the rest"),
    ):
        runtime.read(SOURCE)


def test_a_budget_is_lowered_and_raised(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(VOCABULARY)
    monkeypatch.setattr(runtime_module, "open_backend", lambda bundle, **options: backend)
    with load(bundle, budget="8GiB", device="cpu", backend="onnx") as runtime:
        first = runtime.plan
        memory = runtime.read(SOURCE)
        lowered = runtime.set_budget(first.total_bytes - 1)
        assert runtime.plan is lowered
        assert lowered.chunk_tokens < first.chunk_tokens
        assert lowered.total_bytes <= lowered.budget_bytes == backend.limit_bytes
        assert runtime.measured.budget_bytes == lowered.budget_bytes
        same_state(runtime.read(SOURCE).state, memory.state)
        with pytest.raises(DoesNotFit, match="The smallest budget that would do is "):
            runtime.set_budget("1MiB")
        assert runtime.plan is lowered
        assert backend.limit_bytes == lowered.budget_bytes
        assert runtime.ask(memory, "import argp", max_tokens=3).read()
        raised = runtime.set_budget(8 * GIB)
        assert raised.items == first.items
        assert raised.chunk_tokens == first.chunk_tokens


@pytest.mark.parametrize("budget", [2**27, 2**28, 2**30])
def test_replanning_is_planning_with_the_same_capacity(tmp_path: Path, budget: int) -> None:
    chunk = (ChunkBytes(per_token=2**16, per_entry=2**10), ChunkBytes(per_token=2**4))
    manifest = cached_bundle(tmp_path, chunk_bytes={"onnx-cpu": chunk}).manifest

    plan = make_plan(
        manifest, engine="onnx-cpu", budget_bytes=2**31, baseline_bytes=MIB, tokens=4000
    )
    again = replanned(plan, manifest, budget)
    other = make_plan(
        manifest, engine="onnx-cpu", budget_bytes=budget, baseline_bytes=MIB, tokens=4000
    )
    for same in ("items", "chunk_tokens", "smallest_budget_bytes", "fastest_budget_bytes", "fits"):
        assert getattr(again, same) == getattr(other, same)
    assert again.choices[0] == other.choices[0]


def test_what_the_device_has_not_left_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda device: MIB)
    with pytest.raises(DoesNotFit) as refusal:
        load(bundle, budget="8GiB", device="cpu", backend="onnx")
    message = str(refusal.value)
    assert message.startswith("The plan takes ")
    assert message.endswith(
        "and the device has only 1.0 MiB left. Other processes hold the rest: end some of them, or "
        "give a smaller budget."
    )


# Reads with the chunks of a plan, then breaks the budget from outside, and reads on.
BROKEN = """
import json, sys
import numpy as np
from longspan.errors import BudgetExceeded, DoesNotFit
from longspan.runtime.device_memory import memory_now
from longspan.runtime.runtime import load

engine = sys.argv[2]
backend, device = engine.split("-")
pieces = lambda: iter([np.random.default_rng(0).integers(0, 4096, 600)])
found = {}
with load(sys.argv[1], budget=2**31, device=device, backend=backend) as runtime:
    first = runtime.read_tokens(pieces())
    lowered = runtime.set_budget(runtime.plan.smallest_budget_bytes)
    after = runtime.read_tokens(pieces())
    found["now"], found["lowered"] = memory_now(device).bytes, lowered.budget_bytes
    found["same"] = bool(np.allclose(first.last_logits, after.last_logits, atol=1e-3))
    ballast = np.ones(2**25)      # 256 MiB that no plan knows
    try:
        runtime.read_tokens(pieces())
    except BudgetExceeded as error:
        found["refusal"] = str(error)
    del ballast
    again = runtime.read_tokens(pieces(), memory=None, chunk_tokens=lowered.chunk_tokens)
    found["again"] = bool(np.array_equal(after.last_logits, again.last_logits))
print(json.dumps(found))
"""


@pytest.mark.parametrize("engine", ["onnx-cpu", "torch-cpu"])
def test_a_process_whose_budget_is_lowered_and_broken(tmp_path: Path, engine: Engine) -> None:
    path = write_bundle(tmp_path / "bundle", DEMO).path
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(path), engine], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["now"] <= found["lowered"], found
    assert found["same"], found
    assert found["again"], found
    assert "The process holds " in found["refusal"], found
    assert "Read in smaller chunks" in found["refusal"], found


# Another process takes what the device has left, between the loading and the reading, and ends.
CROWDED = """
import json, subprocess, sys
import numpy as np
from longspan.errors import BudgetExceeded
from longspan.runtime.runtime import load

TAKE = '''
import torch
left = torch.cuda.mem_get_info()[0] - 2**24
held = torch.empty(left, dtype=torch.uint8, device="cuda")
print("taken", flush=True)
input()
'''
found = {}
options = dict(device="cuda", backend=sys.argv[2], tokens=2**20)
with load(sys.argv[1], budget=4 * 2**30, **options) as runtime:
    pieces = lambda: iter([np.random.default_rng(0).integers(0, 4096, 2**17)])
    short = runtime.read_tokens([np.arange(100)])
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", TAKE], **pipes)
    assert other.stdout.readline() == b"taken\\n"
    try:
        runtime.read_tokens(pieces(), memory=short)
    except BudgetExceeded as error:
        found["refusal"] = str(error)
    other.communicate(b"\\n")
    on = runtime.read_tokens(pieces(), memory=short)
    whole = runtime.read_tokens([np.arange(100), *pieces()])
    found["same"] = bool(np.allclose(on.last_logits, whole.last_logits, atol=1e-3))
    found["peak"], found["budget"] = runtime.measured.peak_bytes, runtime.plan.budget_bytes
print(json.dumps(found))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx", marks=pytest.mark.onnx_cuda)])
def test_another_process_takes_the_device_and_leaves_it(tmp_path: Path, backend: str) -> None:
    """To be run with nothing else on the device, which it fills."""
    path = write_bundle(tmp_path / "bundle", DEMO).path
    done = subprocess.run(
        [sys.executable, "-c", CROWDED, str(path), backend],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if backend == "torch":
        assert "Read in smaller chunks" in found["refusal"], found
    else:  # The heap held a chunk's room from loading on.
        assert "refusal" not in found, found
    assert found["same"], found
    assert found["peak"] <= found["budget"], found
