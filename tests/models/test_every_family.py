"""What holds for every family and variant: cuts, steps, Triton, state sizes; tiny checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from family_rows import ROWS, Row
from variant_rows import VARIANTS

from longspan.kernels import implementations, override
from longspan.models.checkpoint import load_decoder
from longspan.models.decoder import Decoder
from longspan.models.families import FAMILIES, family_of
from longspan.models.operations import operations
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

State = dict[str, torch.Tensor]
TOKENS = 45
# The same sums in float64, in another order; inputs that are kept are rounded to float32 alike.
ATOL = 1e-9
each_family = pytest.mark.parametrize("row", [*ROWS, *VARIANTS], ids=lambda row: row.id)


def start(decoder: Decoder, length: int) -> State:
    """The state before the first of `length` tokens, in float64 where the decoder is."""
    wide = decoder.embedding.dtype == torch.float64
    return {
        name: tensor.double() if wide and tensor.is_floating_point() else tensor
        for name, tensor in decoder.new_state(capacity=length).items()
    }


def read(decoder: Decoder, tokens: torch.Tensor, cuts: Sequence[int]) -> tuple[torch.Tensor, State]:
    """Logits [L, V] of all tokens, read in these cuts, and the state after them."""
    state, rows = start(decoder, tokens.shape[1]), []
    for part in tokens.split(list(cuts), dim=1):
        keep = torch.arange(part.shape[1], device=tokens.device)
        logits, state = decoder(part, keep, state)
        rows.append(logits[0])
    return torch.cat(rows), state


def in_use(decoder: Decoder, state: State) -> State:
    """The state without the entries of caches that are not in use, which have no meaning."""
    counters = {spec.name: spec.counter for spec in decoder.config.state_layout("float32")}
    return {
        name: tensor if (counter := counters[name]) is None else tensor[:, : int(state[counter])]
        for name, tensor in state.items()
    }


def check_cuts(row: Row, folder: Path, cuts: Sequence[int]) -> None:
    decoder = load_decoder(row.open(folder), compute=torch.float64).double()
    tokens = torch.randint(decoder.config.vocab_size, (1, TOKENS))
    expected, expected_state = read(decoder, tokens, [TOKENS])
    found, state = read(decoder, tokens, cuts)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
    expected_state = in_use(decoder, expected_state)
    torch.testing.assert_close(in_use(decoder, state), expected_state, atol=ATOL, rtol=0)


def test_every_family_has_a_row() -> None:
    assert sorted(row.family for row in ROWS) == sorted(family.name for family in FAMILIES)


@each_family
def test_the_row_is_of_its_family(row: Row, tmp_path: Path) -> None:
    checkpoint = row.open(tmp_path)
    assert family_of(checkpoint).name == row.family == row.config().family


@each_family
def test_chunks_equal_one_pass(row: Row, tmp_path: Path) -> None:
    check_cuts(row, tmp_path, [1, 7, 2, 16, 3, 8, 8])


@each_family
def test_steps_equal_one_pass(row: Row, tmp_path: Path) -> None:
    check_cuts(row, tmp_path, [1] * TOKENS)


@contextmanager
def all_ops(decoder: Decoder, name: str) -> Iterator[None]:
    """Compute every op of the decoder that has the implementation `name` with it.

    But for `linear`: its kernel is for one row, which it gets where that is chosen, and many rows
    take the interpreter minutes.
    """
    with ExitStack() as stack:
        for op in operations(decoder.config):
            if name in implementations(op) and op != "linear":
                stack.enter_context(override(op, name))
        yield


@pytest.mark.parametrize("device", DEVICES)
@each_family
def test_triton_equals_reference(row: Row, device: str, tmp_path: Path) -> None:
    """One token, a long chunk, and a short one: the ways that kernels take to a result."""
    decoder = load_decoder(row.open(tmp_path)).to(device)
    length = 300 if device == "cuda" else 20
    tokens = torch.randint(decoder.config.vocab_size, (1, length), device=device)
    with all_ops(decoder, "reference"):
        expected, expected_state = read(decoder, tokens, [length])
    with all_ops(decoder, "triton"):
        found, state = read(decoder, tokens, [1, length - 8, 7])
    assert_close("decoder", found, expected)
    state = in_use(decoder, state)
    for name, tensor in in_use(decoder, expected_state).items():
        if tensor.is_floating_point():
            assert_close("decoder", state[name], tensor)
        else:
            assert torch.equal(state[name], tensor)


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_of_a_call(row: Row, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = load_decoder(row.open(tmp_path), dtype=dtype)
    _, state = read(decoder, torch.randint(decoder.config.vocab_size, (1, TOKENS)), [TOKENS])
    found = {name: (tuple(each.shape), each.dtype) for name, each in state.items()}
    assert found == {
        spec.name: (spec.shape, getattr(torch, spec.dtype))
        for spec in decoder.config.state_layout(decoder.state_dtype(), TOKENS)
    }


@each_family
def test_published_state_bytes(row: Row) -> None:
    for tokens in (8 * 1024, 256 * 1024):
        assert row.state_bytes_at(tokens) == row.state_bytes(tokens)
