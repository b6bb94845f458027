"""What `export` was asked to store the weights in, checked: a dtype, and perhaps 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from longspan.errors import BadInput
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import BLOCKS, MoeConfig, Quantization
from longspan.tensors import WEIGHT_DTYPES, DType

QUANTIZED_BITS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
DEFAULT_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """What was asked for, as `longspan.export.export_bundle` takes it."""

    weights: str | None = None
    block: int | None = None
    symmetric: bool = True
    quantize_embedding: bool | None = None
    quantize_head: bool | None = None
    calibrate: str | Path | None = None
    nearest: bool = False

    def check(self) -> None:
        """Refuse what cannot be used, before anything is read.

        Raises:
            BadInput: there are no such weights or no such block, or an option of quantised weights
                was given for others.
        """
        known = (*WEIGHT_DTYPES, *QUANTIZED_BITS)
        if self.weights is not None and self.weights not in known:
            raise BadInput(
                f"weights={self.weights!r} was asked for; it must be one of {', '.join(known)}, or "
                "left out to keep the checkpoint's."
            )
        if self.weights not in QUANTIZED_BITS:
            for name in self._quantized_only():
                found = "left out" if self.weights is None else repr(self.weights)
                raise BadInput(
                    f"{name} was asked for, and weights are {found}. It is for weights of 8 or 4 "
                    "bits. Add weights='int8' (--weights int8) or 'int4', or leave it out."
                )
        if self.block is not None and self.block not in BLOCKS:
            raise BadInput(
                f"block={self.block} was asked for; a block has "
                f"{', '.join(map(str, BLOCKS[:-1]))} or {BLOCKS[-1]} weights, which share a scale. "
                "Give one of these with block (--block)."
            )

    def _quantized_only(self) -> list[str]:
        given = {
            f"block={self.block} (--block)": self.block is not None,
            "symmetric=False (--asymmetric)": not self.symmetric,
            f"quantize_embedding={self.quantize_embedding} "
            "(--quantize-embedding)": self.quantize_embedding is not None,
            f"quantize_head={self.quantize_head} (--quantize-head)": self.quantize_head is not None,
            f"calibrate={str(self.calibrate)!r} (--calibrate)": self.calibrate is not None,
            "nearest=True (--nearest)": self.nearest,
        }
        return [name for name, is_given in given.items() if is_given]

    @property
    def fits(self) -> bool:
        """Whether weights are rounded for the text: 8 bits lose nothing that it could win back."""
        return self.weights == "int4" and not self.nearest

    def dtype(self, checkpoint: Checkpoint) -> DType:
        """Dtype of all that is not quantised, and of scales.

        For quantised weights it has 16 bits: the checkpoint's own, or bfloat16, into which every
        float32 number fits.
        """
        own = checkpoint.dtype
        if self.weights in QUANTIZED_BITS:
            return "bfloat16" if own == "float32" else own
        return next((each for each in WEIGHT_DTYPES if each == self.weights), own)

    def apply(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with a config that says how its matrices are stored.

        Raises:
            BadInput: a head that is the embedding was to be stored in another way.
        """
        if self.weights is None or self.weights not in QUANTIZED_BITS:
            return checkpoint
        embedding, head = self.quantize_embedding, self.quantize_head
        if checkpoint.config.tied:
            if embedding is not None and head is not None and embedding != head:
                raise BadInput(
                    f"quantize_embedding={embedding} and quantize_head={head} were asked for, and "
                    f"the head of {checkpoint.path} is its embedding: one matrix, stored once. "
                    "Give only one of the two."
                )
            embedding = head = embedding if head is None else head
        stored = Quantization(
            bits=QUANTIZED_BITS[self.weights],
            block=self.block or DEFAULT_BLOCK,
            symmetric=self.symmetric,
            embedding=embedding is not False,
            head=head is not False,
            experts=any(isinstance(layer, MoeConfig) for layer in checkpoint.config.layers),
        )
        return replace(checkpoint, config=replace(checkpoint.config, quantization=stored))
