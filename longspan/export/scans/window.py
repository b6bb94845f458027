"""Window attention on CPUs, a block of queries at a time, over the window of the block's own keys.

Scores of a window are few, so that a turn of the loop takes all heads: the query heads of a key
head are the rows of one product.

The first input of a node is what the graph around it computes for CUDA. It is followed by queries
[1, L, H, P] in float32, keys and values [1, W - 1 + L, G, P] in the cache's dtype, the numbers
of the queries, int64 [L], and `position`, int64 [1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from longspan.export.scans.blocks import Blocks, bias, column, each_row, number_range
from longspan.export.scans.body import Body
from longspan.export.scans.experts import MICROSOFT
from longspan.kernels.attention.scratch import WINDOW_BLOCK_QUERIES


def window_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """The nodes that compute `node`."""
    _, q, keys, values, numbers, position = node.input
    heads, groups, width = (attributes[each] for each in ("heads", "groups", "width"))
    window, shared = attributes["window"], heads // groups
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    length = around.add("Shape", numbers)
    oldest = around.add("Sub", around.axes(window - 1), position)
    blocks = Blocks(around, numbers, WINDOW_BLOCK_QUERIES)
    # A block's columns begin at its first query's: the band is the same in all of them.
    columns = number_range(around, around.add("Add", blocks.size, around.axes(window - 1)))
    row = column(around, each_row(around, number_range(around, blocks.size), shared))
    late = around.add("Less", columns, around.add("Add", row, around.axes(window)))
    band = bias(around, around.add("And", around.add("GreaterOrEqual", columns, row), late))
    # What is older than the text was never written.
    start = bias(around, around.add("GreaterOrEqual", columns, oldest))
    of_first = around.add("Add", band, start)
    keys, values = _heads_first(around, keys), _heads_first(around, values)
    queries = around.add("Reshape", q, around.axes(-1, groups, shared * width))

    def attended(body: Body, own: str, keys: str, values: str, seen: str) -> str:
        own = body.add("Transpose", own, perm=[1, 0, 2])
        own = body.add("Reshape", own, body.axes(groups, -1, width))
        scores = body.add("FusedMatMul", own, keys, domain=MICROSOFT, transB=1, alpha=width**-0.5)
        weights = body.add("Softmax", body.add("Add", scores, seen), axis=-1)
        y = body.add(
            "Reshape", body.add("MatMul", weights, values), body.axes(groups, -1, shared * width)
        )
        return body.add("Transpose", y, perm=[1, 0, 2])

    one, several = (Body(prefix=f"{around.prefix}_{name}", inputs=0) for name in ("one", "several"))
    of_one = attended(one, queries, keys, values, of_first)

    turn = Body(prefix=f"{several.prefix}_turn", inputs=1)
    (rows,) = turn.inputs
    first = turn.add("Gather", rows, turn.axes(0), axis=0)
    stop = turn.add("Add", first, turn.add("Shape", columns))
    own_keys, own_values = (
        turn.add("Slice", each, first, stop, turn.axes(1)) for each in (keys, values)
    )
    written = turn.add("GreaterOrEqual", columns, turn.add("Sub", oldest, first))
    seen = turn.add("Add", band, bias(turn, written))
    own = turn.add("Gather", queries, rows, axis=0)
    y = attended(turn, own, own_keys, own_values, seen)
    found = several.add("Scan", blocks.rows, body=turn.graph([y]), num_scan_inputs=1)
    found = several.add("Reshape", found, several.axes(-1, groups, shared * width))
    of_several = blocks.joined(several, found)

    is_one = around.add("LessOrEqual", length, around.axes(WINDOW_BLOCK_QUERIES))
    found = around.add(
        "If", is_one, then_branch=one.graph([of_one]), else_branch=several.graph([of_several])
    )
    shape = [found, around.axes(1, -1, groups, shared, width)]
    return [*around.nodes(), helper.make_node("Reshape", shape, list(node.output), name=node.name)]


def _heads_first(around: Body, cache: str) -> str:
    """[1, M, G, P] as [G, M, P] in float32."""
    ordered = around.add("Transpose", around.add("Squeeze", cache, around.axes(0)), perm=[1, 0, 2])
    return around.add("Cast", ordered, to=TensorProto.FLOAT)
