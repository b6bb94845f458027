"""Memory as the kernel and the driver count it, and the budget made from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longspan.errors import BadInput
from longspan.runtime import cgroup, device_memory, nvidia
from longspan.runtime.baseline import measure_baseline
from longspan.runtime.budget import Budget
from longspan.runtime.device_memory import (
    PeakWatch,
    Reading,
    free_bytes,
    memory_now,
    memory_peak,
    total_bytes,
)

MIB = 2**20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a peak to reset")


def test_the_resident_set_grows_by_what_is_written() -> None:
    before = memory_now("cpu")
    held = np.ones(64 * MIB, np.uint8)
    after = memory_now("cpu")
    assert after.source == "resident set"
    assert 60 * MIB < after.bytes - before.bytes < 70 * MIB
    assert held[-1] == 1


@LINUX
def test_a_watch_sees_what_came_and_went() -> None:
    with PeakWatch("cpu") as watch:
        start = memory_now("cpu").bytes
        np.ones(96 * MIB, np.uint8)
    assert watch.peak.source == "peak resident set (VmHWM)"
    assert 90 * MIB < watch.peak.bytes - start < 110 * MIB


@LINUX
def test_a_new_watch_forgets_the_old_peak() -> None:
    np.ones(96 * MIB, np.uint8)
    old = memory_peak("cpu").bytes
    with PeakWatch("cpu") as watch:
        pass
    assert watch.peak.bytes < old - 80 * MIB


def test_without_a_kernel_that_resets_samples_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_CLEAR_REFS", tmp_path / "no such folder/clear_refs")
    with PeakWatch("cpu") as watch:
        held = np.ones(64 * MIB, np.uint8)
        seen = watch.sample()
        del held
    assert watch.peak == seen
    assert seen.source == "highest sample of the resident set"


def test_free_is_less_than_all() -> None:
    assert 0 < free_bytes("cpu") <= total_bytes("cpu")


def test_reading_memory_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from longspan.runtime.device_memory import PeakWatch, free_bytes\n"
        "from longspan.runtime.budget import Budget\n"
        "with PeakWatch('cpu'): Budget.default('cpu')\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("files", "free", "total"),
    [
        (
            {
                "proc/self/cgroup": "0::/app.slice\n",
                "sys/fs/cgroup/app.slice/memory.max": "1000000\n",
                "sys/fs/cgroup/app.slice/memory.current": "400000\n",
                "sys/fs/cgroup/app.slice/memory.stat": "anon 1\ninactive_file 50000\n",
            },
            650_000,
            1_000_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/outer/inner\n",
                "sys/fs/cgroup/outer/inner/memory.max": "max\n",
                "sys/fs/cgroup/outer/inner/memory.current": "1\n",
                "sys/fs/cgroup/outer/memory.max": "2000\n",
                "sys/fs/cgroup/outer/memory.current": "500\n",
            },
            1_500,
            2_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/a\n4:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "9500\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "9500\n",
            },
            0,
            9_000,
        ),
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        ({}, None, None),
    ],
    ids=["v2", "v2-outer-limit", "v1-over-its-limit", "no-limit", "no-cgroups"],
)
def test_limits_of_a_container(
    tmp_path: Path, files: dict[str, str], free: int | None, total: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup.free_bytes(tmp_path) == free
    assert cgroup.total_bytes(tmp_path) == total


def test_a_container_leaves_less_than_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "free_bytes", lambda: 12 * MIB)
    monkeypatch.setattr(cgroup, "total_bytes", lambda: 16 * MIB)
    assert (free_bytes("cpu"), total_bytes("cpu")) == (12 * MIB, 16 * MIB)


def test_a_driver_that_does_not_list_the_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "process_bytes", lambda _: None)
    monkeypatch.setattr(nvidia, "device_memory", lambda: (80 * MIB, 50 * MIB))
    assert memory_now("cuda") == Reading(
        bytes=30 * MIB,
        source="all processes on the device: the driver does not list this one (NVML)",
        shared=True,
    )
    assert Budget.default("cuda").bytes == 45 * MIB


def test_a_default_budget_gives_back_what_the_process_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvidia, "process_bytes", lambda _: 10 * MIB)
    monkeypatch.setattr(nvidia, "device_memory", lambda: (80 * MIB, 50 * MIB))
    assert Budget.default("cuda").bytes == 54 * MIB


def test_a_budget_reads_sizes_and_shows_them() -> None:
    assert Budget("2GiB").bytes == 2**31
    assert Budget(2**31) == Budget("2GiB")
    assert str(Budget("1.5GiB")) == "1.5 GiB"
    with pytest.raises(BadInput) as caught:
        Budget("two gigabytes")
    assert str(caught.value) == (
        "'two gigabytes' is not a size. Write it like 512MiB, 2GB, 1.5GiB or 1048576."
    )


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["torch-cuda", "onnx-cuda"])
def test_the_driver_counts_this_process(engine: str) -> None:
    code = (
        "import sys, torch\n"
        "from longspan.runtime.baseline import measure_baseline\n"
        "from longspan.runtime.device_memory import PeakWatch, memory_now\n"
        "measure_baseline(sys.argv[1])\n"
        "torch.ones(1, device='cuda')\n"
        "base = memory_now('cuda').bytes\n"
        "with PeakWatch('cuda') as watch:\n"
        "    x = torch.ones(256 * 2**20, dtype=torch.uint8, device='cuda')\n"
        "    del x\n"
        "    torch.cuda.empty_cache()\n"
        "now = memory_now('cuda')\n"
        "print(base / 2**20, now, watch.peak)\n"
        "grown = watch.peak.bytes - base\n"
        "sys.exit(0 if 250 * 2**20 < grown < 300 * 2**20 else f'grew by {grown}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, engine], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_nvml_lists_this_process() -> None:
    measure_baseline("torch-cuda")
    reading = memory_now("cuda")
    assert reading.source == "the driver's count for this process (NVML)"
    assert nvidia.find_cuda().name is not None
