"""The launches of a Mamba-2 layer's end and of the next one's beginning, a packed matrix in each.

pair = LayerPair.random("cuda", torch.bfloat16, heads=4, width=16, outputs=96, bits=4)
pair.check(laid_out=True, rtol=2e-2, atol=2e-2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from longspan.kernels import override
from longspan.kernels.deferred_norm import NextNorm
from longspan.kernels.linear_conv import linear_conv
from longspan.kernels.linear_conv.reference import linear_conv as linear_conv_reference
from longspan.kernels.ssd_norm_linear import ssd_norm_linear
from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear as ssd_reference
from tests.kernels import test_linear_conv, test_ssd_norm_linear
from tests.kernels.devices import wide
from tests.kernels.quantized import stored

EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """Arguments of both.

    Attributes:
        first: of `ssd_norm_linear`.
        second: of `linear_conv`, but for x.
        residual: float32 [1, 1, D], which the first adds to.
        weight: of the norm between them [D].
    """

    first: dict[str, Any]
    second: dict[str, Any]
    residual: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def random(
        cls,
        device: str,
        dtype: torch.dtype,
        *,
        heads: int,
        width: int,
        outputs: int,
        **packing: Any,
    ) -> LayerPair:
        """E is `heads` times `width`, D `outputs`; `packing` as `stored` takes it."""
        how = {**packing, "device": device, "dtype": dtype}
        first = test_ssd_norm_linear.arguments(
            device, dtype, heads=heads, width=width, groups=1, optional=False
        )
        first |= stored(outputs, heads * width, **how).named
        first |= {"D": torch.randn(heads, device=device), "dt_limit": (0.0, float("inf"))}
        second = test_linear_conv.arguments(device, dtype, width=outputs)
        second |= stored(second["weight"].shape[0], outputs, **how).named
        residual = torch.randn(1, 1, outputs, device=device)
        weight = (torch.rand(outputs, device=device) + 0.5).to(dtype)
        return cls(first=first, second=second, residual=residual, weight=weight)

    def check(self, *, laid_out: bool, **tolerance: float) -> None:
        """Compare Triton's launches with the references in float64."""
        norm = {"weight": self.weight.double(), "eps": EPS}
        then = NextNorm(residual=self.residual.double(), **norm)
        (total, row), _ = ssd_reference(**wide(self.first), then=then)
        expected = linear_conv_reference(**wide(self.second) | {"x": row})
        with override("linear_conv", "triton"), override("ssd_norm_linear", "triton"):
            then = NextNorm(
                residual=self.residual.clone(), weight=self.weight, eps=EPS,
                matrix=self.second["weight"], bits=self.second["bits"],
            )  # fmt: skip
            (found_total, found_row), _ = ssd_norm_linear(**self.first, then=then)
            found = linear_conv(**self.second | {"x": found_row})
        assert (found_row.sums is not None) == laid_out
        for part, wanted in zip((found_total, *found), (total, *expected), strict=True):
            torch.testing.assert_close(part.double(), wanted.double(), **tolerance)
