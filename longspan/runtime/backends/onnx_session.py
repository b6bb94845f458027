"""How ONNX Runtime's sessions are made: on the CPU with little memory, on CUDA inside a limit.

It knows nothing of tokens or states.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from longspan.bundle import Bundle
from longspan.engines import Device
from longspan.errors import BadBundle, BadInput, BudgetExceeded, DoesNotFit
from longspan.runtime.backends.choice import find_installed
from longspan.runtime.backends.onnx_heap import SessionMemory
from longspan.runtime.device_memory import memory_now
from longspan.runtime.host_memory import set_mmap_threshold
from longspan.runtime.plan_graph import onnx_graph_bytes
from longspan.sizes import format_bytes

# What onnxruntime raises; its exceptions have no common base but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # what a run over a binding raises
)
# Arithmetic on lengths and counters, which ONNX Runtime puts on the host by design even when all
# else runs on CUDA (its GetCpuPreferredNodes); any other op there would copy activations.
HOST_OPS = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather",
        "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul",
        "Neg", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze",
        "Sub", "Unsqueeze", "Where",
    }
)  # fmt: skip

# What `longspan.export.graph` calls the lengths of its inputs, for steps.
ONE_TOKEN = {"length": 1, "kept": 1}

# The ONNX model y = MatMul(x, x), x float32 [64, 64], opset 17, as onnx.helper serialises it.
_MATMUL_64 = (
    b'\x08\x08:@\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01'
    b"\x12\x08\n\x02\x08@\n\x02\x08@b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08@\n\x02\x08@"
    b"B\x04\n\x00\x10\x11"
)


def available_threads() -> int:
    """Physical cores, or the logical ones this process may run on where those are fewer."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return min(cores, len(affinity(0))) if affinity else cores


def cpu_session(bundle: Bundle, *, threads: int | None) -> Any:
    """A session over `model.cpu.onnx` whose float32 weights stay mapped from their file.

    Weights of lower precision are widened to float32 once, by constant folding. Without it every
    call widens them anew, and all at its beginning: measured over 142 MiB of bfloat16, 413 MiB
    more than before loading and 154 ms a step, against 297 MiB and 77 ms with it. What was made
    on the way lies between them in glibc's heap unless large blocks are mapped: 74 MiB in place
    of 87 to 91 for 19M parameters.

    Raises:
        BadBundle: onnxruntime refuses the graph.
    """
    set_mmap_threshold()
    options = _options()
    options.intra_op_num_threads = threads or available_threads()
    if bundle.manifest.quantization is None:
        # Prepacking copies every weight into another order: a second copy, for 15% in reading.
        # Without it quantised weights are dequantised by every call, 100 times as slow.
        options.add_session_config_entry("session.disable_prepacking", "1")
    # The arena keeps the largest chunk's memory, so the resident set is flat from the second chunk
    # on; without it the peak is the same and every chunk maps its memory anew. Memory patterns
    # lay a chunk out in one block as large as if little were reused: 79 MiB in place of 60.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    # Else a tensor that a later layer can use again, as it has the same shape, is kept until then:
    # layers of several kinds hold the sum of what each takes, 16.2 MiB in place of 4.3 (Mamba, MLP
    # and window of width 384, twice each, chunks of 256 tokens).
    options.enable_mem_reuse = False
    # The graph's own order: ONNX Runtime's puts off what only the state needs, such as the keys to
    # keep, and so holds every layer's keys and values to the end: 60 MiB a chunk instead of 54.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return _open(bundle.graph_path("cpu"), options, ["CPUExecutionProvider"])


def cuda_session(bundle: Bundle, *, memory: SessionMemory, weights: dict[str, Any]) -> Any:
    """A session over `model.onnx` on the first CUDA device.

    A chunk's tensors lie in a heap, and each is freed when nothing reads it any more: 0.6 of what
    lives where ONNX Runtime keeps a tensor for a later one of its shape, of Conba 0.3. With the
    graph's own order what only the state needs does not wait for the end.

    Args:
        bundle: the model.
        memory: what the session allocates through.
        weights: in it, by name, used in place; the session loads the others.

    Raises:
        BadBundle: onnxruntime refuses the graph, or would compute a part of it on the host.
        BadInput: onnxruntime cannot use CUDA here.
    """
    options = _cuda_options(weights)
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    provider = _cuda_provider() | memory.options
    try:
        session = _open(bundle.graph_path("cuda"), options, [("CUDAExecutionProvider", provider)])
    finally:
        # The callbacks are this session's alone, whether or not it came to be.
        _session_with_its_arena()
    require_cuda(session)
    _require_on_device(session, bundle.graph_path("cuda"), HOST_OPS)
    return session


