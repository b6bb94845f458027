"""Which implementation of an op runs, and why.

    choose("rms_norm", device_type="cuda", exporting=False)   # Choice("triton", "CUDA tensor ...")
    with override("rms_norm", "reference"): ...               # for a test, or for training

It never falls back in silence: what cannot run where it was asked to run raises.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

Name = Literal["reference", "grouped", "chunked", "triton", "onnx"]
Implementation = Callable[..., Any]

_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "reference": "reference",
        "grouped": "grouped",
        "chunked": "chunked",
        "triton": "triton_kernel",
        "onnx": "onnx_op",
    }
)
_FOLDERS: Mapping[str, str] = MappingProxyType({"window_attention": "attention"})
# Ops whose oracle does needless work, or takes tokens in turn, so that plain torch has another way.
_PLAIN: Mapping[str, Name] = MappingProxyType({"moe": "grouped", "conba": "chunked"})
_PRODUCT = "torch's own matrix product"
_overrides: ContextVar[Mapping[str, Name | Implementation]] = ContextVar(
    "longspan_overrides", default=MappingProxyType({})
)
_recorded: ContextVar[set[str] | None] = ContextVar("longspan_recorded", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The implementation that runs, by name, and the reason in words."""

    name: Name
    reason: str


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def choose(
    op: str,
    *,
    device_type: str,
    exporting: bool,
    dtype: torch.dtype = torch.float32,
    rows: int = 1,
) -> Choice:
    """Choose the implementation of `op` for tensors on `device_type`.

    Args:
        op: name of the op's public function, such as ``"selective_scan"``.
        device_type: ``"cuda"`` or ``"cpu"``.
        exporting: whether torch.onnx is tracing the call.
        dtype: of the activations; the Triton kernels compute in float32, so float64 is not theirs.
        rows: vectors that a matrix is multiplied with, of the op ``linear``.
    """
    if exporting:
        return Choice(name="onnx", reason="a graph is being exported")
    if op == "linear" and rows != 1:
        return Choice(name="reference", reason=f"x has not one row: {_PRODUCT}")
    plain = _PLAIN.get(op, "reference")
    if dtype == torch.float64:
        return Choice(name=plain, reason="float64 is computed in float64: plain torch")
    if device_type == "cuda" and _has_triton():
        if op == "linear":
            return Choice(name="triton", reason=f"x has one row; of others: {_PRODUCT}")
        return Choice(name="triton", reason="the tensors are on CUDA and Triton is installed")
    if device_type == "cuda":
        return Choice(name=plain, reason="the tensors are on CUDA, but Triton is missing")
    return Choice(name=plain, reason=f"the tensors are on {device_type}: plain torch")


@contextmanager
def override(op: str, implementation: Name | Implementation) -> Iterator[None]:
    """Run `implementation` for `op` inside the ``with`` block.

    Args:
        op: name of the op's public function.
        implementation: ``"reference"``, ``"grouped"`` (of ``moe`` alone), ``"chunked"`` (of
            ``conba`` alone), ``"triton"`` (on CPU tensors it needs ``TRITON_INTERPRET=1``),
            ``"onnx"``, or a callable with the op's signature.
    """
    token = _overrides.set(MappingProxyType({**_overrides.get(), op: implementation}))
    try:
        yield
    finally:
        _overrides.reset(token)


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Collect the names of the ops that are called inside the ``with`` block."""
    names: set[str] = set()
    token = _recorded.set(names)
    try:
        yield names
    finally:
        _recorded.reset(token)


def implementations(op: str) -> tuple[Name, ...]:
    """The implementations of `op` that longspan has, whether or not they run on this machine."""
    folder = f"longspan.kernels.{_FOLDERS.get(op, op)}"
    return tuple(
        name for name in get_args(Name) if importlib.util.find_spec(f"{folder}.{_MODULES[name]}")
    )


def chosen(op: str, tensor: torch.Tensor) -> Name | Implementation:
    """What computes `op` for tensors like `tensor`: an override, or the choice's name."""
    exporting = torch.onnx.is_in_onnx_export()
    return (
        _overrides.get().get(op)
        or choose(
            op,
            device_type=tensor.device.type,
            exporting=exporting,
            dtype=tensor.dtype,
            # While exporting, lengths may be symbols.
            rows=1 if exporting else tensor.shape[:-1].numel(),
        ).name
    )


def implementation(op: str, tensor: torch.Tensor) -> Implementation:
    """The function that computes `op` for tensors like `tensor`: an override, or the choice.

    Raises:
        RuntimeError: the Triton kernel was asked for on a CPU tensor without the interpreter.
    """
    names = _recorded.get()
    if names is not None:
        names.add(op)
    found = chosen(op, tensor)
    if callable(found):
        return found
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if found == "triton" and tensor.device.type != "cuda" and not interpreted:
        raise RuntimeError(
            f"the Triton kernel of {op} was asked for with a tensor on {tensor.device}; it runs on "
            "CUDA, or on the CPU under TRITON_INTERPRET=1"
        )
    return _function(op, found)


@cache
def _function(op: str, name: Name) -> Implementation:
    module = import_module(f"longspan.kernels.{_FOLDERS.get(op, op)}.{_MODULES[name]}")
    function: Implementation = getattr(module, op)
    return function
