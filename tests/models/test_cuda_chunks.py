"""What a chunk of each kind of layer allocates on CUDA is what its formula says.

Triton's own functions allocate here as they do there; their kernels are not launched.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from longspan.export.activations import chunk_bytes
from longspan.kernels import device
from longspan.kernels.donation import states_donated
from longspan.models.config import (
    AnchorAttentionConfig,
    ConbaConfig,
    FullAttentionConfig,
    GlaConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    WindowAttentionConfig,
)
from longspan.models.decoder import Decoder
from longspan.tensors import DType
from tests.models.test_donated_states import in_triton
from tests.runtime.live_bytes import LiveBytes

HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
CONBA = {"n_heads": 4, "head_dim": 16, "d_state": 8, "d_select": 128}
LAYERS: dict[str, LayerConfig] = {
    "mamba": MambaConfig(d_inner=128, d_state=16, d_conv=4, dt_rank=4),
    "mamba, narrow": MambaConfig(d_inner=32, d_state=4, d_conv=4, dt_rank=2),
    "mamba2": Mamba2Config(n_heads=8, head_dim=16, n_groups=1, d_state=16, d_conv=4),
    "gla": GlaConfig(n_heads=2, key_dim=16, value_dim=32),
    "gla, wide values": GlaConfig(n_heads=2, key_dim=16, value_dim=96),
    "gla, wide keys": GlaConfig(n_heads=2, key_dim=48, value_dim=16),
    "retention": GlaConfig(n_heads=2, key_dim=16, value_dim=32, gate_rank=None, rope_base=10000.0),
    "retention, wide values": GlaConfig(
        n_heads=2, key_dim=16, value_dim=64, gate_rank=None, rope_base=10000.0
    ),
    "conba": ConbaConfig(**CONBA),
    "conba, many states": ConbaConfig(**{**CONBA, "d_state": 64}),
    "conba, wide selection": ConbaConfig(**{**CONBA, "d_select": 512}),
    "conba, no gain": ConbaConfig(**CONBA, gain="off"),
    "window": WindowAttentionConfig(**HEADS, window=64),
    "full": FullAttentionConfig(**HEADS),
    "full, no rotation": FullAttentionConfig(**HEADS, rope_base=None),
    "full, convolved": FullAttentionConfig(**HEADS, d_conv=4),
    "anchors": AnchorAttentionConfig(**HEADS, anchor_every=16),
    "mlp": MlpConfig(d_ff=160),
    "mlp, narrow": MlpConfig(d_ff=16),
    "moe": MoeConfig(n_experts=4, top_k=2, d_ff=96),
    "moe, one expert a token": MoeConfig(n_experts=8, top_k=1, d_ff=96),
}
WIDTH = 64
# The scratch of every kernel is as large as it gets, and what is beside it is larger.
TOKENS = 4096, 8192


@torch.inference_mode()
def peak(config: ModelConfig, dtype: DType, tokens: int) -> int:
    """Bytes of tensors that live at most while a chunk is read, but for weights and state."""
    decoder = Decoder(config, dtype=getattr(torch, dtype)).requires_grad_(False)
    state = decoder.new_state(capacity=max(TOKENS))
    ids, nothing = torch.zeros(1, tokens, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    with LiveBytes((ids, *state.values()), weights=decoder.parameters()) as live:
        held = live.bytes - ids.nbytes
        with states_donated():
            decoder(ids, nothing, state, donate=True)
    return live.peak - held


# Of an H100. Where kernels are interpreted, the device is not known.
H100 = {"max_shared_mem": 232_448, "multiprocessor_count": 132}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_token_takes_what_the_formula_says(layer: LayerConfig, dtype: DType) -> None:
    config = ModelConfig(family="none", vocab_size=20, d_model=WIDTH, layers=(layer,) * 2)
    first, _, rest = chunk_bytes(config, dtype)["torch-cuda"]
    with (
        in_triton(),
        patch.object(InterpretedFunction, "run", lambda *_, **__: None),
        patch.object(device, "_property", lambda _, name: H100[name]),
    ):
        short, long = (peak(config, dtype, tokens) for tokens in TOKENS)
    found = (long - short) / (TOKENS[1] - TOKENS[0])
    formula = first.per_token + rest.per_token
    assert 0.95 * formula - 16 <= found <= formula
    # A layer's next state, that is planned elsewhere, and a few positions.
    states = (each.nbytes for each in config.state_layout(dtype, max(TOKENS)))
    beside = 2 * max(states, default=0) + 4096
    assert long <= first.at(TOKENS[1]) + rest.at(TOKENS[1]) + beside
