"""Fixtures and gates of the whole suite: a seed, poisoned buffers, no GPU test without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch

# Both are read when Triton is imported, which no test module does before this file runs.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
# Workers of pytest-xdist share the cores: with several threads each would wait for the others'.
# Processes that tests start take it from the environment.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# What a device in a `with` redirects is looked up once, at its first use; were it then the poisoned
# functions, an empty model on the meta device would take the memory of a full one.
with torch.device("meta"):
    torch.empty(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    no_cuda = no_onnx_cuda = None
    if not torch.cuda.is_available():
        no_cuda = pytest.mark.skip(reason="needs a CUDA device")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        no_onnx_cuda = pytest.mark.skip(reason="needs onnxruntime-gpu")
    for item in items:
        if no_cuda and item.get_closest_marker("gpu"):
            item.add_marker(no_cuda)
        elif no_onnx_cuda and _runs_onnx_on_cuda(item):
            item.add_marker(no_onnx_cuda)


def _runs_onnx_on_cuda(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    named = call is not None and "onnx-cuda" in call.params.values()
    return named or item.get_closest_marker("onnx_cuda") is not None


@pytest.fixture(autouse=True)
def seed() -> None:
    """Make every test's random numbers its own."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new, unwritten float buffers with NaN, so that reading one shows."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
