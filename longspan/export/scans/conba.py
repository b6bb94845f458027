"""The body of Conba's loop: one token, equations (3) to (7) of docs/mixcon.md.

Vectors are columns, [H, N, 1] and [H, P, 1]; `longspan.kernels.conba.onnx_op` has made the weights
of the delay and r - D u.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from longspan.export.scans.body import Body


def conba_body(body: Body, attributes: Mapping[str, Any]) -> list[str]:
    """Fill `body`, and name x, the delay, the gain and the error after the token, and C x.

    Without a gain only x, the delay, and x again: C x is then a product outside of the loop.
    """
    x, delay, *adaptive = body.inputs[: attributes["carried"]]
    s, a, *tracking = body.inputs[attributes["carried"] :]
    now, then, *output = body.reads
    past, new_delay = _shifted(body, delay, x, attributes["delay"])
    delayed = body.add("Add", body.add("Mul", x, now), body.add("Mul", past, then))
    new_x = body.add("Add", body.add("Mul", a, delayed), s)
    if adaptive:
        gain, error = adaptive
        new_x = body.add("Add", new_x, body.add("MatMul", gain, error))
    if attributes["activation"] == b"tanh":
        new_x = body.add("Tanh", new_x)
    if not adaptive:
        return [new_x, new_delay, body.add("Identity", new_x)]

    C, transposed = output
    goal, *update = tracking
    y = body.add("MatMul", C, new_x)
    new_error = body.add("Sub", goal, y)
    new_gain = _updated(body, gain, error, body.add("MatMul", transposed, new_error), attributes)
    if update:
        new_gain = body.add("Where", update[0], new_gain, gain)
    return [new_x, new_delay, new_gain, new_error, y]


def _shifted(body: Body, delay: str, x: str, length: int) -> tuple[str, str]:
    """The oldest state of the delay, and the delay without it and with x."""
    newest = body.add("Unsqueeze", x, body.axes(0))
    if length == 1:
        return body.add("Squeeze", delay, body.axes(0)), newest
    oldest = body.add("Gather", delay, body.constant(np.array(0, np.int64)), axis=0)
    rest = body.add("Slice", delay, body.axes(1), body.axes(length), body.axes(0))
    return oldest, body.add("Concat", rest, newest, axis=0)


def _updated(body: Body, gain: str, error: str, descent: str, attributes: Mapping[str, Any]) -> str:
    """Equation (7)."""
    eta, k_max, one = (
        body.constant(np.array(value, np.float32))
        for value in (attributes["eta"], attributes["k_max"], 1.0)
    )
    row = body.add("Transpose", error, perm=[0, 2, 1])
    square = body.add("MatMul", row, error)
    step = body.add("Mul", descent, body.add("Div", eta, body.add("Add", square, one)))
    moved = body.add("Add", gain, body.add("MatMul", step, row))
    squares = body.add("ReduceSum", body.add("Mul", moved, moved), body.axes(1, 2), keepdims=1)
    norm = body.add("Sqrt", squares)
    return body.add("Mul", moved, body.add("Div", k_max, body.add("Max", norm, k_max)))
