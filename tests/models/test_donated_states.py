"""States that were given away: overwritten where they lie, and nothing else is any different."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch

from longspan.kernels import donation, implementations, override
from longspan.kernels.causal_conv import causal_conv
from longspan.kernels.donation import is_donated, moved_into, new_like, states_donated
from longspan.kernels.linear import triton_rows
from longspan.models.config import (
    LAYER_KINDS,
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    ModelConfig,
    WindowAttentionConfig,
)
from longspan.models.decoder import State
from longspan.runtime.doctor import OPS
from longspan.tensors import dtype_name
from tests.kernels.devices import DEVICE_DTYPES, DEVICES
from tests.runtime.stand_in import random_decoder

CONBA = {"n_heads": 2, "head_dim": 12, "d_state": 6, "d_select": 8}
HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
# A layer, and which of its state tensors are overwritten.
LAYERS: dict[str, tuple[LayerConfig, set[str]]] = {
    "mamba": (MambaConfig(d_inner=66, d_state=5, d_conv=4, dt_rank=2), {"conv", "ssm"}),
    "mamba, no taps": (MambaConfig(d_inner=8, d_state=4, d_conv=1, dt_rank=2), {"conv", "ssm"}),
    "mamba2": (
        Mamba2Config(n_heads=6, head_dim=10, n_groups=2, d_state=12, d_conv=4),
        {"conv", "ssm"},
    ),
    "gla": (GlaConfig(n_heads=2, key_dim=10, value_dim=20, gate_rank=4), {"recurrent"}),
    "retention": (
        GlaConfig(n_heads=2, key_dim=10, value_dim=20, gate_rank=None, rope_base=1e4),
        {"recurrent"},
    ),
    "conba": (ConbaConfig(**CONBA), {"x", "delay", "gain", "error"}),
    "conba, delayed": (ConbaConfig(**CONBA, delay=3), {"x", "gain", "error"}),
    "conba, in chunks": (
        ConbaConfig(**CONBA, gain="chunk", gain_chunk=3),
        {"x", "delay", "gain", "error"},
    ),
    "conba, no gain": (ConbaConfig(**CONBA, gain="off"), set()),
    "window": (WindowAttentionConfig(**HEADS, window=7), {"k", "v"}),
    "window of one": (WindowAttentionConfig(**HEADS, window=1), {"k", "v"}),
    "window of several blocks": (WindowAttentionConfig(**HEADS, window=600), {"k", "v"}),
    "full": (FullAttentionConfig(**HEADS, d_conv=3), {"k", "v", "conv"}),
    "anchors": (AnchorAttentionConfig(**HEADS, anchor_ids=(3,), anchor_every=5), {"k", "v"}),
}
READ, STEPS = 5, 5
# States that may be large; a chunk leaves them where they are, too.
STAY = {"ssm", "recurrent", "k", "v"}


def in_use(layer: LayerConfig, state: State) -> State:
    """The state without what its caches hold beyond the entries in use."""
    used = {
        f"layers.0.{spec.name}": int(state[f"layers.0.{spec.counter}"])
        for spec in layer.state("float32")
        if spec.counter is not None
    }
    return {name: each[:, : used[name]] if name in used else each for name, each in state.items()}


@contextmanager
def in_triton() -> Iterator[None]:
    """Compute with Triton; a product of several rows stays torch's own."""
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            # The interpreter runs programs one after another: a few with more rows cost less.
            stack.enter_context(patch.object(triton_rows, "MIN_PROGRAMS", 1))
        for op in OPS:
            if op != "linear" and "triton" in implementations(op):
                stack.enter_context(override(op, "triton"))
        yield


