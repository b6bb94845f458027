"""The graph for CUDA made for one token, as recording it wants: the same function, no loops."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers_checkpoints import Exported

from longspan.bundle import Bundle, open_bundle
from longspan.runtime.backends import open_backend
from longspan.runtime.backends.forward_steps import ForwardSteps
from longspan.runtime.backends.onnx_session import ONE_TOKEN
from longspan.runtime.backends.onnx_steps import OnnxSteps, StepBuffers
from longspan.runtime.backends.onnx_values import empty_values
from longspan.runtime.recording import SCANNED_KINDS
from tests.export.conftest import WRITERS

CAPACITY = 32
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
# Lengths and loops, which ONNX Runtime computes on the host.
ON_THE_HOST = {"ConstantOfShape", "If", "Loop", "NonZero", "Range", "Shape", "Size"}
each_family = pytest.mark.parametrize("family", WRITERS)


def session_for_one_token(bundle: Bundle, optimized: Path) -> Any:
    """A session on the CPU over `model.onnx`, and the graph that it makes of it."""
    options = ort.SessionOptions()
    for name, size in (*ONE_TOKEN.items(), ("capacity", CAPACITY)):
        options.add_free_dimension_override_by_name(name, size)
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(str(bundle.graph_path("cuda")), options, providers=providers)


@each_family
def test_a_graph_for_one_token_is_the_same_function(
    exported: Exported, tmp_path: Path, family: str
) -> None:
    bundle = open_bundle(exported(family, "float32").bundle)
    model = open_backend(bundle, engine="onnx-cpu", memory_limit_bytes=None, capacity=CAPACITY)
    _, state = model.forward(np.arange(7, dtype=np.int64), model.new_state(), keep=[])
    specs = bundle.manifest.state_at(CAPACITY)
    buffers = StepBuffers(
        session_for_one_token(bundle, tmp_path / "one.onnx"),
        specs,
        partial(empty_values, specs),
        vocab_size=bundle.manifest.config.vocab_size,
        device="cpu",
    )
    steps, plain = OnnxSteps(buffers, state), ForwardSteps(model, state, donate=False)
    for token in TOKENS:
        np.testing.assert_allclose(steps.step(token), plain.step(token), rtol=1e-4, atol=1e-4)

    graph = onnx.load(tmp_path / "one.onnx", load_external_data=False).graph
    left = {node.op_type for node in graph.node}
    assert not left & ON_THE_HOST
    kinds = {layer.kind for layer in bundle.manifest.config.layers}
    assert ("Scan" in left) == bool(kinds & SCANNED_KINDS)
