"""Weights that stream: the same numbers as resident ones, for every family and order of calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import same_state
from family_rows import ROWS, Row
from safetensors.torch import save_file
from stand_in import TINY, random_decoder, write_bundle
from torch import nn
from variant_rows import VARIANTS

from longspan.errors import BudgetExceeded
from longspan.models.checkpoint import empty_decoder, load_decoder
from longspan.models.decoder import Decoder
from longspan.runtime.backends import open_backend
from longspan.runtime.backends import torch as torch_backend
from longspan.runtime.backends.streaming import HostCopies, WeightStream
from longspan.runtime.backends.torch_weights import Streamed, Weights, read_weights
from longspan.runtime.plan_weights import place_weights, weight_sizes

CPU = torch.device("cpu")
CAPACITY = 64


class LateCopies:
    """Copies that happen when they are waited for; until then their slot holds NaN.

    So whatever reads a slot too early or too late reads NaN.

    Attributes:
        bytes: of all copies.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        target.fill_(0xFF)  # NaN in every float dtype
        self.bytes += len(source)
        return [(target, source)]

    def wait(self, copy: Any) -> None:
        for target, source in copy:
            target.copy_(source)
        copy.clear()


def saved(decoder: Decoder, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file(decoder.state_dict(), path)
    return path


def streamed(
    decoder: Decoder, path: Path, layers: Sequence[int], copies: Any, expert_slots: int = 0
) -> Decoder:
    """The decoder again, of the file's weights."""
    device = decoder.embedding.device
    what = Streamed(layers=tuple(layers), expert_slots=expert_slots)
    result = empty_decoder(decoder.config, dtype=decoder.dtype, compute=decoder.compute)
    follow(result, read_weights(path, decoder.config, device, what, copies=copies))
    return result.requires_grad_(False)


def follow(decoder: Decoder, weights: Weights) -> None:
    decoder.load_state_dict(weights.tensors, assign=True)
    weights.follow(decoder)


@torch.inference_mode()
def read(decoder: Decoder, cuts: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    """Logits after each cut, then the state's tensors."""
    device = decoder.embedding.device
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(decoder.config.vocab_size, (1, sum(cuts)), generator=generator)
    state, results = decoder.new_state(capacity=CAPACITY), []
    for part in tokens.to(device).split(list(cuts), dim=1):
        logits, state = decoder(part, None, state)
        results.append(logits)
    return [*results, *state.values()]


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """To the bit; entries of caches that are not in use hold NaN."""
    torch.testing.assert_close(list(found), list(expected), rtol=0, atol=0, equal_nan=True)
    assert bool(torch.isfinite(expected[0]).all())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_family_reads_and_steps_the_same(row: Row, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    # Sums on the CPU depend on where tensors begin, to a bit: here at multiples of 64 bytes.
    resident = copy.deepcopy(load_decoder(row.open(tmp_path / "checkpoint")))
    path, count = saved(resident, tmp_path), len(resident.layers)
    cuts = [6, 1, 3]
    expected = read(resident, cuts)
    for layers in {tuple(range(count)), tuple(range(0, count, 2))}:
        moving = streamed(resident, path, layers, LateCopies())
        same(read(moving, cuts), expected)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Decoder, Path]:
    """A decoder of four layers, and its file."""
    decoder = random_decoder(TINY, "bfloat16")
    decoder.compute = torch.float32
    return decoder, saved(decoder, tmp_path)


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (0, 1, 2), (1, 3)], ids=str)
def test_after_a_chunk_that_was_interrupted(
    tiny: tuple[Decoder, Path], layers: tuple[int, ...], at: int
) -> None:
    resident, path = tiny
    moving = streamed(resident, path, layers, LateCopies())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    expected = read(resident, [7, 1, 3])
    same(read(moving, [7, 1, 3]), expected)
    # In the midst of the mixer, before the first of its parts that is called by itself: its weights
    # are there, and what comes after it is not told.
    children = list(moving.layers[at].mixer.children())
    handles = [child.register_forward_pre_hook(interrupt) for child in children]
    with pytest.raises(KeyboardInterrupt):
        read(moving, [5])
    for handle in handles:
        handle.remove()
    same(read(moving, [7, 1, 3]), expected)


@pytest.mark.parametrize("fails_at", range(6))
def test_after_a_copy_that_failed(tiny: tuple[Decoder, Path], fails_at: int) -> None:
    resident, path = tiny

    class Failing(LateCopies):
        left = 10**6

        def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().start(target, source)

    copies = Failing()
    moving = streamed(resident, path, (0, 1, 2, 3), copies)
    copies.left = fails_at
    with pytest.raises(KeyboardInterrupt):
        read(moving, [5, 5])
    copies.left = 10**6
    same(read(moving, [7, 1, 3]), read(resident, [7, 1, 3]))


