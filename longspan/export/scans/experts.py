"""Experts: one's SwiGLU for the tokens that were sent to it, in a loop, or each for itself.

A turn reads one expert's matrices where they lie. An expert without tokens is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from longspan.export.scans.body import Body
from longspan.export.scans.parts import part_name

MICROSOFT = "com.microsoft"
# Adds the product of rows [t, K] with a matrix to a graph, and names it.
Product = Callable[[Body, str], str]
PRODUCT_ATTRIBUTES = ("K", "N", "bits", "block_size", "accuracy_level")


def experts_body(body: Body, attributes: Mapping[str, Any]) -> list[str]:
    """Fill `body`, and name the sum [T, D] after the expert, which is all that the loop gives."""
    del attributes
    total, shares, gate_up, down = body.inputs
    (x,) = body.reads
    return [_turn(body, total, shares, x, (_plain(gate_up), _plain(down)), "expert")]


def packed_experts_body(body: Body, attributes: Mapping[str, Any]) -> list[str]:
    """The same with matrices of 8 or 4 bits, for CUDA, where any tensor can be one."""
    total, shares, *tensors = body.inputs
    (x,) = body.reads
    products = _products(body, tensors, attributes)
    return [_turn(body, total, shares, x, products, "expert")]


def packed_experts(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """The same for CPUs: every expert has nodes of its own, whose matrices are constants."""
    total, shares, *tensors, x = node.input
    around = Body(prefix=f"{node.output[0]}_experts", inputs=0)
    for expert in range(attributes["experts"]):
        own = around.add("Gather", shares, around.constant(np.array(expert)), axis=0)
        parts = [part_name(name, expert) for name in tensors]
        products = _products(around, parts, attributes)
        total = _turn(around, total, own, x, products, f"expert{expert}")
    nodes = around.nodes()
    nodes[-1].output[:] = node.output
    return nodes


def _turn(
    body: Body, total: str, shares: str, x: str, products: tuple[Product, Product], name: str
) -> str:
    """Add an expert to `body`: the name of the sum [T, D] after it.

    Args:
        body: the graph.
        total: the sum [T, D] before.
        shares: of each token [T], 0 where it does not go to the expert.
        x: [T, D].
        products: with the expert's gate_up and down.
        name: of the expert.
    """
    tokens = body.add("Squeeze", body.add("NonZero", shares), body.axes(0))
    some = body.add("Cast", body.add("Size", tokens), to=TensorProto.BOOL)
    inside = Body(prefix=f"{body.prefix}_{name}", inputs=0)
    gate_up, down = products
    hidden = gate_up(inside, inside.add("Gather", x, tokens, axis=0))
    gate, up = inside.split("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    activated = inside.add("Mul", inside.add("Mul", gate, inside.add("Sigmoid", gate)), up)
    wide = inside.add("Cast", down(inside, activated), to=TensorProto.FLOAT)
    column = inside.axes(1)
    share = inside.add("Unsqueeze", inside.add("Gather", shares, tokens, axis=0), column)
    places = inside.add("Unsqueeze", tokens, column)
    added = inside.add("ScatterND", total, places, inside.add("Mul", wide, share), reduction="add")
    outside = Body(prefix=f"{body.prefix}_{name}_none", inputs=0)
    kept = outside.add("Identity", total)
    return body.add(
        "If", some, then_branch=inside.graph([added]), else_branch=outside.graph([kept])
    )


def _plain(matrix: str) -> Product:
    """The product with a matrix [N, K] of floating point."""
    return lambda graph, rows: graph.add("FusedMatMul", rows, matrix, domain=MICROSOFT, transB=1)


def _products(
    body: Body, tensors: Sequence[str], attributes: Mapping[str, Any]
) -> tuple[Product, Product]:
    """The products with gate_up and down, of the tensors of both."""
    split = attributes["gate_up_parts"]
    return (
        _product(body, tensors[:split], "gate_up", attributes),
        _product(body, tensors[split:], "down", attributes),
    )


def _product(
    body: Body, tensors: Sequence[str], name: str, attributes: Mapping[str, Any]
) -> Product:
    """The product with a matrix, packed or not; its scales are cast in `body`."""
    weight, *packing = tensors
    if not packing:
        return _plain(weight)
    scales, *zeros = packing
    if attributes["widened"]:
        scales = body.add("Cast", scales, to=TensorProto.FLOAT)
    product = {key: attributes[f"{name}_{key}"] for key in PRODUCT_ATTRIBUTES}
    return lambda graph, rows: graph.add(
        "MatMulNBits", rows, weight, scales, *zeros, domain=MICROSOFT, **product
    )
