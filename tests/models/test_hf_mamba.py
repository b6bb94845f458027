"""transformers' MambaForCausalLM as the oracle.

Its own continuation with several tokens is wrong for Mamba-1, so it reads all at once or
one by one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longspan.models.checkpoint import load_decoder
from longspan.models.families import open_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

CASES = {
    "usual": {},
    "bias": {"use_bias": True},
    "no conv bias": {"use_conv_bias": False},
    "untied": {"tie_word_embeddings": False},
    "odd sizes": {"hidden_size": 20, "expand": 3, "state_size": 5, "time_step_rank": 7,
                  "conv_kernel": 3, "layer_norm_epsilon": 1e-3},
}  # fmt: skip
# float32 sums in another order; the logits are near 3.
LOGITS_ATOL = 2e-5


def oracle(folder: Path, **changes: object) -> torch.nn.Module:
    sizes = {"vocab_size": 29, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    config = transformers.MambaConfig(**(sizes | changes), use_cache=True)
    model = transformers.MambaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name or ".D" in name))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    model = oracle(tmp_path, **changes)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens = torch.randint(29, (1, 11))
    expected = model(tokens).logits

    logits, _ = decoder(tokens, torch.arange(11), decoder.new_state())
    torch.testing.assert_close(logits, expected, atol=LOGITS_ATOL, rtol=0)

    state = decoder.new_state()
    for t in range(11):
        logits, state = decoder(tokens[:, t : t + 1], None, state)
        torch.testing.assert_close(logits[:, 0], expected[:, t], atol=LOGITS_ATOL, rtol=0)


def test_steps_equal_transformers_steps(tmp_path: Path) -> None:
    model = oracle(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path))
    tokens, state, cache = torch.randint(29, (1, 6)), decoder.new_state(), None
    for t in range(6):
        out = model(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
        cache = out.cache_params
        logits, state = decoder(tokens[:, t : t + 1], None, state)
        torch.testing.assert_close(logits, out.logits, atol=LOGITS_ATOL, rtol=0)
