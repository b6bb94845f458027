"""Numbers that were measured once: kept as a whole, ignored when damaged, used by plans."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longspan.runtime import baseline, machine_cache, rates
from longspan.runtime.device_memory import Reading
from longspan.runtime.machine_cache import recall, remember
from longspan.runtime.plan_speed import Rates
from longspan.tensors import DType


def test_a_number_is_kept_beside_others(tmp_path: Path) -> None:
    file = tmp_path / "new" / "measured.json"
    assert recall("one", file) is None
    assert remember("one", 1, file)
    assert remember("two", 2, file)
    assert remember("one", 3, file)
    assert (recall("one", file), recall("two", file)) == (3, 2)
    assert [each.name for each in file.parent.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"one": "x"}', '{"one": -1}', "\xff"])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, text: str) -> None:
    file = tmp_path / "measured.json"
    file.write_bytes(text.encode("latin-1"))
    assert recall("one", file) is None
    assert remember("one", 1, file)
    assert recall("one", file) == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not remember("one", 1, tmp_path / "file" / "measured.json")


def test_a_plan_on_cuda_takes_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_cache, "cache_file", lambda: tmp_path / "measured.json")
    calls: list[str] = []

    def measured(engine: str) -> int:
        calls.append(engine)
        return 700

    monkeypatch.setattr(baseline, "measure_baseline", measured)
    held = Reading(bytes=700, source="a test")
    monkeypatch.setattr(baseline, "memory_now", lambda device: held)
    key = baseline.baseline_key("torch-cuda")
    assert "torch-cuda" in key
    assert "torch" in key
    assert baseline.known_baseline("torch-cuda") == (700, "measured in this process")
    assert baseline.known_baseline("torch-cuda") == (
        700, "measured before on this machine with these versions",
    )  # fmt: skip
    assert calls == ["torch-cuda"]
    # What all processes hold together says nothing of this one.
    monkeypatch.setattr(
        baseline, "memory_now", lambda device: Reading(bytes=700, source="a test", shared=True)
    )
    for _ in range(2):
        assert baseline.known_baseline("onnx-cuda") == (700, "measured in this process")
    calls.clear()
    for _ in range(2):
        assert baseline.known_baseline("onnx-cpu") == (
            700 + 2**20, "measured in this process, and 1 MiB by which processes differ",
        )  # fmt: skip
    assert calls == ["onnx-cpu", "onnx-cpu"]


def test_rates_are_measured_once_for_a_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "measured.json"
    monkeypatch.setattr(machine_cache, "cache_file", lambda: file)
    measured: list[DType] = []

    def measure(dtype: DType) -> Rates:
        measured.append(dtype)
        return Rates(copied_bytes=54e9, operations=620e12)

    monkeypatch.setattr(rates, "measure_rates", measure)
    first = rates.known_rates("bfloat16")
    assert rates.known_rates("bfloat16") == first == Rates(copied_bytes=54e9, operations=620e12)
    assert measured == ["bfloat16"]
    rates.known_rates("float16")
    assert measured == ["bfloat16", "float16"]
    # A rate of nothing would hide no copy, and take forever.
    file.write_text(file.read_text().replace("54000000000", "0"))
    assert rates.known_rates("bfloat16") == first
    assert measured[2:] == ["bfloat16"]


def test_a_plan_that_asks_the_device_lets_the_allocator_grow_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asking starts CUDA, after which torch's allocator is as it is."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    seen = []

    def properties(device: int) -> SimpleNamespace:
        seen.append(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
        return SimpleNamespace(is_integrated=bool(device))

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert not rates.shares_host_memory()
    assert seen == ["expandable_segments:True"]


@pytest.mark.gpu
@pytest.mark.parametrize("asked", ["shares_host_memory()", "measure_rates('bfloat16')"])
def test_what_is_loaded_after_a_plan_grows_in_place(asked: str) -> None:
    code = (
        f"from longspan.runtime.rates import *\n{asked}\n"
        "import torch\n"
        "x = torch.empty(2**25, device='cuda')\n"
        "print({each['is_expandable'] for each in torch.cuda.memory_snapshot()})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "{True}"), done.stderr
