"""A warp that runs the few PTX instructions of `longspan.kernels.quantized_linear.tensor_cores`.

results = run(asm, operands, outputs)      # operands, results: uint32 [any, 32]
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

Lanes = NDArray[np.uint32]
LANES = 32


def run(asm: str, operands: Lanes, outputs: int) -> Lanes:
    """Run `asm` with `operands` after its `outputs` results."""
    registers: dict[str, Lanes] = {
        f"${outputs + i}": each.copy() for i, each in enumerate(operands)
    }

    def value(name: str) -> Lanes:
        if name.startswith("0f"):
            return np.full(LANES, int(name[2:], 16), dtype=np.uint32)
        if name[0].isdigit():
            return np.full(LANES, int(name, 0), dtype=np.uint32)
        return registers[name]

    for line in (each.strip().rstrip(";") for each in asm.splitlines()):
        if line in ("{", "}") or line.startswith(".reg"):
            continue
        op, rest = line.split(" ", 1)
        if op.startswith("mma."):
            sums, left, right, before = (
                [name.strip() for name in group.split(",")]
                for group in re.findall(r"\{(.*?)\}", rest)
            )
            assert sums == before
            results = _mma(
                op.split(".")[-2],
                *([registers[name] for name in names] for names in (left, right, sums)),
            )
            registers |= dict(zip(sums, results, strict=True))
            continue
        target, *names = (name.strip() for name in rest.split(","))
        registers[target] = _scalar(op, [value(name) for name in names])
    return np.stack([registers[f"${i}"] for i in range(outputs)])


def _scalar(op: str, given: list[Lanes]) -> Lanes:
    """One instruction that every lane runs by itself."""
    if op in ("mov.b32", "mov.f32"):
        return given[0]
    if op == "shr.u32":
        return given[0] >> given[1]
    if op == "and.b32":
        return given[0] & given[1]
    if op == "mad.lo.s32":
        a, b, c = (each.view(np.int32).astype(np.int64) for each in given)
        found = a * b + c
        assert np.array_equal(found, found.astype(np.int32)), "more than 32 bits"
        return found.astype(np.int32).view(np.uint32)
    if op == "prmt.b32":
        both = given[0].astype(np.uint64) | (given[1].astype(np.uint64) << np.uint64(32))
        result = np.zeros(LANES, dtype=np.uint64)
        for i in range(4):
            place = (given[2].astype(np.uint64) >> np.uint64(4 * i)) & np.uint64(7)
            byte = (both >> (place * np.uint64(8))) & np.uint64(255)
            result |= byte << np.uint64(8 * i)
        return result.astype(np.uint32)
    if op == "fma.rn.f32":
        a, b, c = (each.view(np.float32) for each in given)
        return (a * b + c).view(np.uint32)
    assert op.startswith("fma.rn."), op
    kind = op.removeprefix("fma.rn.").removesuffix("x2")
    left, right, more = (_halves(each, kind).double() for each in given)
    return _packed(left * right + more, kind)


def _halves(words: Lanes, kind: str) -> torch.Tensor:
    """Both numbers of 16 bits of each lane, the low one first: [32, 2]."""
    halves = torch.from_numpy(words.copy().view(np.int16).reshape(LANES, 2))
    return halves.view(_dtype(kind))


def _packed(numbers: torch.Tensor, kind: str) -> Lanes:
    """Two numbers of each lane, which 16 bits hold exactly, as words."""
    rounded = numbers.to(_dtype(kind))
    assert torch.equal(rounded.double(), numbers), "not exact"
    words: Lanes = rounded.contiguous().view(torch.int16).numpy().view(np.uint32).reshape(LANES)
    return words


def _dtype(kind: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "f16": torch.float16}[kind]


def _bytes(words: Lanes, signed: bool) -> torch.Tensor:
    """The four bytes of each lane, the low one first: [32, 4]."""
    return torch.from_numpy(words.view(np.int8 if signed else np.uint8).reshape(LANES, 4).copy())


def _mma(kind: str, left: list[Lanes], right: list[Lanes], sums: list[Lanes]) -> list[Lanes]:
    """``mma``, its lanes' parts as the PTX manual's figures have them (9.7.14).

    Of two numbers a register it is ``m16n8k16``; of kind s8, bytes without sign with bytes that
    have one, ``m16n8k32``.
    """
    whole = kind == "s8"
    count, dtype = (4, torch.int64) if whole else (2, torch.float32)
    stored = np.int32 if whole else np.float32
    a, b = torch.zeros(16, 8 * count, dtype=dtype), torch.zeros(8 * count, 8, dtype=dtype)
    c = torch.zeros(16, 8, dtype=dtype)
    lefts = [_bytes(each, signed=False) if whole else _halves(each, kind) for each in left]
    rights = [_bytes(each, signed=True) if whole else _halves(each, kind) for each in right]
    for lane in range(LANES):
        row, place = divmod(lane, 4)
        for i, numbers in enumerate(lefts):
            k = count * (place + 4 * (i // 2))
            a[row + 8 * (i % 2), k : k + count] = numbers[lane].to(dtype)
        for i, numbers in enumerate(rights):
            k = count * (place + 4 * i)
            b[k : k + count, row] = numbers[lane].to(dtype)
        for i, register in enumerate(sums):
            c[row + 8 * (i // 2), 2 * place + i % 2] = register.view(stored)[lane].item()
    c += a @ b
    found = c.numpy().astype(stored)
    assert np.array_equal(found, c.numpy()), "more than 32 bits"
    results = [np.zeros(LANES, dtype=stored) for _ in sums]
    for lane in range(LANES):
        row, place = divmod(lane, 4)
        for i, result in enumerate(results):
            result[lane] = found[row + 8 * (i // 2), 2 * place + i % 2]
    return [result.view(np.uint32) for result in results]
