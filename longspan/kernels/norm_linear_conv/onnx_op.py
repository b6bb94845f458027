"""For the exporter: the ops that it is made of, each with a way into the graph of its own."""

from __future__ import annotations

from longspan.kernels.norm_linear_conv.reference import norm_linear_conv

__all__ = ["norm_linear_conv"]
