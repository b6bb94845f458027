"""The same checkpoint in transformers, measured the same way, in a process of its own.

It reads a document as transformers does by itself, in one call, and then makes steps.

result = measure_transformers("llama/", [8192], device="cpu")
result.runs, result.skipped      # some runs, or why there are none
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longspan.engines import BackendName, Device
from longspan.errors import BadInput
from longspan.runtime.backends.choice import choose_engine
from longspan.runtime.device_memory import PeakWatch
from longspan.runtime.measure import DECODE_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstRun:
    """One length in transformers: bytes of the whole process, seconds, tokens a second.

    `failed` says why there are no numbers, as "out of memory"; it is None where there are.
    """

    tokens: int
    peak_bytes: int | None = None
    peak_source: str | None = None
    prefill_seconds: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What another program did.

    Attributes:
        program: its name and version.
        runs: a length each.
        skipped: why nothing was run; None where it was.
    """

    program: str
    runs: tuple[AgainstRun, ...] = ()
    skipped: str | None = None

    def rows(self) -> list[tuple[str, ...]]:
        """The runs for people."""
        return [
            (f"{run.tokens:,}", "", "", run.failed or "", "")
            if run.peak_bytes is None
            else (
                f"{run.tokens:,}",
                f"{run.peak_bytes / 2**20:,.1f}",
                f"{run.prefill_seconds or 0:.2f}",
                f"{run.prefill_tokens_per_second or 0:,.0f}",
                f"{run.decode_tokens_per_second or 0:,.0f}",
            )
            for run in self.runs
        ]


COLUMNS = ("tokens>", "peak MiB>", "read s>", "read tokens/s>", "step tokens/s>")


def measure_against(
    program: str | None,
    checkpoint: str | Path | None,
    lengths: Sequence[int],
    *,
    device: Literal["auto"] | Device,
    backend: Literal["auto"] | BackendName,
    on_start: Callable[[str], None] | None = None,
) -> Against | None:
    """Measure another program on the device where the bundle will run; None for no program.

    Args:
        program: ``"transformers"``, or None.
        checkpoint: the folder that it reads.
        lengths, on_start: as for `measure_transformers`.
        device, backend: as for `measure_bundle`.

    Raises:
        BadInput: there is no such program, or its checkpoint was not named.
    """
    if program is None:
        if checkpoint is not None:
            raise BadInput("--checkpoint is for another program. Name it: --against transformers")
        return None
    if program != "transformers":
        raise BadInput(f"--against is {program!r}; longspan knows how to run: transformers.")
    if checkpoint is None:
        raise BadInput(
            "transformers reads a checkpoint, no bundle. Name its folder with --checkpoint."
        )
    where = choose_engine(device=device, backend=backend).device
    return measure_transformers(checkpoint, lengths, device=where, on_start=on_start)


def measure_transformers(
    checkpoint: str | Path,
    lengths: Sequence[int],
    *,
    device: Device,
    on_start: Callable[[str], None] | None = None,
) -> Against:
    """Read each length in a process of its own, then decode as `measure_bundle` does.

    Args:
        checkpoint: a folder that transformers reads.
        lengths: tokens to read, each >= 1.
        device: where to run.
        on_start: told before each length.

    Raises:
        BadInput: there is no such folder.
    """
    if not Path(checkpoint, "config.json").is_file():
        raise BadInput(
            f"{checkpoint} has no config.json, so transformers cannot read it. Name the folder of "
            "the checkpoint with --checkpoint."
        )
    missing = [name for name in ("transformers", "torch") if find_spec(name) is None]
    if missing:
        return Against(
            program="transformers", skipped=f"{' and '.join(missing)} not installed here"
        )
    found, program = [], "transformers"
    for tokens in lengths:
        if on_start is not None:
            on_start(f"transformers reading {tokens:,} tokens")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                program, run = pool.submit(_run, str(checkpoint), tokens, device).result()
            except BrokenProcessPool:
                run = AgainstRun(tokens=tokens, failed="the system ended the process")
        found.append(run)
    return Against(program=program, runs=tuple(found))


def _run(checkpoint: str, tokens: int, device: Device) -> tuple[str, AgainstRun]:
    """One length, in this process, with the version of transformers."""
    import torch
    import transformers

    program = f"transformers {transformers.__version__}"
    if device == "cuda":
        torch.ones(1, device=device)
    with PeakWatch(device) as watch, torch.inference_mode():
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
            model.to(device).eval()
            rng = np.random.default_rng(0)
            ids = torch.from_numpy(rng.integers(model.config.vocab_size, size=(1, tokens)))
            clock = _Clock()
            model.generate(
                ids.to(device),
                attention_mask=torch.ones_like(ids, device=device),
                do_sample=False,
                min_new_tokens=DECODE_TOKENS + 1,
                max_new_tokens=DECODE_TOKENS + 1,
                streamer=clock,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            return program, AgainstRun(tokens=tokens, failed="out of memory")
    first, last = clock.seconds[0], clock.seconds[-1]
    return program, AgainstRun(
        tokens=tokens,
        peak_bytes=watch.peak.bytes,
        peak_source=watch.peak.source,
        prefill_seconds=first,
        prefill_tokens_per_second=tokens / first,
        decode_tokens_per_second=DECODE_TOKENS / (last - first),
    )


class _Clock:
    """When each token came, in seconds: what `generate` calls its streamer.

    Attributes:
        seconds: from the prompt's coming to each new token, which is in host memory by then.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started: float | None = None

    def put(self, value: object) -> None:
        """Take the prompt, or a token."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        else:
            self.seconds.append(now - self._started)

    def end(self) -> None:
        """Nothing: the last token has come."""