@pytest.mark.parametrize(
    ("layers", "copied"), [((0, 1, 2, 3), 4), ((0, 1, 2), 2), ((1, 3), 0), ((2,), 0)], ids=str
)
def test_a_pass_copies_each_streamed_layer_once_at_most(
    tiny: tuple[Decoder, Path], layers: tuple[int, ...], copied: int
) -> None:
    """Layers that have a slot for themselves are copied once for all."""
    resident, path = tiny
    sizes, copies = weight_sizes(path, resident.config), LateCopies()
    moving = streamed(resident, path, layers, copies)
    read(moving, [5])
    begun = copies.bytes
    read(moving, [5])
    moved = layers if copied == len(layers) else layers[::2] if copied else ()
    assert copies.bytes - begun == sum(sizes.mixers[index] for index in moved)


def test_bytes_are_those_of_the_plan(tiny: tuple[Decoder, Path]) -> None:
    resident, path = tiny
    layers = (0, 2, 3)
    moving = streamed(resident, path, layers, HostCopies())
    placed = place_weights(weight_sizes(path, resident.config), layers)
    storages = {
        name: parameter.untyped_storage() for name, parameter in moving.state_dict().items()
    }
    slots = {
        storages[f"layers.{index}.mixer.{name}"].data_ptr(): storages[
            f"layers.{index}.mixer.{name}"
        ].nbytes()
        for index in layers
        for name in ("in_proj.weight", "gate_up_proj.weight", "qkv_proj.weight")
        if f"layers.{index}.mixer.{name}" in storages
    }
    assert len(slots) == 2
    assert sum(slots.values()) == placed.slots_bytes
    assert storages["norm.weight"].nbytes() == placed.resident_bytes
    assert (
        storages["norm.weight"].data_ptr() == storages["layers.1.mixer.down_proj.weight"].data_ptr()
    )


def test_nothing_streams_unless_it_is_asked_for(tiny: tuple[Decoder, Path]) -> None:
    resident, path = tiny
    mapped = empty_decoder(resident.config, dtype=resident.dtype, compute=resident.compute)
    follow(mapped, read_weights(path, resident.config, CPU))
    same(read(mapped, [7, 1]), read(resident, [7, 1]))


def test_weights_without_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch_backend, "read_weights", refuse)
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(BudgetExceeded) as caught:
        open_backend(bundle, engine="torch-cpu", memory_limit_bytes=None)
    assert str(caught.value) == (
        "The weights need more memory than the budget leaves: no room. Give a larger --budget."
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (0, 2)], ids=str)
def test_a_backend_reads_and_steps_the_same(tmp_path: Path, layers: tuple[int, ...]) -> None:
    bundle = write_bundle(tmp_path / "bundle", dtype="bfloat16")
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, 60)
    results = []
    for streamed_layers in ((), layers):
        backend = open_backend(
            bundle,
            engine="torch-cuda",
            memory_limit_bytes=None,
            step_graph=True,
            streamed_layers=streamed_layers,
        )
        _, state = backend.forward(tokens[:30], backend.new_state(), keep=[])
        logits, state = backend.forward(tokens[30:40], state, keep=range(10))
        with closing(backend.steps(state)) as steps:
            rows = np.stack([steps.step(token).copy() for token in tokens[40:].tolist()])
            results.append((logits, rows, backend.to_arrays(steps.state())))
        backend.close()
    (logits, rows, after), (found_logits, found_rows, found_after) = results
    np.testing.assert_array_equal(found_logits, logits)
    np.testing.assert_array_equal(found_rows, rows)
    same_state(found_after, after)


@pytest.mark.gpu
@pytest.mark.parametrize("row", [*ROWS, *VARIANTS], ids=lambda row: row.id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_too(row: Row, dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    resident = load_decoder(row.open(tmp_path / "checkpoint"), dtype=dtype)
    path, device = saved(resident, tmp_path), torch.device("cuda", 0)
    resident = resident.to(device)
    count = len(resident.layers)
    for layers in {tuple(range(count)), tuple(range(0, count, 2))}:
        weights = read_weights(path, resident.config, device, Streamed(layers=layers))
        moving = empty_decoder(resident.config, dtype=dtype, compute=dtype)
        follow(moving, weights)
        moving.requires_grad_(False)
        for cuts in ([9, 1, 1, 5], [1] * 40, [20]):
            same(read(moving, cuts), read(resident, cuts))
        del moving
        torch.cuda.synchronize()
        weights.close()


def test_a_module_that_is_no_decoder_streams_too(tmp_path: Path) -> None:
    """The stream knows modules and bytes, and nothing of models."""
    layers = [nn.Linear(4, 4, bias=False).requires_grad_(False) for _ in range(3)]
    sources = [layer.weight.detach().clone().view(-1).view(torch.uint8) for layer in layers]
    x = torch.randn(2, 4)
    expected = x
    for layer in layers:
        expected = layer(expected)
    slots = [torch.empty(64, dtype=torch.uint8) for _ in range(2)]
    for index, layer in enumerate(layers):
        view = slots[index % 2].view(torch.float32).view(4, 4)
        layer.weight = nn.Parameter(view, requires_grad=False)
    WeightStream(sources, slots, LateCopies()).follow(layers)
    for _ in range(2):
        found = x
        for layer in layers:
            found = layer(found)
        assert torch.equal(found, expected)
