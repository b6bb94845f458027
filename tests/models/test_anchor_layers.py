"""AnLLM's decoder: transformers' Llama under the paper's mask as the oracle, any cut, counters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_checkpoints import write_llama

from longspan.models.checkpoint import load_decoder
from longspan.models.config import CacheUse, ModelConfig, with_anchors
from longspan.models.decoder import Decoder, State
from longspan.models.families import open_checkpoint

VOCABULARY, TOKENS = 24, 37
RULES: dict[str, dict[str, Any]] = {
    "every 8": {"anchor_every": 8},
    "every 2": {"anchor_every": 2},
    "one id": {"anchor_ids": (3,)},
    "three ids": {"anchor_ids": (3, 17, 20)},
    "ids and every": {"anchor_ids": (5,), "anchor_every": 7},
    "none": {},
}
CUTS = ([TOKENS], [1] * TOKENS, [1, 7, 2, 16, 3, 8], [15, 1, 1, 20])
# float64 sums in another order, logits near 5.
ATOL = 1e-12
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


def decoder_of(checkpoint: Path, **rule: Any) -> Decoder:
    """The checkpoint as a decoder in float64."""
    opened = open_checkpoint(checkpoint)
    decoder = load_decoder(replace(opened, config=with_anchors(opened.config, **rule))).double()
    decoder.compute = torch.float64
    return decoder


def random_tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


def are_anchors(tokens: Sequence[int], rule: dict[str, Any]) -> list[bool]:
    every = rule.get("anchor_every")
    return [
        token in rule.get("anchor_ids", ()) or (every is not None and (t + 1) % every == 0)
        for t, token in enumerate(tokens)
    ]


def ansan_mask(flags: Sequence[bool]) -> torch.Tensor:
    """Which key each query sees, bool [T, T]: the paper's mask, as its authors' code makes it."""
    mask, start = torch.ones(len(flags), len(flags)).tril().bool(), 0
    anchors = [t for t, anchor in enumerate(flags) if anchor]
    for i, anchor in enumerate(anchors):
        mask[anchor + 1 :, start:anchor] = False
        mask[anchor, anchors[:i]] = False
        start = anchor + 1
    return mask


def new_state(decoder: Decoder, capacity: int, batch: int = 1) -> State:
    """Nothing read; caches in the dtype of the arithmetic where that is float64."""
    return {
        name: value.double()
        if value.is_floating_point() and decoder.compute == torch.float64
        else value
        for name, value in decoder.new_state(batch=batch, capacity=capacity).items()
    }


def in_chunks(
    decoder: Decoder, tokens: torch.Tensor, cuts: Sequence[int]
) -> tuple[torch.Tensor, list[State]]:
    """Logits of every token and the state after each call, in the least caches that do."""
    capacity = CacheUse.of(decoder.config).after(tokens[0].numpy()).entries
    state = new_state(decoder, capacity)
    rows, states = [], []
    for part in tokens.split(list(cuts), dim=1):
        logits, state = decoder(part, torch.arange(part.shape[1]), state)
        rows.append(logits)
        states.append(state)
    return torch.cat(rows, dim=1), states


class Rotary(torch.nn.Module):
    """transformers computes angles in float32; here in float64, from the same formula."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        width = torch.arange(0, 4, 2, dtype=torch.float64)
        angles = position_ids[..., None].double() * 500.0 ** (-width / 4)
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Iterator[Any]:
    """transformers' Llama, in float64 throughout: its eager softmax would be float32."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    model = transformers.LlamaForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float64, attn_implementation="sdpa"
    )
    model.model.rotary_emb = Rotary()

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model.norm), "forward", norm)
        yield model


def masked_pass(
    model: Any, tokens: torch.Tensor, flags: Sequence[bool], positions: Sequence[int]
) -> torch.Tensor:
    """The oracle's logits of all tokens at once, under the paper's mask."""
    least = torch.finfo(torch.float64).min
    hidden = torch.zeros(len(flags), len(flags), dtype=torch.float64)
    hidden.masked_fill_(~ansan_mask(flags), least)
    places = torch.tensor([positions])
    logits: torch.Tensor = model(
        tokens, attention_mask=hidden[None, None], position_ids=places
    ).logits
    return logits


def counted(flags: Sequence[bool], cuts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Anchors, entries in use and tokens read, after each call."""
    found, start = [], 0
    for length in cuts:
        start += length
        read = list(flags[:start])
        last = max((t for t, anchor in enumerate(read) if anchor), default=-1)
        found.append((sum(read), sum(read) + start - 1 - last, start))
    return found


