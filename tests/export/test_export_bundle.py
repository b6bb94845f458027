"""Export end to end: every family, three dtypes, and what must not be left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_checkpoints import (
    VOCABULARY,
    Exported,
    write_hf,
    write_mamba2,
    write_samba,
    write_tokenizer,
)
from safetensors import safe_open

from longspan.bundle import open_bundle
from longspan.engines import Engine
from longspan.errors import BadCheckpoint, BadInput, VerificationFailed
from longspan.export import bundle_writer, export_bundle
from longspan.models.config import Mamba2Config
from longspan.runtime.backends import open_backend
from longspan.runtime.plan import make_plan

CASES = [
    ("samba", "float32"),
    ("samba", "bfloat16"),
    ("mamba", "float16"),
    ("hf_mamba", "bfloat16"),
    ("falcon_mamba", "float32"),
    ("mamba2", "float32"),
    ("hf_mamba2", "bfloat16"),
    ("mambabyte", "float32"),
    ("mambabyte", "bfloat16"),
    ("llama", "float32"),
    ("llama", "float16"),
    ("mixcon", "float32"),
    ("mixcon", "float16"),
]
# Their tiny configs name a token that ends a text.
WITH_EOS = ("hf_mamba", "hf_mamba2", "falcon_mamba", "llama", "mixcon")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_every_engine_agrees(exported: Exported, family: str, dtype: str) -> None:
    report = exported(family, dtype)
    ran = [check.name for check in report.checks if check.skipped is None]
    assert all(check.passed for check in report.checks)
    on_cpu = "onnx-cpu model.cpu.onnx"
    assert ran[:3] == ["torch-cpu in chunks", f"{on_cpu} in chunks", f"{on_cpu} against torch"]
    assert len(ran) == (3 if dtype == "bfloat16" else 5)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_the_manifest_describes_the_bundle(exported: Exported, family: str, dtype: str) -> None:
    report = exported(family, dtype)
    manifest = open_bundle(report.bundle).manifest
    assert (report.family, manifest.config.family, manifest.dtype) == (family, family, dtype)
    with safe_open(report.bundle / "model.safetensors", framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert manifest.parameters == sum(int(np.prod(shape)) for shape in shapes)
    assert report.weight_bytes == manifest.weight_bytes
    assert report.state_bytes == manifest.state_bytes
    assert manifest.eos == (5 if family in WITH_EOS else None)
    assert manifest.source["checkpoint"] == "checkpoint"
    assert [row["name"] for row in manifest.source["checks"]] == [c.name for c in report.checks]
    assert sorted([*manifest.files, "longspan.json"]) == names(report.bundle)
    for items in manifest.chunk_bytes.values():
        assert len(items) == len(manifest.config.layers) + 1


def test_files_of_a_bundle(exported: Exported) -> None:
    common = ["longspan.json", "model.cpu.onnx", "model.onnx", "model.safetensors"]
    assert names(exported("samba", "float32").bundle) == [*common, "tokenizer.json"]
    with_genai = sorted([*common, "tokenizer.json", "genai_config.json"])
    assert names(exported("mamba", "float16").bundle) == with_genai


@pytest.mark.parametrize(("family", "dtype"), [("mamba", "float16"), ("mamba2", "float32")])
def test_genai_config_names_what_the_graph_has(exported: Exported, family: str, dtype: str) -> None:
    bundle = exported(family, dtype).bundle
    decoder = json.loads((bundle / "genai_config.json").read_text())["model"]["decoder"]
    state = {spec.name for spec in open_bundle(bundle).manifest.state}
    for kind in ("conv", "recurrent"):
        past, present = decoder["inputs"][f"past_{kind}_names"], decoder["outputs"]
        for i in range(decoder["num_hidden_layers"]):
            assert (past % i).removeprefix("past.") in state
            assert (present[f"present_{kind}_names"] % i).removeprefix("present.") in state
    assert (bundle / decoder["filename"]).is_file()


@pytest.mark.parametrize("family", ["samba", "mamba2"])
def test_any_chunks_give_the_same(exported: Exported, family: str) -> None:
    bundle = open_bundle(exported(family, "float32").bundle)
    text = np.random.default_rng(3).integers(0, VOCABULARY, 40)
    backend = open_backend(bundle, engine="onnx-cpu", memory_limit_bytes=None)
    whole, _ = backend.forward(text, backend.new_state(), keep=range(40))
    for cuts in ([1] * 40, [13, 1, 26], [6] * 6 + [4]):
        state, rows, start = backend.new_state(), [], 0
        for tokens in cuts:
            part, state = backend.forward(text[start : start + tokens], state, keep=range(tokens))
            rows.append(part)
            start += tokens
        np.testing.assert_allclose(np.concatenate(rows), whole, atol=2e-5)
    nothing, _ = backend.forward(text, backend.new_state(), keep=[])
    assert nothing.shape == (0, VOCABULARY)


def test_every_option_of_mamba_2_agrees(tmp_path: Path) -> None:
    write_mamba2(
        tmp_path / "checkpoint",
        ngroups=1, rmsnorm=False, D_has_hdim=True, dt_limit=[0.4, 1.1],
    )  # fmt: skip
    report = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [check.passed for check in report.checks] == [True] * 5
    manifest = open_bundle(tmp_path / "bundle").manifest
    (mixer, _) = manifest.config.layers
    assert isinstance(mixer, Mamba2Config)
    assert (mixer.dt_limit, mixer.norm_eps, mixer.d_per_channel) == ((0.4, 1.1), None, True)


@pytest.mark.parametrize("engine", ["onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda"])
def test_a_mamba_2_bundle_is_planned(exported: Exported, engine: Engine) -> None:
    """A state of [1, H, N, P] and K - 1 inputs of E + 2 G N channels, for each of two layers."""
    manifest = open_bundle(exported("mamba2", "float32").bundle).manifest
    assert manifest.state_bytes == 2 * 4 * (4 * 4 * 8 + 3 * (32 + 2 * 2 * 4))
    plan = make_plan(manifest, engine=engine, budget_bytes=2**30, baseline_bytes=0, tokens=10_000)
    assert plan.total_bytes <= 2**30
    assert plan.chunk_tokens >= 16


def test_prompt_and_stop_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "checkpoint")
    quick(monkeypatch)
    export_bundle(
        tmp_path / "checkpoint", tmp_path / "bundle", prompt_template="Q {question}", stop=("#",)
    )
    prompt = open_bundle(tmp_path / "bundle").manifest.prompt
    assert (prompt.template, prompt.stop) == ("Q {question}", ("#",))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the graphs and their verification, which other tests have."""

    def no_graphs(folder: Path, *rest: object) -> None:
        (folder / "model.onnx").write_bytes(b"")

    monkeypatch.setattr(bundle_writer, "_write_graphs", no_graphs)
    monkeypatch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: ())


