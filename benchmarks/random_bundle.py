"""A bundle with a published model's shape and random weights: for memory and speed, not for words.

It has no graph and no tokenizer, so only the torch backend runs it.

    with random_bundle("samba-421m", "bfloat16") as path: ...
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path
from zlib import crc32

import torch

from longspan.bundle import WEIGHTS, Manifest, file_sha256, write_manifest
from longspan.export.activations import chunk_bytes
from longspan.export.weight_options import QUANTIZED_BITS
from longspan.export.weights import write_safetensors
from longspan.models.checkpoint import empty_decoder, is_float32
from longspan.models.config import (
    FullAttentionConfig,
    Mamba2Config,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    Quantization,
    WindowAttentionConfig,
)
from longspan.tensors import TensorSpec, dtype_name

# No multiple of a matrix's width, so that its rows differ.
BLOCK = 2**20 + 7


def samba(
    d_model: int, d_ff: int, heads: int, kv_heads: int, units: int, vocab: int
) -> ModelConfig:
    """A Samba of the paper's table (arXiv 2406.07522, table 10)."""
    unit = (
        MambaConfig(d_inner=2 * d_model, d_state=16, d_conv=4, dt_rank=-(-d_model // 16)),
        MlpConfig(d_ff=d_ff),
        WindowAttentionConfig(
            n_heads=heads, n_kv_heads=kv_heads, head_dim=d_model // heads, window=2048
        ),
        MlpConfig(d_ff=d_ff),
    )
    return ModelConfig(family="samba", vocab_size=vocab, d_model=d_model, layers=unit * units)


def llama(
    d_model: int, d_ff: int, heads: int, kv_heads: int, units: int, vocab: int
) -> ModelConfig:
    """A Llama-3 as Samba's paper compares itself with (arXiv 2406.07522, table 11)."""
    unit = (
        FullAttentionConfig(n_heads=heads, n_kv_heads=kv_heads, head_dim=d_model // heads),
        MlpConfig(d_ff=d_ff),
    )
    return ModelConfig(family="llama", vocab_size=vocab, d_model=d_model, layers=unit * units)


SHAPES: Mapping[str, ModelConfig] = {
    "samba-421m": samba(1536, 4096, 12, 12, 6, 32000),
    "samba-1.7b": samba(2048, 8196, 32, 4, 12, 50304),
    "llama-1.6b": llama(2048, 8196, 32, 4, 24, 50304),
    # state-spaces/mamba-2.8b
    "mamba-2.8b": ModelConfig(
        family="mamba",
        vocab_size=50280,
        d_model=2560,
        layers=(MambaConfig(d_inner=5120, d_state=16, d_conv=4, dt_rank=160),) * 64,
    ),
    # state-spaces/mamba2-2.7b
    "mamba2-2.7b": ModelConfig(
        family="mamba2",
        vocab_size=50288,
        d_model=2560,
        layers=(Mamba2Config(n_heads=80, head_dim=64, n_groups=1, d_state=128, d_conv=4),) * 64,
    ),
}


def scaled(
    name: str, values: torch.Tensor, shape: tuple[int, ...], stored: Quantization | None = None
) -> torch.Tensor:
    """Normal numbers, made fit for a parameter of this name and shape."""
    if name.endswith(".A"):
        return -values.exp()
    if name.endswith("scales") and stored is not None:
        # Of numbers that are spread evenly from -half to half.
        spread = 2.0**stored.bits / sqrt(12)
        return values / (spread * sqrt(shape[-1] * stored.block))
    return values * shape[-1] ** -0.5 if len(shape) > 1 else values


def repeated(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of `shape` that holds `values` [n] over and over."""
    result = torch.empty(shape, dtype=values.dtype)
    flat = result.view(-1)
    whole = len(flat) // len(values) * len(values)
    flat[:whole].view(-1, len(values)).copy_(values)
    flat[whole:] = values[: len(flat) - whole]
    return result


@contextmanager
def random_bundle(
    shape: str, weights: str, seed: int = 0, *, config: ModelConfig | None = None
) -> Iterator[Path]:
    """A temporary bundle of one of `SHAPES`; weights are scaled so that activations stay finite.

    They are of a dtype, or int8 or int4 in blocks with scales in bfloat16, as `longspan export`
    makes them. A `config` is taken in place of the shape of that name.

    Every tensor repeats the same `BLOCK` numbers from a place of its own: billions of fresh ones
    take minutes, and neither memory nor time depends on them.
    """
    config = SHAPES[shape] if config is None else config
    parameters = sum(each.numel() for each in empty_decoder(config).state_dict().values())
    dtype = dtype_name("bfloat16" if weights in QUANTIZED_BITS else weights)
    if weights in QUANTIZED_BITS:
        config = replace(config, quantization=Quantization(bits=QUANTIZED_BITS[weights]))
    specs = tuple(
        TensorSpec(
            name=name,
            shape=tuple(parameter.shape),
            dtype="uint8" if parameter.dtype == torch.uint8
            else "float32" if is_float32(name) else dtype,
        )
        for name, parameter in empty_decoder(config).state_dict().items()
    )  # fmt: skip
    by_name = {spec.name: spec for spec in specs}
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(BLOCK, generator=generator).repeat(2)
    packed = torch.randint(256, (BLOCK,), generator=generator, dtype=torch.uint8).repeat(2)

    def read(name: str) -> torch.Tensor:
        spec = by_name[name]
        first = crc32(name.encode()) % BLOCK
        part = slice(first, first + min(prod(spec.shape), BLOCK))
        if spec.dtype == "uint8":
            return repeated(packed[part], spec.shape)
        values = scaled(name, block[part], spec.shape, config.quantization)
        return repeated(values.to(getattr(torch, spec.dtype)), spec.shape)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_safetensors(path / WEIGHTS, specs, read)
        manifest = Manifest(
            config=config,
            dtype=dtype,
            parameters=parameters,
            weight_bytes=sum(spec.nbytes for spec in specs),
            state=config.state_layout(dtype),
            chunk_bytes=chunk_bytes(config, dtype),
            files={WEIGHTS: file_sha256(path / WEIGHTS)},
            source={"checkpoint": f"random weights in the shape of {shape}"},
        )
        write_manifest(path, manifest)
        yield path
