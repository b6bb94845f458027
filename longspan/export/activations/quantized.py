"""What dequantising the matrices of a layer takes beside its activations, counted from the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from longspan.bundle import ChunkBytes
from longspan.engines import Engine
from longspan.export.activations.numbers import F32
from longspan.kernels.quantized_linear.scratch import scratch_numbers
from longspan.models.config import LayerConfig, ModelConfig, Quantization
from longspan.models.linear import Linear
from longspan.models.mixers import make_mixer
from longspan.models.moe import Experts
from longspan.tensors import DTYPE_BYTES, DType

LayerBytes = Mapping[Engine, ChunkBytes]


def with_scratch(
    layers: Sequence[LayerBytes], wide: Sequence[LayerBytes], config: ModelConfig, dtype: DType
) -> list[LayerBytes]:
    """The layers' formulas and, fixed, the scratch of each layer's largest quantised matrix.

    On torch-cpu it stands in place of the float32 copy of one in 16 bits.

    The head comes when the last layer's tensors are gone: the larger of the two counts.

    Args:
        layers: formulas as they are without quantisation.
        wide: the same of float32 weights, which are not copied.
        config: the layers, and how matrices are stored.
        dtype: of all that is not quantised.
    """
    stored = config.quantization
    assert stored is not None, "asked for a quantised model only"
    result: list[LayerBytes] = []
    for i, (layer, formulas) in enumerate(zip(config.layers, layers, strict=True)):
        last = i == len(layers) - 1
        row: dict[Engine, ChunkBytes] = {}
        shapes = _quantized(layer, config.d_model, stored)
        for engine, chunk in formulas.items():
            # On torch-cuda experts are dequantised in registers; where they stream they are not
            # (`longspan.runtime.plan_weights`).
            kinds = ("matrices",) if engine == "torch-cuda" else ("matrices", "experts")
            found = (shape for kind in kinds for shape in shapes[kind])
            scratch = max((scratch_bytes(stored, *s, engine, dtype) for s in found), default=0)
            fixed = (wide[i] if engine == "torch-cpu" else formulas)[engine].fixed + scratch
            row[engine] = replace(chunk, fixed=fixed)
            if last and engine == "torch-cuda" and stored.head:
                head = scratch_bytes(stored, config.vocab_size, config.d_model, engine, dtype)
                most = max(fixed + chunk.per_block * chunk.most_blocks, head)
                row[engine] = replace(chunk, fixed=most, per_block=0)
        result.append(row)
    return result


def scratch_bytes(
    stored: Quantization, outputs: int, width: int, engine: Engine, dtype: DType
) -> int:
    """Bytes of dequantising a matrix [outputs, width] to multiply with it.

    ONNX Runtime dequantises a tile at a time on CPUs, in memory that its threads hold.
    """
    if engine == "torch-cuda":
        return DTYPE_BYTES[dtype] * scratch_numbers(outputs, width)
    if engine == "onnx-cuda":
        return DTYPE_BYTES[dtype] * outputs * stored.blocks(width) * stored.block
    if engine == "torch-cpu":
        # Of 4 bits, the numbers as bytes, too, of which they are made.
        return (F32 + (stored.bits == 4)) * outputs * stored.blocks(width) * stored.block
    return 0


def _quantized(
    layer: LayerConfig, width: int, stored: Quantization
) -> Mapping[str, list[tuple[int, int]]]:
    """Shapes [N, K] of a layer's matrices that are quantised, and of one each of its experts."""
    found: dict[str, list[tuple[int, int]]] = {"matrices": [], "experts": []}
    with torch.device("meta"):
        mixer = make_mixer(layer, width, torch.float32)
    for module in mixer.modules():
        if isinstance(module, Linear | Experts):
            outputs, inputs = module.weight.shape[-2:]
            module.quantize_(stored)
            if module.bits is not None:
                kind = "experts" if isinstance(module, Experts) else "matrices"
                found[kind].append((outputs, inputs))
    return found
