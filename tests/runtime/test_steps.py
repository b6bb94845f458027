"""Steps are passes of one token: on every engine, beside each other, and from a fork."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import fake_bundle, fake_runtime
from family_rows import ROWS, Row
from numpy.typing import NDArray
from stand_in import CACHED, TINY, random_decoder, write_bundle

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.models.checkpoint import load_decoder
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.decoder import Decoder
from longspan.models.families import open_checkpoint
from longspan.runtime.backends import Backend, State, Steps, open_backend, torch_steps
from longspan.runtime.backends.fake import FakeBackend
from longspan.runtime.backends.pinned import HostBuffer
from longspan.runtime.backends.torch_steps import StepBuffers, Stepper, TorchSteps
from tests.models.test_donated_states import in_triton

# Engines, and whether a step may be recorded.
ENGINES: list[Any] = [
    ("onnx-cpu", False),
    ("torch-cpu", False),
    pytest.param(("onnx-cuda", False), marks=[pytest.mark.gpu, pytest.mark.onnx_cuda]),
    pytest.param(("torch-cuda", False), marks=pytest.mark.gpu),
    pytest.param(("torch-cuda", True), marks=pytest.mark.gpu),
]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=str)
CAPACITY = 80
TOKENS = np.random.default_rng(0).integers(0, 50, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module", params=["fixed", "growing"])
def bundle(folder: Path, request: pytest.FixtureRequest) -> Bundle:
    """A state of fixed size, and one that grows."""
    return write_bundle(folder / request.param, TINY if request.param == "fixed" else CACHED)


def opened(bundle: Bundle, engine: tuple[Engine, bool]) -> Backend:
    name, step_graph = engine
    return open_backend(
        bundle, engine=name, memory_limit_bytes=None, capacity=CAPACITY, step_graph=step_graph
    )


def taken(steps: Steps, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [L, V] after each token; each array is valid until the next step."""
    return np.stack([steps.step(token).copy() for token in tokens.tolist()])


def passed(
    backend: Backend, tokens: NDArray[np.int64], state: State
) -> tuple[NDArray[np.float32], State]:
    """The same by passes of one token."""
    rows = []
    for token in tokens:
        logits, state = backend.forward(np.array([token]), state, keep=[-1])
        rows.append(logits[0])
    return np.stack(rows), state


def same_states(backend: Backend, one: State, two: State) -> None:
    found, expected = backend.to_arrays(one), backend.to_arrays(two)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@each_engine
def test_steps_are_passes_of_one_token(bundle: Bundle, engine: tuple[Engine, bool]) -> None:
    backend = opened(bundle, engine)
    _, read = backend.forward(TOKENS[:9], backend.new_state(), keep=[])
    before = backend.to_arrays(read)
    expected, after = passed(backend, TOKENS[9:], read)
    # A second time: what was recorded serves again.
    for _ in range(2):
        with closing(backend.steps(read)) as steps:
            np.testing.assert_array_equal(taken(steps, TOKENS[9:]), expected)
            same_states(backend, steps.state(), after)
        for name, array in backend.to_arrays(read).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


@each_engine
def test_two_at_once_and_a_fork(bundle: Bundle, engine: tuple[Engine, bool]) -> None:
    backend = opened(bundle, engine)
    first = backend.new_state()
    _, second = backend.forward(TOKENS[:5], first, keep=[])
    expected, _ = passed(backend, TOKENS[:20], first)
    other, _ = passed(backend, TOKENS[5:25], second)
    with closing(backend.steps(first)) as one, closing(backend.steps(second)) as two:
        for index in range(20):
            np.testing.assert_array_equal(one.step(int(TOKENS[index])), expected[index])
            np.testing.assert_array_equal(two.step(int(TOKENS[5 + index])), other[index])
            if index == 9:
                fork = one.state()
        # A pass beside them, from the fork, and steps from it.
        beside, after = passed(backend, TOKENS[10:20], fork)
        np.testing.assert_array_equal(beside, expected[10:])
        with closing(backend.steps(fork)) as three:
            np.testing.assert_array_equal(taken(three, TOKENS[10:20]), expected[10:])
        same_states(backend, one.state(), after)


def test_the_fake_steps_too() -> None:
    backend = FakeBackend(60, capacity=80)
    expected, after = passed(backend, TOKENS, backend.new_state())
    with closing(backend.steps(backend.new_state())) as steps:
        np.testing.assert_array_equal(taken(steps, TOKENS), expected)
        same_states(backend, steps.state(), after)


class Watched(FakeBackend):
    """Counts the steps that are open."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.begun, self.open = 0, 0

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """As `FakeBackend` does."""
        steps = super().steps(state, donate=donate)
        close = steps.close
        self.begun, self.open = self.begun + 1, self.open + 1

        def closed() -> None:
            self.open -= 1
            close()

        steps.close = closed  # type: ignore[method-assign]
        return steps


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_answer_that_ends_early_closes_its_steps(tmp_path: Path, pieces: int) -> None:
    made = fake_bundle(tmp_path)
    backend = Watched(made.manifest.config.vocab_size)
    with fake_runtime(made, backend=backend) as runtime:
        memory = runtime.read("ab" * 40)
        answer = runtime.ask(memory, "ab", max_tokens=20)
        with closing(iter(answer)) as texts:
            for _ in range(pieces):
                next(texts)
        assert answer.finish == "cancelled"
        assert backend.open == 0
        assert backend.begun == (1 if pieces > 1 else 0)
        list(runtime.ask(memory, "ab", max_tokens=20, stop=["a"]))
        list(runtime.ask(memory, "ab", max_tokens=20))
        assert backend.open == 0


@pytest.fixture(params=ROWS, ids=lambda row: row.family)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny checkpoint of each family."""
    row: Row = request.param
    row.write(tmp_path)
    return tmp_path


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Triton's kernels on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("with CUDA, Triton is not interpreted")
    with in_triton():
        yield


