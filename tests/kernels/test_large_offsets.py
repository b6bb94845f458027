"""Every Triton kernel beyond 2^31 elements: offsets are int64, not int32 by chance.

The kernel reads tokens until its largest argument has passed 2^31 elements. The end of what it
wrote, half of it before that border and half beyond, is compared with the reference in float64,
which starts at the end from the state before it; that state is known, or of a reading that stays
below the border. The cases are those of `large_cases.py`; an op that is not among them has such a
test beside its others.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from longspan.kernels import override
from tests.kernels.devices import DEVICES, widen
from tests.kernels.large_arguments import Draw
from tests.kernels.large_cases import CASES, Case
from tests.tolerances import assert_close

BORDER = 2**31
# A card of 80 GiB has some 78.
MAX_BYTES = 70 * 2**30
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def check_end(case: Case, draw: Draw, *, tokens: int, units: int) -> int:
    """Compare the last of `tokens` tokens; the number of elements of the largest argument."""
    arguments = case.arguments(draw, tokens, units)
    with override(case.op.__name__, "triton"):
        y, *state = _results(case.op(**arguments))
    end = case.end(arguments, tokens - case.end_tokens)
    # float64 is computed by the reference.
    wide = {name: _wide(value) for name, value in end.items()}
    expected, *expected_state = _results(case.op(**wide))
    assert_close(case.op.__name__, y[:, -expected.shape[1] :], expected)
    for found, wanted in zip(state, expected_state, strict=True):
        assert case.state_row is not None, "a state needs a tolerance"
        assert_close(case.state_row, found[:, -wanted.shape[1] :], wanted)
    return int(arguments[case.large].numel())


def _results(results: Any) -> list[torch.Tensor]:
    """All tensors of a result: alone, in a tuple, or in a state's fields."""
    found = []
    for result in results if isinstance(results, tuple) else (results,):
        parts = _parts(result) if is_dataclass(result) else {"": result}
        found += [part for part in parts.values() if part is not None]
    return found


def _parts(state: Any) -> dict[str, Any]:
    """The fields of a state."""
    return {field.name: getattr(state, field.name) for field in fields(state)}


def _wide(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _wide(each) for name, each in _parts(value).items()})
    return widen(value) if _is_float(value) else value


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.gpu
@pytest.mark.slow
@each_case
def test_beyond_two_to_the_31(case: Case) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    draw = Draw(device="cuda", dtype=torch.bfloat16)
    per_token = case.arguments(draw, 64, case.units)[case.large].numel() // 64
    tokens = BORDER // per_token + case.end_tokens // 2
    assert check_end(case, draw, tokens=tokens, units=case.units) > BORDER
    assert torch.cuda.max_memory_allocated() < MAX_BYTES


@pytest.mark.parametrize("device", DEVICES)
@each_case
def test_the_cases_hold_for_few_tokens(case: Case, device: str) -> None:
    """So a failure beyond the border is one of offsets."""
    small = replace(case, end_tokens=16)
    check_end(small, Draw(device=device, dtype=torch.float32), tokens=40, units=1)
