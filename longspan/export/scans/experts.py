"""The body of the loop over experts: one expert's SwiGLU for the tokens that were sent to it.

A turn reads one expert's matrices where they lie. An expert without tokens is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import TensorProto

from longspan.export.scans.body import Body

MICROSOFT = "com.microsoft"


def experts_body(body: Body, attributes: Mapping[str, Any]) -> list[str]:
    """Fill `body`, and name the sum [T, D] after the expert, which is all that the loop gives."""
    del attributes
    total, weights, gate_up, down = body.inputs
    (x,) = body.reads
    tokens = body.add("Squeeze", body.add("NonZero", weights), body.axes(0))
    some = body.add("Cast", body.add("Size", tokens), to=TensorProto.BOOL)
    inside = Body(prefix=f"{body.prefix}_expert", inputs=0)
    rows = inside.add("Gather", x, tokens, axis=0)
    hidden = inside.add("FusedMatMul", rows, gate_up, domain=MICROSOFT, transB=1)
    gate, up = inside.split("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    activated = inside.add("Mul", inside.add("Mul", gate, inside.add("Sigmoid", gate)), up)
    result = inside.add("FusedMatMul", activated, down, domain=MICROSOFT, transB=1)
    wide = inside.add("Cast", result, to=TensorProto.FLOAT)
    column = inside.axes(1)
    share = inside.add("Unsqueeze", inside.add("Gather", weights, tokens, axis=0), column)
    places = inside.add("Unsqueeze", tokens, column)
    added = inside.add("ScatterND", total, places, inside.add("Mul", wide, share), reduction="add")
    outside = Body(prefix=f"{body.prefix}_none", inputs=0)
    kept = outside.add("Identity", total)
    return [
        body.add("If", some, then_branch=inside.graph([added]), else_branch=outside.graph([kept]))
    ]
