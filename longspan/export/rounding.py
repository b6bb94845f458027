"""Round a model's matrices for a text, layer by layer; each reads what the rounded ones give.

    found = round_for_text(checkpoint, tokens, dtype="bfloat16", read=checkpoint.read)

One layer at a time is held, in float32, beside the text's activations, float32 [tokens, D], and all
matrices that are rounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from longspan.errors import BadInput
from longspan.export.calibrate import CHUNK_TOKENS
from longspan.export.gptq import DAMPING, round_for_inputs
from longspan.export.quantize import Packed, quantize_matrix, quantized_names, require_finite
from longspan.kernels.dequantize.reference import dequantize
from longspan.models.checkpoint import Checkpoint
from longspan.models.config import ModelConfig, Quantization
from longspan.models.decoder import Layer
from longspan.models.norm import make_norm
from longspan.tensors import DType

# A head that is the embedding is looked up, too: there an error counts wherever it points, and as
# much as in the logits. On the built-in model this costs 0.4 points of perplexity less than either
# alone (0.85 to 1.4% against 1.5 to 1.8%).
TIED_DAMPING = 1.0
Read = Callable[[str], torch.Tensor]


@torch.no_grad()
def round_for_text(
    checkpoint: Checkpoint, tokens: torch.Tensor, *, dtype: DType, read: Read
) -> dict[str, Packed]:
    """Quantise the matrices of a model for a text.

    Args:
        checkpoint: with a config that says how its matrices are stored.
        tokens: int64 [L], L >= 1.
        dtype: of the scales.
        read: gives a parameter of floating point by name.

    Returns:
        The parts of each quantised matrix by name, as `quantize_matrix` gives them.

    Raises:
        BadInput: a matrix, or what the model makes of the text, holds NaN or infinities.
    """
    rounder = _Rounder(checkpoint, dtype)
    walk = _Walk(checkpoint.config, tokens, read)
    for i in range(len(checkpoint.config.layers)):
        parameters = walk.enter(i)
        weights = {name: parameters[name] for name in rounder.chosen(parameters)}
        matrices = {name: each for name, each in weights.items() if each.dim() == 2}
        if matrices:
            grams = walk.grams(matrices)
            for name, matrix in matrices.items():
                matrix.copy_(rounder.round(name, matrix, grams[name]))
        _round_experts(rounder, walk, {name: weights[name] for name in weights.keys() - matrices})
        walk.leave()
    final = walk.final()
    for name in rounder.chosen(("embedding", "head")):
        rounder.round_rows(name, read(name), final)
    return rounder.found


def _round_experts(rounder: _Rounder, walk: _Walk, stacks: Mapping[str, torch.Tensor]) -> None:
    """Round matrices float32 [E, N, K] of a mixture, one expert at a time: grams are large.

    An expert to which no token of the text goes is rounded to the nearest.
    """
    for expert in range(max((len(each) for each in stacks.values()), default=0)):
        own = {name: stack[expert] for name, stack in stacks.items()}
        grams = walk.grams(own)
        for name, matrix in own.items():
            matrix.copy_(rounder.round(name, matrix, grams.get(name)))


class _Rounder:
    """Rounds matrices by name, and keeps what they became."""

    def __init__(self, checkpoint: Checkpoint, dtype: DType) -> None:
        assert checkpoint.config.quantization is not None, "the matrices are to be quantised"
        self._stored: Quantization = checkpoint.config.quantization
        self._tied, self._dtype = checkpoint.config.tied, dtype
        self._names = quantized_names(checkpoint)
        # Experts, rows, blocks and the bytes of a block.
        self._experts = {spec.name for spec in checkpoint.specs() if len(spec.shape) == 4}
        self._rounded: dict[str, list[Packed]] = {}

    @property
    def found(self) -> dict[str, Packed]:
        """What matrices became, by name; those of experts stacked."""
        return {
            name: _stacked(packed) if name in self._experts else packed[0]
            for name, packed in self._rounded.items()
        }

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of the parameters that are quantised."""
        return [name for name in names if name in self._names]

    def round(
        self, name: str, matrix: torch.Tensor, gram: torch.Tensor | None, damping: float = DAMPING
    ) -> torch.Tensor:
        """Round a matrix for its inputs' `gram`, and give what it is now, float32 [N, K].

        Without one it is rounded to the nearest. Of experts, the matrices come in their order.
        """
        if gram is not None and not bool(torch.isfinite(gram).all()):
            raise BadInput(
                f"rounding for a text was asked for (--calibrate), and what the model makes of it "
                f"holds NaN or infinities before {name}. Leave --calibrate out to round to the "
                "nearest, or export with weights='bfloat16' (--weights bfloat16)."
            )
        require_finite(name, matrix, self._stored)
        if gram is None:
            packed = quantize_matrix(matrix, self._stored, self._dtype)
        else:
            packed = round_for_inputs(matrix, gram, self._stored, self._dtype, damping=damping)
        self._rounded.setdefault(name, []).append(packed)
        bits, width = self._stored.bits, matrix.shape[1]
        return dequantize(*packed, bits=bits, width=width, dtype=torch.float32, rows=None)

    def round_rows(self, name: str, matrix: torch.Tensor, final: torch.Tensor) -> None:
        """Round the embedding, or the head, which reads `final` float32 [L, D]."""
        alone = name == "embedding" and not self._tied
        damping = TIED_DAMPING if self._tied else DAMPING
        self.round(name, matrix, None if alone else _gram(final), damping)


