"""Every Triton kernel beyond 2^31 elements: offsets are int64, not int32 by chance.

The kernel reads tokens until its largest tensor has passed 2^31 elements. The end of what it wrote,
half of it before that border and half beyond, is compared with the reference in float64, which
starts at the end from the state before it; that state is of a reading that stays below the border.

An op is a row of `CASES`: its arguments for so many tokens, which of them are cut by token, and
where the state before the end comes from. Inputs are bfloat16, drawn in place: 2^31 elements are
4 GiB, and each case tells its peak. An 80 GiB card has some 78 GiB, of which 70 are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.attention import window_attention
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.ssd import ssd
from tests.kernels.devices import DEVICES, widen
from tests.tolerances import assert_close

Arguments = dict[str, Any]
BORDER = 2**31
MAX_BYTES = 70 * 2**30
# Tokens that are compared, on either side of the border.
END_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Draws random tensors on a device: inputs in `dtype`, parameters and states in float32."""

    device: str
    dtype: torch.dtype

    def inputs(self, *shape: int) -> torch.Tensor:
        """Activations."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def parameters(self, *shape: int) -> torch.Tensor:
        """Weights, or a state."""
        return torch.randn(shape, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How an op is called far beyond 2^31 elements.

    Attributes:
        op: the public function.
        units: heads, or blocks of channels, of the large case; the small case has one.
        arguments: all arguments for so many tokens and units.
        by_token: the arguments whose axis 1 counts tokens.
        before: the arguments that carry the state before a token, from all arguments.
        state_row: row of the tolerances for the state after the last token; None without one.
    """

    op: Callable[..., Any]
    units: int
    arguments: Callable[[Draw, int, int], Arguments]
    by_token: tuple[str, ...]
    before: Callable[[Case, Arguments, int], Arguments]
    state_row: str | None = None

    def part(self, arguments: Arguments, tokens: slice) -> Arguments:
        """The arguments for some of the tokens."""
        return {**arguments, **{name: arguments[name][:, tokens] for name in self.by_token}}


def nothing(case: Case, arguments: Arguments, first: int) -> Arguments:
    """No state: each token is by itself."""
    return {}


def reading(case: Case, arguments: Arguments, first: int) -> Arguments:
    """The state that the kernel leaves after the tokens before `first`."""
    with override(case.op.__name__, "triton"):
        return {"state": case.op(**case.part(arguments, slice(first)))[1]}


def last_inputs(case: Case, arguments: Arguments, first: int) -> Arguments:
    """The convolution's tail: its last inputs."""
    taps = arguments["weight"].shape[2]
    return {"tail": arguments["x"][:, first - taps + 1 : first]}


def last_keys(case: Case, arguments: Arguments, first: int) -> Arguments:
    """The window before a token: the last keys and values, and how many tokens there were."""
    kept = slice(first - arguments["window"] + 1, first)
    return {
        "past_k": arguments["k"][:, kept],
        "past_v": arguments["v"][:, kept],
        "position": arguments["position"] + first,
    }


def norm_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64 * units
    return {"x": draw.inputs(1, tokens, width), "weight": draw.parameters(width), "eps": 1e-5}


def conv_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width = 64 * units
    return {
        "x": draw.inputs(1, tokens, width),
        "weight": draw.parameters(width, 1, 4),
        "bias": draw.parameters(width),
        "activation": "silu",
    }


def scan_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, states = 64 * units, 16
    return {
        "x": draw.inputs(1, tokens, width),
        "dt": draw.inputs(1, tokens, width),
        "A": -torch.arange(1.0, states + 1, device=draw.device).repeat(width, 1),
        "B": draw.inputs(1, tokens, states),
        "C": draw.inputs(1, tokens, states),
        "D": draw.parameters(width),
        "z": draw.inputs(1, tokens, width),
        "dt_bias": torch.linspace(-7, 0, width, device=draw.device),
        "state": draw.parameters(1, width, states),
    }


