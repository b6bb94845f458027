"""transformers' FalconMambaForCausalLM as the oracle, in one pass and step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longspan.models.checkpoint import load_decoder
from longspan.models.config import MambaConfig
from longspan.models.families import open_checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

# float32 sums in another order; the norms divide by small roots, the logits are near 4.
LOGITS_ATOL = 5e-5


@pytest.mark.parametrize("changes", [{}, {"mixer_rms_eps": 0.1, "use_bias": True}], ids=str)
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    sizes = {"vocab_size": 29, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    config = transformers.FalconMambaConfig(**(sizes | {"time_step_rank": 5} | changes))
    model = transformers.FalconMambaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name or ".D" in name))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    (mixer, _) = checkpoint.config.layers
    assert checkpoint.family == "falcon_mamba"
    assert isinstance(mixer, MambaConfig)
    assert mixer.bcdt_norm_eps == config.mixer_rms_eps

    decoder, tokens = load_decoder(checkpoint), torch.randint(29, (1, 11))
    expected = model(tokens).logits
    logits, _ = decoder(tokens, torch.arange(11), decoder.new_state())
    torch.testing.assert_close(logits, expected, atol=LOGITS_ATOL, rtol=0)
    state = decoder.new_state()
    for t in range(11):
        logits, state = decoder(tokens[:, t : t + 1], None, state)
        torch.testing.assert_close(logits[:, 0], expected[:, t], atol=LOGITS_ATOL, rtol=0)
