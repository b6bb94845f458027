"""Every system's checkpoint is its format's, and longspan computes what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attention_blocks import seen_through_anchors
from ops import IMPLEMENTATIONS, differentiable
from published import read, write
from saving import PIECE_BYTES
from small import small, write_text
from start import new_model
from systems import SENTENCES, SYSTEMS

import longspan
from longspan.kernels import recorded
from longspan.models.checkpoint import empty_decoder, load_decoder
from longspan.models.families import open_checkpoint


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_one_small_file(name: str) -> None:
    parameters = sum(p.numel() for p in empty_decoder(SYSTEMS[name].model).parameters())
    assert 3_500_000 < parameters < 3_900_000
    assert 4 * parameters < PIECE_BYTES


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_checkpoint_is_what_was_trained(name: str, tmp_path: Path) -> None:
    system = small(name)
    model = new_model(system.model, compute=torch.float32, device="cpu")
    write(system, model, tmp_path)
    tokens = torch.randint(250, (2, 70))
    keep = torch.arange(70)
    with torch.no_grad(), differentiable():
        want, _ = model(tokens, keep, model.new_state(2, capacity=70))

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == system.model
    decoder = load_decoder(checkpoint)
    with torch.no_grad():
        logits, _ = decoder(tokens, keep, decoder.new_state(2, capacity=70))
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)

    other = new_model(system.model, compute=torch.float32, device="cpu")
    read(system, other, tmp_path)
    for mine, given in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, given)


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_op_is_left_without_gradients(name: str) -> None:
    system = small(name)
    model = new_model(system.model, compute=torch.float32, device="cpu")
    for tokens in (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)):
        with torch.no_grad(), differentiable(), recorded() as names:
            model(tokens, None, model.new_state(1, capacity=3))
        assert names <= IMPLEMENTATIONS.keys()


@pytest.mark.slow
def test_the_exported_bundle_is_what_was_trained(tmp_path: Path) -> None:
    system = small("anllm")
    text = write_text(tmp_path, system.tokens)
    model = new_model(system.model, compute=torch.float32, device="cpu")
    write(system, model, tmp_path / "checkpoint")
    asked = "It rained. She went home. What did Mary say?"
    tokens = torch.from_numpy(text.tokenizer().encode(asked))[None]
    anchor, length = system.anchor, tokens.shape[1]
    assert anchor == SENTENCES - 1
    assert (tokens == anchor).sum() == 3
    with torch.no_grad(), differentiable(seen_through_anchors(tokens, anchor)):
        want, _ = model(tokens, torch.arange(length), model.new_state(1, capacity=length))

    assert system.export == ("--anchors", "ac")
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    longspan.export_bundle(checkpoint, bundle, tokenizer=text.file, anchors="ac")
    with longspan.load(bundle, budget="1GiB", device="cpu") as runtime:
        logits = torch.from_numpy(runtime.logits(tokens[0].tolist()))
    torch.testing.assert_close(logits, want[0], rtol=1e-3, atol=1e-3)
