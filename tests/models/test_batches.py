"""Sequences side by side: 16 that are stepped together give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from longspan.kernels.donation import states_donated
from longspan.models.config import (
    FullAttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    WindowAttentionConfig,
)
from longspan.models.decoder import Decoder, State
from longspan.tensors import dtype_name
from tests.kernels.devices import DEVICE_DTYPES
from tests.models.test_donated_states import in_triton
from tests.runtime.stand_in import random_decoder

BATCH, READ, STEPS, CAPACITY = 16, 9, 3, 20
MLP = MlpConfig(d_ff=20)
HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
UNITS: dict[str, tuple[LayerConfig, ...]] = {
    "samba": (
        MambaConfig(d_inner=32, d_state=5, d_conv=4, dt_rank=2),
        MLP,
        WindowAttentionConfig(**HEADS, window=7),
        MLP,
    ),
    "a window in splits": (WindowAttentionConfig(**HEADS, window=258),),
    "llama": (FullAttentionConfig(**HEADS), MLP),
    "mamba2": (Mamba2Config(n_heads=4, head_dim=8, n_groups=2, d_state=6, d_conv=4),),
}
# One row goes through a product of its own, 16 through one together: sums in another order, of
# logits near 5; in 16 bits every activation is rounded, some dozen times.
ATOL = {torch.float32: 5e-5, torch.float16: 3e-2, torch.bfloat16: 3e-1}


def stepped(decoder: Decoder, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """Logits [B, L, V] of steps over the state itself, and the state after them."""
    rows = []
    with states_donated():
        for token in tokens.split(1, dim=1):
            logits, state = decoder(token, None, state)
            rows.append(logits)
    return torch.cat(rows, dim=1), state


def row_of(state: State, row: int) -> State:
    """A copy of one sequence's state."""
    return {
        name: (each if each.dtype == torch.int64 else each[row : row + 1]).clone()
        for name, each in state.items()
    }


@pytest.mark.parametrize(("device", "dtype"), [DEVICE_DTYPES[0], *DEVICE_DTYPES[2:]])
@pytest.mark.parametrize("unit", UNITS)
@torch.inference_mode()
def test_a_batch_of_steps_is_its_rows(unit: str, device: str, dtype: torch.dtype) -> None:
    config = ModelConfig(family="none", vocab_size=20, d_model=24, layers=UNITS[unit])
    decoder = random_decoder(config, dtype_name(str(dtype).removeprefix("torch."))).to(device)
    tokens = torch.randint(20, (BATCH, STEPS), device=device)
    state = decoder.new_state(BATCH, capacity=CAPACITY)
    for each in state.values():
        if each.is_floating_point():
            each.normal_()
        else:
            each.fill_(READ)
    rows = [row_of(state, row) for row in range(BATCH)]
    given = dict(state)
    with in_triton():
        together, after = stepped(decoder, tokens, state)
    # Nothing but counters lies elsewhere: a batch is stepped without a copy of its caches.
    assert {name for name in after if after[name] is not given[name]} == {
        name for name in after if after[name].dtype == torch.int64
    }
    assert together.std(dim=0).min() > 0
    for row, of_row in enumerate(rows):
        # On the CPU by plain torch, which takes a row a hundred times faster than the interpreter.
        alone, after_alone = stepped(decoder, tokens[row : row + 1], of_row)
        found = row_of(after, row)
        torch.testing.assert_close(together[row : row + 1], alone, atol=ATOL[dtype], rtol=0)
        for name, expected in after_alone.items():
            torch.testing.assert_close(found[name], expected, atol=ATOL[dtype], rtol=0, msg=name)
