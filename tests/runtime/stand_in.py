"""A small bundle with random weights, without a checkpoint: what the backends' tests run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import torch

from longspan.bundle import (
    GRAPHS,
    WEIGHTS,
    Bundle,
    Manifest,
    file_sha256,
    open_bundle,
    write_manifest,
)
from longspan.export.activations import chunk_bytes
from longspan.export.cpu_scan import scan_on_cpu
from longspan.export.graph import decoder_graph
from longspan.export.scans import expand_scans
from longspan.export.weights import write_safetensors
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import (
    FullAttentionConfig,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    WindowAttentionConfig,
)
from longspan.models.decoder import Decoder
from longspan.tensors import DType, TensorSpec, dtype_name

TINY = ModelConfig(
    family="samba",
    vocab_size=50,
    d_model=16,
    layers=(
        MambaConfig(d_inner=32, d_state=4, d_conv=4, dt_rank=2),
        MlpConfig(d_ff=24),
        WindowAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=4, window=6),
        MlpConfig(d_ff=24),
    ),
)
# A state that grows, beside one that does not.
CACHED = ModelConfig(
    family="llama",
    vocab_size=50,
    d_model=16,
    layers=(
        FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=4),
        MlpConfig(d_ff=24),
        MambaConfig(d_inner=32, d_state=4, d_conv=4, dt_rank=2),
        FullAttentionConfig(n_heads=2, n_kv_heads=1, head_dim=6, rope_dims=4, qkv_bias=True),
    ),
)
# As large as the model that ships in the package.
DEMO = ModelConfig(
    family="samba",
    vocab_size=4096,
    d_model=192,
    layers=(
        MambaConfig(d_inner=384, d_state=16, d_conv=4, dt_rank=12),
        MlpConfig(d_ff=512),
        WindowAttentionConfig(n_heads=4, n_kv_heads=4, head_dim=48, window=64),
        MlpConfig(d_ff=512),
    )
    * 2,
)
# Of the same width, with caches of 1.5 KiB an entry.
CACHED_DEMO = ModelConfig(
    family="llama",
    vocab_size=4096,
    d_model=192,
    layers=(FullAttentionConfig(n_heads=4, n_kv_heads=2, head_dim=48), MlpConfig(d_ff=512)) * 2,
)


def random_decoder(config: ModelConfig, dtype: DType, seed: int = 0) -> Decoder:
    """A decoder whose activations stay near one, with decays below one."""
    decoder = Decoder(config, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dtype == torch.uint8:
                values = torch.randint(256, parameter.shape, generator=generator)
            elif name.endswith("scales"):
                # Of a block's numbers, which are of the size of their range.
                numbers = decoder.config.quantization
                assert numbers is not None, "there are scales"
                values /= 2**numbers.bits * (parameter.shape[-1] * numbers.block) ** 0.5
            elif name.endswith(".A"):
                values = -values.abs() - 0.05
            elif parameter.ndim > 1:
                values /= parameter.shape[-1] ** 0.5
            parameter.copy_(values)
    return decoder.requires_grad_(False)


def write_bundle(path: Path, config: ModelConfig = TINY, dtype: DType = "float32") -> Bundle:
    """Write weights, both graphs and a manifest."""
    path.mkdir(parents=True)
    weights = random_decoder(config, dtype).state_dict()
    specs = [
        TensorSpec(
            name=name, shape=tuple(value.shape), dtype=dtype_name(str(value.dtype).split(".")[1])
        )
        for name, value in weights.items()
    ]
    ranges = write_safetensors(path / WEIGHTS, specs, weights.__getitem__)
    wide = decoder_graph(config, dtype=dtype, compute="float32", ranges=ranges)
    onnx.save(scan_on_cpu(expand_scans(wide, device="cpu")), path / GRAPHS["cpu"])
    # Tracing takes seconds, and only CUDA runs the graph that computes in the weights' dtype.
    if dtype != "float32" and torch.cuda.is_available():
        wide = decoder_graph(config, dtype=dtype, compute=dtype, ranges=ranges)
    onnx.save(expand_scans(wide, device="cuda"), path / GRAPHS["cuda"])
    write_manifest(path, _manifest(path, config, dtype, specs))
    return open_bundle(path)


def _manifest(path: Path, config: ModelConfig, dtype: DType, specs: list[TensorSpec]) -> Manifest:
    plain = empty_decoder(replace(config, quantization=None))
    return Manifest(
        config=config,
        dtype=dtype,
        parameters=sum(each.numel() for each in plain.parameters()),
        weight_bytes=sum(spec.nbytes for spec in specs),
        state=config.state_layout(dtype),
        chunk_bytes=chunk_bytes(config, dtype),
        files={name: file_sha256(path / name) for name in (WEIGHTS, *GRAPHS.values())},
        source={},
    )