def step_session(bundle: Bundle, *, memory_limit_bytes: int | None, weights: dict[str, Any]) -> Any:
    """A session that records CUDA graphs of `model.onnx` reading one token.

    With every length known nothing is left to compute on the host, whose results a recorded graph
    would repeat for ever; that nothing is, is checked. It has an arena of its own: what a graph
    writes to may be nobody else's.

    Args:
        bundle: the model, whose state has a fixed size.
        memory_limit_bytes: what the whole process may hold on the device.
        weights: as `cuda_session` takes them; they must live as long as the session.

    Raises:
        BadBundle: onnxruntime refuses to record the graph.
        BudgetExceeded: what is held without the session leaves too little.
    """
    options = _cuda_options(weights)
    for name, size in ONE_TOKEN.items():
        options.add_free_dimension_override_by_name(name, size)
    # A pattern is laid out in the second run, a block of memory beside what the first one took.
    options.enable_mem_pattern = False
    provider = _cuda_provider() | {"enable_cuda_graph": "1"}
    if memory_limit_bytes is not None:
        taken = onnx_graph_bytes(bundle.manifest)
        left = memory_limit_bytes - memory_now("cuda").bytes - taken
        if left <= 0:
            raise BudgetExceeded(
                f"Recording steps takes {format_bytes(taken)} and more, and the limit "
                f"of {format_bytes(memory_limit_bytes)} has not as much left. Give a larger "
                "--budget."
            )
        provider["gpu_mem_limit"] = left
    session = _open(bundle.graph_path("cuda"), options, [("CUDAExecutionProvider", provider)])
    _require_on_device(session, bundle.graph_path("cuda"), frozenset())
    return session


def warm_up_onnx(device: Device) -> None:
    """Run a small product through ONNX Runtime on `device`.

    Raises:
        BadInput: onnxruntime cannot use CUDA here.
    """
    if device == "cuda":
        preload_cuda_libraries()
        session = _session_with_its_arena()
    else:
        session = _small_session("CPUExecutionProvider")
    session.run(None, {"x": np.ones((64, 64), np.float32)})


def _session_with_its_arena() -> Any:
    """A small session on CUDA that allocates through nobody's callbacks.

    onnxruntime's Python module keeps the callbacks of the last session (`external_allocator_info`)
    for every later one that is given no options, an application's own too, whether or not the heap
    behind them was closed; until a session is given options that name none, as this one is.

    Raises:
        BadInput: onnxruntime cannot use CUDA here.
    """
    session = _small_session(("CUDAExecutionProvider", _cuda_provider()))
    require_cuda(session)
    return session


def _small_session(provider: Any) -> Any:
    options = _options()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(_MATMUL_64, options, providers=[provider])


def preload_cuda_libraries() -> None:
    """Let onnxruntime find the CUDA libraries of torch's wheels, which importing torch loads."""
    if find_installed().torch_cuda:
        import torch  # noqa: F401
    ort.preload_dlls()


def require_cuda(session: Any) -> None:
    """Refuse a session that onnxruntime moved to the CPU because CUDA's libraries are missing.

    Raises:
        BadInput: the session runs on the CPU.
    """
    if "CUDAExecutionProvider" not in session.get_providers():
        raise BadInput(
            f"onnxruntime {ort.__version__} was asked for CUDA and fell back to the CPU: it could "
            "not load CUDA's or cuDNN's libraries. Install them with "
            "pip install 'longspan[cuda]', or choose --device cpu."
        )


def heap_limit(memory_limit_bytes: int | None, outside_bytes: int) -> int | None:
    """What a process's limit leaves for the heap; None for no limit.

    Args:
        memory_limit_bytes: of the whole process, or None.
        outside_bytes: that it holds, or will, beside the heap.

    Raises:
        DoesNotFit: nothing is left.
    """
    if memory_limit_bytes is None:
        return None
    if outside_bytes >= memory_limit_bytes:
        raise DoesNotFit(
            "Before the model, the CUDA context, what is loaded, and ONNX Runtime's own libraries "
            f"hold {format_bytes(outside_bytes)}; the limit is {format_bytes(memory_limit_bytes)}. "
            "Give a larger --budget, or choose --device cpu."
        )
    return memory_limit_bytes - outside_bytes


def _cuda_options(weights: dict[str, Any]) -> Any:
    options = _options()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    for name, value in weights.items():
        options.add_initializer(name, value)
    return options


def _cuda_provider() -> dict[str, Any]:
    return {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "0",
        # float32 means float32: torch keeps TF32 off for matrix products, too.
        "use_tf32": "0",
    }


def _options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    return options


def _open(path: Path, options: Any, providers: list[Any]) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except ORT_ERRORS as error:
        raise BadBundle(
            f"onnxruntime {ort.__version__} cannot load {path}: {error}. "
            "Export the checkpoint again with this version of longspan, and update onnxruntime."
        ) from error


def _require_on_device(session: Any, path: Path, host_ops: frozenset[str]) -> None:
    """Refuse a session that computes more on the host than `host_ops`."""
    strays = sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == "CPUExecutionProvider"
            for node in part.get_nodes()
            if node.op_type not in host_ops
        }
    )
    if strays:
        raise BadBundle(
            f"onnxruntime {ort.__version__} would compute {', '.join(strays)} of {path} on the "
            "host instead of on CUDA. Choose --backend torch, or --device cpu."
        )
