"""For the exporter: the ops that it is made of, each with a way into the graph of its own."""

from __future__ import annotations

from longspan.kernels.linear_conv.reference import linear_conv

__all__ = ["linear_conv"]
