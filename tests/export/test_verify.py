"""`verify_bundle`: it passes what agrees, and fails, with a number, what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers_checkpoints import Exported
from numpy.typing import NDArray

from longspan.bundle import Bundle, open_bundle
from longspan.runtime import verify
from longspan.runtime.backends.choice import Installed

REASON = "ONNX Runtime has no bfloat16 arithmetic on the CPU; longspan verify --device cuda runs it"


class Off:
    """A backend whose state is off by `shift` whenever a call has more than 50 tokens."""

    engine = "torch-cpu"

    def __init__(self, bundle: Bundle, shift: float) -> None:
        self.specs, self.shift = bundle.manifest.state, shift

    def new_state(self) -> dict[str, Any]:
        return {"shift": 0.0}

    def forward(
        self, tokens: NDArray[np.int64], state: dict[str, Any], *, keep: Sequence[int]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        logits = np.ones((len(keep), 3), np.float32)
        return logits, {"shift": self.shift if len(tokens) > 50 else state["shift"]}

    def to_arrays(self, state: dict[str, Any]) -> dict[str, NDArray[Any]]:
        return {spec.name: np.full(spec.shape, 1 + state["shift"]) for spec in self.specs}

    def close(self) -> None: ...


def open_off(shift: float) -> Any:
    return lambda bundle, **options: Off(bundle, shift)


def test_the_checks_and_what_is_skipped(exported: Exported) -> None:
    bundle = open_bundle(exported("hf_mamba", "bfloat16").bundle)
    checks = verify.verify_bundle(bundle, device="cpu", tokens=20, seed=4)
    assert [check.name for check in checks] == [
        "torch-cpu in chunks",
        "onnx-cpu model.cpu.onnx in chunks",
        "onnx-cpu model.cpu.onnx against torch",
        "onnx-cpu model.onnx in chunks",
    ]
    assert [check.skipped for check in checks] == [None, None, None, REASON]
    assert checks[-1].max_error is None
    assert checks[-1].text() == f"skipped  onnx-cpu model.onnx in chunks: {REASON}"
    tolerance = verify.TOLERANCES["float32", "bfloat16"]
    assert checks[-1].tolerance == verify.TOLERANCES["bfloat16", "bfloat16"]
    for check in checks[:3]:
        assert check.passed
        assert check.max_error is not None
        assert 0 <= check.max_error < check.tolerance == tolerance


@pytest.mark.parametrize("shift", [0.01, float("nan")])
def test_a_state_that_depends_on_the_cut_fails(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    bundle = open_bundle(exported("samba", "float32").bundle)
    monkeypatch.setattr(verify, "open_backend", open_off(shift))
    first, *_ = verify.verify_bundle(bundle, device="cpu")
    assert not first.passed
    assert first.max_error == pytest.approx(0.01 / 1.01 if shift == shift else np.inf)
    assert first.text().startswith("FAILED   torch-cpu in chunks: ")


def test_without_torch_only_onnx_is_checked(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Installed(torch=False, torch_cuda=False, triton=False, onnx_cuda=False)
    bundle = open_bundle(exported("samba", "float32").bundle)
    monkeypatch.setattr(verify, "find_installed", lambda: bare)
    checks = verify.verify_bundle(bundle, device="cpu", tokens=12)
    assert [(check.name, check.skipped) for check in checks] == [
        ("torch-cpu in chunks", "torch is not installed"),
        ("onnx-cpu model.cpu.onnx in chunks", None),
        ("onnx-cpu model.onnx in chunks", None),
    ]
