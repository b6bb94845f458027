"""Every op of a bundle on the CPU: plain torch against ONNX Runtime, with the calls of a pass.

    run = measure(bundle, lengths=[1, 256], rounds=20, seconds=1.0)

The decoder runs once a length, and every call of an op is written down; each is then traced alone,
as export traces it, and timed both ways in turn. Weights are inputs of the graph, so ONNX Runtime
reads them as they lie, as `longspan.runtime` has it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from report import command_line, markdown_table, versions_line
from safetensors.torch import load_file
from timing import HostClock, Timing, alternate

from longspan import builtin_bundle
from longspan.bundle import open_bundle
from longspan.export.cpu_scan import scan_on_cpu
from longspan.export.graph import OPSET
from longspan.export.scans import expand_scans
from longspan.kernels import choose, override
from longspan.models.decoder import Decoder
from longspan.runtime.backends.onnx_session import available_threads
from longspan.runtime.doctor import OPS, examine

# Calls of other ops on a CPU and in a graph, which are measured one by one.
COMPOSED = {"linear_conv", "ssd_norm_linear"}
FOLDERS = {"window_attention": "attention"}
TORCH, ONNX = "torch", "ONNX Runtime"


def public(op: str) -> Callable[..., Any]:
    """The op's public function."""
    function: Callable[..., Any] = getattr(
        import_module(f"longspan.kernels.{FOLDERS.get(op, op)}"), op
    )
    return function


def plain(op: str) -> Callable[..., Any]:
    """What torch runs on a CPU."""
    module = choose(op, device_type="cpu", exporting=False).name
    function: Callable[..., Any] = getattr(
        import_module(f"longspan.kernels.{FOLDERS.get(op, op)}.{module}"), op
    )
    return function


@dataclass(slots=True, kw_only=True)
class OpCall:
    """A call of an op, and how many of its shapes a pass makes."""

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    count: int = 1

    @property
    def shapes(self) -> str:
        """Of the tensors, as people write them."""
        tensors = [each for each in self._values() if isinstance(each, torch.Tensor)]
        return " ".join("x".join(map(str, each.shape)) or "1" for each in tensors[:2])

    def _values(self) -> tuple[Any, ...]:
        return (*self.arguments, *self.options.values())

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where op and shapes are."""
        values = self._values()
        return (self.op, *(tuple(v.shape) if torch.is_tensor(v) else v for v in values))


@torch.inference_mode()
def recorded_calls(bundle: Path, tokens: int) -> list[OpCall]:
    """The ops that a pass over `tokens` calls, each shape once, with its count."""
    found = open_bundle(bundle)
    decoder = Decoder(found.manifest.config, dtype=torch.float32, compute=torch.float32)
    weights = load_file(found.weights_path)
    decoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    decoder.requires_grad_(False).eval()
    calls: dict[tuple[Any, ...], OpCall] = {}

    def record(op: str, *arguments: Any, **options: Any) -> Any:
        call = OpCall(op=op, arguments=arguments, options=options)
        if call.key in calls:
            calls[call.key].count += 1
        else:
            calls[call.key] = call
        return plain(op)(*arguments, **options)

    ids = torch.randint(found.manifest.config.vocab_size, (1, tokens))
    with ExitStack() as stack:
        for op in set(OPS) - COMPOSED:
            stack.enter_context(override(op, partial(record, op)))
        decoder(ids, torch.tensor([-1]), decoder.new_state(capacity=tokens))
    return list(calls.values())


class _Traced(torch.nn.Module):
    """One op whose tensors are inputs."""

    def __init__(self, call: OpCall) -> None:
        super().__init__()
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> Any:
        waiting = iter(tensors)
        arguments = [next(waiting) if torch.is_tensor(v) else v for v in self._call.arguments]
        options = {
            name: next(waiting) if torch.is_tensor(value) else value
            for name, value in self._call.options.items()
        }
        return public(self._call.op)(*arguments, **options)


def torch_call(call: OpCall) -> Callable[[], Any]:
    """The op in plain torch."""
    function = plain(call.op)

    def run() -> Any:
        with torch.inference_mode():
            return function(*call.arguments, **call.options)

    return run


def session_call(call: OpCall, threads: int) -> Callable[[], Any]:
    """The op in ONNX Runtime, traced at its own shapes."""
    values = (*call.arguments, *call.options.values())
    # Copies: an inference tensor cannot be traced.
    tensors = tuple(
        torch.empty(v.shape, dtype=v.dtype).copy_(v) for v in values if torch.is_tensor(v)
    )
    with _quiet():
        program = torch.onnx.export(
            _Traced(call).eval(), tensors, dynamo=True, opset_version=OPSET, verbose=False
        )
    assert program is not None, "torch.onnx.export with dynamo=True gives a program"
    model = scan_on_cpu(expand_scans(program.model_proto, device="cpu"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Threads that wait by spinning would take the cores from torch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = [each.name for each in session.get_inputs()]
    given = [each.name for each in model.graph.input]
    feed = {name: t.numpy() for name, t in zip(given, tensors, strict=True) if name in wanted}
    return lambda: session.run(None, feed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says of its own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def measure(
    bundle: Path, lengths: Sequence[int], *, threads: int | None, rounds: int, seconds: float
) -> dict[str, Any]:
    """Time every op both ways, as JSON; None for as many threads as the runtime takes."""
    threads = threads or available_threads()
    torch.set_num_threads(threads)
    rows = []
    for tokens in lengths:
        for call in recorded_calls(bundle, tokens):
            calls = {TORCH: torch_call(call), ONNX: session_call(call, threads)}
            timings = alternate(calls, HostClock(), rounds=rounds, seconds=seconds)
            rows.append(
                {
                    "op": call.op,
                    "shapes": call.shapes,
                    "tokens": tokens,
                    "count": call.count,
                    **{name: asdict(timing) for name, timing in timings.items()},
                }
            )
    report = examine(device="cpu")
    return {
        "command": command_line("kernels.py"),
        "device": report.device.name,
        "versions": report.versions,
        "threads": threads,
        "bundle": "the built-in model" if bundle == builtin_bundle() else bundle.name,
        "rows": rows,
    }


def section(run: Mapping[str, Any]) -> tuple[str, str]:
    """Key and Markdown of the table."""
    columns = (
        "tokens", "op", "shapes", "calls", "torch ms", "least to most", "ONNX Runtime ms",
        "least to most", "torch : ONNX Runtime", "of a pass, torch", "of a pass, ONNX Runtime",
    )  # fmt: skip
    facts = (
        f"Plain torch and ONNX Runtime in float32; {versions_line(run['versions'])}. Medians of "
        "one call, in turn; the last columns are the median times the calls of a pass."
    )
    lines = [
        f"### Ops of {run['bundle']}: {run['device']}, threads: {run['threads']}",
        "",
        f"`{run['command']}`",
        "",
        facts,
        "",
        *markdown_table(columns, _cells(run["rows"])),
    ]
    key = f"Ops of {run['bundle']} on {run['device']}, threads: {run['threads']}"
    return key, "\n".join(lines)


def _cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        both = [Timing(**row[name]) for name in (TORCH, ONNX)]
        shown = [
            text
            for each in both
            for text in (f"{each.median_ms:.3f}", f"{each.least_ms:.3f} to {each.most_ms:.3f}")
        ]
        yield (
            f"{row['tokens']:,}",
            row["op"],
            row["shapes"],
            str(row["count"]),
            *shown,
            f"{both[0].median_ms / both[1].median_ms:.2f}",
            *(f"{each.median_ms * row['count']:.2f}" for each in both),
        )
