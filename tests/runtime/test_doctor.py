"""The report of what runs here and why."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import pytest

from longspan.runtime.doctor import NOT_INSTALLED, OPS, OpReport, examine, find_versions
from longspan.version import __version__


def test_the_cpu_report() -> None:
    report = examine(device="cpu")
    assert report.engine == "onnx-cpu"
    assert report.reason == "the CPU was asked for; ONNX Runtime needs no torch"
    assert report.device.kind == "cpu"
    assert 0 < report.device.free_bytes <= report.device.total_bytes
    assert [op.op for op in report.ops] == list(OPS)
    assert {op.op: op.choice for op in report.ops} == {
        "add_norm": "plain",
        "anchor_attention": "plain",
        "causal_conv": "CausalConvWithState",
        "conba": "Scan",
        "dequantize": "plain",
        "full_attention": "plain",
        "gla": "LinearAttention",
        "linear": "FusedMatMul",
        "linear_conv": "parts",
        "moe": "Scan",
        "quantized_linear": "MatMulNBits",
        "rms_norm": "plain",
        "rope": "plain",
        "selective_scan": "Scan",
        "ssd": "LinearAttention",
        "ssd_norm_linear": "parts",
        "swiglu": "plain",
        "window_attention": "plain",
    }


def test_torch_tells_its_own_choices() -> None:
    report = examine(device="cpu", backend="torch")
    reason = "the tensors are on cpu: plain torch"
    assert OpReport(op="selective_scan", choice="reference", reason=reason) in report.ops


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longspan.runtime.doctor._PACKAGES", ("longspan", "no-such-package"))
    versions = find_versions()
    assert versions["longspan"] == __version__
    assert versions["no-such-package"] == NOT_INSTALLED
    assert versions["python"] == sys.version.split()[0]


def test_the_report_is_plain_data() -> None:
    data = asdict(examine(device="cpu"))
    assert set(data) == {"device", "versions", "engine", "reason", "steps", "ops"}
    assert set(data["ops"][0]) == {"op", "choice", "reason"}


def test_examining_for_onnx_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from longspan.runtime.doctor import examine\n"
        "examine(backend='onnx')\n"
        "sys.exit(', '.join({'torch', 'onnx', 'triton'} & sys.modules.keys()) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_the_cuda_report() -> None:
    report = examine()
    assert report.engine == "torch-cuda"
    assert {op.op: op.choice for op in report.ops}["selective_scan"] == "triton"
    assert report.device.total_bytes > report.device.free_bytes > 0
