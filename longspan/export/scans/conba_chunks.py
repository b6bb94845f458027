"""Conba without a gain, in chunks that are read side by side: few turns for many tokens.

With a delay of one token and f the identity, (3) and (4) of docs/mixcon.md are linear, so a chunk
is a map of the two states before it. Three loops: what each chunk makes of (0, 0) with s, and of
(1, 0) and (0, 1) without; a walk over the chunks; and every chunk again, from its right start. No
factor is above one, so nothing overflows. Up to `ONE_PASS_TOKENS` one loop walks the tokens.

A turn is C tokens apart: s and a become [C, chunks, 1, H, N], the three starts [chunks, 3, H, N].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from longspan.export.scans.body import Body
from longspan.kernels.conba import scratch

# Of the name of the If between the two ways.
SUFFIX = "_in_chunks"


def conba_in_chunks(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """The nodes that compute x and the state before it [H, N], and x after each token [L, H, N].

    Its inputs are x and the state before it [H, N], s and a [L, H, N], and the weights of both
    states [H, N], whose sum of magnitudes is one.
    """
    del attributes
    prefix = f"{node.output[0]}_chunks"
    length, most, is_short = (f"{prefix}_{name}" for name in ("length", "most", "is_short"))
    walk, split = (Body(prefix=f"{prefix}_{name}", inputs=0) for name in ("walk", "split"))
    return [
        helper.make_node("Shape", [node.input[2]], [length], start=0, end=1),
        helper.make_node("Constant", [], [most], value_ints=[scratch.ONE_PASS_TOKENS]),
        helper.make_node("LessOrEqual", [length, most], [is_short]),
        helper.make_node(
            "If",
            [is_short],
            list(node.output),
            name=node.name + SUFFIX,
            then_branch=walk.graph(_walk(walk, *node.input)),
            else_branch=split.graph(_in_chunks(split, length, *node.input)),
        ),
    ]


def is_in_chunks(node: onnx.NodeProto) -> bool:
    """Whether `node` is an If that `conba_in_chunks` wrote."""
    return node.op_type == "If" and node.name.endswith(SUFFIX)


def walk_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """The loop over tokens that such an If has for few of them."""
    branches = {each.name: each.g for each in node.attribute}
    (walk,) = branches["then_branch"].node
    result = onnx.NodeProto()
    result.CopyFrom(walk)
    result.name = node.name.removesuffix(SUFFIX)
    result.output[:] = node.output
    return result


def _walk(body: Body, x: str, past: str, s: str, a: str, now: str, then: str) -> list[str]:
    """A loop along axis 0 of s and a: the last x, the one before it, and x after each turn."""
    turn = Body(prefix=f"{body.prefix}_turn", inputs=4)
    old, older, entering, scaling = turn.inputs
    new = turn.add("Add", _scaled(turn, old, older, scaling, now, then), entering)
    results = [new, turn.add("Identity", old), turn.add("Identity", new)]
    loop = turn.graph(results)
    return body.split("Scan", x, past, s, a, outputs=3, body=loop, num_scan_inputs=2)


def _scaled(body: Body, x: str, past: str, a: str, now: str, then: str) -> str:
    """What a token leaves of x and of the state before it."""
    both = body.add("Add", body.add("Mul", x, now), body.add("Mul", past, then))
    return body.add("Mul", a, both)


def _in_chunks(
    body: Body, length: str, x: str, past: str, s: str, a: str, now: str, then: str
) -> list[str]:
    """The same, chunks side by side; beyond the last token its row is read again, for nothing."""
    zero, one, size = (_number(body, each) for each in (0, 1, scratch.CHUNK_TOKENS))
    tokens = body.add("Squeeze", length, body.axes(0))
    last = body.add("Sub", tokens, one)
    chunks = body.add("Add", body.add("Div", last, size), one)
    first = body.add("Mul", body.add("Range", zero, chunks, one), size)
    inside = body.constant(np.arange(scratch.CHUNK_TOKENS, dtype=np.int64)[:, None, None])
    places = body.add("Add", inside, body.add("Unsqueeze", first, body.axes(1)))
    places = body.add("Min", places, last)
    s, a = (body.add("Gather", each, places, axis=0) for each in (s, a))
    x_starts, past_starts = _starts(body, chunks, x, past, s, a, now, then)
    *_, walked = _walk(body, x_starts, past_starts, s, a, now, then)

    token = body.add("Range", zero, tokens, one)
    order = body.add("Mul", body.add("Mod", token, size), chunks)
    order = body.add("Add", order, body.add("Div", token, size))
    rows = body.add("Gather", body.add("Reshape", walked, _before(body, x, -1)), order, axis=0)
    before_last = body.add("Sub", last, one)
    ends = [body.add("Gather", rows, each, axis=0) for each in (last, before_last)]
    return [*ends, rows]


def _starts(
    body: Body, chunks: str, x: str, past: str, s: str, a: str, now: str, then: str
) -> list[str]:
    """x and the state before it at the start of every chunk, [chunks, 1, H, N] each."""
    own, of_x, of_past = (
        body.constant(each[:, None, None]) for each in np.eye(3, dtype=np.float32)
    )
    turn = Body(prefix=f"{body.prefix}_map", inputs=4)
    old, older, entering, scaling = turn.inputs
    kept = _scaled(turn, old, older, scaling, now, then)
    new = turn.add("Add", kept, turn.add("Mul", entering, own))
    loop = turn.graph([new, turn.add("Identity", old)])
    shape = body.add(
        "Concat", body.add("Unsqueeze", chunks, body.axes(0)), _before(body, x, 3), axis=0
    )
    units = [body.add("Expand", each, shape) for each in (of_x, of_past)]
    ends = body.split("Scan", *units, s, a, outputs=2, body=loop, num_scan_inputs=2)
    maps = _stacked(body, ends, axis=1)

    # A chunk ends with its map [2, 3, H, N] times (1, x, the state before it).
    ones = body.add("Expand", body.constant(np.ones(1, np.float32)), _before(body, x, 1))
    join = Body(prefix=f"{body.prefix}_join", inputs=2)
    states, chunk_map = join.inputs
    terms = join.add("Mul", chunk_map, join.add("Concat", ones, states, axis=0))
    after = join.add("ReduceSum", terms, join.axes(1), keepdims=0)
    loop = join.graph([after, join.add("Identity", states)])
    both = _stacked(body, [x, past], axis=0)
    _, starts = body.split("Scan", both, maps, outputs=2, body=loop, num_scan_inputs=1)
    return body.split("Split", starts, outputs=2, axis=1, num_outputs=2)


def _number(body: Body, value: int) -> str:
    return body.constant(np.array(value, np.int64))


def _before(body: Body, x: str, size: int) -> str:
    """The shape of x behind another size."""
    return body.add("Concat", body.axes(size), body.add("Shape", x), axis=0)


def _stacked(body: Body, tensors: list[str], *, axis: int) -> str:
    """The tensors along a new axis."""
    wide = [body.add("Unsqueeze", each, body.axes(axis)) for each in tensors]
    return body.add("Concat", *wide, axis=axis)
