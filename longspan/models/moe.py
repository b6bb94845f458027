"""A mixture of SwiGLU experts (Jamba, arXiv 2403.19887, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from longspan.kernels.moe import Matrices, Packed, moe, moe_brought
from longspan.models.config import MoeConfig, Quantization
from longspan.models.linear import Linear, quantized_parameters

# Takes how many tokens each chosen expert has, by its number, and gives the number and the tensors
# of each, in the same order: of both matrices, as `Experts.tensors` has them.
Bring = Callable[[Mapping[int, int]], Iterable[tuple[int, Sequence[torch.Tensor]]]]


class Experts(nn.Module):
    """One matrix for each expert, (out, in), in one tensor; of 8 or 4 bits after `quantize_`."""

    def __init__(self, experts: int, d_in: int, d_out: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits: int | None = None
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in, dtype=dtype))

    def quantize_(self, stored: Quantization) -> None:
        """Take matrices of `stored` from now on, uint8, with their scales and zero points, not set.

        Those narrower than a block stay as they are, and all where `stored` leaves experts alone.
        """
        if not stored.experts or not stored.takes(self.weight.shape[2]):
            return
        self.bits = stored.bits
        self.weight, self.scales, self.zeros = quantized_parameters(self.weight, stored)

    def matrices(self, tensors: Sequence[torch.Tensor] | None = None) -> Matrices:
        """All experts' matrices; or of `tensors`, which hold one expert's, that one's."""
        weight, *packing = self.tensors if tensors is None else tensors
        if self.bits is None:
            return weight
        scales, *zeros = packing
        return Packed(
            weight=weight, scales=scales, zeros=zeros[0] if zeros else None, bits=self.bits
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The weight and, of packed matrices, scales and zero points, as far as there are any."""
        if self.bits is None:
            return [self.weight]
        return [each for each in (self.weight, self.scales, self.zeros) if each is not None]


class Moe(nn.Module):
    """A router, and experts whose gate and up rows stand in one matrix, gate first.

    Attributes:
        bring: brings experts that do not lie on the device; None where they do.
    """

    def __init__(self, config: MoeConfig, d_model: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        experts, d_ff = config.n_experts, config.d_ff
        self.bring: Bring | None = None
        self.router = Linear(d_model, experts, dtype=dtype, exact=True)
        self.gate_up_proj = Experts(experts, d_model, 2 * d_ff, dtype=dtype)
        self.down_proj = Experts(experts, d_ff, d_model, dtype=dtype)

    def forward(
        self, x: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Map x [B, L, D] to [B, L, D]; the state is empty."""
        # In float32: rounded logits would send a token elsewhere where two experts are close.
        logits = self.router(x.to(torch.promote_types(x.dtype, torch.float32)))
        top_k, renormalise = self.config.top_k, self.config.renormalise
        if self.bring is not None:
            brought = partial(self._brought, self.bring)
            return moe_brought(x, logits, brought, top_k=top_k, renormalise=renormalise), state
        y = moe(
            x, logits, self.gate_up_proj.matrices(), self.down_proj.matrices(),
            top_k=top_k, renormalise=renormalise,
        )  # fmt: skip
        return y, state

    def _brought(
        self, bring: Bring, tokens: Mapping[int, int]
    ) -> Iterator[tuple[int, Matrices, Matrices]]:
        """What `bring` gives, as matrices."""
        split = len(self.gate_up_proj.tensors)
        for expert, tensors in bring(tokens):
            gate_up = self.gate_up_proj.matrices(tensors[:split])
            yield expert, gate_up, self.down_proj.matrices(tensors[split:])
