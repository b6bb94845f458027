"""A small builder for the graph inside a loop: nodes whose names are its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class Body:
    """The graph that a loop runs at each turn.

    Args:
        prefix: begins every name, so that none is that of another graph.
        inputs: how many inputs a turn has.
        reads: names in the graph around it that it reads.
    """

    def __init__(self, *, prefix: str, inputs: int, reads: Sequence[str] = ()) -> None:
        self.prefix = prefix
        self.inputs = [f"{prefix}_in{i}" for i in range(inputs)]
        self.reads = list(reads)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and give the name of its output."""
        return self.split(op_type, *inputs, outputs=1, **attributes)[0]

    def split(self, op_type: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs, and give their names."""
        names = [f"{self.prefix}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names

    def constant(self, value: NDArray[Any]) -> str:
        """Add a tensor, and give its name."""
        name = f"{self.prefix}_constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def axes(self, *axes: int) -> str:
        """Add a list of axes, and give its name."""
        return self.constant(np.array(axes, np.int64))

    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes for the graph around, where constants are nodes, and equal ones one."""
        constants = [
            helper.make_node("Constant", [], [each.name], value=each) for each in self._constants
        ]
        return [*constants, *self._nodes]

    def graph(self, outputs: Sequence[str]) -> onnx.GraphProto:
        """The graph with these outputs. Types of inputs and outputs are those around the loop."""
        return helper.make_graph(
            self._nodes,
            self.prefix,
            [onnx.ValueInfoProto(name=name) for name in self.inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self._constants,
        )
