"""What is asked: a pass key, one of several needles, where somebody or something is.

A document is filler with facts hidden in it, in order, and ends in a question and its answer. All
sentences, whose words are `longspan.tasks`', are encoded once, into a matrix of tokens; a batch is
drawn by indexing it on the device, with values that are new each time. Not known here: the model,
the curriculum.

    documents = Documents(text, "train", device="cuda")
    batch = documents.draw(("passkey", "mary"), rows=8, length=512, gap=(1, 300), facts=4)
    batch.tokens[:, -3:], batch.answers[:, -3:]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from longspan import tasks as words
from longspan.tasks import KEY_DIGITS, NEEDLE_DIGITS, OBJECTS, PEOPLE, PLACES, PROMPT, THINGS

if TYPE_CHECKING:
    from text import Array, Text

Task = words.Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A fact, or a question with its answer; zeros stand for the digits of a value."""

    text: str
    answer: str = ""
    digits: int = 0


def fact(text: str, digits: int = 0) -> Sentence:
    """A fact on a line of its own; `{key}` stands for so many digits."""
    return Sentence(text="\n" + text.replace("{key}", "0" * digits) + "\n", digits=digits)


def question(text: str, answer: str = "", digits: int = 0) -> Sentence:
    """A question as the runtime puts it, and its answer: `answer`, or so many digits."""
    said = answer or "0" * digits
    return Sentence(text=PROMPT.format(question=text), answer=f" {said}\n", digits=digits)


FACTS: tuple[Sentence, ...] = (
    fact(words.KEY, KEY_DIGITS),
    *(fact(words.NEEDLE.replace("{thing}", thing), NEEDLE_DIGITS) for thing in THINGS),
    *(fact(words.WENT.format(who=who, where=where)) for who in PEOPLE for where in PLACES),
    *(fact(words.TOOK.format(who=who, what=what)) for who in PEOPLE for what in OBJECTS),
    *(fact(words.DROPPED.format(who=who, what=what)) for who in PEOPLE for what in OBJECTS),
)
QUESTIONS: tuple[Sentence, ...] = (
    question(words.KEY_QUESTION, digits=KEY_DIGITS),
    *(
        question(words.NEEDLE_QUESTION.format(thing=thing), digits=NEEDLE_DIGITS)
        for thing in THINGS
    ),
    *(
        question(words.WHERE_IS_SOMEBODY.format(who=who), where)
        for who in PEOPLE
        for where in PLACES
    ),
    *(
        question(words.WHERE_IS_SOMETHING.format(what=what), where)
        for what in OBJECTS
        for where in PLACES
    ),
)
# Where the sentences of a kind begin in FACTS and QUESTIONS.
NEEDLES_FROM = 1
WENT_FROM = NEEDLES_FROM + len(THINGS)
TOOK_FROM = WENT_FROM + len(PEOPLE) * len(PLACES)
DROPPED_FROM = TOOK_FROM + len(PEOPLE) * len(OBJECTS)
SOMEBODY_FROM = WENT_FROM
SOMETHING_FROM = SOMEBODY_FROM + len(PEOPLE) * len(PLACES)


