"""Weights of 8 and 4 bits: how far they are off, what is refused, and a bundle end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers_checkpoints import stories, write_hf, write_llama, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from longspan.bundle import GRAPHS, WEIGHTS, open_bundle
from longspan.errors import BadInput
from longspan.export import calibrate, export_bundle
from longspan.export.quantize import part_name, quantize_matrix, rounded_up
from longspan.kernels.dequantize.reference import dequantize
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import MambaConfig, ModelConfig, MoeConfig, Quantization
from longspan.tensors import DType
from tests.runtime.stand_in import write_bundle

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    width=st.integers(1, 200),
    shift=st.sampled_from([0.0, 1.0, -3.0]),
    seed=st.integers(0, 9),
)
def test_a_weight_is_off_by_half_a_scale(
    bits: int, block: int, symmetric: bool, dtype: DType, width: int, shift: float, seed: int
) -> None:
    stored = Quantization(bits=bits, block=block, symmetric=symmetric)
    matrix = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) + shift
    matrix[1] = 0
    weight, scales, zeros = quantize_matrix(matrix, stored, dtype)
    assert weight.shape == stored.weight_shape(3, width)
    assert scales.shape == stored.scales_shape(3, width)
    assert (None if zeros is None else zeros.shape) == stored.zeros_shape(3, width)
    wide = torch.float64
    found = dequantize(weight, scales, zeros, bits=bits, width=width, dtype=wide, rows=None)
    bound = scales.double().abs().repeat_interleave(block, dim=1)[:, :width] / 2
    assert bool(((found - matrix).abs() <= bound * (1 + 1e-4)).all())
    # All of a symmetric range is used, but for what rounding the scale up costs.
    largest = matrix[0].abs().max() / (2 ** (bits - 1) - 0.5) * (2 if not symmetric else 1)
    assert float(scales[0].abs().max()) <= float(largest) * 1.01 + 1e-7


def test_scales_are_rounded_up() -> None:
    values = torch.rand(1000) * 3
    for dtype in ("bfloat16", "float16"):
        found = rounded_up(values, dtype)
        assert bool((found.float() >= values).all())
        assert bool((found.float() <= values * (1 + 2**-7) + 1e-7).all())


def test_names_of_parts() -> None:
    assert part_name("layers.0.mixer.in_proj.weight", "scales") == "layers.0.mixer.in_proj.scales"
    assert part_name("embedding", "zeros") == "embedding_zeros"


def test_a_bundle_of_4_bits_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model: smaller, checked, rounded for a text whose end tells that it is near."""
    monkeypatch.setattr(calibrate, "FEWEST_FITTED_TOKENS", 400)
    text = tmp_path / "letters.txt"
    drawn = torch.randint(26, (900,), generator=torch.Generator().manual_seed(5))
    text.write_text("".join(chr(97 + int(each)) for each in drawn))
    report = export_bundle(
        stories(), tmp_path / "int4", weights="int4", symmetric=False, tokenizer="bytes",
        calibrate=text,
    )  # fmt: skip
    assert all(check.passed for check in report.checks)
    manifest = open_bundle(tmp_path / "int4").manifest
    assert manifest.quantization == report.quantization
    assert manifest.dtype == "bfloat16"
    assert manifest.parameters == 260_032
    assert manifest.weight_bytes < 160_000
    cost = report.calibration
    assert cost is not None
    assert 0 < cost.rms_logit_error < cost.max_logit_error < 0.1 * cost.rms_logit
    assert (cost.fitted_tokens, cost.tokens) == (600, 300)
    assert "rounded for the 600 tokens before them: logits off" in report.text()
    assert manifest.source["calibration"]["fitted_tokens"] == 600
    assert manifest.source["calibration"]["perplexity_change"] == cost.perplexity_change
    _check_graphs(report.bundle, tied=manifest.config.tied)
    said = json.loads((tmp_path / "int4/longspan.json").read_text())["quantization"]
    assert said == {
        "bits": 4, "block": 32, "symmetric": False, "embedding": True, "head": True,
        "experts": False,
    }  # fmt: skip


def _check_graphs(folder: Path, *, tied: bool) -> None:
    """One copy of the quantised matrices, in the weights' file."""
    size = (folder / WEIGHTS).stat().st_size
    layers = open_bundle(folder).manifest.config.layers
    for name in GRAPHS.values():
        graph = onnx.load(folder / name, load_external_data=False).graph
        products = [node for node in graph.node if node.op_type == "MatMulNBits"]
        assert len(products) == 2 * len(layers) + 1
        stored = [each for each in graph.initializer if each.data_type == onnx.TensorProto.UINT8]
        places = {tuple(entry.value for entry in each.external_data) for each in stored}
        assert len(places) == len(stored)
        assert all(int(offset) + int(length) <= size for _, offset, length in places)
        if tied:
            (gather,) = (n for n in graph.node if n.op_type == "Gather" and "embedding" in n.input)
            assert products[-1].input[1] == gather.input[0]


EXPERTS = ModelConfig(
    family="mixcon",
    vocab_size=256,
    d_model=64,
    layers=(
        MoeConfig(n_experts=4, top_k=2, d_ff=48),
        MambaConfig(d_inner=64, d_state=4, d_conv=4, dt_rank=4),
        MoeConfig(n_experts=3, top_k=1, d_ff=24),
    ),
)


