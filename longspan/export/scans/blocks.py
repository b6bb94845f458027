"""What attention in blocks of queries has in common, whatever its queries see."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from longspan.export.scans.body import Body


class Blocks:
    """Blocks of the queries of a call, all of the same size.

    The last one begins early enough to be a whole one.

    Args:
        around: where their numbers are computed.
        queries: their numbers, int64 [L].
        most: queries of a block, at most.

    Attributes:
        size: queries of a block, int64 [1].
        rows: which they are, int64 [blocks, size].
    """

    def __init__(self, around: Body, queries: str, most: int) -> None:
        length = around.add("Shape", queries)
        self.size = around.add("Min", length, around.axes(most))
        last = around.add("Sub", length, self.size)
        whole = around.add("Div", around.add("Sub", length, around.axes(1)), self.size)
        first = number_range(around, around.add("Add", whole, around.axes(1)))
        first = around.add("Min", around.add("Mul", first, self.size), last)
        self.rows = around.add("Add", column(around, first), number_range(around, self.size))
        before_last = around.add("Mul", whole, self.size)
        in_last = around.add("GreaterOrEqual", queries, before_last)
        again = around.add("Sub", before_last, last)
        again = around.add("Mul", around.add("Cast", in_last, to=TensorProto.INT64), again)
        self._places = around.add("Add", queries, again)

    def joined(self, body: Body, found: str) -> str:
        """What was found for each query [L, ...], of the blocks' [blocks size, ...], in `body`."""
        # The queries of the last block that the one before it has, too, are left out.
        return body.add("Gather", found, self._places, axis=0)


def number_range(body: Body, count: str) -> str:
    """The numbers 0 .. count - 1, of a count int64 [1]."""
    start, step = (body.constant(np.array(each)) for each in (0, 1))
    return body.add("Range", start, body.add("Squeeze", count, body.axes(0)), step)


def column(body: Body, vector: str) -> str:
    """A vector as a matrix of one column."""
    return body.add("Unsqueeze", vector, body.axes(1))


def each_row(body: Body, rows: str, shared: int) -> str:
    """Every row's number once for each of the heads that share a key head."""
    wide = body.add("Expand", column(body, rows), body.axes(1, shared))
    return body.add("Reshape", wide, body.axes(-1))


def bias(body: Body, seen: str) -> str:
    """Zero for what is seen, minus infinity for all else: the logarithm, in float32."""
    return body.add("Log", body.add("Cast", seen, to=TensorProto.FLOAT))
