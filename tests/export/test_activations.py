"""The formulas of activations: complete, growing as they should, above the scan's own scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations import chunk_bytes
from longspan.kernels.conba.scratch import scratch_bytes as conba_scratch_bytes
from longspan.kernels.gla.scratch import ONE_PASS_TOKENS
from longspan.kernels.gla.scratch import scratch_bytes as gla_scratch_bytes
from longspan.kernels.selective_scan.scratch import MAX_CHUNKS, scratch_bytes
from longspan.kernels.ssd.scratch import Sizes
from longspan.kernels.ssd.scratch import scratch_bytes as ssd_scratch_bytes
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
    Quantization,
    WindowAttentionConfig,
)
from longspan.tensors import DTYPE_BYTES, DType

MAMBA = MambaConfig(d_inner=64, d_state=16, d_conv=4, dt_rank=2)
MAMBA2 = Mamba2Config(n_heads=4, head_dim=16, n_groups=2, d_state=32, d_conv=4)
OFF = ConbaConfig(n_heads=4, head_dim=8, d_state=16, d_select=24, gain="off")
SCANS = {
    "stacked heads": MAMBA2,
    "one head": Mamba2Config(n_heads=1, head_dim=8, n_groups=1, d_state=16, d_conv=4),
    "many heads": Mamba2Config(n_heads=80, head_dim=64, n_groups=1, d_state=128, d_conv=4),
    "a large state": Mamba2Config(n_heads=2, head_dim=64, n_groups=1, d_state=256, d_conv=4),
}
GLA = GlaConfig(n_heads=4, key_dim=16, value_dim=32, gate_rank=5)
RETENTION = GlaConfig(n_heads=2, key_dim=160, value_dim=192, gate_rank=None, rope_base=10000.0)
FULL = FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=8)
ANCHORS = AnchorAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=8, anchor_every=9)
CONFIG = ModelConfig(
    family="samba",
    vocab_size=100,
    d_model=32,
    layers=(
        MAMBA,
        MlpConfig(d_ff=48),
        WindowAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=8, window=16),
        MAMBA2,
        ConbaConfig(n_heads=4, head_dim=8, d_state=16, d_select=24),
        OFF,
        MoeConfig(n_experts=4, top_k=2, d_ff=48),
        GLA,
        RETENTION,
    ),
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_engine_has_an_entry_a_layer_and_one_more(dtype: DType) -> None:
    found = chunk_bytes(CONFIG, dtype)
    assert set(found) == set(get_args(Engine))
    for items in found.values():
        assert len(items) == len(CONFIG.layers) + 1
        for item in items:
            assert 0 < item.at(64) < item.at(128)


# Around a pass, a chunk, as many chunks as there are at most, and a slice.
LENGTHS = (
    *range(1, 140),
    *(near + more for near in (512, 1024, 2048, 4096, 65_536, 131_072) for more in (-1, 0, 1, 63)),
    100_000,
    1_000_000,
)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_scan_scratch_is_inside_the_formula(length: int) -> None:
    layer = chunk_bytes(CONFIG, "float32")["torch-cuda"][0]
    width = MAMBA.d_inner
    tensors = 4 * (5 * width + 34) * length
    assert layer.at(length) - tensors >= scratch_bytes(1, length, width, MAMBA.d_state)
    assert MAX_CHUNKS * 4 * width * 17 == layer.per_block * layer.most_blocks


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layer", SCANS.values(), ids=SCANS)
def test_the_scratch_of_mamba_2_is_inside_the_formula(layer: Mamba2Config, dtype: DType) -> None:
    config = replace(CONFIG, layers=(layer,))
    formula = chunk_bytes(config, dtype)["torch-cuda"][0]
    # The convolved input, dt and y; the gate and what is convolved are not there at that time.
    tensors = DTYPE_BYTES[dtype] * (layer.conv_channels + layer.n_heads + layer.d_inner)
    sizes = Sizes(
        heads=layer.n_heads, groups=layer.n_groups, head_width=layer.head_dim,
        d_state=layer.d_state, dtype=dtype,
    )  # fmt: skip
    for length in LENGTHS:
        scratch = ssd_scratch_bytes(1, length, sizes)
        assert formula.at(length) - tensors * length >= scratch, length


@pytest.mark.parametrize("length", [1, 128, 129, 8192, 1_000_000])
def test_the_scratch_of_conba_is_inside_the_formula(length: int) -> None:
    """Beside the states of all tokens there is the scaling; the output is made when it is gone."""
    layer = chunk_bytes(CONFIG, "bfloat16")["torch-cuda"][5]
    states, rows = 4 * 16, 24 + 24 + 64 + 32
    tensors = (2 * (rows + states) + 4 * states) * length
    scratch = conba_scratch_bytes(1, length, heads=4, d_state=16, delay=1)
    assert layer.at(length) - tensors >= scratch


@pytest.mark.parametrize(("index", "layer"), [(7, GLA), (8, RETENTION)])
def test_the_scratch_of_linear_attention_is_that_of_its_chunks(
    index: int, layer: GlaConfig
) -> None:
    found = chunk_bytes(CONFIG, "bfloat16")["torch-cuda"][index]
    sizes = {"heads": layer.n_heads, "key_width": layer.key_dim, "value_width": layer.value_dim}
    for length in LENGTHS:
        scratch = gla_scratch_bytes(1, length, **sizes)
        planned = found.at(length) - found.per_token * length
        assert planned == scratch if length > ONE_PASS_TOKENS else planned >= scratch, length


def test_short_chunks_take_the_scratch_of_one_chunk() -> None:
    """Of the scans of Mamba 1 and 2, and of linear attention: their states are not many."""
    formulas = chunk_bytes(CONFIG, "bfloat16")["torch-cuda"]
    states = {0: 4 * 64 * 17, 3: 2 * 4 * 4 * (16 * 32 + 1), 7: 4 * 4 * (16 * 32 + 16 + 64**2)}
    for index, state in states.items():
        layer = formulas[index]
        scratch = layer.at(16) - layer.per_token * 16
        assert 0 <= scratch - state <= layer.fixed


@pytest.mark.parametrize("head", [False, True])
def test_the_last_scan_keeps_its_scratch_beside_a_quantised_head(head: bool) -> None:
    stored = Quantization(bits=8, embedding=head, head=head)
    config = replace(CONFIG, layers=(MAMBA,), quantization=stored)
    plain, quantised = (
        chunk_bytes(each, "bfloat16")["torch-cuda"][0]
        for each in (replace(config, quantization=None), config)
    )
    for length in LENGTHS:
        assert quantised.at(length) >= plain.at(length)


def test_onnx_runtime_copies_a_state_only_where_a_head_is_cut() -> None:
    """160 x 192 float32 numbers are more than a block of the CUDA kernel holds: two parts."""
    found = chunk_bytes(CONFIG, "float32")["onnx-cuda"]
    assert found[7].fixed == 0
    assert found[8].fixed == 2 * 4 * 2 * 160 * 192


def test_only_attention_on_cuda_grows_with_the_square() -> None:
    found = chunk_bytes(CONFIG, "float32")
    pairs = {engine: [item.per_pair > 0 for item in items] for engine, items in found.items()}
    assert pairs == {
        "onnx-cpu": [False] * 10,
        # The last entry counts what a token may see through the window, a byte a pair.
        "onnx-cuda": [i in (2, 9) for i in range(10)],
        "torch-cpu": [False] * 10,
        "torch-cuda": [False] * 10,
    }


def test_what_layers_share_counts_once() -> None:
    """What RoPE turns by and what tokens see: once for all layers of a kind, or of a rule."""

    def rest(*layers: LayerConfig) -> dict[Engine, ChunkBytes]:
        found = chunk_bytes(replace(CONFIG, layers=layers), "float32")
        return {engine: items[-1] for engine, items in found.items()}

    turned = replace(ANCHORS, rope_base=10000.0)
    assert rest(turned) == rest(turned, turned, turned)
    one, two = rest(ANCHORS), rest(ANCHORS, replace(ANCHORS, anchor_every=8))
    assert (one["onnx-cpu"].per_pair, two["onnx-cpu"].per_pair) == (4, 8)
    assert (one["onnx-cuda"].per_pair, two["onnx-cuda"].per_pair) == (1, 2)
    assert (one["torch-cpu"], one["torch-cuda"]) == (two["torch-cpu"], two["torch-cuda"])
    compressed = replace(turned, positions="compressed")
    wide = [rest(*each)["onnx-cpu"].per_token for each in ((turned,), (turned, compressed))]
    assert wide[1] - wide[0] == 4 * ANCHORS.head_dim
    assert rest(FULL, FULL)["onnx-cuda"].per_token_entry == 1


def test_on_cpus_scores_are_those_of_a_block() -> None:
    config = replace(CONFIG, layers=(FULL, ANCHORS))
    for engine, layers in chunk_bytes(config, "bfloat16").items():
        for layer in layers[:2]:
            assert (layer.per_token_entry > 0) == (engine == "onnx-cuda")
    full, _, _ = chunk_bytes(config, "bfloat16")["onnx-cpu"]
    # A head's key and value in float32, and 64 rows twice; what the value is made of is gone then.
    assert full.per_entry == 2 * 4 * 8 + 2 * 4 * 64