@every_rule
def test_dropping_while_reading_equals_one_masked_pass_of_transformers(
    checkpoint: Path, oracle: Any, rule: dict[str, Any]
) -> None:
    tokens = random_tokens()
    flags = are_anchors(tokens[0].tolist(), rule)
    expected = masked_pass(oracle, tokens, flags, range(TOKENS))
    decoder = decoder_of(checkpoint, **rule)
    for cuts in CUTS:
        found, states = in_chunks(decoder, tokens, cuts)
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
        for layer in (0, 2):
            names = [f"layers.{layer}.{name}" for name in ("anchors", "entries", "position")]
            kept = [tuple(int(state[name]) for name in names) for state in states]
            assert kept == counted(flags, cuts)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_compressed_positions_count_the_entries_at_each_call(
    checkpoint: Path, oracle: Any, cuts: list[int]
) -> None:
    """The oracle is given the positions that a cache of pruned length leads to."""
    rule: dict[str, Any] = {"anchor_ids": (3, 17), "anchor_every": 9}
    tokens = random_tokens()
    flags = are_anchors(tokens[0].tolist(), rule)
    before = [0, *(entries for _, entries, _ in counted(flags, cuts))]
    positions = [
        start + i for start, length in zip(before, cuts, strict=False) for i in range(length)
    ]
    expected = masked_pass(oracle, tokens, flags, positions)
    found, _ = in_chunks(decoder_of(checkpoint, positions="compressed", **rule), tokens, cuts)
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
    absolute, _ = in_chunks(decoder_of(checkpoint, **rule), tokens, cuts)
    assert torch.allclose(found, absolute, atol=ATOL) == (cuts == [TOKENS])


def test_low_precision_caches_round_the_same_in_any_cut(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    config = with_anchors(opened.config, anchor_ids=(3,), anchor_every=9)
    decoder = load_decoder(
        replace(opened, config=config), dtype=torch.bfloat16, compute=torch.float32
    )
    whole, *others = (in_chunks(decoder, random_tokens(), cuts)[0] for cuts in CUTS)
    for other in others:
        # float32 sums in another order; logits near 5.
        torch.testing.assert_close(other, whole, atol=2e-5, rtol=0)


def test_a_batch_whose_anchors_differ_is_refused(checkpoint: Path) -> None:
    decoder = decoder_of(checkpoint, anchor_ids=(3,), anchor_every=4)
    alike = torch.tensor([[1, 3, 2, 9, 7], [4, 3, 3, 9, 8]])
    with pytest.raises(
        ValueError, match="their anchors must stand at the same tokens; the 2 given"
    ):
        decoder(alike, None, new_state(decoder, 4, batch=2))
    alike[1, 2] = 5
    together, _ = decoder(alike, None, new_state(decoder, 4, batch=2))
    for row in range(2):
        alone, _ = decoder(alike[row : row + 1], None, new_state(decoder, 4))
        torch.testing.assert_close(together[row : row + 1], alone, atol=ATOL, rtol=0)


@every_rule
@pytest.mark.parametrize("positions", ["absolute", "compressed"])
def test_the_config_survives_json(checkpoint: Path, rule: dict[str, Any], positions: Any) -> None:
    config = with_anchors(open_checkpoint(checkpoint).config, positions=positions, **rule)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.layers_by_kind() == {"anchor_attention": 2, "mlp": 2}
