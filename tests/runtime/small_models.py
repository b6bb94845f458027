"""Backends with random weights for tests of decoding: a recurrent net in numpy, and a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundles import byte_bundle, fake_manifest
from numpy.typing import NDArray
from stand_in import random_decoder

from longspan.bundle import Bundle
from longspan.engines import Engine
from longspan.models.config import MambaConfig, MlpConfig, ModelConfig, WindowAttentionConfig
from longspan.runtime.backends import Arrays, State, Steps
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.tensors import TensorSpec

WIDTH = 24
CONFIG = ModelConfig(
    family="mambabyte",
    vocab_size=256,
    d_model=12,
    layers=(
        MambaConfig(d_inner=24, d_state=4, d_conv=4, dt_rank=2),
        WindowAttentionConfig(n_heads=2, n_kv_heads=1, head_dim=6, window=5),
        MlpConfig(d_ff=16),
    ),
    norm="layer",
    tied=False,
)


class Recurrent:
    """h = tanh(W h + E[token]), logits = U h: one token at a time, so cuts change no bit.

    Attributes:
        passes: tokens of each call.
    """

    engine: Engine = "onnx-cpu"

    def __init__(self, seed: int, *, noise: float = 0.0, vocab_size: int = 256) -> None:
        def drawn(*shape: int) -> NDArray[np.float64]:
            return rng.standard_normal(shape) + noise * other.standard_normal(shape)

        rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
        self.kept = 1.6 * drawn(WIDTH, WIDTH) / WIDTH**0.5  # long before it says a thing twice
        self.embedding = 2 * drawn(vocab_size, WIDTH)
        self.head = drawn(vocab_size, WIDTH)
        self.passes: list[int] = []

    def new_state(self) -> State:
        """Zeros."""
        return {"h": np.zeros(WIDTH, np.float32)}

    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`."""
        self.passes.append(len(tokens))
        h, rows = np.array(state["h"]), []
        for token in tokens:
            h = np.tanh(self.kept @ h + self.embedding[token]).astype(np.float32)
            rows.append(h)
        logits = [self.head @ rows[index] for index in keep]
        if donate:
            state.clear()
        return np.array(logits, np.float32).reshape(len(logits), len(self.head)), {"h": h}

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`."""
        return ForwardSteps(self, state, donate=donate)

    def to_arrays(self, state: State) -> Arrays:
        """Copies."""
        return {name: np.array(value) for name, value in state.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies."""
        return {name: np.array(value) for name, value in arrays.items()}

    def release(self, memory_limit_bytes: int | None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def recurrent_bundle(folder: Path, **changes: Any) -> Bundle:
    """The bundle of a `Recurrent` over bytes."""
    state = (TensorSpec(name="h", shape=(WIDTH,), dtype="float32"),)
    return byte_bundle(folder, state=state, **changes)


class RandomDecoder:
    """`CONFIG` with random weights, as torch's backend runs it, without a bundle on disk."""

    engine: Engine = "torch-cpu"

    def __init__(self, seed: int, *, noise: float = 0.0) -> None:
        self.decoder = random_decoder(CONFIG, "float32", seed)
        other = random_decoder(CONFIG, "float32", seed + 1000).state_dict()
        for name, parameter in self.decoder.named_parameters():
            if not name.endswith(".A"):
                parameter += noise * other[name]

    def new_state(self) -> State:
        """Zeros."""
        return self.decoder.new_state()

    @torch.inference_mode()
    def forward(
        self, tokens: NDArray[np.int64], state: State, *, keep: Sequence[int], donate: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """See `longspan.runtime.backends.Backend.forward`."""
        kept = torch.tensor(list(keep), dtype=torch.int64)
        logits, after = self.decoder(torch.tensor(tokens)[None], kept, state, donate=donate)
        return logits[0].numpy(), after

    def steps(self, state: State, *, donate: bool = False) -> Steps:
        """See `longspan.runtime.backends.Backend.steps`."""
        return ForwardSteps(self, state, donate=donate)

    def to_arrays(self, state: State) -> Arrays:
        """Copies."""
        return {name: tensor.numpy().copy() for name, tensor in state.items()}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Copies."""
        return {name: torch.tensor(array) for name, array in arrays.items()}

    def release(self, memory_limit_bytes: int | None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def decoder_bundle(folder: Path) -> Bundle:
    """The bundle of a `RandomDecoder`."""
    manifest = fake_manifest(
        256, config=CONFIG, state=CONFIG.state_layout("float32"), tokenizer="bytes"
    )
    return Bundle(path=folder, manifest=manifest)
