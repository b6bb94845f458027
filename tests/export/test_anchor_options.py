"""`--anchors`: which tokens become anchors, what the report says, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_checkpoints import VOCABULARY, write_hf, write_letters, write_llama

import longspan
from longspan.bundle import open_bundle
from longspan.errors import BadInput, DoesNotFit
from longspan.export import ExportReport, bundle_writer, export_bundle
from longspan.export.anchors import BY_CUT
from longspan.info import describe
from longspan.models.config import AnchorAttentionConfig, CacheUse
from longspan.runtime.byte_tokens import bundle_tokenizer

STORIES = Path(os.environ.get("LONGSPAN_DATA", "/nowhere")) / "checkpoints/stories260K"
# The id of <AC>, the last of the vocabulary.
AC = VOCABULARY - 1
NOT_TRAINED = "Not trained with anchors, as far as can be told: only a tokenizer with <AC> would"
Export = Callable[..., ExportReport]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_llama(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def export(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export without graphs and their verification, which other tests have."""

    def no_graphs(folder: Path, *rest: object) -> None:
        (folder / "model.onnx").write_bytes(b"")

    monkeypatch.setattr(bundle_writer, "_write_graphs", no_graphs)
    monkeypatch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: ())
    return lambda **options: export_bundle(checkpoint, tmp_path / "bundle", **options)


def layers_of(report: ExportReport) -> list[AnchorAttentionConfig]:
    return list(open_bundle(report.bundle).manifest.config.anchor_layers)


def test_ac_is_the_token_of_that_name(export: Export, checkpoint: Path) -> None:
    write_letters(checkpoint)
    report = export(anchors="ac")
    assert [(each.anchor_ids, each.anchor_every) for each in layers_of(report)] == [
        ((AC,), None)
    ] * 2
    found = report.anchors
    assert found is not None
    assert (found.ids, found.sentence_token, found.trained) == ((AC,), AC, True)
    assert report.text().splitlines()[1:] == [
        f"anchors: token {AC} (absolute positions)",
        "Trained with these anchors: its tokenizer has <AC>.",
    ]
    manifest = open_bundle(report.bundle).manifest
    assert manifest.sentence_token == AC
    assert manifest.source["anchors"] == json.loads(json.dumps(found.to_json()))
    assert describe(report.bundle)["anchors"] == {
        "asked": "ac", "ids": [AC], "every": None, "positions": "absolute", "trained": True,
    }  # fmt: skip
    tokenizer = bundle_tokenizer(open_bundle(report.bundle))
    assert tokenizer.encode("ab. cd").tolist() == [3, 4, 0, AC, 1, 5, 6]


