"""Documents that outlast a step: told once, asked after every segment, read in one state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loop import Run, Session
from ops import differentiable
from small import small, write_text
from start import new_model
from step import Stage, new_optimizer
from streams import Streams
from tasks import Documents, Task

STAGE = Stage(gap=60, length=96, rows=6, facts=3, lifetime=8)


def is_in(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether int64 [n] stands somewhere in int64 [m]."""
    return bool((whole.unfold(0, len(part), 1) == part).all(1).any())


@pytest.mark.parametrize("task", ["passkey", "needles", "mary"])
def test_facts_are_told_once_and_asked_from_then_on(task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    documents = Documents(write_text(tmp_path, "words"), "train", "cpu")
    streams = Streams(documents, (task,), STAGE, {})
    tokenizer = documents.text.tokenizer()
    marks = {"passkey": "pass key is", "needles": "number is", "mary": "went to the"}
    read = [""] * STAGE.rows
    lifetimes, waits = [0] * STAGE.rows, 0
    for _ in range(60):
        fresh, segment = streams.read_on()
        tokens, answers = streams.ask()
        assert tokens.shape == segment.shape == (6, 96)
        for row in range(STAGE.rows):
            if fresh[row]:
                assert lifetimes[row] <= STAGE.lifetime
                read[row], lifetimes[row] = "", 0
            lifetimes[row] += 1
            read[row] += tokenizer.decode(segment[row].tolist())
            told, asked = marks[task] in read[row], bool(answers[row].any())
            assert told == asked
            assert "Question" not in read[row]
            end = tokenizer.decode(tokens[row].tolist())
            assert ("Question" in end) == asked
            waits += not asked
            if not asked:
                continue
            assert marks[task] not in end.split("Question")[0]
            answer = tokens[row, -answers.shape[1] :][answers[row]]
            if task == "passkey":
                assert read[row].count(marks[task]) == 1
                assert f"is {tokenizer.decode(answer.tolist()).strip()}." in read[row]
    assert waits > 0
    assert max(lifetimes) > 1


def test_a_document_is_read_in_one_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model(small("mamba").model, compute=torch.float32, device="cpu")
    run = Run(tasks=("passkey",), stages=(STAGE,), lr=1e-3)
    documents = Documents(write_text(tmp_path, "words"), "train", "cpu")
    session = Session(run, model, new_optimizer(model, 0.0), documents)
    trainer = session.trainer(STAGE)
    streams = session.streams(trainer)
    read = [torch.zeros(0, dtype=torch.long)] * STAGE.rows
    read_on = streams.read_on

    def noted() -> tuple[torch.Tensor, torch.Tensor]:
        fresh, segment = read_on()
        for row in range(STAGE.rows):
            before = read[row][:0] if fresh[row] else read[row]
            read[row] = torch.cat([before, segment[row]])
        return fresh, segment

    streams.read_on = noted  # type: ignore[method-assign]
    for _ in range(5):
        session.read_on(trainer, streams)
        # A step on documents of its own leaves the streams as they are.
        session.step(trainer, 1)
    assert session.progress.tokens == 5 * (2 + 1) * 6 * 96
    assert {len(tokens) for tokens in read} > {96}
    for row, tokens in enumerate(read):
        with torch.no_grad(), differentiable():
            _, after = model(tokens[None], None, model.new_state(1, capacity=96))
        for name, want in after.items():
            torch.testing.assert_close(streams.state[name][row : row + 1], want)


def test_a_document_whose_state_is_not_finite_ends(tmp_path: Path) -> None:
    documents = Documents(write_text(tmp_path, "words"), "train", "cpu")
    state = {"h": torch.zeros(6, 2, 3), "position": torch.zeros(1, dtype=torch.long)}
    streams = Streams(documents, ("passkey",), STAGE, state)
    streams.read_on()
    streams.left.fill_(5)
    state["h"][2, 1, 1] = float("nan")
    state["h"][4, 0, 0] = float("inf")
    streams.keep(state)
    fresh, _ = streams.read_on()
    assert fresh.tolist() == [False, False, True, False, True, False]
