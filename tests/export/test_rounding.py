"""Rounding a model for a text: every kind of layer, nearer than the nearest, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longspan.errors import BadInput
from longspan.export import calibrate
from longspan.export.quantize import (
    Packed,
    QuantizedWeights,
    quantize_matrix,
    quantized_names,
)
from longspan.export.rounding import round_for_text
from longspan.export.weight_options import WeightOptions
from longspan.models.checkpoint import Checkpoint, copied, empty_decoder
from longspan.models.config import (
    LAYER_KINDS,
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
from longspan.models.tensor_files import SafetensorsFile
from tests.runtime.stand_in import random_decoder

HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12}
LAYERS: dict[str, LayerConfig] = {
    "mamba": MambaConfig(d_inner=80, d_state=4, d_conv=4, dt_rank=32),
    "mamba2": Mamba2Config(n_heads=6, head_dim=10, n_groups=2, d_state=12, d_conv=4),
    "gla": GlaConfig(n_heads=2, key_dim=16, value_dim=32, gate_rank=4),
    "conba": ConbaConfig(n_heads=4, head_dim=12, d_state=6, d_select=40),
    "window": WindowAttentionConfig(**HEADS, window=40),
    "full": FullAttentionConfig(**HEADS, d_conv=3),
    "anchors": AnchorAttentionConfig(**HEADS, anchor_ids=(3,), anchor_every=50),
    "mlp": MlpConfig(d_ff=64),
    # All experts: where a token goes is no matter of how near a number is.
    "moe": MoeConfig(n_experts=3, top_k=3, d_ff=32),
}
TOKENS = torch.randint(24, (700,), generator=torch.Generator().manual_seed(7))


def written(folder: Path, config: ModelConfig) -> Checkpoint:
    """A checkpoint of random weights under `config`, whose matrices are to be quantised."""
    plain = replace(config, quantization=None)
    save_file(random_decoder(plain, "float32").state_dict(), folder / "model.safetensors")
    files = SafetensorsFile(folder / "model.safetensors")
    weights = {name: copied(name, name, *files.shape(name)) for name in files.names}
    return Checkpoint(path=folder, config=config, files=files, weights=weights)


def model_of(*layers: LayerConfig, tied: bool = True, **stored: bool) -> ModelConfig:
    return ModelConfig(
        family="none", vocab_size=24, d_model=48, layers=layers, tied=tied,
        quantization=Quantization(bits=4, experts=True, **stored),
    )  # fmt: skip


@torch.no_grad()
def logits(checkpoint: Checkpoint, rounded: dict[str, Packed] | None) -> torch.Tensor:
    """Those of TOKENS, of the checkpoint as it is (None) or quantised."""
    config = checkpoint.config
    read = QuantizedWeights(checkpoint.read, checkpoint, "float32", rounded or {})
    if rounded is None:
        config, read = replace(config, quantization=None), checkpoint.read
    decoder = empty_decoder(config)
    state_dict = {name: read(name) for name in decoder.state_dict()}
    decoder.load_state_dict(state_dict, assign=True)
    state = decoder.new_state(capacity=len(TOKENS))
    found, _ = decoder.eval()(TOKENS[None], torch.arange(len(TOKENS)), state)
    return found[0].double()


def test_every_kind_of_layer_is_tested() -> None:
    assert {type(layer) for layer in LAYERS.values()} == set(LAYER_KINDS.values())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_nearer_than_of_the_nearest(tmp_path: Path, kind: str, tied: bool) -> None:
    checkpoint = written(tmp_path, model_of(LAYERS[kind], LAYERS["mlp"], tied=tied))
    found = round_for_text(checkpoint, TOKENS, dtype="float32", read=checkpoint.read)
    assert found.keys() == quantized_names(checkpoint)
    before = logits(checkpoint, None)
    nearest, fitted = (logits(checkpoint, each) - before for each in ({}, found))
    assert float(fitted.square().mean()) < 0.9 * float(nearest.square().mean())


def test_what_stays_as_it_is_is_not_rounded(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, model_of(LAYERS["mlp"], embedding=False, head=False))
    found = round_for_text(checkpoint, TOKENS, dtype="float32", read=checkpoint.read)
    assert found.keys() == quantized_names(checkpoint)
    assert "embedding" not in found


@pytest.mark.parametrize("experts", [1, 3])
def test_experts_without_tokens_are_rounded_to_the_nearest(tmp_path: Path, experts: int) -> None:
    """Of equal shares the first expert has the largest, so that all tokens go to it."""
    checkpoint = written(tmp_path, model_of(MoeConfig(n_experts=experts, top_k=1, d_ff=32)))

    def read(name: str) -> torch.Tensor:
        return checkpoint.read(name) * (0 if "router" in name else 1)

    found = round_for_text(checkpoint, TOKENS, dtype="float32", read=read)
    stored = checkpoint.config.quantization
    assert stored is not None
    for matrix in ("gate_up_proj", "down_proj"):
        name = f"layers.0.mixer.{matrix}.weight"
        numbers, scales, zeros = found[name]
        nearest = quantize_matrix(checkpoint.read(name), stored, "float32")
        assert numbers.shape == nearest[0].shape
        assert not torch.equal(numbers[0], nearest[0][0])
        assert torch.equal(numbers[1:], nearest[0][1:])
        assert torch.equal(scales[1:], nearest[1][1:])
        assert zeros is None


def test_a_model_that_overflows_is_refused(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, model_of(LAYERS["mlp"], LAYERS["mlp"]))

    def read(name: str) -> torch.Tensor:
        return checkpoint.read(name) * (1e30 if name.startswith("layers.0.mixer") else 1)

    with pytest.raises(BadInput) as caught:
        round_for_text(checkpoint, TOKENS, dtype="float32", read=read)
    assert str(caught.value) == (
        "rounding for a text was asked for (--calibrate), and what the model makes of it holds NaN "
        "or infinities before layers.0.mixer.down_proj.weight. Leave --calibrate out to round to "
        "the nearest, or export with weights='bfloat16' (--weights bfloat16)."
    )


@pytest.mark.parametrize(
    ("tokens", "before", "measured"),
    [(6144, 4096, 2048), (6143, 0, 6143), (40000, 16384, 8192), (2, 0, 2)],
)
@pytest.mark.parametrize("fit", [True, False])
def test_what_of_a_text_rounds(
    tmp_path: Path, tokens: int, before: int, measured: int, fit: bool
) -> None:
    """The same tokens tell the cost, whether those before them round or not."""
    (tmp_path / "text").write_bytes(bytes(97 + i % 26 for i in range(tokens)))
    found = calibrate.calibration_text(tmp_path / "text", None, byte_tokens=True, fit=fit)
    wanted = [97 + i % 26 for i in range(before + measured)]
    assert found.fitted.tolist() == (wanted[:before] if fit else [])
    assert found.measured.tolist() == wanted[before:]


@pytest.mark.parametrize(
    ("weights", "nearest", "fits"),
    [("int4", False, True), ("int4", True, False), ("int8", False, False)],
)
def test_four_bits_are_rounded_for_a_text(weights: str, nearest: bool, fits: bool) -> None:
    assert WeightOptions(weights=weights, nearest=nearest, calibrate="text").fits == fits
