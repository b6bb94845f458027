"""The recall example on a CPU, with a model of a few thousand weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import train_recall
from recall_data import ANSWER, FACT, QUESTION, RecallData, new_tokenizer, with_decoys
from recall_model import Samba, SambaConfig
from recall_step import Stage, Trainer, new_optimizer, set_lr
from train_recall import Session

from longspan.models.decoder import Decoder
from longspan.models.families.samba import open_checkpoint

TINY = SambaConfig(
    vocabulary=512, blocks=2, D=32, E=32, N=4, heads=2, kv_heads=1, head_width=16, window=16,
    mlp_width=32,
)  # fmt: skip
STAGES = (Stage(gap=16, length=96, rows=4, lm=0.1), Stage(gap=120, length=96, rows=2, segments=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and 5,000 tokens of filler, as `prepare` writes them."""
    folder = tmp_path_factory.mktemp("data")
    sentences = [text.format(key="01234") for text in (FACT, QUESTION, ANSWER)]
    tokenizer = new_tokenizer(iter(sentences * 9))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = np.random.default_rng(0).integers(20, 60, 5000).astype(np.uint16)
    for name in ("train", "books", "modules"):
        np.save(folder / f"{name}.npy", ids)
    return folder


def new_session(folder: Path) -> Session:
    torch.manual_seed(0)
    model = Samba(TINY)
    return Session(model, new_optimizer(model, 1e-2), RecallData(folder, "cpu"), 1e-2, graphs=False)


def test_document_says_the_fact_once_and_ends_in_the_answer(folder: Path) -> None:
    data = RecallData(folder, "cpu")
    gaps = torch.tensor([1, 7, data.longest_gap(96)])
    tokens, keys = data.documents(96, gaps)
    for row, key, gap in zip(tokens, keys, gaps.tolist(), strict=True):
        text = data.tokenizer.decode(row.tolist())
        digits = data.tokenizer.decode(key.tolist())
        fact, question = FACT.format(key=digits), QUESTION + ANSWER.format(key=digits)
        assert text.endswith("\n" + question)
        assert text.count(fact) == 1
        between = text[text.index(fact) + len(fact) : -len("\n" + question)]
        ids = row[len(row) - len(data.question) - gap : len(row) - len(data.question)]
        assert between == data.tokenizer.decode(ids.tolist())


def test_digits_and_line_ends_are_tokens_of_their_own(folder: Path) -> None:
    tokens = RecallData(folder, "cpu").tokenizer.encode("key is 4821.\n\n").tokens
    assert [token for token in tokens if token in "4821Ċ"] == ["4", "8", "2", "1", "Ċ", "Ċ"]


def test_decoys_keep_the_lines_of_the_text() -> None:
    import random

    text = "\n".join(f"line {i} of the text" for i in range(50))
    for seed in range(5):
        mixed = with_decoys(text, random.Random(seed)).splitlines()
        assert [line for line in mixed if line.endswith("of the text")] == text.splitlines()


def test_segments_equal_one_pass() -> None:
    torch.manual_seed(0)
    model = Samba(TINY)
    tokens = torch.randint(512, (2, 96))
    whole, last = model(tokens, model.new_state(2))
    state, parts = model.new_state(2), []
    for segment in torch.split(tokens, [32, 16, 48], dim=1):
        hidden, state = model(segment, state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    for mine, want in zip(state, last, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)


def test_training_moves_through_the_stages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_recall, "MASTERED", 0.0)
    monkeypatch.setattr(train_recall, "JUDGED", 4)
    monkeypatch.setattr(train_recall, "REPORT_STEPS", 2)
    session = new_session(folder)
    before = [p.clone() for p in session.model.parameters()]
    session.run(1.0, finish=False, stages=STAGES)
    assert session.progress.stage == 1
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before, session.model.parameters(), strict=True)
    )
    assert "stage 0" in capsys.readouterr().out


def test_resuming_equals_going_on(folder: Path, tmp_path: Path) -> None:
    stage = replace(STAGES[0], rows=2)

    def take(session: Session, steps: int) -> None:
        trainer = Trainer(session.model, session.optimizer, stage, graphs=False)
        set_lr(session.optimizer, 1e-2)
        for _ in range(steps):
            session.step(trainer, stage, 1)
            session.progress.step += 1

    session = new_session(folder)
    take(session, 3)
    train_recall.save(session, folder, tmp_path)
    take(session, 2)
    resumed = new_session(folder)
    train_recall.resume(resumed, tmp_path)
    take(resumed, 2)
    assert resumed.progress == session.progress
    for mine, want in zip(resumed.model.parameters(), session.model.parameters(), strict=True):
        assert torch.equal(mine, want)


def test_longspan_reads_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    session = new_session(folder)
    train_recall.save(session, folder, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    decoder = Decoder(checkpoint.config)
    decoder.load_state_dict(dict(checkpoint.tensors()))
    tokens = torch.randint(512, (2, 48))
    with torch.no_grad():
        logits, _ = decoder(tokens, torch.arange(48), decoder.new_state(2))
        hidden, _ = session.model(tokens, session.model.new_state(2))
    torch.testing.assert_close(logits, session.model.head(hidden), rtol=1e-4, atol=1e-5)
    assert checkpoint.tokenizer == tmp_path / "tokenizer.json"
