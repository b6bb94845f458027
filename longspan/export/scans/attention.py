"""Attention on CPUs, a block of queries at a time, over the keys in use alone.

The scores of all queries take far more memory than all else, and a cache may have room for many
more entries than are in use. A turn of the loop scores `BLOCK_QUERIES` queries; the loop walks
their numbers, and reads queries, keys and values where they lie. The query heads of a key head are
rows of one product. Beyond the last query its row is computed again, for nothing.

The first input of a node is what the graph around it computes for CUDA. It is followed by queries
[B, L, H, P] in float32, keys and values [B, M, G, P] in the cache's dtype, and what tells who sees
what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from longspan.export.scans.body import Body
from longspan.export.scans.experts import MICROSOFT
from longspan.kernels.attention.scratch import BLOCK_QUERIES

END = np.iinfo(np.int64).max


class Seen(NamedTuple):
    """What a block of r queries looks at.

    Attributes:
        keys: float32 [B, G, M, P].
        values: float32 [B, G, M, P].
        bias: float32 [r, M], zero for what is seen and minus infinity for all else.
    """

    keys: str
    values: str
    bias: str


def full_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Over a cache's entries below position + L; beside keys and values it reads `position` [1]."""
    _, q, keys, values, position = node.input
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    length = _length(around, q)
    end = around.add("Add", position, length)
    keys, values = (
        _heads_first(around, around.add("Slice", each, around.axes(0), end, around.axes(1)))
        for each in (keys, values)
    )
    columns = _range(around, length)

    def block(turn: Body, rows: str) -> Seen:
        new = _bias(turn, turn.add("LessOrEqual", columns, _column(turn, rows)))
        # Every query sees what is older than the call.
        pads = turn.add("Concat", turn.axes(0), position, turn.axes(0, 0), axis=0)
        return Seen(keys, values, turn.add("Pad", new, pads))

    return _in_blocks(node, attributes, around, length, block)


def window_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Over the window - 1 entries before each query and its own; it reads `position` [1], too."""
    _, q, keys, values, position = node.input
    window = attributes["window"]
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    length = _length(around, q)
    keys, values = (_heads_first(around, each) for each in (keys, values))
    oldest = around.add("Sub", around.axes(window - 1), position)

    def block(turn: Body, rows: str) -> Seen:
        # A block of queries has its own window of keys.
        first, last = (
            turn.add("Slice", rows, turn.axes(start), turn.axes(stop), turn.axes(0))
            for start, stop in ((0, 1), (-1, END))
        )
        stop = turn.add("Add", last, turn.axes(window))
        columns = turn.add(
            "Range",
            *(turn.add("Squeeze", each, turn.axes(0)) for each in (first, stop)),
            turn.constant(np.array(1, np.int64)),
        )
        row = _column(turn, rows)
        seen = turn.add(
            "And",
            turn.add("GreaterOrEqual", columns, turn.add("Max", row, oldest)),
            turn.add("Less", columns, turn.add("Add", row, turn.axes(window))),
        )
        own = (turn.add("Slice", each, first, stop, turn.axes(2)) for each in (keys, values))
        return Seen(*own, _bias(turn, seen))

    return _in_blocks(node, attributes, around, length, block)


def anchor_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Over the first `entries` [1] of a cache and, at its end, the new tokens.

    It reads the segment int64 [M] and whether it is an anchor, bool [M], of every column, too.
    """
    _, q, keys, values, entries, segment, anchor = node.input
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    length = _length(around, q)
    start = around.add("Neg", length)

    def in_use(tensor: str, axis: int) -> str:
        old = around.add("Slice", tensor, around.axes(0), entries, around.axes(axis))
        new = around.add("Slice", tensor, start, around.axes(END), around.axes(axis))
        return around.add("Concat", old, new, axis=axis)

    keys, values = (_heads_first(around, in_use(each, 1)) for each in (keys, values))
    segment, anchor = (in_use(each, 0) for each in (segment, anchor))
    columns = _range(around, around.add("Add", entries, length))

    def block(turn: Body, rows: str) -> Seen:
        own = turn.add("Add", rows, entries)
        own_segment, is_anchor = (
            _column(turn, turn.add("Gather", each, own, axis=0)) for each in (segment, anchor)
        )
        same = turn.add("Equal", segment, own_segment)
        through = turn.add("And", anchor, turn.add("Not", is_anchor))
        causal = turn.add("LessOrEqual", columns, _column(turn, own))
        return Seen(
            keys, values, _bias(turn, turn.add("And", causal, turn.add("Or", same, through)))
        )

    return _in_blocks(node, attributes, around, length, block)