def ssd_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, states = 64, 128
    return {
        "x": draw.inputs(1, tokens, units, width),
        "dt": draw.inputs(1, tokens, units),
        "A": -torch.linspace(1, 16, units, device=draw.device),
        "B": draw.inputs(1, tokens, 1, states),
        # y is a sum of N terms: scaled, it has the size that the tolerances are meant for.
        "C": draw.inputs(1, tokens, 1, states) / states**0.5,
        "D": draw.parameters(units),
        "dt_bias": torch.linspace(-7, 0, units, device=draw.device),
        "state": draw.parameters(1, units, states, width),
    }


def window_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    width, window = 128, 9
    past = (1, window - 1, units, width)
    return {
        "q": draw.inputs(1, tokens, units, width),
        "k": draw.inputs(1, tokens, units, width),
        "v": draw.inputs(1, tokens, units, width),
        "past_k": draw.inputs(*past),
        "past_v": draw.inputs(*past),
        "position": torch.tensor([100], device=draw.device),
        "window": window,
    }


CASES = (
    # x and y: 8 GiB.
    Case(
        op=rms_norm, units=128, arguments=norm_arguments, by_token=("x",),
        before=nothing,
    ),
    # x and y: 8 GiB.
    Case(
        op=causal_conv, units=128, arguments=conv_arguments, by_token=("x",),
        before=last_inputs, state_row="causal_conv",
    ),
    # x, dt, z and y: 16 GiB; the states of 1,025 chunks of 256 tokens: 0.6 GiB.
    Case(
        op=selective_scan, units=128, arguments=scan_arguments,
        by_token=("x", "dt", "B", "C", "z"), before=reading, state_row="selective_scan",
    ),
    # x and y: 8 GiB; B and C, and C before it is scaled: 0.4 GiB; the float32 states of 4,097
    # chunks pass 2^31 elements, too: 8 GiB; steps and sums: 0.3 GiB.
    Case(
        op=ssd, units=64, arguments=ssd_arguments, by_token=("x", "dt", "B", "C"),
        before=reading, state_row="ssd state of bfloat16",
    ),
    # q, k, v and y, as many key heads as query heads: 16 GiB.
    Case(
        op=window_attention, units=32, arguments=window_arguments, by_token=("q", "k", "v"),
        before=last_keys, state_row="window_attention",
    ),
)  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.op.__name__)


def check_end(case: Case, draw: Draw, *, tokens: int, end: int, units: int) -> int:
    """Compare the last `end` of `tokens` tokens; the size of the largest tensor by token."""
    arguments = case.arguments(draw, tokens, units)
    first = tokens - end
    before = case.before(case, arguments, first)
    with override(case.op.__name__, "triton"):
        y, *state = _results(case.op(**arguments))
    tail = {**case.part(arguments, slice(first, None)), **before}
    # float64 is computed by the reference.
    wide = {name: widen(value) if _is_float(value) else value for name, value in tail.items()}
    expected, *expected_state = _results(case.op(**wide))
    assert_close(case.op.__name__, y[:, first:], expected)
    for found, wanted in zip(state, expected_state, strict=True):
        assert case.state_row is not None, "a state needs a tolerance"
        assert_close(case.state_row, found, wanted)
    return max(arguments[name].numel() for name in case.by_token)


def _results(results: Any) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.gpu
@pytest.mark.slow
@each_case
def test_beyond_two_to_the_31(case: Case) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    draw = Draw(device="cuda", dtype=torch.bfloat16)
    one = case.arguments(draw, 1, case.units)
    per_token = max(one[name].numel() for name in case.by_token)
    tokens = BORDER // per_token + END_TOKENS // 2
    largest = check_end(case, draw, tokens=tokens, end=END_TOKENS, units=case.units)
    assert largest > BORDER
    assert torch.cuda.max_memory_allocated() < MAX_BYTES


@pytest.mark.parametrize("device", DEVICES)
@each_case
def test_the_cases_hold_for_few_tokens(case: Case, device: str) -> None:
    """So a failure beyond the border is one of offsets."""
    check_end(case, Draw(device=device, dtype=torch.float32), tokens=40, end=16, units=1)
