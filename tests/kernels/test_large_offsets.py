"""Every Triton kernel beyond 2^31 elements: offsets are int64, not int32 by chance.

The kernel reads tokens until its largest argument has passed 2^31 elements. The end of what it
wrote, half of it before that border and half beyond, is compared with the reference in float64,
which starts at the end from the state before it; that state is known, or of a reading that stays
below the border.

An op is a row of `CASES`: its arguments for so many tokens, and how the end of them is read alone.
Inputs are bfloat16, drawn in place: 2^31 elements are 4 GiB; each case tells its peak. A card of 80
GiB has some 78, of which 70 are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from longspan.kernels import override
from longspan.kernels.anchor_attention import anchor_attention
from longspan.kernels.attention import window_attention
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.full_attention import full_attention
from longspan.kernels.rms_norm import rms_norm
from longspan.kernels.selective_scan import selective_scan
from longspan.kernels.ssd import ssd
from tests.kernels.devices import DEVICES, widen
from tests.tolerances import assert_close

Arguments = dict[str, Any]
BORDER = 2**31
MAX_BYTES = 70 * 2**30


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
        name: of the op, and of the call where it has several.
        op: the public function.
        units: heads, or blocks of channels, of the large case; the small case has one.
        arguments: all arguments for so many tokens and units.
        large: the argument that passes 2^31 elements first; its axis 1 counts tokens.
        end: the arguments that read the tokens from one on, from the state before it.
        state_row: row of the tolerances for the state after the last token; None without one.
        end_tokens: tokens that are compared, on either side of the border.
    """

    name: str
    op: Callable[..., Any]
    units: int
    arguments: Callable[[Draw, int, int], Arguments]
    large: str
    end: Callable[[Arguments, int], Arguments]
    state_row: str | None = None
    end_tokens: int = 128


def part(arguments: Arguments, names: tuple[str, ...], tokens: slice) -> Arguments:
    """The arguments with some of the tokens of those named, whose axis 1 counts tokens."""
    return {**arguments, **{name: arguments[name][:, tokens] for name in names}}


def after_nothing(arguments: Arguments, first: int) -> Arguments:
    """No state: each token is by itself."""
    return part(arguments, ("x",), slice(first, None))


def after_inputs(arguments: Arguments, first: int) -> Arguments:
    """The convolution's tail: its last inputs."""
    taps = arguments["weight"].shape[2]
    tail = arguments["x"][:, first - taps + 1 : first]
    return {**part(arguments, ("x",), slice(first, None)), "tail": tail}


def after_reading(op: Callable[..., Any], *names: str) -> Callable[[Arguments, int], Arguments]:
    """The state that the kernel leaves after the tokens before, which stay below the border."""

    def end(arguments: Arguments, first: int) -> Arguments:
        with override(op.__name__, "triton"):
            _, state = op(**part(arguments, names, slice(first)))
        return {**part(arguments, names, slice(first, None)), "state": state}

    return end


def after_window(arguments: Arguments, first: int) -> Arguments:
    """The last keys and values before, and how many tokens there were."""
    kept = slice(first - arguments["window"] + 1, first)
    return {
        **part(arguments, ("q", "k", "v"), slice(first, None)),
        "past_k": arguments["k"][:, kept],
        "past_v": arguments["v"][:, kept],
        "position": arguments["position"] + first,
    }


def after_keys(arguments: Arguments, first: int) -> Arguments:
    """All keys and values, of which those before are in use."""
    return {
        **part(arguments, ("q", "k", "v"), slice(first, None)),
        "past_k": arguments["k"],
        "past_v": arguments["v"],
        "position": arguments["position"] + first,
    }


def after_segments(arguments: Arguments, first: int) -> Arguments:
    """The anchors before, and the tokens of the segment that is open."""
    is_anchor = arguments["is_anchor"]
    anchors = is_anchor[:first].nonzero()[:, 0]
    opened = torch.arange(int(anchors[-1]) + 1, first, device=anchors.device)
    kept = torch.cat([anchors, opened])
    end = part(arguments, ("q", "k", "v"), slice(first, None))
    for name in ("k", "v"):
        end[f"past_{name}"] = torch.zeros_like(arguments[f"past_{name}"])
        end[f"past_{name}"][:, : len(kept)] = arguments[name][:, kept]
    end["anchors"] = arguments["anchors"] + len(anchors)
    end["entries"] = arguments["entries"] + len(kept)
    return {**end, "is_anchor": is_anchor[first:]}


