"""Rewrite recurrences for the CPU, where a turn of a loop costs little: Scans over tokens.

ONNX Runtime's LinearAttention wants a key and a decay for every head and token, [L, E N] each, and
walks the heads one by one. An ONNX Scan over tokens needs neither: its body computes one token's
decay from the step and A, and updates a state [E, N] that stays in the cache. Conba's chunks, which
save turns and compute every token four times, are the walk over tokens that they have beside them.

    model = onnx.load("graph.onnx", load_external_data=False)
    quick = scan_on_cpu(model)       # same inputs, outputs and weights

It knows the nodes that `longspan.kernels.selective_scan.onnx_op` leaves and the If that
`longspan.export.scans.conba_chunks` writes, and a batch of 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from longspan.export.nodes import alive, set_nodes
from longspan.export.scans.conba_chunks import is_in_chunks, walk_of

__all__ = ["scan_on_cpu"]


def scan_on_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every LinearAttention whose heads have width one, and Conba's chunks, by a Scan.

    Args:
        model: a float32 graph of batch 1, opset 13 or later; it is not changed.

    Returns:
        A graph with the same inputs, outputs and used initializers.

    Raises:
        ValueError: such a node was not written by `selective_scan`'s onnx_op.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    replaced = False
    for node in graph.node:
        if _is_selective_scan(node, producers):
            nodes.extend(_as_scan(node, producers, graph))
            replaced = True
        elif is_in_chunks(node):
            nodes.append(walk_of(node))
            replaced = True
        else:
            nodes.append(node)
    if replaced:
        set_nodes(graph, alive(nodes, {output.name for output in graph.output}))
    return result


def _is_selective_scan(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    """Whether `node` runs the gated rule with one query head over a key that B was repeated to."""
    if node.op_type != "LinearAttention" or node.domain != "com.microsoft":
        return False
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("update_rule") != b"gated" or attributes.get("q_num_heads") != 1:
        return False
    key = producers.get(node.input[1])
    if key is None or key.op_type != "Reshape":
        return False
    expand = producers.get(key.input[0])
    return expand is not None and expand.op_type == "Expand"


def _producer(
    node: onnx.NodeProto, name: str, op_type: str, producers: dict[str, onnx.NodeProto]
) -> onnx.NodeProto:
    """The node that writes `name`, which must be of `op_type`."""
    found = producers.get(name)
    if found is None or found.op_type != op_type:
        kind = "an input or initializer" if found is None else found.op_type
        raise ValueError(
            f"scan_on_cpu: {name!r}, read by LinearAttention {node.name!r}, comes from {kind}; "
            f"it must come from {op_type}, as the onnx_op of selective_scan writes it"
        )
    return found


def _step_and_rates(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> tuple[str, str]:
    """Names of the steps [1, L, E] and of A [E, N] behind the node's decay."""
    flat = _producer(node, node.input[4], "Reshape", producers)
    product = _producer(node, flat.input[0], "Mul", producers)
    first, second = product.input
    for wide, rates in ((first, second), (second, first)):
        unsqueeze = producers.get(wide)
        if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze":
            return unsqueeze.input[0], rates
    unsqueeze = _producer(node, first, "Unsqueeze", producers)
    return unsqueeze.input[0], second


def _as_scan(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """The nodes that compute the two outputs of `node` with a Scan over tokens."""
    query, key, value, state = node.input[:4]
    step, rates = _step_and_rates(node, producers)
    expand = _producer(
        node, _producer(node, key, "Reshape", producers).input[0], "Expand", producers
    )
    B = _producer(node, expand.input[0], "Unsqueeze", producers).input[0]
    width = next(
        helper.get_attribute_value(each) for each in node.attribute if each.name == "kv_num_heads"
    )
    y, new_state = node.output
    prefix = f"{y}_scan"
    shapes: dict[str, list[int]] = {}

    def reshape(source: str, target: str, shape: list[int]) -> onnx.NodeProto:
        shapes[f"{target}_shape"] = shape
        return helper.make_node("Reshape", [source, f"{target}_shape"], [target], name=target)

    names = {each: f"{prefix}_{each}" for each in ("h", "step", "v", "B", "C", "last", "y")}
    # The batch is 1, so these reshapes move nothing; -1 stands for N in the state, else for L.
    nodes = [
        reshape(state, names["h"], [width, -1]),
        reshape(step, names["step"], [-1, width, 1]),
        reshape(value, names["v"], [-1, width, 1]),
        helper.make_node("Squeeze", [B, f"{prefix}_zero"], [f"{prefix}_B_rows"]),
        helper.make_node("Unsqueeze", [f"{prefix}_B_rows", f"{prefix}_one"], [names["B"]]),
        helper.make_node("Squeeze", [query, f"{prefix}_zero"], [f"{prefix}_C_rows"]),
        helper.make_node("Unsqueeze", [f"{prefix}_C_rows", f"{prefix}_two"], [names["C"]]),
        helper.make_node(
            "Scan",
            [names[each] for each in ("h", "step", "v", "B", "C")],
            [names["last"], names["y"]],
            name=prefix,
            body=_body(prefix, rates, width),
            num_scan_inputs=4,
        ),
        reshape(names["y"], y, [1, -1, width]),
        reshape(names["last"], new_state, [1, width, -1, 1]),
    ]
    shapes |= {f"{prefix}_zero": [0], f"{prefix}_one": [1], f"{prefix}_two": [2]}
    graph.initializer.extend(
        helper.make_tensor(name, onnx.TensorProto.INT64, [len(shape)], shape)
        for name, shape in shapes.items()
    )
    return nodes


def _body(prefix: str, rates: str, width: int) -> onnx.GraphProto:
    """One token: h = exp(step A) h + v B, y = h C. A is read from the graph around it."""

    def local(name: str) -> str:
        return f"{prefix}_body_{name}"

    def tensor(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(local(name), onnx.TensorProto.FLOAT, shape)

    def node(op_type: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
        return helper.make_node(op_type, [local(each) for each in inputs], [local(output)])

    exponent = helper.make_node("Mul", [local("step"), rates], [local("exponent")])
    return helper.make_graph(
        [
            exponent,
            node("Exp", ["exponent"], "decay"),
            node("Mul", ["h", "decay"], "kept"),
            node("Mul", ["v", "B"], "added"),
            node("Add", ["kept", "added"], "next"),
            node("MatMul", ["next", "C"], "y"),
        ],
        f"{prefix}_body",
        [
            tensor("h", [width, None]),
            tensor("step", [width, 1]),
            tensor("v", [width, 1]),
            tensor("B", [1, None]),
            tensor("C", [None, 1]),
        ],
        [tensor("next", [width, None]), tensor("y", [width, 1])],
    )
