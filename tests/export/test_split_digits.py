"""`split_digits`: a tokenizer that merged digits merges none in the bundle, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_checkpoints import (
    HF_CONFIG,
    VOCABULARY,
    WIDTH,
    backbone_shapes,
    random_weights,
    write_config,
    write_hf,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from longspan.errors import BadInput
from longspan.export import bundle_writer, export_bundle
from longspan.export.tokenizer import split_digits

TEXTS = ["Flight 100 leaves at 10:00 on 2010-10-10, gate 7.", "x1 y22 z333\n", "10 100 1000"]


def trained(*, prefix: bool = False) -> Tokenizer:
    """A byte-level BPE that has learnt to merge digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["100 1000 2010 22 333 7"] * 50, trainer)
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_every_digit_is_a_token_and_the_text_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    trained().save(str(path))
    before = Tokenizer.from_file(str(path))
    assert any(sum(c.isdigit() for c in token) > 1 for token in before.encode(text).tokens)
    after = Tokenizer.from_str(split_digits(path).decode())
    encoded = after.encode(text)
    with_digits = [token for token in encoded.tokens if any(c.isdigit() for c in token)]
    assert with_digits == [c for c in text if c.isdigit()]
    assert after.decode(encoded.ids) == text
    assert after.get_vocab() == before.get_vocab()


def test_a_tokenizer_without_a_pre_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    letters = {letter: i for i, letter in enumerate("0123456789a .")}
    Tokenizer(models.BPE(letters | {"10": 13}, [("1", "0")])).save(str(path))
    after = Tokenizer.from_str(split_digits(path).decode())
    assert after.encode("10a 10").tokens == ["1", "0", "a", " ", "1", "0"]


def test_a_digit_that_cannot_be_split_off_is_refused(tmp_path: Path) -> None:
    """A space that is put before every word joins the first digit of it."""
    path = tmp_path / "tokenizer.json"
    tokenizer = trained()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    space = "\u0120"
    vocabulary = tokenizer.get_vocab() | {f"{space}{d}": 400 + d for d in range(10)}
    tokenizer.model = models.BPE(vocabulary, [(space, str(d)) for d in range(10)])
    tokenizer.save(str(path))
    with pytest.raises(BadInput) as caught:
        split_digits(path)
    assert str(caught.value) == (
        f"split_digits was asked for, and {path} makes ['Ġ0'] of '0'. Every digit must be a token "
        "of its own. Leave split_digits (--split-digits) out, or give another tokenizer with "
        "tokenizer=FILE (--tokenizer)."
    )


def test_a_tokenizer_without_digits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE({"a": 0, "1": 1}, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(path))
    with pytest.raises(BadInput, match=r"makes \[\] of '0'"):
        split_digits(path)


def test_the_bundle_has_the_changed_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path / "checkpoint", vocab_size=VOCABULARY)
    letters = {letter: i for i, letter in enumerate("0123456789a .")}
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE(letters | {"10": 13}, [("1", "0")])).save(str(path))
    monkeypatch.setattr(
        bundle_writer, "_write_graphs", lambda folder, *rest: (folder / "model.onnx").touch()
    )
    monkeypatch.setattr(bundle_writer, "verify_bundle", lambda *args, **kwargs: ())
    for split, tokens in ((False, ["10"]), (True, ["1", "0"])):
        export_bundle(
            tmp_path / "checkpoint", tmp_path / "bundle",
            tokenizer=path, split_digits=split, force=True,
        )  # fmt: skip
        written = Tokenizer.from_file(str(tmp_path / "bundle/tokenizer.json"))
        assert written.encode("10").tokens == tokens


@pytest.mark.parametrize(
    ("tokenizer", "found"), [(None, "no tokenizer"), ("bytes", "bytes for tokens")]
)
def test_there_must_be_a_file(tmp_path: Path, tokenizer: str | None, found: str) -> None:
    config = HF_CONFIG | {"vocab_size": 256}
    write_hf(tmp_path / "checkpoint")
    write_config(tmp_path / "checkpoint", config)
    weights = random_weights(backbone_shapes(embedding="embeddings"))
    weights["backbone.embeddings.weight"] = torch.randn(256, WIDTH)
    save_file(weights, tmp_path / "checkpoint/model.safetensors")
    with pytest.raises(BadInput) as caught:
        export_bundle(
            tmp_path / "checkpoint", tmp_path / "bundle", tokenizer=tokenizer, split_digits=True
        )
    assert str(caught.value) == (
        f"split_digits was asked for, and {tmp_path}/checkpoint has {found}. There must be a "
        "tokenizer.json to change. Give it with tokenizer=FILE (--tokenizer)."
    )
