"""Weights with NaN or infinities, where export is told to take them: what verification makes of it.

That they are refused unasked stands in tests/cli/test_refused_checkpoints.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_checkpoints import Exported, write_mamba, write_weights
from numpy.typing import NDArray
from typer.testing import CliRunner

from longspan.bundle import Bundle, Manifest, open_bundle
from longspan.cli import app
from longspan.errors import BadInput, VerificationFailed
from longspan.export import bundle_writer, export_bundle
from longspan.runtime import verify

NAN, INFINITY = float("nan"), float("inf")
# Of the tokens that `verify_bundle` draws with this seed, none is 3, the row that is not finite.
TOKENS, SEED, ROW = 20, 2, 3


def write_untied(folder: Path, *, row: float) -> Path:
    """A Mamba whose head has a row of one value, so that one logit of each token is not finite."""
    weights = write_mamba(folder, tie_embeddings=False)
    weights["lm_head.weight"][ROW] = row
    write_weights(folder, weights, "bin")
    return folder


def with_values(source: Path, target: Path, name: str, rows: slice, value: float) -> Bundle:
    """A copy of a float16 bundle with one value in some rows of a tensor, as its manifest says."""
    shutil.copytree(source, target)
    weights = target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:start])[name]
    first, last = (start + offset for offset in entry["data_offsets"])
    values = np.frombuffer(content, np.float16, (last - first) // 2, first).copy()
    values.reshape(entry["shape"])[rows] = value
    content[first:last] = values.tobytes()
    weights.write_bytes(content)
    bundle = open_bundle(target)
    source_facts = {**bundle.manifest.source, "nonfinite": [name]}
    return replace(bundle, manifest=replace(bundle.manifest, source=source_facts))


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the graphs, which other tests have."""

    def nothing(folder: Path, *rest: object) -> None:
        (folder / "model.onnx").write_bytes(b"")

    monkeypatch.setattr(bundle_writer, "_write_graphs", nothing)


def test_on_the_command_line(tmp_path: Path) -> None:
    checkpoint = write_untied(tmp_path / "checkpoint", row=NAN)
    command = ["export", str(checkpoint), str(tmp_path / "bundle"), "--allow-nonfinite", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    checks = json.loads(done.stdout)["checks"]
    assert [check["skipped"] for check in checks] == [None] * 5
    assert all(check["max_error"] < check["tolerance"] for check in checks)
    assert open_bundle(tmp_path / "bundle").manifest.nonfinite == ("head",)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_what_is_finite_is_compared(exported: Exported, tmp_path: Path, value: float) -> None:
    source = exported("mamba", "float16").bundle
    bundle = with_values(source, tmp_path / "b", "embedding", slice(ROW, ROW + 1), value)
    checks = verify.verify_bundle(bundle, device="cpu", tokens=TOKENS, seed=SEED)
    finite = verify.verify_bundle(open_bundle(source), device="cpu", tokens=TOKENS, seed=SEED)
    assert ROW not in np.random.default_rng(SEED).integers(0, 24, TOKENS)
    assert all(check.passed for check in checks)
    for check, same in zip(checks, finite, strict=True):
        assert check.max_error is not None
        assert check.max_error == pytest.approx(same.max_error, rel=0.5)


def test_unasked_a_nan_fails(exported: Exported, tmp_path: Path) -> None:
    source = exported("mamba", "float16").bundle
    bundle = with_values(source, tmp_path / "b", "embedding", slice(ROW, ROW + 1), NAN)
    first, *_ = verify.verify_bundle(open_bundle(bundle.path), device="cpu", tokens=TOKENS)
    assert (first.passed, first.max_error) == (False, INFINITY)


def test_where_no_logit_is_finite_the_checks_are_skipped(
    exported: Exported, tmp_path: Path
) -> None:
    source = exported("mamba", "float16").bundle
    bundle = with_values(source, tmp_path / "b", "norm.weight", slice(0, 1), NAN)
    checks = verify.verify_bundle(bundle, device="cpu", tokens=TOKENS)
    reason = "no logit is finite, with NaN or infinities in norm.weight"
    assert [check.skipped for check in checks] == [reason] * 5


def test_finite_weights_are_not_named(exported: Exported) -> None:
    manifest = open_bundle(exported("mamba", "float16").bundle).manifest
    assert manifest.nonfinite == ()
    assert "nonfinite" not in manifest.source


def test_only_the_first_names_are_shown(exported: Exported) -> None:
    manifest = open_bundle(exported("mamba", "float16").bundle).manifest
    many = replace(manifest, source={"nonfinite": ["a", "b", "c", "d", "e"]})
    assert verify.nonfinite_names(many) == "a, b, c and 2 more"


class Spreading:
    """A backend with logits that are NaN after a call of more than 50 tokens, and 1 otherwise."""

    engine = "torch-cpu"

    def __init__(self, manifest: Manifest, columns: slice) -> None:
        self.specs, self.columns = manifest.state, columns

    def new_state(self) -> None: ...

    def forward(
        self, tokens: NDArray[np.int64], state: None, *, keep: Sequence[int]
    ) -> tuple[NDArray[np.float32], None]:
        logits = np.ones((len(keep), 3), np.float32)
        logits[:, 0] = NAN
        if len(tokens) > 50:
            logits[:, self.columns] = NAN
        return logits, state

    def to_arrays(self, state: None) -> dict[str, NDArray[Any]]:
        return {spec.name: np.ones(spec.shape) for spec in self.specs}

    def close(self) -> None: ...


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize("columns", [slice(1, 2), slice(None)], ids=["one logit", "all logits"])
def test_a_nan_that_spreads_with_the_cut_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: slice
) -> None:
    def open_spreading(bundle: Bundle, **options: object) -> Spreading:
        return Spreading(bundle.manifest, columns)

    monkeypatch.setattr(verify, "open_backend", open_spreading)
    checkpoint = write_untied(tmp_path / "checkpoint", row=NAN)
    with pytest.raises(VerificationFailed) as caught:
        export_bundle(checkpoint, tmp_path / "bundle", allow_nonfinite=True)
    assert str(caught.value) == (
        "The bundle was checked before it was written, and 'torch-cpu in chunks' differs by inf of "
        "the largest value; the tolerance is 0.0005. Nothing was written. NaN or infinities, in "
        "head, spread to other results when the text is cut otherwise or another engine computes. "
        "Use a checkpoint without them."
    )


@pytest.mark.usefixtures("no_graphs")
def test_an_infinity_is_no_overflow_of_float16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: ())
    checkpoint = write_untied(tmp_path / "checkpoint", row=INFINITY)
    export_bundle(checkpoint, tmp_path / "bundle", weights="float16", allow_nonfinite=True)
    assert open_bundle(tmp_path / "bundle").manifest.nonfinite == ("head",)

    weights = torch.load(checkpoint / "pytorch_model.bin")
    weights["lm_head.weight"][ROW + 1] = 1e6
    write_weights(checkpoint, weights, "bin")
    with pytest.raises(BadInput, match=r"^float16 was asked for, and head holds 1e\+06. float16 "):
        export_bundle(checkpoint, tmp_path / "other", weights="float16", allow_nonfinite=True)