@pytest.mark.parametrize(("device", "dtype"), [DEVICE_DTYPES[0], *DEVICE_DTYPES[2:]])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_are_the_same_to_the_bit(kind: str, device: str, dtype: torch.dtype) -> None:
    layer, overwritten = LAYERS[kind]
    config = ModelConfig(family="none", vocab_size=20, d_model=24, layers=(layer,))
    decoder = random_decoder(config, dtype_name(str(dtype).removeprefix("torch."))).to(device)
    tokens = torch.randint(20, (1, READ + STEPS), device=device)
    with torch.inference_mode(), in_triton():
        read = decoder.new_state(capacity=READ + STEPS)
        _, read = decoder(tokens[:, :READ], None, read)
        before = {name: each.clone() for name, each in read.items()}
        given, kept = {name: each.clone() for name, each in read.items()}, dict(read)
        for token in tokens[:, READ:].split(1, dim=1):
            expected, kept = decoder(token, None, kept)
            with states_donated():
                found, after = decoder(token, None, given)
            assert {name for name in given if after[name] is given[name]} == {
                f"layers.0.{name}" for name in overwritten
            }
            assert torch.equal(found, expected)
            assert bool(found.isfinite().all())
            given = after
            for name, each in in_use(layer, given).items():
                assert torch.equal(each, in_use(layer, kept)[name]), name
        # What was not given away is as it was.
        for name, each in in_use(layer, read).items():
            assert torch.equal(each, in_use(layer, before)[name]), name


@pytest.mark.parametrize(("device", "dtype"), [DEVICE_DTYPES[0], *DEVICE_DTYPES[2:]])
@pytest.mark.parametrize(
    ("kind", "length"), [*((kind, 20) for kind in LAYERS), ("conba, no gain", 150), ("mamba", 150)]
)
def test_chunks_are_the_same_to_the_bit(
    kind: str, length: int, device: str, dtype: torch.dtype
) -> None:
    layer, _ = LAYERS[kind]
    config = ModelConfig(family="none", vocab_size=20, d_model=24, layers=(layer,))
    decoder = random_decoder(config, dtype_name(str(dtype).removeprefix("torch."))).to(device)
    tokens = torch.randint(20, (1, READ + length), device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    with torch.inference_mode(), in_triton():
        _, read = decoder(tokens[:, :READ], nothing, decoder.new_state(capacity=READ + length))
        given = {name: each.clone() for name, each in read.items()}
        expected, kept = decoder(tokens[:, READ:], None, read)
        held = dict(given)
        # As if these small states were large ones.
        with states_donated(), patch.object(donation, "LARGE_BYTES", 0):
            found, after = decoder(tokens[:, READ:], None, given, donate=True)
        assert given == {}
        stayed = {name for name, each in after.items() if each is held[name]}
        assert stayed >= {name for name in after if name.rpartition(".")[2] in STAY}
        assert torch.equal(found, expected)
        for name, each in in_use(layer, after).items():
            assert torch.equal(each, in_use(layer, kept)[name]), name


def test_every_kind_with_a_state_is_among_them() -> None:
    tested = {type(layer) for layer, _ in LAYERS.values()}
    assert {kind for kind in LAYER_KINDS.values() if kind.tiny().state("float32")} == tested


def test_memory_of_its_own_unless_it_was_given_away() -> None:
    state = torch.zeros(2, 3)
    assert new_like(state, in_place=True) is not state
    assert not is_donated(state)
    with states_donated():
        assert is_donated(state)
        assert new_like(state, in_place=True) is state
        assert new_like(state, in_place=False) is not state
        # A kernel writes contiguous memory.
        strided = torch.zeros(3, 2, dtype=torch.float16).T
        fresh = new_like(strided, in_place=True)
        assert fresh is not strided
        assert (fresh.shape, fresh.dtype) == (strided.shape, strided.dtype)
        assert fresh.is_contiguous()
    assert not is_donated(state)


def test_a_large_state_goes_where_the_one_before_lies_if_that_was_given_away() -> None:
    state = torch.zeros(1, 2**18 + 1)
    small, strided = torch.zeros(1, 2**18), torch.zeros(2, 2**18).T
    for each in (state, small, strided):
        new_state = torch.ones_like(each)
        assert moved_into(each, new_state) is new_state
    with states_donated():
        for each in (small, strided):
            new_state = torch.ones_like(each)
            assert moved_into(each, new_state) is new_state
        assert moved_into(state, torch.ones_like(state)) is state
    assert bool((state == 1).all())
    assert not bool(small.any())


@pytest.mark.parametrize("device", DEVICES)
def test_a_tail_that_several_programs_read_is_kept(device: str) -> None:
    x, weight = torch.randn(1, 40, 8, device=device), torch.randn(8, 1, 50, device=device)
    tail = torch.randn(1, 49, 8, device=device)
    before = tail.clone()
    with states_donated(), override("causal_conv", "triton"):
        _, after = causal_conv(x, weight, None, tail)
    assert after is not tail
    assert torch.equal(tail, before)