@pytest.mark.parametrize("symmetric", [True, False])
def test_experts_in_4_bits_end_to_end(
    tmp_path: Path, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs each has its own constants, which are its part of the file; else a loop has them."""
    monkeypatch.setattr(calibrate, "FEWEST_FITTED_TOKENS", 400)
    (tmp_path / "text").write_bytes(bytes(torch.randint(97, 123, (900,)).tolist()))
    plain = write_bundle(tmp_path / "plain", EXPERTS, "bfloat16")
    report = export_bundle(
        plain.path, tmp_path / "int4", weights="int4", symmetric=symmetric, tokenizer="bytes",
        calibrate=tmp_path / "text",
    )  # fmt: skip
    assert all(check.passed for check in report.checks)
    manifest = open_bundle(report.bundle).manifest
    assert manifest.quantization is not None
    assert manifest.quantization.experts
    # All but the matrices of 24 columns, norms, routers and what belongs to Mamba.
    packed = [name for name in names_of(report.bundle) if name.endswith("scales")]
    assert "layers.0.mixer.down_proj.scales" in packed
    assert "layers.2.mixer.down_proj.scales" not in packed
    size = (report.bundle / WEIGHTS).stat().st_size
    for device, name in GRAPHS.items():
        graph = onnx.load(report.bundle / name, load_external_data=False).graph
        places = [
            [(entry.key, entry.value) for entry in each.external_data]
            for each in graph.initializer
            if each.data_type == onnx.TensorProto.UINT8
        ]
        ends = [int(dict(each)["offset"]) + int(dict(each)["length"]) for each in places]
        assert max(ends) <= size
        assert len({str(each) for each in places}) == len(places)
        kinds = [node.op_type for node in graph.node]
        own = [each.name for each in graph.initializer if "/part" in each.name]
        parts = 2 if symmetric else 3
        assert len(own) == (parts * (2 * 4 + 3) if device == "cpu" else 0)
        assert kinds.count("If") == (4 + 3 if device == "cpu" else 0)


def names_of(folder: Path) -> set[str]:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def test_experts_of_earlier_bundles_stay_as_they_are() -> None:
    """Nothing was said of them, and the model's identity must not change."""
    config = replace(EXPERTS, quantization=Quantization(bits=4))
    said = config.to_json()
    del said["quantization"]["experts"]
    assert ModelConfig.from_json(said) == config
    assert config.identity()["quantization"] == said["quantization"]
    names = empty_decoder(config).state_dict().keys()
    assert "layers.0.mixer.down_proj.scales" not in names
    now = replace(config, quantization=Quantization(bits=4, experts=True))
    assert now.identity()["quantization"]["experts"]
    assert "layers.0.mixer.down_proj.scales" in empty_decoder(now).state_dict()


def test_a_head_that_is_not_the_embedding(tmp_path: Path) -> None:
    write_llama(tmp_path / "checkpoint", tie_word_embeddings=False, **WIDE)
    report = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", weights="int8", block=64)
    assert all(check.passed for check in report.checks)
    _check_graphs(report.bundle, tied=False)


def test_a_bundle_is_exported_again(tmp_path: Path) -> None:
    write_hf(tmp_path / "checkpoint")
    write_tokenizer(tmp_path / "checkpoint/tokenizer.json")
    first, quantized = tmp_path / "first", tmp_path / "quantized"
    export_bundle(tmp_path / "checkpoint", first, prompt_template="{question}!")
    export_bundle(first, quantized, weights="int8")
    before, after = open_bundle(first).manifest, open_bundle(quantized).manifest
    assert (after.prompt, after.eos) == (before.prompt, before.eos)
    assert after.tokenizer_fingerprint() == before.tokenizer_fingerprint()
    assert after.config.layers == before.config.layers
    with pytest.raises(BadInput) as caught:
        export_bundle(quantized, tmp_path / "third")
    assert str(caught.value) == (
        f"{quantized} was asked for as the weights to export, and they have 8 bits. What was "
        "rounded off is not there any more. Export the checkpoint that it was made of."
    )


REFUSED = {
    "no such block": (
        {"weights": "int4", "block": 48},
        (
            "block=48 was asked for; a block has 32, 64 or 128 weights, which share a scale. Give "
            "one of these with block (--block)."
        ),
    ),
    "a block of others": (
        {"weights": "bfloat16", "block": 32},
        (
            "block=32 (--block) was asked for, and weights are 'bfloat16'. It is for weights of 8 "
            "or 4 bits. Add weights='int8' (--weights int8) or 'int4', or leave it out."
        ),
    ),
    "zero points of others": (
        {"symmetric": False},
        (
            "symmetric=False (--asymmetric) was asked for, and weights are left out. It is for "
            "weights of 8 or 4 bits. Add weights='int8' (--weights int8) or 'int4', or leave it "
            "out."
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path, tmp_path / "bundle", **options)
    assert str(caught.value) == message


def test_a_tied_matrix_in_two_ways_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "checkpoint", tie_word_embeddings=True, **WIDE)
    with pytest.raises(BadInput, match="one matrix, stored once"):
        export_bundle(
            tmp_path / "checkpoint", tmp_path / "bundle", weights="int8",
            quantize_embedding=True, quantize_head=False,
        )  # fmt: skip


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = write_llama(tmp_path / "checkpoint", **WIDE)
    name = "model.layers.0.self_attn.o_proj.weight"
    weights[name][0, 0] = torch.nan
    save_file(weights, tmp_path / "checkpoint/model.safetensors")
    with pytest.raises(BadInput, match=r"layers\.0\.mixer\.out_proj\.weight holds NaN or infini"):
        export_bundle(
            tmp_path / "checkpoint", tmp_path / "bundle", weights="int8", allow_nonfinite=True
        )
