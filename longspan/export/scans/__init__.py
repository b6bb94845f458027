"""Write out the loops that ONNX Runtime has no operator for: ``longspan`` nodes become Scans.

An onnx_op leaves a node of the domain ``longspan`` whose attributes `carried` and `scanned` count
its inputs: first what the loop carries, then what it walks along axis 0, last what it only reads.
Its outputs are what is carried, then what each turn gives. The node's body is a file here, one an
operator, made of standard operators. What is more than one loop writes all its nodes itself.

    graph = expand_scans(model)    # in place
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import helper

from longspan.export.scans.body import Body
from longspan.export.scans.conba import conba_body
from longspan.export.scans.conba_chunks import conba_in_chunks
from longspan.export.scans.experts import MICROSOFT, experts_body

__all__ = ["expand_scans"]

DOMAIN = "longspan"
# Each fills the body of a loop, and names its outputs.
BODIES: Mapping[str, Callable[[Body, Mapping[str, Any]], list[str]]] = {
    "Conba": conba_body,
    "Experts": experts_body,
}
# Each gives the nodes that compute a node.
FORMS: Mapping[str, Callable[[onnx.NodeProto, Mapping[str, Any]], list[onnx.NodeProto]]] = {
    "ConbaInChunks": conba_in_chunks,
}


def expand_scans(model: onnx.ModelProto) -> None:
    """Replace every node of the domain ``longspan`` by one Scan or more, in place.

    Raises:
        ValueError: there is no body for such a node.
    """
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(_expanded(node) if node.domain == DOMAIN else [node])
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets.pop(DOMAIN, None) is not None:
        del model.opset_import[:]
        opsets.setdefault(MICROSOFT, 1)  # which a body may use
        model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets.items())


def _expanded(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type not in BODIES and node.op_type not in FORMS:
        known = ", ".join(sorted([*BODIES, *FORMS]))
        raise ValueError(f"expand_scans: there is no body for {node.op_type!r}, only for {known}")
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type in FORMS:
        return FORMS[node.op_type](node, attributes)
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
