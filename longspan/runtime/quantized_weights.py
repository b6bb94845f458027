"""What weights of 8 or 4 bits take on each engine. It knows nothing of plans."""

from __future__ import annotations

from collections.abc import Iterator

from longspan.bundle import Manifest
from longspan.engines import Engine, device_of
from longspan.tensors import DTYPE_BYTES

FLOAT32_BYTES = 4


def quantized_weight_bytes(manifest: Manifest, engine: Engine) -> Iterator[tuple[str, int]]:
    """Names and bytes of what a quantised bundle's weights take.

    On CPUs torch maps the file; a matrix is dequantised when it is used, which is among a layer's
    activations. ONNX Runtime packs the matrices into memory of its own, in their bits, widens their
    scales and what is not quantised to float32, and lets go of the file but for the embedding,
    whose rows it looks up: 86M numbers of 4 bits took 72 MiB with the session, planned 74.
    """
    stored = manifest.quantization
    assert stored is not None, "asked for a quantised bundle only"
    if device_of(engine) == "cuda":
        yield "weights, on the device", manifest.weight_bytes
        return
    if engine == "torch-cpu":
        yield "weights, mapped from the file", manifest.weight_bytes
        return
    yield "weights, packed by ONNX Runtime", _packed_bytes(manifest)
    rows = manifest.config.vocab_size * manifest.config.d_model
    number = _stored_bytes(manifest) if stored.embedding else DTYPE_BYTES[manifest.dtype]
    yield "embedding, mapped from the file", int(rows * number)


def _packed_bytes(manifest: Manifest) -> int:
    """What ONNX Runtime holds beside the file, if all numbers are either quantised or 16 bits wide.

    How many are which is told by the bytes of the file. Of each block it holds the scale and the
    zero point as float32.
    """
    stored = manifest.quantization
    assert stored is not None, "asked for a quantised bundle only"
    wide, number = DTYPE_BYTES[manifest.dtype], stored.bits / 8
    in_file = _stored_bytes(manifest)
    plain = max(0.0, manifest.weight_bytes - in_file * manifest.parameters) / (wide - in_file)
    packed = number + 2 * FLOAT32_BYTES / stored.block
    return int((manifest.parameters - plain) * packed + plain * FLOAT32_BYTES)


def _stored_bytes(manifest: Manifest) -> float:
    """Bytes of a quantised number in the file, its part of scale and zero point among them."""
    stored = manifest.quantization
    assert stored is not None, "asked for a quantised bundle only"
    number = stored.bits / 8
    zero = 0 if stored.symmetric else number
    return number + (DTYPE_BYTES[manifest.dtype] + zero) / stored.block
