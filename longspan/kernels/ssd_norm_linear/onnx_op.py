"""For the exporter: the ops that it is made of, each with a way into the graph of its own."""

from __future__ import annotations

from longspan.kernels.ssd_norm_linear.reference import ssd_norm_linear

__all__ = ["ssd_norm_linear"]
