"""Graphs with fewer nodes compute the same, and what others still read stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from longspan.export.fewer_nodes import fewer_nodes

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
DTYPES = {FLOAT: np.float32, HALF: np.float16}


def node(op_type: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto], *, kind: int = FLOAT, outputs: Sequence[tuple[str, int]]
) -> onnx.ModelProto:
    """A graph that reads x [2, 6]; shapes of what lies between are inferred."""
    constants = {
        "bound": np.array(20, np.float32),
        "flat": np.array([3, 4]),
        "axis": np.array([0]),
        "eps": np.array(1e-5, np.float32),
        "weight": np.arange(1, 7, dtype=np.float32),
    }
    proto = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", kind, [2, 6])],
        [helper.make_tensor_value_info(name, each, None) for name, each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, x: NDArray[Any], *, checked: bool = True) -> list[NDArray[Any]]:
    """Run a graph; onnx's own check knows no operator of com.microsoft."""
    if checked:
        onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session: Any = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[Any]] = session.run(None, {"x": x})
    return found


def values(kind: int = FLOAT) -> NDArray[Any]:
    return np.linspace(-40, 60, 12, dtype=np.float32).reshape(2, 6).astype(DTYPES[kind])


def reduced(model: onnx.ModelProto) -> Counter[str]:
    """Take nodes out, and count those that stay."""
    fewer_nodes(model)
    return Counter(each.op_type for each in model.graph.node)


SOFTPLUS = (
    node("Softplus", ["x"], "soft"),
    node("Greater", ["x", "bound"], "large"),
    node("Where", ["large", "x", "soft"], "y"),
    node("Neg", ["y"], "z"),
)
ROUND_TRIP = (
    node("Neg", ["x"], "wide"),
    node("Cast", ["wide"], "low", to=HALF),
    node("Reshape", ["low", "flat"], "turned"),
    node("Cast", ["turned"], "again", to=FLOAT),
    node("Exp", ["again"], "y"),
)
SPLIT = (
    node("Neg", ["x"], "low"),
    node("Split", ["low"], "a", "b", axis=1, num_outputs=2),
    node("Cast", ["a"], "wide_a", to=FLOAT),
    node("Unsqueeze", ["b", "axis"], "turned"),
    node("Cast", ["turned"], "wide_b", to=FLOAT),
    node("Exp", ["wide_a"], "y"),
    node("Exp", ["wide_b"], "z"),
)


NORM = (
    node("Unsqueeze", ["x", "axis"], "a"),
    node("Neg", ["a"], "b"),
    node("Exp", ["b"], "c"),
    node("Add", ["a", "c"], "sum"),
    node("Identity", ["weight"], "w"),
    node("RMSNormalization", ["sum", "w"], "norm", epsilon=1e-3),
    node("Add", ["sum", "norm"], "y"),
)


def test_a_sum_and_its_norm_are_one_node() -> None:
    model = graph(NORM, outputs=[("y", FLOAT)])
    x = values() / 20
    (before,) = run(model, x)
    assert reduced(model)["Add"] == 1
    assert "RMSNormalization" not in reduced(model)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    np.testing.assert_allclose(run(model, x, checked=False)[0], before, rtol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ((*NORM[:5], node("Abs", ["sum"], "z"), *NORM[5:]), ["y", "z"]),
        ((*NORM[:3], node("Mul", ["a", "c"], "sum"), *NORM[4:]), ["y"]),
        ((*NORM[:3], node("Add", ["a", "eps"], "sum"), *NORM[4:]), ["y"]),
        ((*NORM[:5], node("RMSNormalization", ["sum", "w"], "norm", axis=1), NORM[6]), ["y"]),
        (NORM, ["y", "sum"]),
    ],
    ids=["read before", "no sum", "another shape", "another axis", "an output"],
)
def test_another_norm_stays(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> None:
    model = graph(nodes, outputs=[(name, FLOAT) for name in outputs])
    assert reduced(model)["RMSNormalization"] == 1


def test_a_softplus_needs_no_bound() -> None:
    model = graph(SOFTPLUS, outputs=[("z", FLOAT)])
    (before,) = run(model, values())
    assert reduced(model) == {"Softplus": 1, "Neg": 1}
    np.testing.assert_allclose(run(model, values())[0], before, rtol=1e-6)


def test_another_choice_stays() -> None:
    other = (node("Softplus", ["bound"], "soft"), *SOFTPLUS[1:])
    assert reduced(graph(other, outputs=[("z", FLOAT)]))["Where"] == 1


def test_a_value_is_not_rounded_on_its_way() -> None:
    model = graph(ROUND_TRIP, outputs=[("y", FLOAT)])
    assert reduced(model) == {"Neg": 1, "Reshape": 1, "Exp": 1}
    x = values()[:, :3].repeat(2, axis=1) / 10
    np.testing.assert_allclose(run(model, x)[0].reshape(2, 6), np.exp(-x), rtol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (ROUND_TRIP, [("y", FLOAT), ("low", HALF)]),
        ((*ROUND_TRIP, node("Abs", ["turned"], "z")), [("y", FLOAT), ("z", HALF)]),
    ],
    ids=["an output", "another reader"],
)
def test_a_rounded_value_that_others_read_stays(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[tuple[str, int]]
) -> None:
    model = graph(nodes, outputs=outputs)
    before = run(model, values())
    assert reduced(model)["Cast"] == 2
    for old, new in zip(before, run(model, values()), strict=True):
        np.testing.assert_array_equal(old, new)


def test_one_cast_before_a_split_in_place_of_one_a_part() -> None:
    model = graph(SPLIT, kind=HALF, outputs=[("y", FLOAT), ("z", FLOAT)])
    before = run(model, values(HALF) / 10)
    assert reduced(model) == {"Neg": 1, "Cast": 1, "Split": 1, "Unsqueeze": 1, "Exp": 2}
    for old, new in zip(before, run(model, values(HALF) / 10), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_split_with_a_part_that_is_not_widened_stays() -> None:
    nodes = (*SPLIT[:-1], node("Abs", ["turned"], "z"))
    model = graph(nodes, kind=HALF, outputs=[("y", FLOAT), ("z", HALF)])
    assert reduced(model)["Cast"] == 1
    assert model.graph.node[1].op_type == "Split"