@pytest.mark.parametrize(
    ("stops", "ids"), [((".",), (0,)), ((".", "▁."), (0, 1)), (("Ġ.", ".", " ."), (0, 1, 2))]
)
def test_ep_is_every_form_of_the_full_stop(
    export: Export, checkpoint: Path, stops: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    write_letters(checkpoint, stops=(*stops, "..", "x."), ac=False)
    report = export(anchors="ep")
    assert layers_of(report)[0].anchor_ids == ids
    assert report.anchors is not None
    assert not report.anchors.trained
    assert report.anchors.sentence_token is None
    assert report.anchors.notes[0].startswith(NOT_TRAINED)


def test_ids_and_intervals(export: Export, checkpoint: Path) -> None:
    report = export(anchors="ids=7,3,7")
    assert layers_of(report)[0].anchor_ids == (3, 7)
    assert "anchors: tokens 3, 7 (absolute positions)\n" in report.text()
    write_letters(checkpoint)
    report = export(anchors="every=16", positions="compressed", force=True)
    (layer, _) = layers_of(report)
    assert (layer.anchor_ids, layer.anchor_every, layer.positions) == ((), 16, "compressed")
    assert report.anchors is not None
    assert report.anchors.text().splitlines() == [
        "anchors: every 16 tokens (compressed positions)",
        (
            "Trained with other anchors: its tokenizer has <AC> (--anchors ac). What these anchors "
            "stand for was not trained."
        ),
        BY_CUT,
    ]


def test_auto_takes_the_most_anchors_that_fit(export: Export) -> None:
    """And a document of that length then fits the plan of this machine."""
    report = export(anchors="every=auto", tokens="256K", budget="220MiB")
    (layer, _) = layers_of(report)
    assert report.anchors is not None
    every = report.anchors.every
    assert every is not None
    assert 2 <= every == layer.anchor_every
    assert report.anchors.notes[0].startswith(
        f"An anchor every {every:,} tokens: 262,144 tokens take "
    )
    entries = CacheUse.of(open_bundle(report.bundle).manifest.config).entries_after(2**18)
    assert f"{entries:,} entries, of " in report.anchors.notes[0]


def test_without_anchors_nothing_is_said(export: Export) -> None:
    report = export()
    assert report.anchors is None
    manifest = open_bundle(report.bundle).manifest
    assert (manifest.sentence_token, "anchors" in manifest.source) == (None, False)
    assert manifest.config.layers_by_kind() == {"full_attention": 2, "mlp": 2}


FORMS = "ac, ep, ids=1,2,3, every=N or every=auto"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another word": (
        {"anchors": "commas"},
        (
            f"anchors='commas' was asked for; it must be one of {FORMS}, or left out to keep "
            "all keys."
        ),
    ),
    "ac without a tokenizer": (
        {"anchors": "ac"},
        (
            "anchors='ac' was asked for, which makes the token <AC> an anchor, and there is no "
            "tokenizer to find it in. Give the model's own with tokenizer=FILE (--tokenizer), "
            "or name the ids, as anchors='ids=32001' (--anchors ids=32001)."
        ),
    ),
    "an id beyond the vocabulary": (
        {"anchors": "ids=3,24"},
        (
            "anchors='ids=3,24' was asked for, and the model has no token 24: ids go from 0 to "
            "23. Correct it."
        ),
    ),
    "ids that are none": (
        {"anchors": "ids=3,,5"},
        (
            "anchors='ids=3,,5' was asked for; ids are whole numbers with commas between, as "
            "in: ids=29889,29973. Correct it."
        ),
    ),
    "every token": (
        {"anchors": "every=1"},
        (
            "anchors='every=1' was asked for; N must be a whole number of at least 2: an "
            "anchor sees its own segment alone, so with an anchor at every token no token "
            "would see another. Try every=128."
        ),
    ),
    "auto without a budget": (
        {"anchors": "every=auto", "tokens": "256K"},
        (
            "anchors='every=auto' was asked for without budget. The interval follows from the "
            "length of a document and the budget that it is read under. Give both, as in: "
            "--tokens 256K --budget 8GiB"
        ),
    ),
    "a budget without auto": (
        {"anchors": "every=9", "budget": "8GiB"},
        (
            "budget='8GiB' was given to export, which needs it for anchors='every=auto' only. "
            "Leave it out, or export with --anchors every=auto."
        ),
    ),
    "positions without anchors": (
        {"positions": "compressed"},
        (
            "positions='compressed' was asked for without anchors. Only a model with anchors "
            f"has a choice. Give anchors={FORMS} (--anchors), or leave positions out."
        ),
    ),
    "other positions": (
        {"anchors": "every=9", "positions": "relative"},
        (
            "positions='relative' was asked for; it must be absolute or compressed. Leave it "
            "out for absolute ones."
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(checkpoint: Path, tmp_path: Path, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(BadInput) as refusal:
        export_bundle(checkpoint, tmp_path / "bundle", **options)
    assert str(refusal.value) == message
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizer_without_it_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_letters(checkpoint, ac=False)
    with pytest.raises(BadInput, match="makes the token <AC> an anchor, and the tokenizer has non"):
        export_bundle(checkpoint, tmp_path / "bundle", anchors="ac")


def test_a_model_without_full_attention_is_refused(tmp_path: Path) -> None:
    write_hf(tmp_path / "mamba")
    with pytest.raises(BadInput) as refusal:
        export_bundle(tmp_path / "mamba", tmp_path / "bundle", anchors="every=9")
    assert str(refusal.value) == (
        f"anchors='every=9' was asked for, and {tmp_path}/mamba is a hf_mamba model with the "
        "layers mamba. Anchors need attention over every token before, and nothing between it and "
        "its projections, as Llama has. Leave anchors (--anchors) out."
    )


def test_no_interval_makes_it_fit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="was asked for, for 1,048,576 tokens and a budget"):
        export_bundle(
            checkpoint, tmp_path / "bundle", anchors="every=auto", tokens="1M", budget="16MiB"
        )


def test_a_bundle_of_ac_reads_and_answers(checkpoint: Path, tmp_path: Path) -> None:
    """Export with everything, read text in chunks, in caches for its sentences only."""
    write_letters(checkpoint)
    report = export_bundle(
        checkpoint, tmp_path / "bundle", anchors="ac", weights="bfloat16", stop=()
    )
    assert all(check.passed for check in report.checks)
    document = tmp_path / "text.txt"
    document.write_text("abc def. " * 400, encoding="utf-8")
    from longspan.runtime.runtime import load_for

    with load_for(
        tmp_path / "bundle", document=document, budget="1GiB", device="cpu", backend="onnx"
    ) as runtime:
        # 400 anchors, and the space after the last.
        assert runtime.plan.capacity == 399 + 9 + 1024
        memory = runtime.read(document)
        entries = int(memory.state["layers.0.entries"][0])
        assert (memory.tokens, entries) == (400 * 10, 401)
        answer = runtime.ask(memory, "abc. def", template="{question}", max_tokens=4)
        answer.read()
        assert answer.tokens == 4


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason="needs LONGSPAN_DATA with checkpoints/stories260K")
def test_a_trained_llama_with_an_interval(tmp_path: Path) -> None:
    report = export_bundle(STORIES, tmp_path / "bundle", anchors="every=16")
    assert [check.skipped for check in report.checks] == [None] * 5
    assert all(check.passed for check in report.checks)
    with longspan.load(
        tmp_path / "bundle", budget="1GiB", tokens=3000, device="cpu", backend="onnx"
    ) as runtime:
        memory = runtime.read_tokens([np.random.default_rng(0).integers(512, size=3000)])
        assert int(memory.state["layers.0.entries"][0]) == 3000 // 16 + 3000 % 16
