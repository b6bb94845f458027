"""transformers' Mamba2ForCausalLM as the oracle: one pass, odd chunks, and one by one.

Its own step forgets `time_step_limit` without CUDA kernels, so its one pass is what counts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_checkpoints import in_chunks

from longspan.models.checkpoint import load_decoder
from longspan.models.families import open_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

VOCABULARY, TOKENS = 29, 37
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 6,
    "n_groups": 1, "num_hidden_layers": 2, "chunk_size": 8, "tie_word_embeddings": True,
}  # fmt: skip
CASES = {
    "usual": {},
    "two groups": {"n_groups": 2},
    "a group a head": {"n_groups": 4},
    "bias": {"use_bias": True, "n_groups": 2},
    "no conv bias": {"use_conv_bias": False},
    "untied": {"tie_word_embeddings": False},
    "limited steps": {"time_step_limit": (0.3, 0.9), "n_groups": 2},
    "odd sizes": {"hidden_size": 15, "expand": 3, "num_heads": 9, "head_dim": 5, "n_groups": 3,
                  "state_size": 7, "conv_kernel": 3, "layer_norm_epsilon": 1e-3},
}  # fmt: skip
CUTS = ([TOKENS], [1, 7, 2, 16, 3, 8], [1] * TOKENS)
# float32 sums in another order; the logits are near 5. A group of few channels may have a small
# mean square, by whose root it is divided: 3e-5 with a group for each head, 4e-6 elsewhere.
LOGITS_ATOL = 1e-4


def oracle(folder: Path, **changes: object) -> torch.nn.Module:
    """A random model, saved; decays from slow to fast."""
    model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**(SIZES | changes)))
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        near_one = "norm" in name or name.endswith(".D")
        parameter.copy_(torch.randn_like(parameter) * (1.0 if "A_log" in name else 0.3) + near_one)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    model = oracle(tmp_path, **changes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.family == "hf_mamba2"
    decoder = load_decoder(checkpoint)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    expected = model(tokens).logits
    for cuts in CUTS:
        found = in_chunks(decoder, tokens, cuts)
        torch.testing.assert_close(found, expected, atol=LOGITS_ATOL, rtol=0)


def test_steps_equal_transformers_steps(tmp_path: Path) -> None:
    model = oracle(tmp_path, n_groups=2)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens, state, cache = torch.randint(VOCABULARY, (1, 6)), decoder.new_state(), None
    for t in range(6):
        out = model(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
        cache = out.cache_params
        logits, state = decoder(tokens[:, t : t + 1], None, state)
        torch.testing.assert_close(logits, out.logits, atol=LOGITS_ATOL, rtol=0)


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    oracle(tmp_path, n_groups=2)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens = torch.randint(VOCABULARY, (3, 9))
    together, _ = decoder(tokens, None, decoder.new_state(batch=3))
    for row in range(3):
        alone, _ = decoder(tokens[row : row + 1], None, decoder.new_state())
        torch.testing.assert_close(together[row : row + 1], alone, atol=LOGITS_ATOL, rtol=0)


def test_bfloat16_weights_stay_near(tmp_path: Path) -> None:
    """Weights and activations are rounded to 2^-8, some dozen times: off by 6% of the largest."""
    model = oracle(tmp_path, n_groups=2)
    decoder = load_decoder(open_checkpoint(tmp_path), dtype=torch.bfloat16)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    expected = model(tokens).logits
    found = in_chunks(decoder, tokens, CUTS[1])
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
