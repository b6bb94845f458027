"""Take nodes out of a graph that launch a kernel and compute next to nothing.

A step launches a kernel a node for one token, so that its time is counted in nodes. Of a
Mamba-2 layer in bfloat16 seven of 29 kernels go:

    a sum, then its RMSNormalization     SkipSimplifiedLayerNormalization, which gives both
    where(x > 20, x, softplus(x))        softplus(x): ONNX Runtime's does not overflow
    float32 -> bfloat16 -> float32       float32, where nothing else reads the bfloat16
    split, then a cast of every part     a cast, then the split

    fewer_nodes(model)    # in place
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from longspan.export.nodes import alive, read_names, set_nodes

MICROSOFT = "com.microsoft"
# They give the same numbers in another shape.
RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def fewer_nodes(model: onnx.ModelProto, *, rounds: bool = False) -> None:
    """Take needless nodes out, in place.

    Args:
        model: any.
        rounds: whether it computes in a wider dtype than that of the weights: then a cast there and
            back is how a value is rounded as the state will hold it, and softpluses alone change.
            Where makes both of its parts anew: ONNX Runtime on CPUs holds five tensors meanwhile.
    """
    graph = _Graph(model.graph)
    for node in list(model.graph.node):
        if node.op_type == "Where":
            _plain_softplus(graph, node)
        elif rounds:
            continue
        elif node.op_type == "RMSNormalization":
            _sum_and_norm(graph, node)
        elif node.op_type == "Cast":
            _no_round_trip(graph, node)
        elif node.op_type == "Split":
            _cast_before_split(graph, node)
    graph.apply()


class _Graph:
    """A graph's nodes by what they write and read, and the names that were replaced."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.proto = graph
        self.nodes = list(graph.node)
        self.dtypes = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.shapes = {
            value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.outputs = {value.name for value in graph.output}
        self.writer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in set(read_names(node)):
                self.readers.setdefault(name, []).append(node)
        self._renamed: dict[str, str] = {}

    def replace(self, name: str, by: str) -> None:
        """Let all nodes that read `name` read `by`."""
        self._renamed[name] = by

    def casts(self, name: str) -> list[onnx.NodeProto] | None:
        """The casts to float32 that alone read `name`, or its reshapes; None if others do."""
        found: list[onnx.NodeProto] = []
        if name in self.outputs:
            return None
        for node in self.readers.get(name, []):
            if _casts_to(node) == TensorProto.FLOAT:
                found.append(node)
            elif node.op_type in RESHAPES and node.input[0] == name:
                behind = self.casts(node.output[0])
                if behind is None:
                    return None
                found.extend(behind)
            else:
                return None
        return found

    def widen(self, name: str) -> None:
        """Note that `name` and its reshapes are float32 now, and drop the casts behind them."""
        self.dtypes[name] = TensorProto.FLOAT
        for node in self.readers.get(name, []):
            if node.op_type == "Cast":
                self.replace(node.output[0], name)
            else:
                self.widen(node.output[0])

    def apply(self) -> None:
        """Write all that was noted into the graph."""
        for info in self.proto.value_info:
            info.type.tensor_type.elem_type = self.dtypes[info.name]
        for node in self.nodes:
            node.input[:] = [self._final(name) for name in node.input]
        set_nodes(self.proto, alive(self.nodes, self.outputs))

    def _final(self, name: str) -> str:
        while name in self._renamed:
            name = self._renamed[name]
        return name


def _casts_to(node: onnx.NodeProto) -> int | None:
    """The dtype that a Cast casts to; None for any other node."""
    if node.op_type != "Cast":
        return None
    to: int = helper.get_attribute_value(node.attribute[0])
    return to


def _sum_and_norm(graph: _Graph, node: onnx.NodeProto) -> None:
    """The residual's sum [1, L, D] and its norm over D, all float32."""
    total, weight = node.input
    add = graph.writer.get(total)
    if add is None or add.op_type != "Add" or total in graph.outputs:
        return
    parts, norm = list(add.input), node.output[0]
    shapes = [graph.shapes.get(name) for name in (*parts, total)]
    if any(each is None or len(each) != 3 or each != shapes[0] for each in shapes):
        return
    if any(graph.dtypes.get(name) != TensorProto.FLOAT for name in (*parts, total, norm)):
        return
    places = [graph.nodes.index(each) for each in (node, *graph.readers[total])]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if min(places) != places[0] or attributes.get("axis", -1) not in (-1, 2):
        return
    both = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*parts, weight],
        [norm, "", "", total],
        name=node.name,
        domain=MICROSOFT,
        epsilon=attributes.get("epsilon", 1e-5),
    )
    graph.nodes[places[0]] = both
    graph.nodes.remove(add)


def _plain_softplus(graph: _Graph, node: onnx.NodeProto) -> None:
    """where(x > 20, x, softplus(x)), as torch's exporter writes a softplus."""
    condition, x, y = node.input
    for op_type, name in (("Greater", condition), ("Softplus", y)):
        writer = graph.writer.get(name)
        if writer is None or writer.op_type != op_type or writer.input[0] != x:
            return
    graph.replace(node.output[0], y)


def _no_round_trip(graph: _Graph, node: onnx.NodeProto) -> None:
    """A float32 value that is rounded, and then read as float32 only."""
    name, rounded = node.input[0], node.output[0]
    if graph.dtypes.get(name) != TensorProto.FLOAT or _casts_to(node) == TensorProto.FLOAT:
        return
    if graph.casts(rounded):
        graph.widen(rounded)
        graph.replace(rounded, name)


def _cast_before_split(graph: _Graph, node: onnx.NodeProto) -> None:
    """A split whose parts are all read as float32 only."""
    parts = [graph.casts(name) for name in node.output]
    if len(parts) < 2 or not all(parts):
        return
    wide = f"{node.output[0]}/wide"
    cast = helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT)
    graph.nodes.insert(graph.nodes.index(node), cast)
    node.input[0] = wide
    for name in node.output:
        graph.widen(name)
