"""Whoever gives a state away holds one: counted over all tensors that live at once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from numpy.typing import NDArray
from stand_in import random_decoder

from longspan.bundle import WEIGHTS, Bundle, Manifest
from longspan.export.activations import chunk_bytes
from longspan.export.weights import write_safetensors
from longspan.models.config import Mamba2Config, ModelConfig
from longspan.models.decoder import Decoder
from longspan.runtime.backends import State
from longspan.runtime.backends.torch import TorchBackend
from longspan.runtime.backends.torch_steps import Stepper
from longspan.runtime.plan_items import STATE_COPIES, fixed_items
from longspan.runtime.reader import token_pieces
from longspan.runtime.reading import Chunk, cut_chunks, every_logits, feed, read_chunks
from longspan.tensors import TensorSpec
from tests.models.test_donated_states import in_triton

LAYERS = 16
# A state of 8 KiB a layer beside activations of some KiB a token.
CONFIG = ModelConfig(
    family="mamba2",
    vocab_size=50,
    d_model=4,
    layers=(Mamba2Config(n_heads=2, head_dim=8, n_groups=1, d_state=128, d_conv=4),) * LAYERS,
)
TOKENS = np.random.default_rng(0).integers(0, 50, 12)
CHUNK = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of all layers."""
    return of_weights(tmp_path_factory.mktemp("one"), CONFIG)


def of_weights(folder: Path, config: ModelConfig) -> Bundle:
    """Weights alone: tracing a graph of so many layers would take a minute."""
    weights = random_decoder(config, "float32").state_dict()
    specs = tuple(
        TensorSpec(name=name, shape=tuple(value.shape), dtype="float32")
        for name, value in weights.items()
    )
    write_safetensors(folder / WEIGHTS, specs, weights.__getitem__)
    manifest = Manifest(
        config=config,
        dtype="float32",
        parameters=sum(value.numel() for value in weights.values()),
        weight_bytes=sum(spec.nbytes for spec in specs),
        state=config.state_layout("float32"),
        chunk_bytes=chunk_bytes(config, "float32"),
        files={},
        source={},
    )
    return Bundle(path=folder, manifest=manifest)


@pytest.fixture
def backend(bundle: Bundle) -> TorchBackend:
    return TorchBackend(
        bundle, engine="torch-cpu", memory_limit_bytes=None, threads=None, capacity=0
    )


def one_state(bundle: Bundle) -> int:
    """What the plan says of an engine that holds one: the state and a layer's next."""
    assert STATE_COPIES["torch-cuda"] == 1
    items = fixed_items(bundle.manifest, "torch-cuda", 0, 0)
    (taken,) = (item.bytes for item in items if item.name == "state and a layer's next")
    layers = len(bundle.manifest.config.layers)
    assert taken == bundle.manifest.state_bytes * (layers + 1) // layers
    return taken


def others(bundle: Bundle, tokens: int = CHUNK) -> int:
    """What else lives while a chunk is read: activations, logits, the host's tokens."""
    live = bundle.manifest.chunk_peak_bytes("torch-cpu", tokens)
    return live + 2 * 4 * tokens * CONFIG.vocab_size + 1024


def counting(backend: TorchBackend, state: State | None = None) -> LiveBytes:
    """Counts all but the weights, from a state that is there."""
    assert backend._decoder is not None
    return LiveBytes((state or {}).values(), weights=backend._decoder.parameters())


def chunks() -> Any:
    return cut_chunks(token_pieces([TOKENS]), CHUNK)


def test_reading_holds_one(bundle: Bundle, backend: TorchBackend) -> None:
    state_bytes = bundle.manifest.state_bytes
    between: list[int] = []

    def after_chunk(state: State, tokens: int, chunk: Chunk) -> None:
        between.append(live.bytes - state_bytes)

    with counting(backend) as live:
        result = read_chunks(backend, backend.new_state, chunks(), after_chunk=after_chunk)
    assert state_bytes < live.peak <= one_state(bundle) + others(bundle)
    # Room for another state would not go unnoticed.
    assert others(bundle) < state_bytes / 2
    assert len(between) == 4
    assert all(0 <= size < 1024 for size in between)
    kept = backend.new_state()
    logits, after = backend.forward(TOKENS, kept, keep=[-1])
    assert kept.keys() == after.keys()
    torch.testing.assert_close(result.state, after, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.logits, logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("donate", [False, True])
def test_a_prompt_holds_two_where_one_is_kept(
    bundle: Bundle, backend: TorchBackend, donate: bool
) -> None:
    state = backend.new_state()
    with counting(backend, state) as live:
        feed(backend, state, TOKENS, CHUNK, donate=donate)
    assert (live.peak <= one_state(bundle) + others(bundle)) == donate
    assert live.peak <= one_state(bundle) + others(bundle) + bundle.manifest.state_bytes
    assert len(state) == (0 if donate else 2 * LAYERS)


def test_logits_of_every_token_hold_one(bundle: Bundle, backend: TorchBackend) -> None:
    with counting(backend) as live:
        every_logits(backend, TOKENS, CHUNK)
    assert live.peak <= one_state(bundle) + others(bundle)


def test_steps_that_are_given_a_state_hold_one(bundle: Bundle, backend: TorchBackend) -> None:
    _, start = backend.forward(TOKENS, backend.new_state(), keep=[])
    with counting(backend, start) as live, closing(backend.steps(start, donate=True)) as steps:
        del start
        for token in (1, 2):
            steps.step(token)
    assert live.peak <= one_state(bundle) + others(bundle)


@pytest.mark.parametrize("donate", [False, True])
def test_launched_steps_hold_one(tmp_path: Path, donate: bool) -> None:
    """As a GPU takes them where there is no room to record: over the state itself."""
    # Few layers: Triton's interpreter takes a second for each.
    bundle = of_weights(tmp_path, replace(CONFIG, layers=CONFIG.layers[:6]))
    decoder = random_decoder(bundle.manifest.config, "float32")
    state = decoder.new_state()
    expected = logits_of(decoder, [1, 2])
    with LiveBytes(state.values(), weights=decoder.parameters()) as live, in_triton():
        with closing(Stepper(decoder, graph=False, held=None).open(state, donate=donate)) as steps:
            found = np.stack([steps.step(token).copy() for token in (1, 2)])
        assert (live.peak <= one_state(bundle) + others(bundle, tokens=1)) == donate
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def logits_of(decoder: Decoder, tokens: list[int]) -> NDArray[np.float32]:
    """Logits [L, V] after each token."""
    keep = torch.arange(len(tokens))
    logits, _ = decoder(torch.tensor([tokens]), keep, decoder.new_state())
    return logits[0].numpy()


def test_a_refused_chunk_frees_what_it_was_given(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that is still held keeps no frames, and so no tensors."""
    from longspan.errors import BudgetExceeded

    assert backend._decoder is not None
    last: Any = backend._decoder.layers[-1]

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(last.mixer, "forward", refuse)
    with counting(backend) as live:
        state = backend.new_state()
        with pytest.raises(BudgetExceeded) as caught:
            backend.forward(TOKENS, state, keep=[], donate=True)
        assert "A chunk of 12 tokens needs more memory than" in str(caught.value)
        assert state == {}
        assert live.bytes < 1024
