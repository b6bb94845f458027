"""Write out the loops that ONNX Runtime has no operator for: ``longspan`` nodes become Scans.

An onnx_op leaves a node of the domain ``longspan`` whose attributes `carried` and `scanned` count
its inputs: first what the loop carries, then what it walks along axis 0, last what it only reads.
Its outputs are what is carried, then what each turn gives. The node's body is a file here, one an
operator, made of standard operators. What is more than one loop writes all its nodes itself. What
is a loop on CPUs alone has as its first input what CUDA computes in its place.

    graph = expand_scans(model, device="cpu")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import helper

from longspan.engines import Device
from longspan.export.nodes import alive, set_nodes
from longspan.export.scans.attention import anchor_attention, full_attention
from longspan.export.scans.body import Body
from longspan.export.scans.conba import conba_body
from longspan.export.scans.conba_chunks import conba_in_chunks
from longspan.export.scans.experts import (
    MICROSOFT,
    experts_body,
    packed_experts,
    packed_experts_body,
)
from longspan.export.scans.parts import add_parts
from longspan.export.scans.window import window_attention

__all__ = ["expand_scans"]

DOMAIN = "longspan"
# Each fills the body of a loop, and names its outputs.
BODIES: Mapping[str, Callable[[Body, Mapping[str, Any]], list[str]]] = {
    "Conba": conba_body,
    "Experts": experts_body,
    "PackedExperts": packed_experts_body,
}
# Each gives the nodes that compute a node.
Form = Callable[[onnx.NodeProto, Mapping[str, Any]], list[onnx.NodeProto]]
FORMS: Mapping[str, Form] = {"ConbaInChunks": conba_in_chunks}
# The same, for CPUs alone, in place of what their first input is, or of a loop.
CPU_FORMS: Mapping[str, Form] = {
    "AnchorAttention": anchor_attention,
    "FullAttention": full_attention,
    "PackedExperts": packed_experts,
    "WindowAttention": window_attention,
}


def expand_scans(model: onnx.ModelProto, *, device: Device) -> onnx.ModelProto:
    """Replace every node of the domain ``longspan`` by what computes it on `device`.

    Args:
        model: opset 18 or later; it is not changed.
        device: where the graph is to run.

    Returns:
        A graph with the same inputs, outputs and used initializers.

    Raises:
        ValueError: there is no body for such a node.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opsets = {opset.domain: opset.version for opset in result.opset_import}
    if opsets.pop(DOMAIN, None) is None:
        return result
    del result.opset_import[:]
    opsets.setdefault(MICROSOFT, 1)  # which a body may use
    result.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets.items())
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
        elif node.op_type in CPU_FORMS and node.op_type not in BODIES and device == "cuda":
            _rename(nodes, node.input[0], node.output[0])
        else:
            nodes.extend(_expanded(node, device))
    nodes = add_parts(result.graph, nodes)
    set_nodes(result.graph, alive(nodes, {output.name for output in result.graph.output}))
    return result


def _rename(nodes: list[onnx.NodeProto], name: str, new: str) -> None:
    """Let the node that writes `name` write `new`."""
    for node in nodes:
        node.output[:] = [new if each == name else each for each in node.output]


def _expanded(node: onnx.NodeProto, device: Device) -> list[onnx.NodeProto]:
    forms = {**FORMS, **(CPU_FORMS if device == "cpu" else {})}
    if node.op_type not in BODIES and node.op_type not in forms:
        known = ", ".join(sorted({*BODIES, *FORMS, *CPU_FORMS}))
        raise ValueError(f"expand_scans: there is no body for {node.op_type!r}, only for {known}")
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type in forms:
        return forms[node.op_type](node, attributes)
    return [_as_scan(node, attributes)]


def _as_scan(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> onnx.NodeProto:
    carried, scanned = attributes["carried"], attributes["scanned"]
    body = Body(
        prefix=f"{node.output[0]}_body",
        inputs=carried + scanned,
        reads=list(node.input[carried + scanned :]),
    )
    outputs = BODIES[node.op_type](body, attributes)
    return helper.make_node(
        "Scan",
        list(node.input[: carried + scanned]),
        list(node.output),
        name=node.name,
        body=body.graph(outputs),
        num_scan_inputs=scanned,
    )