def _stacked(packed: list[Packed]) -> Packed:
    """The matrices of experts as one."""
    weights, scales, zeros = zip(*packed, strict=True)
    return (
        torch.stack(weights),
        torch.stack(scales),
        None if zeros[0] is None else torch.stack(zeros),
    )


class _Walk:
    """A text on its way through the layers, all of it through one before the next."""

    def __init__(self, config: ModelConfig, tokens: torch.Tensor, read: Read) -> None:
        self._config = replace(config, quantization=None)
        self._tokens, self._read = tokens[None], read
        self._residual = torch.nn.functional.embedding(self._tokens, read("embedding").float())
        self._given: torch.Tensor | None = None
        self._normed = torch.empty_like(self._residual)

    def enter(self, index: int) -> dict[str, torch.Tensor]:
        """Go to layer `index`: its parameters, by the decoder's names."""
        prefix = f"layers.{index}."
        layer = Layer(self._config.layers[index], self._config, dtype=torch.float32)
        names = layer.state_dict()
        layer.load_state_dict({name: self._read(prefix + name).float() for name in names})
        self._layer, self._index = layer.requires_grad_(False).eval(), index
        self._add_and_norm(layer.norm)
        return {prefix + name: each for name, each in layer.named_parameters()}

    def read_layer(self) -> torch.Tensor:
        """What the layer makes of the text, [1, L, D]."""
        config, length = self._config, self._tokens.shape[1]
        specs = (s.with_capacity(length) for s in config.layer_state(self._index, "float32"))
        state = {s.name: torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in specs}
        given = torch.empty_like(self._residual)
        for part in self._parts():
            given[:, part], state = self._layer(self._normed[:, part], state, self._tokens[:, part])
        return given

    def grams(self, matrices: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums X^T X over the inputs X that these matrices of the layer have, by name."""
        inputs = _Inputs(matrices)
        with inputs:
            self.read_layer()
        return inputs.grams

    def leave(self) -> None:
        """Read the layer as it is now, for the next one."""
        self._given = self.read_layer()

    def final(self) -> torch.Tensor:
        """What the head reads, [L, D]."""
        norm = make_norm(self._config, torch.float32)
        names = norm.state_dict()
        norm.load_state_dict({name: self._read(f"norm.{name}").float() for name in names})
        self._add_and_norm(norm)
        return self._normed[0]

    def _add_and_norm(self, norm: Callable[..., Any]) -> None:
        for part in self._parts():
            given = None if self._given is None else self._given[:, part]
            self._residual[:, part], self._normed[:, part] = norm(
                self._residual[:, part], given, torch.float32
            )

    def _parts(self) -> list[slice]:
        starts = range(0, self._tokens.shape[1], CHUNK_TOKENS)
        return [slice(start, start + CHUNK_TOKENS) for start in starts]


class _Inputs(TorchFunctionMode):
    """While entered, sums X^T X over the inputs X of the linear layers of `matrices`, by name.

    It looks at `torch.nn.functional.linear`, by which every op that multiplies by a matrix does it
    on CPUs, of whole matrices or of some rows.
    """

    def __init__(self, matrices: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._matrices = matrices
        self.grams: dict[str, torch.Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look at a call of torch's, and make it."""
        if func is torch.nn.functional.linear:
            for name, matrix in self._matrices.items():
                if _lies_in(args[1], matrix):
                    self.grams[name] = self.grams.get(name, 0) + _gram(args[0])
        return func(*args, **(kwargs or {}))


def _gram(x: torch.Tensor) -> torch.Tensor:
    """X^T X float64 [K, K] of rows X float32 [..., K]."""
    rows = x.reshape(-1, x.shape[-1])
    return (rows.T @ rows).double()


def _lies_in(part: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Whether a tensor is `matrix`, or some rows of it."""
    return 0 <= part.data_ptr() - matrix.data_ptr() < matrix.nbytes