def test_a_bundle_is_not_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "mine").write_text("keep")
    quick(monkeypatch)
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path / "checkpoint", bundle)
    assert str(caught.value) == (
        f"{bundle} was asked for as a new bundle, and it is a folder with something in it. Nothing "
        "is overwritten unasked. Choose another path, or give force=True (--force)."
    )
    assert names(bundle) == ["mine"]
    export_bundle(tmp_path / "checkpoint", bundle, force=True)
    assert "longspan.json" in names(bundle)
    assert "mine" not in names(bundle)
    assert names(tmp_path) == ["bundle", "checkpoint"]


def test_a_failure_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path / "checkpoint")
    quick(monkeypatch)
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    before = (tmp_path / "bundle/longspan.json").read_bytes()

    def fail(*args: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(bundle_writer, "_write_graphs", fail)
    for path in (tmp_path / "bundle", tmp_path / "new/deep/bundle"):
        with pytest.raises(BadInput) as caught:
            export_bundle(tmp_path / "checkpoint", path, force=True)
        assert str(caught.value) == (
            f"{path} was asked for as a new bundle, and it cannot be written (the disk is full). "
            "Nothing of it is left there. Choose a folder that may be written, with room for the "
            "bundle."
        )
    assert names(tmp_path) == ["bundle", "checkpoint"]
    assert (tmp_path / "bundle/longspan.json").read_bytes() == before


def test_ctrl_c_while_torch_exports_is_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that it interrupts may turn it into an error, and torch that into its own."""

    def interrupted(*args: object, **kwargs: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise torch.onnx.OnnxExporterError("failed") from error

    write_hf(tmp_path / "checkpoint")
    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")


AFTER_FAILURE = {
    None: (
        "Export with weights='float32' (--weights float32); if that fails too, please report the "
        "model's config."
    ),
    "int8": (
        "ONNX Runtime on CPUs multiplies 8 bits with activations that it rounds to 8 bits, too; 4 "
        "bits it multiplies with activations as they are. Export with weights='int4' or "
        "'bfloat16' (--weights int4, bfloat16)."
    ),
}


@pytest.mark.parametrize("weights", AFTER_FAILURE)
def test_a_bundle_that_fails_its_checks_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    write_hf(tmp_path / "checkpoint")
    quick(monkeypatch)
    check = bundle_writer.Check(name="a in chunks", max_error=0.25, tolerance=0.1, passed=False)
    monkeypatch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: (check,))
    with pytest.raises(VerificationFailed) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", weights=weights)
    assert str(caught.value) == (
        "The bundle was checked before it was written, and 'a in chunks' differs by 0.25 of the "
        f"largest value; the tolerance is 0.1. Nothing was written. {AFTER_FAILURE[weights]}"
    )
    assert names(tmp_path) == ["checkpoint"]


OTHER_WEIGHTS = {
    "fp16": (
        "weights='fp16' was asked for; it must be one of float32, float16, bfloat16, int8, "
        "int4, or left out to keep the checkpoint's."
    ),
}


@pytest.mark.parametrize("weights", OTHER_WEIGHTS)
def test_other_weights_are_refused(tmp_path: Path, weights: str) -> None:
    write_hf(tmp_path / "checkpoint")
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", weights=weights)
    assert str(caught.value) == OTHER_WEIGHTS[weights]


def test_a_prompt_without_a_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path, tmp_path / "bundle", prompt_template="Why?")
    assert str(caught.value) == (
        "The template 'Why?' was asked for; it must contain {question}, where the question "
        "goes. Add it."
    )


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("")
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path, tmp_path / "bundle", force=True)
    assert str(caught.value) == (
        f"{tmp_path}/bundle was asked for as a new bundle, and it is a file. A bundle is a folder. "
        "Choose another path."
    )


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_hf(tmp_path / "checkpoint")
    path = write_tokenizer(tmp_path / "other.json", VOCABULARY + 1)
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", tokenizer=path)
    assert str(caught.value) == (
        f"{path} was asked for as the tokenizer and has the token id 24; the model's vocabulary "
        "ends at 23. Tokenizer and model must belong together. Give the right one with "
        "tokenizer=FILE (--tokenizer)."
    )


@pytest.mark.parametrize("content", ["{}", None])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    write_hf(tmp_path / "checkpoint")
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=r"was asked for as the tokenizer and cannot be read \("):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", tokenizer=path)


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    weights = write_samba(tmp_path / "checkpoint")
    weights["transformer.ln_f.weight"][0] = 1e6
    torch.save({"model": weights}, tmp_path / "checkpoint/samba.pth")
    with pytest.raises(BadInput) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", weights="float16")
    assert str(caught.value) == (
        "float16 was asked for, and norm.weight holds 1e+06. float16 ends at 65504. Export with "
        "weights='bfloat16' (--weights bfloat16) or 'float32'."
    )
    assert names(tmp_path) == ["checkpoint"]


def test_a_checkpoint_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint):
        export_bundle(tmp_path / "none", tmp_path / "deep/bundle")
    assert names(tmp_path) == []
