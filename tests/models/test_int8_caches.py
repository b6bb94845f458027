"""Every family that keeps keys and values, kept in int8: cuts, Triton, and the error of logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from family_rows import ROWS, Row
from variant_rows import VARIANTS

from longspan.kernels import override
from longspan.models.checkpoint import load_decoder
from longspan.models.decoder import Decoder
from tests.kernels.devices import DEVICES
from tests.tolerances import assert_close

State = dict[str, torch.Tensor]
TOKENS = 30
OPS = ("anchor_attention", "full_attention", "window_attention")
KEEPING = [row for row in (*ROWS, *VARIANTS) if row.config().keeps_keys]
each_family = pytest.mark.parametrize("row", KEEPING, ids=lambda row: row.id)


def read(decoder: Decoder, tokens: torch.Tensor, cuts: Sequence[int]) -> tuple[torch.Tensor, State]:
    """Logits [L, V] of all tokens, read in these cuts, and the state's entries in use."""
    wide = decoder.embedding.dtype == torch.float64
    state, rows = decoder.new_state(capacity=tokens.shape[1]), []
    state = {
        name: tensor.double() if wide and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    for part in tokens.split(list(cuts), dim=1):
        logits, state = decoder(part, torch.arange(part.shape[1], device=tokens.device), state)
        rows.append(logits[0])
    layout = decoder.config.state_layout("float32", 0, decoder.cache_dtype)
    counters = {spec.name: spec.counter for spec in layout}
    used = {
        name: tensor if (counter := counters[name]) is None else tensor[:, : int(state[counter])]
        for name, tensor in state.items()
    }
    return torch.cat(rows), used


def drawn(decoder: Decoder, length: int = TOKENS) -> torch.Tensor:
    device = decoder.embedding.device
    return torch.randint(decoder.config.vocab_size, (1, length), device=device)


@each_family
@pytest.mark.parametrize("cuts", [[1, 7, 2, 16, 4], [1] * TOKENS], ids=["chunks", "steps"])
def test_cuts_equal_one_pass(row: Row, tmp_path: Path, cuts: list[int]) -> None:
    decoder = load_decoder(row.open(tmp_path), compute=torch.float64).double()
    decoder.cache_dtype = "int8"
    tokens = drawn(decoder)
    expected, expected_state = read(decoder, tokens, [TOKENS])
    found, state = read(decoder, tokens, cuts)
    assert any(tensor.dtype == torch.int8 for tensor in state.values())
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(state, expected_state, atol=1e-9, rtol=0)


@each_family
def test_logits_stay_near_those_of_caches_that_are_not_quantized(row: Row, tmp_path: Path) -> None:
    decoder = load_decoder(row.open(tmp_path), compute=torch.float64).double()
    tokens = drawn(decoder)
    exact, _ = read(decoder, tokens, [TOKENS])
    decoder.cache_dtype = "int8"
    found, _ = read(decoder, tokens, [TOKENS])
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < 2e-2


@pytest.mark.parametrize("device", DEVICES)
@each_family
def test_triton_equals_reference(row: Row, device: str, tmp_path: Path) -> None:
    decoder = load_decoder(row.open(tmp_path)).to(device)
    decoder.cache_dtype = "int8"
    length = 300 if device == "cuda" else 12
    tokens = drawn(decoder, length)
    results = []
    for name, cuts in (("reference", [length]), ("triton", [1, length - 5, 4])):
        with override(OPS[0], name), override(OPS[1], name), override(OPS[2], name):
            results.append(read(decoder, tokens, cuts)[0])
    assert_close("decoder", results[1], results[0])