def last_entries(arguments: Arguments, first: int) -> Arguments:
    """The entries of the cache that weigh anything, and the same new tokens."""
    return {
        **part(arguments, ("past_k", "past_v"), slice(first, None)),
        "position": arguments["position"] - first,
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


def full_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """A long text at once: many heads over one key head, so that 2^31 queries are few tokens."""
    width = 128
    return {
        "q": draw.inputs(1, tokens, units, width),
        "k": draw.inputs(1, tokens, 1, width),
        "v": draw.inputs(1, tokens, 1, width),
        "past_k": draw.inputs(1, tokens, 1, width),
        "past_v": draw.inputs(1, tokens, 1, width),
        "position": torch.tensor([0], device=draw.device),
    }


def cache_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """Four tokens after a long text, whose keys weigh nothing but for the last twelve.

    Scores of the others are near -90: what they add is less than a float32 holds, so the reference
    may leave them out, and a kernel that reads a wrong entry shows.
    """
    width, new = 128, 4
    q, k, v = (draw.inputs(1, new, units, width) for _ in range(3))
    past_k, past_v = (draw.inputs(1, tokens, units, width) for _ in range(2))
    q[..., 0] = 16.0
    past_k[:, : tokens - 16, :, 0] = -64.0
    position = torch.tensor([tokens - new], device=draw.device)
    return {"q": q, "k": k, "v": v, "past_k": past_k, "past_v": past_v, "position": position}


def anchor_arguments(draw: Draw, tokens: int, units: int) -> Arguments:
    """A long text with an anchor every few tokens, and a cache with room for what is kept of it."""
    width, period = 128, 128 if tokens > 1000 else 8
    is_anchor = torch.zeros(tokens, dtype=torch.bool, device=draw.device)
    is_anchor[period - 1 :: period] = True
    past = (1, tokens // period + tokens % period, units, width)
    none = torch.tensor([0], device=draw.device)
    return {
        "q": draw.inputs(1, tokens, units, width),
        "k": draw.inputs(1, tokens, units, width),
        "v": draw.inputs(1, tokens, units, width),
        "past_k": draw.inputs(*past),
        "past_v": draw.inputs(*past),
        "anchors": none,
        "entries": none,
        "is_anchor": is_anchor,
    }


CASES = (
    # x and y: 8 GiB.
    Case(
        name="rms_norm", op=rms_norm, units=128, arguments=norm_arguments, large="x",
        end=after_nothing,
    ),
    # x and y: 8 GiB.
    Case(
        name="causal_conv", op=causal_conv, units=128, arguments=conv_arguments, large="x",
        end=after_inputs, state_row="causal_conv",
    ),
    # x, dt, z and y: 16 GiB; the states of 1,025 chunks of 256 tokens: 0.6 GiB. The reading of
    # the tokens before comes after: its y, and the first one: 20 GiB.
    Case(
        name="selective_scan", op=selective_scan, units=128, arguments=scan_arguments, large="x",
        end=after_reading(selective_scan, "x", "dt", "B", "C", "z"), state_row="selective_scan",
    ),
    # x and y twice: 12 GiB; B and C, and C before it is scaled: 0.4 GiB; scratch of a slice.
    Case(
        name="ssd", op=ssd, units=64, arguments=ssd_arguments, large="x",
        end=after_reading(ssd, "x", "dt", "B", "C"), state_row="ssd state of bfloat16",
    ),
    # q, k, v and y, as many key heads as query heads: 16 GiB.
    Case(
        name="window_attention", op=window_attention, units=32, arguments=window_arguments,
        large="q", end=after_window, state_row="window_attention",
    ),
    # q and y: 8 GiB; the reference's scores in float64, 16 queries of 512 heads over 32,776 keys,
    # and what it makes of them: three times 2 GiB.
    Case(
        name="full_attention, a long text", op=full_attention, units=512,
        arguments=full_arguments, large="q", end=after_keys, state_row="full_attention",
        end_tokens=16,
    ),
    # Keys and values of the cache, and their copies: 16 GiB.
    Case(
        name="full_attention, a long cache", op=full_attention, units=32,
        arguments=cache_arguments, large="past_k", end=last_entries, state_row="full_attention",
        end_tokens=16,
    ),
    # q, k, v and y: 16 GiB; 4,160 entries of the cache are little.
    Case(
        name="anchor_attention", op=anchor_attention, units=32, arguments=anchor_arguments,
        large="q", end=after_segments, state_row="anchor_attention",
    ),
)  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def check_end(case: Case, draw: Draw, *, tokens: int, units: int) -> int:
    """Compare the last of `tokens` tokens; the number of elements of the largest argument."""
    arguments = case.arguments(draw, tokens, units)
    with override(case.op.__name__, "triton"):
        y, *state = _results(case.op(**arguments))
    end = case.end(arguments, tokens - case.end_tokens)
    # float64 is computed by the reference.
    wide = {name: widen(value) if _is_float(value) else value for name, value in end.items()}
    expected, *expected_state = _results(case.op(**wide))
    assert_close(case.op.__name__, y[:, -expected.shape[1] :], expected)
    for found, wanted in zip(state, expected_state, strict=True):
        if not _is_float(found):
            assert torch.equal(found, wanted)
            continue
        assert case.state_row is not None, "a state needs a tolerance"
        assert_close(case.state_row, found[:, -wanted.shape[1] :], wanted)
    return int(arguments[case.large].numel())


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
