"""Parts of tensors that nodes name: of a weight, the part's own bytes of the file."""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from longspan.export.nodes import read_names

_PART = re.compile(r"(.+)/part(\d+)")


def part_name(name: str, index: int) -> str:
    """How nodes call ``name[index]`` before `add_parts` makes it."""
    return f"{name}/part{index}"


def add_parts(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Make what `nodes` name as parts.

    Of an initializer in a file it is another one, in the graph, which points at the part's bytes,
    so that it is a constant and nothing is copied; of anything else a node gathers it.

    Args:
        graph: has the initializers, and is given more.
        nodes: of the graph.

    Returns:
        The nodes, and those that gather before them, each before it is read.
    """
    external = {
        each.name: each for each in graph.initializer if each.data_location == TensorProto.EXTERNAL
    }
    made: set[str] = set()
    result: list[onnx.NodeProto] = []
    for node in nodes:
        for name in read_names(node):
            found = _PART.fullmatch(name)
            if found is None or name in made:
                continue
            made.add(name)
            whole, index = found.group(1), int(found.group(2))
            if whole in external:
                graph.initializer.append(_part(external[whole], name, index))
            else:
                result.extend(_gathered(whole, name, index))
        result.append(node)
    return result


def _part(whole: TensorProto, name: str, index: int) -> TensorProto:
    """``whole[index]``, where it lies."""
    count, *dims = whole.dims
    place = {each.key: each.value for each in whole.external_data}
    length = int(place["length"]) // count
    part = TensorProto(
        name=name, data_type=whole.data_type, dims=dims, data_location=TensorProto.EXTERNAL
    )
    place |= {"offset": str(int(place["offset"]) + index * length), "length": str(length)}
    for key, value in place.items():
        part.external_data.add(key=key, value=value)
    return part


def _gathered(whole: str, name: str, index: int) -> list[onnx.NodeProto]:
    """Nodes that take ``whole[index]`` in every call."""
    at = f"{name}/index"
    value = numpy_helper.from_array(np.array(index), at)
    return [
        helper.make_node("Constant", [], [at], value=value),
        helper.make_node("Gather", [whole, at], [name], axis=0),
    ]
