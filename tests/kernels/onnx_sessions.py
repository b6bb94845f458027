"""ONNX Runtime over a graph in memory, with torch's tensors in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch


def open_session(
    model: onnx.ModelProto, provider: str, *, config: dict[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """A session of one thread on `provider`, with entries of its configuration."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    # float32 means float32, as in longspan's own sessions.
    choice = (provider, {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {})
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[choice])


def run_session(
    session: onnxruntime.InferenceSession, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The outputs for inputs given in the graph's order."""
    names = [each.name for each in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    outputs: list[npt.NDArray[Any]] = session.run(None, feed)
    return tuple(torch.from_numpy(np.array(output)) for output in outputs)
