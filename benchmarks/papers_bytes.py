"""MambaByte beside MegaByte: bits per byte of unseen text, and the speed of generation.

    row = mambabyte_words(runtime, material, length=8192, texts=16)
    row = megabyte_words(folder, material, length=8192, texts=16, device="cuda")

MambaByte is read by longspan's runtime, MegaByte by the model of `megabyte.py` in torch. Both are
scored on the same bytes: all but the first of each text, which MambaByte has nothing to guess from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from megabyte import MegaByte
from megabyte_sizes import PUBLISHED, Sizes, Stage, mambabyte
from papers_documents import Material, Tokens, windows
from papers_recall import Row, memory_facts
from papers_words import nats, step_ms, words
from random_bundle import random_bundle
from safetensors.torch import load_file

from longspan.engines import Device
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import MambaConfig, ModelConfig
from longspan.runtime.runtime import Runtime, load

PROMPT_BYTES = 256
# A pair of the paper with equal FLOPs a byte (1.02), that fits any card beside its caches.
PUBLISHED_PAIR = ("758M+262M", "353M")
# FLOPs of the scan for an entry of the state: decay, input, sum, output, each a product and a sum.
SCAN_FLOPS = 8


def flops_per_byte(config: ModelConfig) -> float:
    """FLOPs a byte of a Mamba: two a number of its matrices, and its scans; lookups are free."""
    parameters = dict(empty_decoder(config).named_parameters())
    matrices = sum(p.numel() for p in parameters.values() if p.dim() >= 2)
    matrices -= sum(p.numel() for name, p in parameters.items() if name.endswith(".A"))
    if not config.tied:
        matrices -= parameters["embedding"].numel()
    scans = sum(
        layer.d_inner * layer.d_state for layer in config.layers if isinstance(layer, MambaConfig)
    )
    return 2.0 * matrices + SCAN_FLOPS * scans


def load_megabyte(folder: Path, device: str) -> MegaByte:
    """The model of a folder that `examples/train/train_megabyte.py` wrote, float32."""
    said = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    over_patches, in_patch = (Stage(**said[name]) for name in ("over_patches", "in_patch"))
    model = MegaByte(
        Sizes(
            patch_bytes=said["patch_bytes"],
            context_bytes=said["context_bytes"],
            over_patches=over_patches,
            in_patch=in_patch,
        )
    )
    tensors: dict[str, torch.Tensor] = {}
    for piece in sorted(folder.glob("megabyte-*.safetensors")):
        tensors |= load_file(piece)
    model.load_state_dict(tensors)
    return model.to(device).eval().requires_grad_(False)


def mambabyte_words(runtime: Runtime, material: Material, *, length: int, texts: int) -> Row:
    """The loss of the first texts of `length` bytes, and what a byte costs."""
    row = words(runtime, material, length=length, tokens=texts * length)
    flops = flops_per_byte(runtime.bundle.manifest.config)
    return row | {"what": "bytes", "system": "mambabyte", "flops_per_byte": flops}


@torch.inference_mode()
def megabyte_words(
    model: MegaByte, material: Material, *, length: int, texts: int, device: str
) -> Row:
    """The same for MegaByte, each text from its start."""
    started, loss, counted = time.perf_counter(), 0.0, 0
    for window in windows(material.ids, length, texts * length):
        tokens = torch.from_numpy(window).to(device)
        # Row t of MegaByte is its guess at byte t; that of another model is at the byte after t.
        logits = model(tokens[None])[0]
        loss += nats(logits.roll(-1, 0), tokens)
        counted += length - 1
    return {
        "what": "bytes",
        "system": "megabyte",
        "tokens": length,
        "text_tokens": counted,
        "nats_a_token": loss / counted,
        "bits_a_byte": loss / counted / math.log(2),
        "flops_per_byte": model.sizes.flops_per_byte(),
        "seconds": time.perf_counter() - started,
    }


def mambabyte_speed(runtime: Runtime, prompt: Tokens, count: int, pair: str) -> Row:
    """Milliseconds that longspan takes for a byte of `count` >= 2 after the prompt."""
    memory = runtime.read_tokens([prompt])
    return {
        "what": "generation",
        "system": "mambabyte",
        "pair": pair,
        "tokens": count,
        "ms_a_byte": step_ms(runtime, memory, count // 2),
    } | memory_facts(runtime)


def megabyte_speed(model: MegaByte, prompt: Tokens, count: int, pair: str) -> Row:
    """The same for MegaByte in torch, its prompt read before the clock starts."""
    device = model.local_pad.device
    given = torch.from_numpy(prompt)[None].to(device)

    def waited(bytes_: Iterable[torch.Tensor]) -> None:
        for byte in bytes_:
            last = byte
        last.item()

    waited(model.generate(given, 8))
    generated = model.generate(given, count + 1)
    next(generated).item()
    started = time.perf_counter()
    waited(generated)
    return {
        "what": "generation",
        "system": "megabyte",
        "pair": pair,
        "tokens": count,
        "ms_a_byte": 1e3 * (time.perf_counter() - started) / count,
        "engine": "torch",
    }


def published_speeds(device: Device, count: int, budget: str) -> Iterator[Row]:
    """A pair of the paper's sizes with random weights in bfloat16, one after the other."""
    megabyte, mamba = PUBLISHED_PAIR
    pair = f"MegaByte-{megabyte}, MambaByte-{mamba}"
    prompt = np.random.default_rng(0).integers(256, size=PROMPT_BYTES)
    with (
        random_bundle(pair, "bfloat16", config=mambabyte(mamba)) as path,
        load(path, budget=budget, device=device, backend="torch") as runtime,
    ):
        yield mambabyte_speed(runtime, prompt, count, pair)
    with torch.device(device):
        model = MegaByte(PUBLISHED[megabyte]).to(torch.bfloat16).eval()
    yield megabyte_speed(model, prompt, count, pair)
