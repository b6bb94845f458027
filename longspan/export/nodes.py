"""Which nodes of an ONNX graph read what, and how nodes are put in place of others."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Every name that `node` reads, in the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from read_names(each)


def alive(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes, in order, on which an output of the graph depends."""
    kept = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            kept.append(node)
            wanted = wanted.union(read_names(node))
    return kept[::-1]


def set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Give the graph these nodes, and drop the initializers and shapes that none of them uses."""
    read = {name for node in nodes for name in read_names(node)}
    read.update(output.name for output in graph.output)
    written = {name for node in nodes for name in node.output}
    initializers = [each for each in graph.initializer if each.name in read]
    infos = [each for each in graph.value_info if each.name in written]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    graph.value_info.extend(infos)
