"""Facts of the graphs: no weight inside, every weight a byte range, nothing folded, one default."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers_checkpoints import Exported
from safetensors import safe_open

from longspan.bundle import GRAPHS, open_bundle
from longspan.export.graph import decoder_graph
from longspan.export.weights import ByteRange
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import (
    AnchorAttentionConfig,
    FullAttentionConfig,
    LayerConfig,
    ModelConfig,
)

# Shapes, a mask's -inf, the frequencies of RoPE: nothing that grows with the model.
SMALL_BYTES = 256


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.mark.parametrize("graph", GRAPHS.values())
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_byte_ranges(exported: Exported, graph: str, dtype: str) -> None:
    bundle = exported("samba", dtype).bundle
    model = load(bundle / graph)
    content = (bundle / "model.safetensors").read_bytes()
    inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(tensor.ByteSize() for tensor in inside) < 64 * SMALL_BYTES
    assert all(tensor.ByteSize() < SMALL_BYTES for tensor in inside)

    found = {t.name: t for t in model.graph.initializer if t.external_data}
    with safe_open(bundle / "model.safetensors", framework="pt") as file:
        assert set(found) == set(file.keys())
        for name, tensor in found.items():
            where = external(tensor)
            assert where["location"] == "model.safetensors"
            start, length = int(where["offset"]), int(where["length"])
            stored = file.get_tensor(name)
            raw = stored.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert content[start : start + length] == raw
            assert list(tensor.dims) == list(stored.shape)


def test_large_weights_are_aligned(exported: Exported) -> None:
    bundle = exported("samba", "float32").bundle
    model = load(bundle / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.external_data and int(external(tensor)["length"]) % 64 == 0:
            assert int(external(tensor)["offset"]) % 64 == 0, tensor.name


@pytest.mark.parametrize("graph", GRAPHS.values())
def test_names_and_shapes(exported: Exported, graph: str) -> None:
    bundle = exported("samba", "float16").bundle
    model = load(bundle / graph)
    state = [spec.name for spec in open_bundle(bundle).manifest.state]
    inputs = [value.name for value in model.graph.input]
    assert inputs == ["tokens", "keep", *(f"past.{name}" for name in state)]
    outputs = [value.name for value in model.graph.output]
    assert outputs == ["logits", *(f"present.{name}" for name in state)]
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions == {"": 23, "com.microsoft": 1}


def test_which_ops_each_graph_has(exported: Exported) -> None:
    bundle = exported("samba", "float32").bundle
    ops = {
        graph: {node.op_type for node in load(bundle / graph).graph.node}
        for graph in GRAPHS.values()
    }
    assert {"FusedMatMul", "CausalConvWithState", "LinearAttention"} <= ops["model.onnx"]
    assert {"FusedMatMul", "CausalConvWithState", "Scan"} <= ops["model.cpu.onnx"]
    assert "LinearAttention" not in ops["model.cpu.onnx"]
    assert "Transpose" not in {
        node.op_type
        for node in load(bundle / "model.onnx").graph.node
        if any(name.endswith("proj.weight") for name in node.input)
    }


@pytest.mark.parametrize("graph", GRAPHS.values())
def test_mamba_2_keeps_its_recurrent_operator(exported: Exported, graph: str) -> None:
    """On the CPU too: a key and a query for each group and a decay a head, as the operator is."""
    model = load(exported("mamba2", "float32").bundle / graph)
    assert "Scan" not in {node.op_type for node in model.graph.node}
    nodes = [node for node in model.graph.node if node.op_type == "LinearAttention"]
    heads = [{a.name: a.i for a in node.attribute if a.name.endswith("heads")} for node in nodes]
    assert heads == [{"q_num_heads": 2, "kv_num_heads": 4}] * 2


@pytest.mark.parametrize("graph", GRAPHS.values())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_is_one_node_with_float32_statistics(
    exported: Exported, graph: str, dtype: str
) -> None:
    model = load(exported("mambabyte", dtype).bundle / graph)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 3
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.value_info}
    for node in norms:
        assert types[node.output[0]] == onnx.TensorProto.FLOAT
        assert {a.name: a.i for a in node.attribute}["stash_type"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("graph", GRAPHS.values())
def test_conba_and_experts_are_scans_of_standard_operators(exported: Exported, graph: str) -> None:
    """Two layers of Conba, one of experts, whose matrices the loop reads where they lie.

    On CPUs attention is a loop, too.
    """
    model = load(exported("mixcon", "float32").bundle / graph)
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    assert len(scans) == (4 if graph == GRAPHS["cpu"] else 3)
    assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
    names = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
    read = [name for node in scans for name in node.input if name in names]
    assert read == ["layers.3.mixer.gate_up_proj.weight", "layers.3.mixer.down_proj.weight"]


def test_casts_of_weights_stay_in_the_graph(exported: Exported) -> None:
    model = load(exported("samba", "bfloat16").bundle / "model.cpu.onnx")
    cast = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert {name for name in cast if name.endswith("proj.weight")} == {
        tensor.name for tensor in model.graph.initializer if tensor.name.endswith("proj.weight")
    }


@pytest.mark.parametrize("graph", GRAPHS.values())
def test_the_graph_holds_no_path_of_this_machine(exported: Exported, graph: str) -> None:
    content = (exported("samba", "float32").bundle / graph).read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_keep_may_be_left_out(exported: Exported) -> None:
    bundle = open_bundle(exported("samba", "float32").bundle)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        str(bundle.graph_path("cpu")), options, providers=["CPUExecutionProvider"]
    )
    feed = {"tokens": np.array([[3, 1, 4, 1, 5]])} | {
        f"past.{spec.name}": np.zeros(spec.shape, spec.dtype) for spec in bundle.manifest.state
    }
    (last,) = session.run(["logits"], feed)
    (rows,) = session.run(["logits"], feed | {"keep": np.array([0, -1, 4])})
    assert last.shape == (1, 1, 24)
    assert rows.shape == (1, 3, 24)
    np.testing.assert_allclose(rows[:, 1:], np.concatenate([last, last], axis=1), atol=1e-6)


@pytest.mark.parametrize("graph", GRAPHS.values())
def test_one_node_reads_keep(exported: Exported, graph: str) -> None:
    """Two, one of them on the host, would see different values on CUDA."""
    model = onnx.load(exported("samba", "float32").bundle / graph, load_external_data=False)
    readers = [node.op_type for node in model.graph.node if "keep" in node.input]
    assert len(readers) == 1, readers


def test_recurrences_are_float32_whatever_the_weights(exported: Exported) -> None:
    """ONNX Runtime on CUDA wants state and inputs of LinearAttention in one dtype."""
    model = onnx.load(
        exported("samba", "bfloat16").bundle / GRAPHS["cuda"], load_external_data=False
    )
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    scans = [node for node in model.graph.node if node.op_type == "LinearAttention"]
    assert scans
    query = casts[scans[0].input[0]]
    assert [a.i for a in query.attribute if a.name == "to"] == [onnx.TensorProto.FLOAT]


def test_what_layers_count_alike_is_computed_once() -> None:
    """RoPE's angles and what tokens see: a layer more adds none of it, but one of another rule."""
    anchors = AnchorAttentionConfig(
        n_heads=2, n_kv_heads=1, head_dim=8, rope_base=10000.0, anchor_every=4
    )
    full = FullAttentionConfig(n_heads=2, n_kv_heads=1, head_dim=8, rope_base=10000.0)

    def ops(*layers: LayerConfig) -> Counter[str]:
        config = ModelConfig(family="llama", vocab_size=16, d_model=16, layers=layers, tied=True)
        names = empty_decoder(config, dtype=torch.float32).state_dict()
        ranges = {name: ByteRange(offset=0, length=1) for name in names}
        graph = decoder_graph(config, dtype="float32", compute="float32", ranges=ranges).graph
        counters = {value.name for value in graph.output if value.name.endswith("position")}
        assert len(counters) == len(layers)
        return Counter(node.op_type for node in graph.node)

    few, more = ops(full, anchors), ops(full, anchors, anchors, full, anchors)
    for op_type in ("Cos", "Sin", "Mod", "CumSum", "Less", "Range"):
        assert few[op_type] == more[op_type] > 0, op_type
    assert more["Softmax"] == 5
    other = ops(full, anchors, replace(anchors, anchor_every=5))
    assert (other["Cos"], other["CumSum"]) == (1, 2 * few["CumSum"])
