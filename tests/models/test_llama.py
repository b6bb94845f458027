"""transformers' LlamaForCausalLM as the oracle, and every refusal of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import LLAMA_CONFIG, in_chunks, refusal, write_config, write_llama
from safetensors.torch import save_file

from longspan.models.checkpoint import load_decoder
from longspan.models.config import FullAttentionConfig
from longspan.models.families import open_checkpoint

VOCABULARY, TOKENS = 29, 37
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip
CASES: dict[str, dict[str, object]] = {
    "usual": {},
    "a key head a query head": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "heads of another width": {"head_dim": 6},
    "another base": {"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}},
}
CUTS = ([TOKENS], [1, 7, 2, 16, 3, 8], [1] * TOKENS)
# float32 sums in another order, and angles that transformers rounds to float32; logits near 5.
LOGITS_ATOL = 2e-5


def oracle(folder: Path, **changes: object) -> torch.nn.Module:
    """A random model, saved."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SIZES | changes)))
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
    model.save_pretrained(folder)
    result: torch.nn.Module = model
    return result


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    model = oracle(tmp_path, **changes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.family == "llama"
    decoder = load_decoder(checkpoint)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    expected = model(tokens).logits
    for cuts in CUTS:
        found = in_chunks(decoder, tokens, cuts)
        torch.testing.assert_close(found, expected, atol=LOGITS_ATOL, rtol=0)


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    write_llama(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens = torch.randint(24, (3, 9))
    together, _ = decoder(tokens, None, decoder.new_state(batch=3, capacity=9))
    for row in range(3):
        alone, _ = decoder(tokens[row : row + 1], None, decoder.new_state(capacity=12))
        torch.testing.assert_close(together[row : row + 1], alone, atol=LOGITS_ATOL, rtol=0)


def test_bfloat16_weights_stay_near(tmp_path: Path) -> None:
    """Weights and activations are rounded to 2^-8, some dozen times."""
    model = oracle(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), dtype=torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    expected = model(tokens).logits
    found = in_chunks(decoder, tokens, CUTS[1])
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_low_precision_caches_round_the_same_in_any_cut(tmp_path: Path) -> None:
    write_llama(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), dtype=torch.bfloat16, compute=torch.float32)
    tokens = torch.randint(24, (1, TOKENS))
    whole = in_chunks(decoder, tokens, CUTS[0])
    for cuts in CUTS[1:]:
        found = in_chunks(decoder, tokens, cuts)
        torch.testing.assert_close(found, whole, atol=LOGITS_ATOL, rtol=0)


def test_frequencies_that_old_versions_saved_are_known(tmp_path: Path) -> None:
    weights = write_llama(tmp_path)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    save_file(weights | {name: torch.ones(2)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).family == "llama"
    save_file(weights | {name: torch.ones(3)}, tmp_path / "model.safetensors")
    assert f"has the tensor '{name}' with shape [3]" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({}, 500.0),
        ({"rope_theta": None}, 10_000.0),
        ({"rope_scaling": {"type": "default"}}, 500.0),
        ({"rope_parameters": {"rope_theta": 500, "rope_type": "default"}}, 500.0),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 8e5}}, 8e5),
    ],
)
def test_the_base_of_rope(tmp_path: Path, changes: dict[str, Any], base: float) -> None:
    write_llama(tmp_path, **changes)
    attention = open_checkpoint(tmp_path).config.layers[0]
    assert isinstance(attention, FullAttentionConfig)
    assert attention.rope_base == base


UNSUPPORTED = "This checkpoint cannot be exported by this version."
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scaled RoPE": (
        {"rope_scaling": {"rope_type": "default", "type": "linear"}},
        (
            'WHERE, rope_scaling has type = "linear"; longspan supports only "default" for a llama '
            f"model. {UNSUPPORTED}"
        ),
    ),
    "scaled RoPE of transformers 5": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0}},
        (
            'WHERE, rope_parameters has rope_type = "llama3"; longspan supports only "default" for '
            f"a llama model. {UNSUPPORTED}"
        ),
    ),
    "a factor": (
        {"rope_scaling": {"rope_type": "default", "factor": 8.0}},
        (
            "WHERE, rope_scaling has the key 'factor', which a llama config does not have. Every "
            "key must be known, because an ignored one could change the model. Correct or remove "
            "it."
        ),
    ),
    "no object": (
        {"rope_scaling": "linear"},
        'WHERE has rope_scaling = "linear"; it must be an object or null. Correct it.',
    ),
    "two bases": (
        {"rope_parameters": {"rope_theta": 600.0}},
        (
            "WHERE has rope_theta = 500.0 and rope_parameters.rope_theta = 600.0; they must be "
            "equal. Correct them."
        ),
    ),
    "another activation": (
        {"hidden_act": "gelu"},
        (
            'WHERE has hidden_act = "gelu"; longspan supports only "silu" for a llama model. '
            f"{UNSUPPORTED}"
        ),
    ),
    "key heads that do not divide": (
        {"num_key_value_heads": 3},
        (
            "WHERE has num_attention_heads = 4 and num_key_value_heads = 3; the second must divide "
            "the first. Correct them."
        ),
    ),
    "heads that do not divide": (
        {"num_attention_heads": 6},
        (
            "WHERE has hidden_size = 16 and num_attention_heads = 6, and no head_dim; without it, "
            "the second must divide the first. Correct them."
        ),
    ),
    "odd heads": (
        {"head_dim": 5},
        (
            "WHERE has heads of width 5; it must be even, because RoPE turns one half against the "
            "other. Correct head_dim."
        ),
    ),
    "an unknown key": (
        {"sliding_window": 4096},
        (
            "WHERE has the key 'sliding_window', which a llama config does not have. Every key "
            "must be known, because an ignored one could change the model. Correct or remove it."
        ),
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_llama(tmp_path)
    where = write_config(tmp_path, LLAMA_CONFIG | changes)
    assert refusal(tmp_path) == message.replace("WHERE", where)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    write_llama(tmp_path, attention_bias=False)
    write_config(tmp_path, LLAMA_CONFIG)
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors lacks the tensor 'model.layers.0.self_attn.k_proj.bias'. A "
        "llama checkpoint of this config must have it. Check that config and weights belong "
        "together."
    )
