"""Attention on CPUs: a key head and a block of queries at a time, over the keys in use alone.

The scores of all queries take far more memory than all else, and a cache may have room for many
more entries than are in use. One loop walks the key heads and copies each one's keys and values to
where they lie together; a loop inside walks blocks of queries, whose query heads of that key head
are the rows of one product. The last block begins early enough to be a whole one.

The first input of a node is what the graph around it computes for CUDA. It is followed by queries
[1, L, H, P] in float32, keys and values [1, M, G, P] in the cache's dtype, the numbers of the
queries, int64 [L], and what tells which keys they see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from longspan.export.scans.blocks import Blocks, bias, column, each_row
from longspan.export.scans.body import Body
from longspan.kernels.attention.scratch import block_queries

END = np.iinfo(np.int64).max


class Block(NamedTuple):
    """A turn of the inner loop.

    Attributes:
        body: the turn's.
        rows: int64 [r H/G], which query each row of the product is.
    """

    body: Body
    rows: str


class Seen(NamedTuple):
    """What a block looks at.

    Attributes:
        keys: float32 [M, P].
        values: float32 [M, P].
        bias: float32 [r H/G, M], zero for what is seen and minus infinity for all else.
    """

    keys: str
    values: str
    bias: str


# Of a head, in the outer loop's body: what its blocks see.
Head = Callable[[Body, str], Callable[[Block], Seen]]


def full_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Over a cache's entries below position + L; the node reads `position`, int64 [1], too."""
    *_, keys, values, queries, position = node.input
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    end = around.add("Add", position, around.add("Shape", queries))
    new = bias(around, around.add("LessOrEqual", queries, column(around, queries)))

    def head(body: Body, number: str) -> Callable[[Block], Seen]:
        own_keys, own_values = (
            _of_head(body, each, number, (body.axes(0), end)) for each in (keys, values)
        )

        def block(block: Block) -> Seen:
            turn = block.body
            # Every query sees what is older than the call.
            pads = turn.add("Concat", turn.axes(0), position, turn.axes(0, 0), axis=0)
            padded = turn.add("Pad", turn.add("Gather", new, block.rows, axis=0), pads)
            return Seen(own_keys, own_values, padded)

        return block

    return _by_head(node, attributes, around, head)


def anchor_attention(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Over the first `entries` of a cache, `anchors` of them anchors, and at its end L tokens.

    The node reads `anchors` and `entries`, int64 [1], and `is_anchor`, bool [L], too.
    """
    *_, keys, values, queries, anchors, entries, is_anchor = node.input
    around = Body(prefix=f"{node.output[0]}_blocks", inputs=0)
    start = around.add("Neg", around.add("Shape", queries))
    parts = ((around.axes(0), entries), (start, around.axes(END)))
    counted = around.add("Cast", is_anchor, to=TensorProto.INT64)
    segment = around.add("CumSum", counted, around.constant(np.array(0)), exclusive=1)
    own = column(around, segment)
    no_anchor = around.add("Not", is_anchor)
    same = around.add("Equal", segment, own)
    through = around.add("And", is_anchor, column(around, no_anchor))
    causal = around.add("LessOrEqual", queries, column(around, queries))
    new = bias(around, around.add("And", causal, around.add("Or", same, through)))
    # Of the cache, the anchors are seen by all but anchors, and the rest by their own segment.
    first = around.add("Equal", own, around.axes(0))
    old = [
        (bias(around, column(around, no_anchor)), anchors),
        (bias(around, first), around.add("Sub", entries, anchors)),
    ]

    def head(body: Body, number: str) -> Callable[[Block], Seen]:
        def joined(tensor: str) -> str:
            both = (_of_head(body, tensor, number, part) for part in parts)
            return body.add("Concat", *both, axis=0)

        own_keys, own_values = joined(keys), joined(values)

        def block(block: Block) -> Seen:
            turn = block.body

            def rows(part: str) -> str:
                return turn.add("Gather", part, block.rows, axis=0)

            def repeated(part: str, count: str) -> str:
                shape = turn.add("Concat", turn.axes(1), count, axis=0)
                return turn.add("Expand", rows(part), shape)

            before = (repeated(*each) for each in old)
            seen = turn.add("Concat", *before, rows(new), axis=1)
            return Seen(own_keys, own_values, seen)

        return block

    return _by_head(node, attributes, around, head)


def _by_head(
    node: onnx.NodeProto, attributes: Mapping[str, Any], around: Body, head: Head
) -> list[onnx.NodeProto]:
    """The nodes that compute `node`: a Scan over key heads."""
    heads, groups, width = (attributes[each] for each in ("heads", "groups", "width"))
    shared = heads // groups
    blocks = Blocks(around, node.input[4], block_queries(shared))
    body = Body(prefix=f"{around.prefix}_head", inputs=1)
    number = body.add("Reshape", body.inputs[0], body.axes(1))
    stacked = body.add("Reshape", node.input[1], body.axes(-1, groups, shared * width))
    queries = body.add("Gather", stacked, body.inputs[0], axis=1)
    turn = Body(prefix=f"{body.prefix}_turn", inputs=1)
    own = turn.add("Gather", queries, turn.inputs[0], axis=0)
    seen = head(body, number)(Block(turn, each_row(turn, turn.inputs[0], shared)))
    scores = turn.add(
        "Gemm",
        turn.add("Reshape", own, turn.axes(-1, width)),
        seen.keys,
        seen.bias,
        transB=1,
        alpha=width**-0.5,
    )
    y = turn.add("MatMul", turn.add("Softmax", scores, axis=-1), seen.values)
    y = turn.add("Reshape", y, turn.axes(-1, shared * width))
    found = body.add("Scan", blocks.rows, body=turn.graph([y]), num_scan_inputs=1)
    found = body.add("Reshape", found, body.axes(-1, shared * width))

    numbers = around.constant(np.arange(groups))
    found = around.add(
        "Scan", numbers, body=body.graph([found]), num_scan_inputs=1, scan_output_axes=[1]
    )
    shape = [blocks.joined(around, found), around.axes(1, -1, groups, shared, width)]
    return [*around.nodes(), helper.make_node("Reshape", shape, list(node.output), name=node.name)]


def _of_head(body: Body, cache: str, head: str, part: tuple[str, str]) -> str:
    """Entries [M, P] of a head, in float32."""
    start = body.add("Concat", part[0], head, axis=0)
    stop = body.add("Concat", part[1], body.add("Add", head, body.axes(1)), axis=0)
    entries = body.add("Slice", cache, start, stop, body.axes(1, 2))
    return body.add("Cast", body.add("Squeeze", entries, body.axes(0, 2)), to=TensorProto.FLOAT)