def sentences_of_tasks() -> list[str]:
    """All of them, as text: a tokenizer that was trained on them has their words whole."""
    return [each.text + each.answer for each in (*FACTS, *QUESTIONS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Which facts and which question, by row, and the values in them.

    Attributes:
        facts: int64 [B, F], of FACTS, in the order of the text.
        values: int64 [B, F, KEY_DIGITS], digits.
        question: int64 [B], of QUESTIONS.
        answer: int64 [B, KEY_DIGITS], digits.
    """

    facts: torch.Tensor
    values: torch.Tensor
    question: torch.Tensor
    answer: torch.Tensor


def draw_passkey(rows: int, facts: int, device: torch.device) -> Drawn:
    """One key."""
    del facts
    none = torch.zeros(rows, 1, dtype=torch.long, device=device)
    values = torch.randint(10, (rows, 1, KEY_DIGITS), device=device)
    return Drawn(facts=none, values=values, question=none[:, 0], answer=values[:, 0])


def draw_needles(rows: int, facts: int, device: torch.device) -> Drawn:
    """Numbers of `facts` different things, of which one is asked for."""
    things = torch.rand(rows, len(THINGS), device=device).argsort(1)[:, :facts]
    values = torch.randint(10, (rows, facts, KEY_DIGITS), device=device)
    row = torch.arange(rows, device=device)
    asked = torch.randint(facts, (rows,), device=device)
    return Drawn(
        facts=NEEDLES_FROM + things,
        values=values,
        question=NEEDLES_FROM + things[row, asked],
        answer=values[row, asked],
    )


def draw_mary(rows: int, facts: int, device: torch.device) -> Drawn:
    """A story of `facts` events, in half of the rows of walks alone, and where it left something.

    In the other half people take things along and drop them, and a thing is asked for. The first
    two events make one thing's place known: somebody goes somewhere and takes it.
    """
    row = torch.arange(rows, device=device)
    carried = (row % 2 == 1) & (facts > 1)
    nobody, nowhere = len(PEOPLE), len(PLACES)
    at = torch.full((rows, len(PEOPLE)), nowhere, device=device)
    lies = torch.full((rows, len(OBJECTS)), nowhere, device=device)
    holder = torch.full((rows, len(OBJECTS)), nobody, device=device)
    first, events = torch.zeros_like(row), []
    for k in range(facts):
        who, where, what, choice = (
            torch.randint(count, (rows,), device=device)
            for count in (len(PEOPLE), len(PLACES), len(OBJECTS), 3)
        )
        if k == 1:
            who, choice = torch.where(carried, first, who), torch.ones_like(choice)
        here, held = at[row, who], holder[row, what]
        takes = carried & (k > 0) & (choice == 1) & (held == nobody) & (here != nowhere)
        takes &= (lies[row, what] == nowhere) | (lies[row, what] == here)
        drops = carried & (choice == 2) & (held == who)
        walks = ~(takes | drops)
        where = torch.where(where == here, (where + 1) % len(PLACES), where)

        at[row, who] = torch.where(walks, where, here)
        holder[row, what] = torch.where(takes, who, torch.where(drops, nobody, held))
        lies[row, what] = torch.where(takes | drops, here, lies[row, what])
        thing = who * len(OBJECTS) + what
        events.append(
            torch.where(
                walks,
                WENT_FROM + who * len(PLACES) + where,
                torch.where(takes, TOOK_FROM + thing, DROPPED_FROM + thing),
            )
        )
        first = who if k == 0 else first
    places_of_people = torch.cat([at, torch.full_like(at[:, :1], nowhere)], dim=1)
    places = torch.where(holder == nobody, lies, places_of_people.gather(1, holder))
    who, person_at = _one_known(at, nowhere)
    what, thing_at = _one_known(places, nowhere)
    nothing = torch.zeros(rows, facts, KEY_DIGITS, dtype=torch.long, device=device)
    return Drawn(
        facts=torch.stack(events, dim=1),
        values=nothing,
        question=torch.where(
            carried,
            SOMETHING_FROM + what * len(PLACES) + thing_at,
            SOMEBODY_FROM + who * len(PLACES) + person_at,
        ),
        answer=nothing[:, 0],
    )


def _one_known(places: torch.Tensor, nowhere: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One column of int64 [B, n] whose place is known, drawn for each row, and that place."""
    drawn = torch.rand(places.shape, device=places.device) + (places != nowhere)
    column = drawn.argmax(1)
    return column, places.gather(1, column[:, None])[:, 0].clamp(max=nowhere - 1)


DRAW: Mapping[str, Callable[[int, int, torch.device], Drawn]] = MappingProxyType(
    {"passkey": draw_passkey, "needles": draw_needles, "mary": draw_mary}
)


class Matrix:
    """Sentences as rows of tokens, those of a short one at the left or at the right of its row."""

    def __init__(self, text: Text, sentences: tuple[Sentence, ...], device: str, side: str) -> None:
        """Encode them, with the question and its answer apart, as the runtime has them."""
        tokenizer = text.tokenizer()
        zero, digits = (torch.tensor(tokenizer.encode(d)) for d in ("0", "0123456789"))
        texts = [torch.tensor(tokenizer.encode(each.text)) for each in sentences]
        answers = [
            torch.tensor(tokenizer.encode(each.answer, continues=True)) if each.answer else zero[:0]
            for each in sentences
        ]
        whole = [torch.cat(pair) for pair in zip(texts, answers, strict=True)]
        ids = pad_sequence(whole, batch_first=True, padding_side=side)
        self.lengths = torch.tensor([len(row) for row in whole], device=device)
        self.answers = torch.tensor([len(row) for row in answers], device=device)
        # A value's digits are the first zeros of its sentence; others get no digits at all.
        starts = (ids == zero).long().argmax(1)
        count = torch.tensor([each.digits for each in sentences])
        steps = torch.arange(KEY_DIGITS)
        self.width = ids.shape[1]
        slots = torch.where(steps < count[:, None], starts[:, None] + steps, self.width)
        self.ids, self.slots, self.digits = (t.to(device) for t in (ids, slots, digits))

    def rows(self, index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [n, S] of sentences [n] with digits [n, KEY_DIGITS] as their values."""
        rows = torch.nn.functional.pad(self.ids[index], (0, 1))
        return rows.scatter(1, self.slots[index], self.digits[values])[:, : self.width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Documents.

    Attributes:
        tokens: int64 [B, L].
        asked: bool [B, Q], which of the last Q are the question and its answer.
        answers: bool [B, A], which of the last A are the answer.
    """

    tokens: torch.Tensor
    asked: torch.Tensor
    answers: torch.Tensor


class Documents:
    """Draws documents on the device that trains."""

    def __init__(self, text: Text, array: Array, device: str) -> None:
        """Load one array of filler, and encode all sentences."""
        self.text = text
        self.filler = torch.from_numpy(text.ids(array).astype("int32")).to(device)
        self.facts = Matrix(text, FACTS, device, "right")
        self.questions = Matrix(text, QUESTIONS, device, "left")
        self.answer_tokens = int(self.questions.answers.max())

    def most_facts(self, length: int, wanted: int) -> int:
        """How many facts have room in a document of `length` tokens, at most `wanted`."""
        return max(1, min(wanted, (length - self.questions.width - 1) // self.facts.width))

    def longest_gap(self, length: int, facts: int) -> int:
        """Most tokens between so many facts, and between them and the question."""
        return length - self.questions.width - facts * self.facts.width

    def filler_rows(self, rows: int, length: int) -> torch.Tensor:
        """Filler from anywhere, int64 [rows, length]."""
        device = self.filler.device
        start = torch.randint(len(self.filler) - length, (rows, 1), device=device)
        return self.filler[start + torch.arange(length, device=device)].long()

    def draw(
        self, tasks: tuple[Task, ...], *, rows: int, length: int, gap: tuple[int, int], facts: int
    ) -> Batch:
        """Documents of `length` tokens, the tasks one after another with the same share of `rows`.

        Args:
            tasks: at least one.
            rows: documents, at least one a task.
            length: tokens of each.
            gap: least and most tokens between the first fact and the question, without the other
                facts; drawn log-uniformly, less where a document has no room.
            facts: of needles and mary.
        """
        batches = [
            self._compose(DRAW[task](len(share), count, self.filler.device), length, gap)
            for task, share in zip(tasks, torch.arange(rows).tensor_split(len(tasks)), strict=True)
            for count in [1 if task == "passkey" else self.most_facts(length, facts)]
        ]
        return Batch(
            tokens=torch.cat([batch.tokens for batch in batches]),
            asked=torch.cat([batch.asked for batch in batches]),
            answers=torch.cat([batch.answers for batch in batches]),
        )

    def _compose(self, drawn: Drawn, length: int, gap: tuple[int, int]) -> Batch:
        rows, count = drawn.facts.shape
        device, width = drawn.facts.device, self.facts.width
        most = min(gap[1], self.longest_gap(length, count))
        gaps = log_uniform(rows, min(gap[0], most), most, device)
        offsets = (torch.rand(rows, count, device=device) * (gaps[:, None] + 1)).long()
        offsets[:, 0] = 0
        before = length - self.questions.width - count * width - gaps
        slots = torch.arange(count, device=device) * width
        places = before[:, None] + slots + offsets.sort(1).values

        texts = self.facts.rows(drawn.facts.flatten(), drawn.values.flatten(0, 1))
        within = torch.arange(width, device=device)
        columns = places[:, :, None] + within
        # What a short fact leaves of its row goes into a column that is cut off.
        columns = torch.where(within < self.facts.lengths[drawn.facts][..., None], columns, length)
        tokens = torch.nn.functional.pad(self.filler_rows(rows, length), (0, 1))
        tokens.scatter_(1, columns.flatten(1), texts.reshape(rows, -1))

        questions = self.questions.rows(drawn.question, drawn.answer)
        end = torch.arange(self.questions.width, 0, -1, device=device)
        last = tokens[:, length - self.questions.width : length]
        places = end <= self.questions.lengths[drawn.question][:, None]
        last.copy_(torch.where(places, questions, last))
        answers = end[-self.answer_tokens :] <= self.questions.answers[drawn.question][:, None]
        return Batch(tokens=tokens[:, :length].contiguous(), asked=places, answers=answers)


def log_uniform(rows: int, low: int, high: int, device: torch.device) -> torch.Tensor:
    """Log-uniform int64 [rows] in low..high."""
    start, end = torch.tensor([low, high + 1.0]).log().tolist()
    drawn = torch.exp(start + (end - start) * torch.rand(rows, device=device))
    return drawn.long().clamp(low, high)