def one_token(decoder: Decoder, token: int, state: State) -> tuple[NDArray[np.float32], State]:
    with torch.inference_mode():
        ids = torch.tensor([[token]], device=decoder.embedding.device)
        logits, after = decoder(ids, None, state)
        return logits[0, 0].cpu().numpy(), after


@pytest.mark.usefixtures("interpreted")
def test_buffers_hold_what_each_familys_passes_give(checkpoint: Path) -> None:
    decoder = load_decoder(open_checkpoint(checkpoint))
    state: State = decoder.new_state(capacity=8)
    buffers = StepBuffers(decoder, state)
    buffers.fill_(state)
    steps = TorchSteps(buffers, buffers.advance_no_sync_, lambda: None)
    for token in (3, 1, 1):
        expected, state = one_token(decoder, token, state)
        np.testing.assert_array_equal(steps.step(token), expected)


def test_what_is_recorded_reads_a_token_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the memory held before: no embedding has a row for it."""

    class Used(HostBuffer):
        def __init__(self, nbytes: int, device: torch.device) -> None:
            super().__init__(nbytes, device)
            self.host.fill_(0x7F)

    monkeypatch.setattr(torch_steps, "HostBuffer", Used)
    decoder = random_decoder(TINY, "float32")
    buffers = StepBuffers(decoder, decoder.new_state())
    buffers.advance_no_sync_()
    assert np.isfinite(buffers.wait()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_recorded_step_of_every_family(checkpoint: Path, dtype: torch.dtype) -> None:
    """300 steps, with a fork in the middle and a second sequence beside them."""
    decoder = load_decoder(open_checkpoint(checkpoint), dtype=dtype).to("cuda").eval()
    decoder.requires_grad_(False)
    state: State = decoder.new_state(capacity=300)
    stepper = Stepper(decoder, graph=True, held=decoder.new_state(capacity=300))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, 300).tolist()
    with closing(stepper.open(state)) as steps, closing(stepper.open(state)) as others:
        for index, token in enumerate(tokens):
            expected, state = one_token(decoder, token, state)
            np.testing.assert_array_equal(steps.step(token), expected)
            if index < 20:
                np.testing.assert_array_equal(others.step(token), expected)
            if index == 150:
                fork = steps.state()
    with closing(stepper.open(fork)) as again:
        for token in tokens[151:]:
            found = again.step(token)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
def test_a_recording_that_does_not_fit_is_refused_and_the_backend_goes_on(folder: Path) -> None:
    """In a process of its own, whose allocator is capped at what it holds."""
    made = write_bundle(folder / "capped", CACHED)
    code = (
        "import sys, numpy as np, torch\n"
        "from longspan.bundle import open_bundle\n"
        "from longspan.errors import BudgetExceeded\n"
        "from longspan.runtime.backends import open_backend\n"
        "backend = open_backend(open_bundle(sys.argv[1]), engine='torch-cuda',"
        " memory_limit_bytes=None, capacity=400_000, step_graph=True)\n"
        "rows, state = backend.forward(np.arange(9), backend.new_state(), keep=[-1])\n"
        "torch.cuda.empty_cache()\n"
        "held, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]\n"
        "for room in range(0, 160, 4):\n"
        "    torch.cuda.set_per_process_memory_fraction((held + room * 2**20) / total)\n"
        "    try:\n"
        "        steps = backend.steps(state)\n"
        "    except BudgetExceeded as error:\n"
        "        print('refused', error)\n"
        "    else:\n"
        "        break\n"
        "found = steps.step(3).copy()\n"
        "steps.close()\n"
        "expected = backend.forward(np.array([3]), state, keep=[-1])[0][-1]\n"
        "np.testing.assert_array_equal(found, expected)\n"
    )
    arguments = [sys.executable, "-c", code, str(made.path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("refused Beginning to answer needs more memory than the budget")


@pytest.mark.gpu
def test_a_chunk_after_recorded_steps_lies_where_the_one_before_lay(folder: Path) -> None:
    """In a process of its own: the recorded state, 24 MiB, does not lie among a chunk's memory."""
    wide = Mamba2Config(n_heads=64, head_dim=64, n_groups=1, d_state=128, d_conv=4)
    config = ModelConfig(family="none", vocab_size=64, d_model=1024, layers=(wide,) * 12)
    made = write_bundle(folder / "wide", config)
    code = (
        "import sys, numpy as np\n"
        "from longspan.bundle import open_bundle\n"
        "from longspan.runtime.backends import open_backend\n"
        "from longspan.runtime.baseline import measure_baseline\n"
        "measure_baseline('torch-cuda')  # makes cuBLAS' workspace, as loading a model does\n"
        "backend = open_backend(open_bundle(sys.argv[1]), engine='torch-cuda',"
        " memory_limit_bytes=None, step_graph=True)\n"
        "import torch\n"
        "def read():\n"
        "    backend.forward(np.arange(8192) % 64, backend.new_state(), keep=[-1], donate=True)\n"
        "    return torch.cuda.memory_reserved()\n"
        "before = read()\n"
        "steps = backend.steps(backend.new_state())\n"
        "steps.step(1)\n"
        "steps.close()\n"
        "print(read() - before)\n"
    )
    command = [sys.executable, "-c", code, str(made.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # A recording gives back what is free, and the next chunk takes it again.
    assert int(done.stdout) < 60 * 2**20, "the graph's own memory, and a workspace of cuBLAS'"
