"""Registers, stack and shared memory of the kernels, compiled for cards that are not here.

    launches = compiled_launches(CASES["ssd"], TARGETS[0], torch.bfloat16, tokens=4096)

The public functions run as they are, on tensors without memory that say they lie on the card; every
launch is compiled and none is run. So what is compiled is what would run, whatever it becomes.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kernel_case import Case, Draw
from kernel_cases import CASES
from report import command_line, markdown_table, versions_line
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from longspan.kernels import override
from longspan.runtime.doctor import find_versions

MANY_TOKENS = 4096
OP_NAMES = {
    "conv": "causal_conv",
    "norm": "rms_norm",
    "full_attention_step": "full_attention",
    "gated_norm": "rms_norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A card to compile for.

    Attributes:
        capability: 90 for an H100.
        shared_bytes: shared memory that one program may have.
        multiprocessors: of a card of this kind.
    """

    capability: int
    shared_bytes: int
    multiprocessors: int

    @property
    def device(self) -> torch.device:
        """The capability is the index: what the kernels remember by device stays apart."""
        return torch.device("cuda", self.capability)


# From NVIDIA's programming guide: an H100 SXM, and a GeForce RTX 3080.
TARGETS = (
    Target(capability=90, shared_bytes=227 * 1024, multiprocessors=132),
    Target(capability=86, shared_bytes=99 * 1024, multiprocessors=68),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a launch takes: registers and stack by thread, shared memory by program.

    What does not fit the registers lies on the stack, in device memory.
    """

    kernel: str
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int


class _Absent(torch.Tensor):
    """A tensor of torch's meta device that says it lies on CUDA, at an address of many zeros."""

    target: Target
    # Torch's own meta functions see plain meta tensors (`_OnTarget`).
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The card's."""
        return self.target.device

    def data_ptr(self) -> int:
        """Aligned, as torch's allocations are."""
        return 4096


class _OnTarget(TorchFunctionMode):
    """New tensors land on the meta device, and what comes out says that it is on the card."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._kind = type("Absent", (_Absent,), {"target": target})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        plain, given = tree_map_only(_Absent, _plain, (args, kwargs or {}))
        if "device" in given:
            given["device"] = "meta"
        result = func(*plain, **given)
        return tree_map_only(torch.Tensor, lambda each: each.as_subclass(self._kind), result)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


class _Driver:
    """What Triton asks its driver about a card, answered from a `Target`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target.capability, 32)

    def get_current_device(self) -> int:
        return self._target.capability

    def get_current_stream(self, device: int) -> int:
        del device
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        del device
        return {
            "max_shared_mem": self._target.shared_bytes,
            "multiprocessor_count": self._target.multiprocessors,
        }


@contextlib.contextmanager
def compiling(target: Target) -> Iterator[list[Any]]:
    """Compile every launch inside the ``with`` for `target`, run none, and collect them."""
    run = JITFunction.run
    found: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del warmup
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        if all(compiled is not each for each in found):
            found.append(compiled)

    driver.set_active(_Driver(target))
    try:
        with mock.patch.object(JITFunction, "run", compile_only), _OnTarget(target):
            yield found
    finally:
        driver.set_active(None)


def compiled_launches(case: Case, target: Target, dtype: torch.dtype, tokens: int) -> list[Launch]:
    """The launches of one call, in their order; equal ones once."""
    draw = Draw(device=str(target.device), dtype=dtype)
    with compiling(target) as found, override(OP_NAMES.get(case.op, case.op), "triton"):
        case.call(case.inputs(draw, tokens))
    return [_launch(each) for each in found]


def _launch(compiled: Any) -> Launch:
    """What the compiled kernel says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, f"cuobjdump says nothing of registers: {said}"
    return Launch(
        kernel=compiled.name,
        warps=compiled.metadata.num_warps,
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=compiled.metadata.shared,
    )


def rows(ops: Sequence[str], dtype: torch.dtype) -> Iterator[tuple[str, ...]]:
    """For people: a row for each kernel of each op, for many tokens and for one."""
    for op in ops:
        for tokens in (MANY_TOKENS, 1):
            by_card = [compiled_launches(CASES[op], each, dtype, tokens) for each in TARGETS]
            kernels = dict.fromkeys(launch.kernel for launches in by_card for launch in launches)
            for kernel in kernels:
                cells = [_cell(kernel, launches) for launches in by_card]
                yield op, f"{tokens:,}", f"`{kernel}`", *cells


def _cell(kernel: str, launches: Sequence[Launch]) -> str:
    """Every form of the kernel that a call launches on one card."""
    found = [
        f"{each.warps} / {each.registers} / {each.stack_bytes} / {each.shared_bytes / 1024:.1f}"
        for each in launches
        if each.kernel == kernel
    ]
    return ", ".join(found) or "-"


def section(ops: Sequence[str], dtype: str) -> tuple[str, str]:
    """Key and Markdown of the table."""
    what = "warps / registers / stack / KiB"
    columns = ("op", "tokens", "kernel", *(f"sm_{each.capability}: {what}" for each in TARGETS))
    cards = ", ".join(f"{each.shared_bytes // 1024} on sm_{each.capability}" for each in TARGETS)
    facts = (
        "Compiled, not run: registers and bytes of stack by thread (what does not fit the "
        f"registers), KiB of shared memory by program, which may have {cards}. Sizes are those of "
        f"the tables of times; {versions_line(find_versions())}."
    )
    lines = [
        f"### What the kernels take: {dtype}",
        "",
        f"`{command_line('kernels.py')}`",
        "",
        facts,
        "",
        *markdown_table(columns, rows(ops, getattr(torch, dtype))),
    ]
    return f"Resources of the kernels: {dtype}", "\n".join(lines)
