"""ONNX Runtime's steps: two states in turn, and on CUDA the two recorded graphs between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import same_state
from numpy.typing import NDArray
from stand_in import CACHED, TINY, write_bundle

from longspan.bundle import Bundle, open_bundle
from longspan.engines import Engine
from longspan.errors import BudgetExceeded
from longspan.models.config import ModelConfig
from longspan.runtime.backends import Backend, State, Steps, open_backend
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.runtime.backends.onnx import OnnxBackend
from longspan.runtime.backends.onnx_steps import OnnxSteps
from longspan.runtime.device_memory import memory_now
from longspan.runtime.recording import why_not_recorded
from longspan.tensors import DType

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, TINY.vocab_size, 50)]
ENGINES = ["onnx-cpu", pytest.param("onnx-cuda", marks=[pytest.mark.gpu, pytest.mark.onnx_cuda])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def bundle(folder: Path, config: ModelConfig = TINY, dtype: DType = "float32") -> Bundle:
    path = folder / f"{config.family}-{dtype}"
    return open_bundle(path) if path.is_dir() else write_bundle(path, config=config, dtype=dtype)


def backend(model: Bundle, engine: Engine, *, limit_bytes: int | None = None) -> Backend:
    return open_backend(
        model,
        engine=engine,
        memory_limit_bytes=limit_bytes,
        capacity=64,
        step_graph=why_not_recorded(model.manifest, engine) is None,
    )


def read(steps: Steps, tokens: list[int]) -> NDArray[np.float32]:
    return np.stack([steps.step(token).copy() for token in tokens])


def expected(model: Backend, state: State, tokens: list[int]) -> NDArray[np.float32]:
    return read(ForwardSteps(model, state, donate=False), tokens)


def started(model: Backend) -> State:
    """The state after some tokens that were read together."""
    return model.forward(np.arange(9, dtype=np.int64), model.new_state(), keep=[])[1]


def close(found: NDArray[Any], wanted: NDArray[Any], engine: Engine) -> None:
    """On the CPU it is the same session; on CUDA the kernels are the same, too."""
    bound = 0.0 if engine == "onnx-cpu" else 1e-6 * float(np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("config", [TINY, CACHED], ids=lambda config: config.family)
@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_those_of_forward(folder: Path, engine: Engine, config: ModelConfig) -> None:
    model = backend(bundle(folder, config), engine)
    state = started(model)
    before = model.to_arrays(state)
    steps = model.steps(state)
    close(read(steps, TOKENS), expected(model, state, TOKENS), engine)
    same_state(model.to_arrays(state), before)


@pytest.mark.gpu
@pytest.mark.onnx_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_recorded_steps_are_those_of_forward(folder: Path, dtype: DType) -> None:
    model = backend(bundle(folder, dtype=dtype), "onnx-cuda")
    state = started(model)
    close(read(model.steps(state), TOKENS), expected(model, state, TOKENS), "onnx-cuda")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_that_steps_give_goes_on_elsewhere(folder: Path, engine: Engine) -> None:
    model = backend(bundle(folder), engine)
    steps = model.steps(started(model))
    for token in TOKENS[:3]:
        steps.step(token)
        fork = steps.state()
        kept = model.to_arrays(fork)
        wanted = expected(model, fork, TOKENS[:4])
        close(read(steps, TOKENS[:4]), wanted, engine)
        # What was given out stays as it was, and is a start for other steps.
        same_state(model.to_arrays(fork), kept)
        close(read(model.steps(fork), TOKENS[:4]), wanted, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_may_be_open_beside_others_and_one_after_the_other(
    folder: Path, engine: Engine
) -> None:
    model = backend(bundle(folder), engine)
    one, two = started(model), model.new_state()
    wanted_one, wanted_two = expected(model, one, TOKENS), expected(model, two, TOKENS)
    first, second = model.steps(one), model.steps(two)
    for token, row, other in zip(TOKENS, wanted_one, wanted_two, strict=True):
        close(first.step(token), row, engine)
        close(second.step(token), other, engine)
    first.close()
    third = model.steps(two)
    close(read(third, TOKENS), wanted_two, engine)
    close(second.step(TOKENS[0]), expected(model, third.state(), TOKENS[:1])[0], engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_memory_goes_on_in_steps(folder: Path, engine: Engine) -> None:
    model = backend(bundle(folder), engine)
    state = started(model)
    restored = model.from_arrays(model.to_arrays(state))
    close(read(model.steps(restored), TOKENS), expected(model, state, TOKENS), engine)


def test_steps_that_are_closed_are_given_back_once(folder: Path) -> None:
    closed: list[int] = []
    model = backend(bundle(folder), "onnx-cpu")
    assert isinstance(model, OnnxBackend)
    state = model.new_state()
    steps = OnnxSteps(model._step_buffers(model._session), state, on_close=lambda: closed.append(1))
    assert steps.state() is state
    steps.close()
    steps.close()
    assert closed == [1]
    with pytest.raises(AssertionError, match="the steps are closed"):
        steps.step(0)


@pytest.mark.gpu
@pytest.mark.onnx_cuda
def test_a_limit_that_leaves_no_room_to_record_is_told_and_reading_goes_on(folder: Path) -> None:
    limit = memory_now("cuda").bytes + 300 * 2**20
    model = backend(bundle(folder), "onnx-cuda", limit_bytes=limit)
    state = started(model)
    assert isinstance(model, OnnxBackend)
    # Less than the process holds, whatever the heap gives back before.
    model._limit_bytes = 2**20
    with pytest.raises(BudgetExceeded, match="Recording steps takes"):
        model.steps(state)
    assert np.isfinite(expected(model, state, TOKENS[:3])).all()