def _in_blocks(
    node: onnx.NodeProto,
    attributes: Mapping[str, Any],
    around: Body,
    length: str,
    block: Callable[[Body, str], Seen],
) -> list[onnx.NodeProto]:
    """The nodes that compute `node`: a Scan over blocks of the numbers of its queries."""
    heads, groups, width = (attributes[each] for each in ("heads", "groups", "width"))
    size = around.add("Min", length, around.axes(BLOCK_QUERIES))
    last = around.add("Sub", length, around.axes(1))
    blocks = around.add("Add", around.add("Div", last, size), around.axes(1))
    rows = around.add("Min", _range(around, around.add("Mul", blocks, size)), last)
    rows = around.add("Reshape", rows, around.add("Concat", around.axes(-1), size, axis=0))
    turn = Body(prefix=f"{around.prefix}_turn", inputs=1)
    y = _attended(turn, node.input[1], (groups, heads // groups, width), block)
    found = around.add(
        "Scan", rows, body=turn.graph([y]), num_scan_inputs=1, scan_output_axes=[1]
    )
    found = around.add("Reshape", found, around.axes(0, -1, heads, width))
    cut = [found, around.axes(0), length, around.axes(1)]
    return [*around.nodes(), helper.make_node("Slice", cut, list(node.output), name=node.name)]


def _attended(
    turn: Body, q: str, sizes: tuple[int, int, int], block: Callable[[Body, str], Seen]
) -> str:
    """The outputs [B, r, H, P] of a block's queries; `sizes` are G, H / G and P."""
    groups, shared, width = sizes
    (rows,) = turn.inputs
    queries = turn.add("Reshape", turn.add("Gather", q, rows, axis=1), turn.axes(0, 0, *sizes))
    queries = turn.add("Transpose", queries, perm=[0, 2, 1, 3, 4])
    queries = turn.add("Reshape", queries, turn.axes(0, 0, -1, width))
    seen = block(turn, rows)
    scores = turn.add(
        "FusedMatMul", queries, seen.keys, domain=MICROSOFT, transB=1, alpha=width**-0.5
    )
    by_row = turn.add(
        "Concat", turn.axes(0, 0), turn.add("Shape", rows), turn.axes(shared, -1), axis=0
    )
    by_row = turn.add("Reshape", scores, by_row)
    biased = turn.add("Add", by_row, turn.add("Unsqueeze", seen.bias, turn.axes(1)))
    weights = turn.add("Reshape", turn.add("Softmax", biased, axis=-1), turn.add("Shape", scores))
    y = turn.add("MatMul", weights, seen.values)
    y = turn.add("Reshape", y, turn.axes(0, groups, -1, shared, width))
    y = turn.add("Transpose", y, perm=[0, 2, 1, 3, 4])
    return turn.add("Reshape", y, turn.axes(0, 0, groups * shared, width))


def _length(around: Body, q: str) -> str:
    return around.add("Shape", q, start=1, end=2)


def _range(around: Body, count: str) -> str:
    """The numbers 0 .. count - 1, of a count int64 [1]."""
    start, step = (around.constant(np.array(each, np.int64)) for each in (0, 1))
    return around.add("Range", start, around.add("Squeeze", count, around.axes(0)), step)


def _heads_first(around: Body, cache: str) -> str:
    """[B, M, G, P] as [B, G, M, P] in float32."""
    ordered = around.add("Transpose", cache, perm=[0, 2, 1, 3])
    return around.add("Cast", ordered, to=TensorProto.FLOAT)


def _column(turn: Body, vector: str) -> str:
    return turn.add("Unsqueeze", vector, turn.axes(1))


def _bias(turn: Body, seen: str) -> str:
    zero, never = (turn.constant(np.array(each, np.float32)) for each in (0, -np.inf))
    return turn.add("Where", seen, zero, never)
