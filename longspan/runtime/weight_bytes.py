"""What weights take on each engine. It loads and measures nothing.

for name, taken in weight_bytes(manifest, "onnx-cpu"): ...
"""

from __future__ import annotations

from collections.abc import Iterator

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.models.config import Quantization
from longspan.runtime.plan_arena import ARENA_BYTES
from longspan.tensors import DTYPE_BYTES

FLOAT32_BYTES = 4
# Of a number of 16 bits that is widened by constant folding: 75M took 3% more than their own.
WIDENED_BYTES = FLOAT32_BYTES * 26 / 25
LOOKED_UP = "embedding, mapped from the file"


def weight_bytes(manifest: Manifest, engine: Engine) -> Iterator[tuple[str, int]]:
    """Names and bytes of what a bundle's weights take: CPUs compute in float32.

    On CPUs torch maps the file; a matrix that is widened or dequantised when it is used is among
    the activations of a layer, or of the rest of a chunk. ONNX Runtime maps float32, widens 16 bits
    while it loads, packs matrices of 8 and 4 bits, and lets go of the file but for the embedding,
    whose rows it looks up.
    """
    if device_of(engine) == "cuda":
        yield "weights, on the device", manifest.weight_bytes
        return
    stored, config = manifest.quantization, manifest.config
    if engine == "torch-cpu" or (stored is None and manifest.dtype == "float32"):
        yield "weights, mapped from the file", manifest.weight_bytes
        return
    rows = config.vocab_size * config.d_model
    if stored is not None:
        yield from _packed(manifest, stored, rows)
        return
    multiplied = manifest.parameters - (0 if config.tied else rows)
    yield f"weights, {manifest.dtype} widened to float32", int(multiplied * WIDENED_BYTES)
    yield LOOKED_UP, rows * DTYPE_BYTES[manifest.dtype]


def _packed(manifest: Manifest, stored: Quantization, rows: int) -> Iterator[tuple[str, int]]:
    """Of a quantised bundle whose embedding has `rows` numbers, on onnx-cpu."""
    packable = stored.takes(manifest.config.d_model)
    packed, plain = _numbers(manifest, stored, rows)
    taken = packed * _packed_bytes(stored) + plain * WIDENED_BYTES
    yield "weights, packed by ONNX Runtime", int(taken)
    number: float = DTYPE_BYTES[manifest.dtype]
    if stored.embedding and packable:
        number = _stored_bytes(manifest, stored)
    yield LOOKED_UP, int(rows * number)
    if not (stored.head and packable):
        # Where it packs, it packs float32 as well, and holds both meanwhile: before rows are looked
        # up, and before its arena has anything.
        more = int(rows * (FLOAT32_BYTES - number)) - ARENA_BYTES
        yield "head, while it is packed", max(0, more)


def _numbers(manifest: Manifest, stored: Quantization, rows: int) -> tuple[float, float]:
    """Numbers that ONNX Runtime multiplies with: quantised ones, and others.

    How many are which is told by the bytes of the file, if all are either quantised or of 16 bits.
    The `rows` numbers of an embedding that is not the head, too, are only looked up.
    """
    config = manifest.config
    wide, in_file = DTYPE_BYTES[manifest.dtype], _stored_bytes(manifest, stored)
    plain = max(0.0, manifest.weight_bytes - in_file * manifest.parameters) / (wide - in_file)
    quantised = manifest.parameters - plain
    if config.tied:
        return quantised, plain
    if stored.embedding and stored.takes(config.d_model):
        return max(0.0, quantised - rows), plain
    return quantised, max(0.0, plain - rows)


def _packed_bytes(stored: Quantization) -> float:
    """Bytes that ONNX Runtime 1.31 holds for a quantised number: 100M of each sort were measured.

    Beside it, its part of float32 numbers of its block: of 4 bits the scale; of 8 bits that, too,
    packed once more with the block's sum. Zero points stay as they are.
    """
    of_block = (1 if stored.bits == 4 else 3) * FLOAT32_BYTES
    zero = 0 if stored.symmetric else stored.bits / 8
    return stored.bits / 8 + (of_block + zero) / stored.block


def _stored_bytes(manifest: Manifest, stored: Quantization) -> float:
    """Bytes of a quantised number in the file, its part of scale and zero point among them."""
    number = stored.bits / 8
    zero = 0 if stored.symmetric else number
    return number + (DTYPE_BYTES[manifest.dtype] + zero) / stored.block
