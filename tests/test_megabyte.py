"""benchmarks/megabyte.py: steps are one pass, no byte sees a later one, and counts are true."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from megabyte import MegaByte, counts
from megabyte_sizes import (
    MAMBABYTE,
    PUBLISHED,
    PUBLISHED_RATIOS,
    Sizes,
    Stage,
    mambabyte,
    nominal_flops_per_byte,
    nominal_parameters,
    parameters_of,
)

TINY = Sizes(
    patch_bytes=4,
    context_bytes=24,
    over_patches=Stage(width=32, layers=2, heads=4),
    in_patch=Stage(width=12, layers=3, heads=2),
)
# float64 sums in another order; logits are near 4.
ATOL = 1e-10


def model(sizes: Sizes = TINY) -> MegaByte:
    """Random weights in float64, paddings and positions as large as embeddings, biases not zero."""
    made = MegaByte(sizes).double().eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        near_one = name.endswith("norm.weight")
        parameter.copy_(0.3 * torch.randn_like(parameter) + near_one)
    return made


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 21, 24])
def test_steps_are_one_pass(length: int) -> None:
    megabyte, text = model(), torch.randint(256, (2, length))
    expected = megabyte(text)
    assert expected.shape == (2, length, 256)
    assert float(expected.std()) > 0.1
    logits, state = megabyte.start(2)
    for t in range(length):
        torch.testing.assert_close(logits, expected[:, t], atol=ATOL, rtol=0)
        if t + 1 < length:
            logits, state = megabyte.step(text[:, t], state)


@pytest.mark.parametrize("changed", [0, 3, 4, 10, 20])
def test_a_byte_changes_nothing_before_it(changed: int) -> None:
    megabyte, text = model(), torch.randint(256, (1, 21))
    other = text.clone()
    other[0, changed] = (text[0, changed] + 1) % 256
    apart = (megabyte(text) - megabyte(other)).abs().amax(-1)[0]
    assert apart[: changed + 1].eq(0).all()
    # The next byte of the patch, or of the patches after it, sees the change.
    assert changed == 20 or bool((apart[changed + 1 :] > 1e-6).all())


def test_the_local_transformer_sees_its_patch_alone() -> None:
    """Without what the global one says, bytes of another patch change nothing."""
    megabyte, text = model(), torch.randint(256, (1, 16))
    megabyte.to_local.weight.zero_()
    other = text.clone()
    other[0, :8] = (text[0, :8] + 7) % 256
    assert torch.equal(megabyte(text)[:, 8:], megabyte(other)[:, 8:])


def test_greedy_generation_is_the_argmax_of_one_pass() -> None:
    megabyte, prompt = model(), torch.randint(256, (1, 6))
    found = torch.stack(list(megabyte.generate(prompt, 11)), dim=1)
    text = torch.cat([prompt, found], dim=1)
    assert torch.equal(megabyte(text)[:, 6:].argmax(-1), found)


def test_nothing_stands_beyond_the_last_position() -> None:
    with pytest.raises(ValueError, match="asked to read 25 bytes; its learned positions end at 24"):
        list(model().generate(torch.zeros(1, 20, dtype=torch.int64), 5))


@pytest.mark.parametrize("sizes", [TINY, *PUBLISHED.values()], ids=["tiny", *PUBLISHED])
def test_parameters_are_counted(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)
    with torch.device("meta"):
        made = MegaByte(sizes)
    assert sum(parameter.numel() for parameter in made.parameters()) == sizes.parameters


def test_flops_are_counted() -> None:
    """torch counts whole squares of attention, the formula what a causal mask leaves of them."""
    megabyte, text = MegaByte(TINY), torch.randint(256, (1, 24))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        megabyte(text)
    over, inside = TINY.over_patches, TINY.in_patch
    masked = over.attention_flops(6 - 3.5) / 4 + inside.attention_flops(4 - 2.5)
    assert counter.get_total_flops() == 24 * (TINY.flops_per_byte() + masked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_bytes_are_counted(dtype: torch.dtype) -> None:
    megabyte = MegaByte(TINY).to(dtype)
    _, state = megabyte.start()
    for length in range(24):
        assert state.length == length
        assert state.nbytes == TINY.state_bytes(length, dtype.itemsize)
        if length < 23:
            _, state = megabyte.step(torch.tensor([65]), state)


def test_the_names_of_the_sizes_are_shares_of_gpt_3() -> None:
    for name, sizes in PUBLISHED.items():
        found = [nominal_parameters(stage) / 1e6 for stage in (sizes.over_patches, sizes.in_patch)]
        said = [float(part[:-1]) * (1000 if part[-1] == "B" else 1) for part in name.split("+")]
        assert found == pytest.approx(said, rel=0.005)
        assert sizes.parameters / 1e6 == pytest.approx(sum(said), rel=0.15)


@pytest.mark.parametrize("name", MAMBABYTE)
def test_mambabyte_has_the_parameters_of_its_name(name: str) -> None:
    assert parameters_of(mambabyte(name)) / 1e6 == pytest.approx(float(name[:-1]), rel=0.005)


@pytest.mark.parametrize(("pair", "ratio"), PUBLISHED_RATIOS.items(), ids=str)
def test_the_published_ratios(pair: tuple[str, str], ratio: float) -> None:
    sizes, flops = PUBLISHED[pair[0]], 2 * parameters_of(mambabyte(pair[1]))
    assert nominal_flops_per_byte(sizes) / flops == pytest.approx(ratio, abs=0.01)
    # What the module really computes is less, by the 50,257 words that the names count.
    assert 0.85 * ratio < sizes.flops_per_byte() / flops < 0.95 * ratio


def test_the_state_grows_with_patches() -> None:
    """758M+262M in bfloat16: 14 layers of two rows of 2,048 numbers for each 8 bytes."""
    sizes = replace(PUBLISHED["758M+262M"], context_bytes=2**20)
    grown = sizes.state_bytes(2**18, 2) - sizes.state_bytes(2**18 - 1024, 2)
    assert grown == 14 * 2 * 128 * 2048 * 2


def test_the_table() -> None:
    lines = counts().splitlines()
    assert len(lines) == 2 + len(PUBLISHED_RATIOS)
    assert lines[2].startswith("| 758M+262M : 353M | 934M | 0.90 | 1.02 | 1.02 |")
