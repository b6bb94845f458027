"""The decoder as one ONNX graph for chunks and steps, with its weights left in `model.safetensors`.

Weights are inputs while torch traces the decoder, so nothing can fold, rename or copy them; then
they become initializers that point at byte ranges. Tracing needs no memory for them.

    model = decoder_graph(config, dtype="bfloat16", compute="float32", ranges=ranges)

Its loops are nodes of the domain ``longspan``, which `longspan.export.scans` writes out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from longspan.bundle import WEIGHTS
from longspan.export.fewer_nodes import fewer_nodes
from longspan.export.weights import ByteRange
from longspan.models.checkpoint import empty_decoder
from longspan.models.config import ModelConfig
from longspan.models.decoder import Decoder, State
from longspan.tensors import DType

OPSET = 23
MICROSOFT = "com.microsoft"
PAST, PRESENT = "past.", "present."
# More than the traced call's tokens, and like no other size.
TRACED_CAPACITY = 11
# torch names values as it likes, "embedding" among them, but never with a slash.
TRACED_WEIGHT = "weight/"


class _Traced(nn.Module):
    """The decoder with its weights as arguments."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        # Not a submodule: its parameters must not become initializers.
        self._decoder = [decoder]

    def forward(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor,
        state: State,
        weights: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, State]:
        result: tuple[torch.Tensor, State] = torch.func.functional_call(
            self._decoder[0], weights, (tokens, keep, state)
        )
        return result


def decoder_graph(
    config: ModelConfig, *, dtype: DType, compute: DType, ranges: Mapping[str, ByteRange]
) -> onnx.ModelProto:
    """Trace the decoder and give its graph.

    Args:
        config: the layers.
        dtype: dtype of the weights, and of convolution tails, keys and values in the state.
        compute: dtype of activations.
        ranges: where each parameter lies in `model.safetensors`.

    Returns:
        A model with inputs ``tokens`` int64 [1, L], ``keep`` int64 [n] (default [-1]) and
        ``past.*``, outputs ``logits`` float32 [1, n, V] and ``present.*``. Caches have the dynamic
        dimension ``capacity``, one for all. It holds no weights.
    """
    decoder = empty_decoder(
        config, dtype=getattr(torch, dtype), compute=getattr(torch, compute)
    ).eval()
    model = _trace(decoder)
    _weights_to_initializers(model, ranges)
    _default_keep(model)
    _name_dimensions(model)
    _drop_notes(model)
    fewer_nodes(model, rounds=compute != dtype)
    if not any(opset.domain == MICROSOFT for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    return model


def _trace(decoder: Decoder) -> onnx.ModelProto:
    # One number seen through a view of stride zero: the tensors have shapes and no memory.
    weights = {
        name: torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        for name, parameter in decoder.state_dict().items()
    }
    layout = decoder.config.state_layout(decoder.state_dtype())
    state = decoder.new_state(device="cpu", capacity=TRACED_CAPACITY)
    capacity = torch.export.Dim("capacity")
    inputs = {
        "tokens": torch.zeros(1, 7, dtype=torch.int64),
        "keep": torch.zeros(3, dtype=torch.int64),
        "state": state,
        "weights": weights,
    }
    with _quiet(), _interrupts():
        program = torch.onnx.export(
            _Traced(decoder).eval(),
            args=(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            dynamic_shapes={
                "tokens": {1: torch.export.Dim("length")},
                "keep": {0: torch.export.Dim("kept")},
                "state": {spec.name: {1: capacity} if spec.counter else None for spec in layout},
                "weights": dict.fromkeys(weights),
            },
            input_names=["tokens", "keep", *(PAST + name for name in state)]
            + [TRACED_WEIGHT + name for name in weights],
            output_names=["logits", *(PRESENT + name for name in state)],
        )
    assert program is not None, "torch.onnx.export with dynamo=True gives a program"
    model: onnx.ModelProto = program.model_proto
    return model


def _weights_to_initializers(model: onnx.ModelProto, ranges: Mapping[str, ByteRange]) -> None:
    """Turn each input that is a weight into an initializer that points into the weights' file."""
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        if value.name.startswith(TRACED_WEIGHT):
            name = value.name.removeprefix(TRACED_WEIGHT)
            model.graph.initializer.append(_external(name, value, ranges[name]))
        else:
            model.graph.input.append(value)
    names = {TRACED_WEIGHT + name: name for name in ranges} | {
        name: f"{name}/value" for name in ranges
    }
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    infos = [info for info in model.graph.value_info if info.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)


def _external(name: str, value: onnx.ValueInfoProto, place: ByteRange) -> TensorProto:
    kind = value.type.tensor_type
    tensor = TensorProto(
        name=name,
        data_type=kind.elem_type,
        dims=[dim.dim_value for dim in kind.shape.dim],
        data_location=TensorProto.EXTERNAL,
    )
    for key, text in (("location", WEIGHTS), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def _default_keep(model: onnx.ModelProto) -> None:
    """Give ``keep`` the value [-1] where a caller does not: only the last token's logits."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "keep"))


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Say the shape of the logits as [1, kept, V], whatever the exporter found."""
    (logits,) = (value for value in model.graph.output if value.name == "logits")
    dims = logits.type.tensor_type.shape.dim
    if len(dims) == 3:
        dims[1].Clear()
        dims[1].dim_param = "kept"


def _drop_notes(model: onnx.ModelProto) -> None:
    """Drop stack traces and other notes of the exporter: they hold paths of this machine."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and onnxscript say of their own internals: no caller can mend it."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            # All caches share one capacity, which is what is meant.
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C be one: what torch imports while it exports may turn it into an error of its."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise
