"""What torch's allocator holds beyond a chunk's tensors: by its rules, no more than planned."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from played_allocator import MIB, PlayedAllocator, Segment
from test_int8_plan import manifest_of
from triton.runtime.interpreter import InterpretedFunction

from longspan.export.activations import chunk_bytes
from longspan.kernels import device
from longspan.kernels.donation import states_donated
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    WindowAttentionConfig,
)
from longspan.models.decoder import Decoder
from longspan.runtime.plan_unfilled import END_BYTES, unfilled_bytes
from tests.models.test_cuda_chunks import H100
from tests.models.test_donated_states import in_triton

WIDTH, CAPACITY = 128, 3000
HEADS = {"n_heads": 4, "n_kv_heads": 4, "head_dim": 64}
# Each has states or caches above 1 MiB, which are large tensors.
LARGE: dict[str, tuple[LayerConfig, ...]] = {
    "mamba": (MambaConfig(d_inner=1024, d_state=320, d_conv=4, dt_rank=4),),
    "mamba2": (Mamba2Config(n_heads=16, head_dim=64, n_groups=1, d_state=320, d_conv=4),),
    "gla": (GlaConfig(n_heads=2, key_dim=384, value_dim=512), MlpConfig(d_ff=512)),
    "window": (WindowAttentionConfig(**HEADS, window=2048), MlpConfig(d_ff=512)),
    "anchors": (AnchorAttentionConfig(**HEADS, anchor_every=16), MlpConfig(d_ff=512)),
    "conba": (ConbaConfig(n_heads=4, head_dim=32, d_state=16, d_select=512, gain="off"),),
}


def test_a_segment_takes_the_smallest_piece_and_grows_by_pages() -> None:
    segment = Segment(10)
    places = [segment.take(size) for size in (4, 3, 5)]
    assert (places, segment.bytes) == ([0, 4, 7], 20)
    segment.give_back(0)
    assert segment.take(5) == 12  # The hole of 4 is too small.
    assert segment.take(2) == 0  # The smallest piece that holds it.
    segment.give_back(4)
    assert segment.take(5) == 2  # The rest of the hole, and its neighbour.
    assert segment.bytes == 20


@torch.inference_mode()
def played(config: ModelConfig, tokens: int) -> tuple[int, int]:
    """What the allocator would hold after three chunks, and what lives at most."""
    decoder = Decoder(config, dtype=torch.bfloat16).requires_grad_(False)
    state = decoder.new_state(capacity=CAPACITY)
    nothing = torch.zeros(0, dtype=torch.int64)
    with PlayedAllocator(state.values(), weights=decoder.parameters()) as allocator:
        for _ in range(3):
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            with states_donated():
                _, state = decoder(ids, nothing, state, donate=True)
            for each in state.values():
                if each.dtype == torch.int64:
                    each.zero_()  # No kernel was launched, so nobody wrote this counter.
    return allocator.reserved, allocator.peak


@pytest.mark.parametrize("tokens", [1024, 4096])
@pytest.mark.parametrize("unit", LARGE.values(), ids=LARGE)
def test_between_a_chunk_s_tensors_no_more_stays_free_than_planned(
    unit: tuple[LayerConfig, ...], tokens: int
) -> None:
    config = ModelConfig(family="none", vocab_size=20, d_model=WIDTH, layers=unit * 4)
    *_, rest = layers = chunk_bytes(config, "bfloat16")["torch-cuda"]
    live = max(each.at(tokens, CAPACITY) for each in layers[:-1]) + rest.at(tokens)
    with (
        in_triton(),
        patch.object(InterpretedFunction, "run", lambda *_, **__: None),
        patch.object(device, "_property", lambda _, name: H100[name]),
    ):
        reserved, peak = played(config, tokens)
    # cuBLAS' workspace, which the plan counts elsewhere, takes 8 MiB of the first page.
    assert reserved - peak <= unfilled_bytes(manifest_of(config), live) + 8 * MIB


def test_some_layers_leave_more() -> None:
    live = 1000 * MIB
    plain, gated = (LARGE[name] for name in ("mamba2", "gla"))
    for layers, percent in ((plain, 0), (gated, 5), ((*plain, *gated, *LARGE["conba"]), 10)):
        config = ModelConfig(family="none", vocab_size=20, d_model=WIDTH, layers=layers)
        assert unfilled_bytes(manifest_of(config), live) == END_BYTES + percent * 10 * MIB
