"""What is asked of a model that read a long text: facts to hide in it, a question, its answer.

`passkey`: a key is said once (arXiv 2305.16300). `needles`: one of eight numbers is asked for.
`mary`: people walk, take things and drop them; where is who, or what (bAbI 1 and 2, arXiv
1502.05698, inside a long text as in arXiv 2406.10149). One place for the words: training, the demo,
the benchmarks and the tests all say the same. Not known here: models, tokens, files.

    quiz = draw_quiz("mary", random.Random(7))
    text = hide(pieces, quiz.facts, total_bytes=n)
    quiz.question, quiz.answer, quiz.in_words("kitchen")
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Task = Literal["passkey", "needles", "mary"]
TASKS: tuple[Task, ...] = ("passkey", "needles", "mary")

KEY_DIGITS = 5
NEEDLE_DIGITS = 3
# What a document holds of needles, and how many events a story has.
FACTS = 8
THINGS = (
    "boat", "train", "room", "ticket", "house", "locker", "flight", "order",
    "phone", "page", "gate", "table", "account", "badge", "box", "seat",
)  # fmt: skip
PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("kitchen", "garden", "office", "bathroom", "bedroom", "hallway")
OBJECTS = ("football", "apple", "milk")

KEY = "The pass key is {key}. Remember it."
KEY_QUESTION = "What is the pass key?"
KEY_REPLY = "The pass key is {answer}."
NEEDLE = "The {thing} number is {key}."
NEEDLE_QUESTION = "What is the {thing} number?"
NEEDLE_REPLY = "The {thing} number is {answer}."
WENT = "{who} went to the {where}."
TOOK = "{who} took the {what}."
DROPPED = "{who} dropped the {what}."
WHERE_IS_SOMEBODY = "Where is {who}?"
WHERE_IS_SOMETHING = "Where is the {what}?"
SOMEBODY_REPLY = "{who} is in the {answer}."
SOMETHING_REPLY = "The {what} is in the {answer}."
PROMPT = "\nQuestion: {question}\nAnswer:"

# A fact goes where a line begins; a longer line is parted between two words.
LINE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A sentence, and where in the text it goes: 0 the start, 1 the end."""

    text: str
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiz:
    """Facts to hide in a text, and what is asked about them.

    Attributes:
        task: which of `TASKS` it is.
        facts: in the order of the text.
        depth: place of the fact that is asked for; of a story, its start.
        question: without the prompt around it.
        answer: what a model should say: digits, or a place.
        reply: the sentence that an answer becomes, with ``{answer}``.
    """

    task: Task
    facts: tuple[Fact, ...]
    depth: float
    question: str
    answer: str
    reply: str

    def in_words(self, said: str) -> str:
        """What a model said as a sentence; as it is, in quotes, where it is no answer at all."""
        fits = said in PLACES if self.task == "mary" else said.isdecimal()
        return self.reply.replace("{answer}", said) if fits else f'"{said}"'


def draw_quiz(task: Task, rng: random.Random, depth: float | None = None) -> Quiz:
    """Draw new values, what is asked for, and the places of the facts.

    Args:
        task: one of `TASKS`.
        rng: of all that is drawn.
        depth: place of the fact that is asked for, or of a story's start, 0 to 1; None for any,
            of a story in the first half.
    """
    return DRAW[task](rng, depth)


def _draw_passkey(rng: random.Random, depth: float | None) -> Quiz:
    key = _digits(rng, KEY_DIGITS)
    depth = rng.random() if depth is None else depth
    return Quiz(
        task="passkey",
        facts=(Fact(text=KEY.format(key=key), depth=depth),),
        depth=depth,
        question=KEY_QUESTION,
        answer=key,
        reply=KEY_REPLY,
    )


def _draw_needles(rng: random.Random, depth: float | None) -> Quiz:
    things = rng.sample(THINGS, FACTS)
    keys = [_digits(rng, NEEDLE_DIGITS) for _ in things]
    depths = [rng.random() for _ in things]
    if depth is not None:
        depths[0] = depth
    facts = [
        Fact(text=NEEDLE.format(thing=thing, key=key), depth=place)
        for thing, key, place in zip(things, keys, depths, strict=True)
    ]
    return Quiz(
        task="needles",
        facts=tuple(sorted(facts, key=lambda fact: fact.depth)),
        depth=depths[0],
        question=NEEDLE_QUESTION.format(thing=things[0]),
        answer=keys[0],
        reply=NEEDLE_REPLY.replace("{thing}", things[0]),
    )


def _draw_mary(rng: random.Random, depth: float | None) -> Quiz:
    carried = rng.random() < 0.5
    story = Story(rng)
    who = story.walk()
    if carried:
        story.take(who, rng.choice(OBJECTS))
    while len(story.events) < FACTS:
        story.go_on(carried=carried)
    start = rng.uniform(0, 0.5) if depth is None else depth
    depths = [start, *sorted(rng.uniform(start, 1) for _ in story.events[1:])]
    if carried:
        what = rng.choice(sorted(story.lies.keys() | story.holder.keys()))
        question, answer = WHERE_IS_SOMETHING.format(what=what), story.place_of(what)
        reply = SOMETHING_REPLY.replace("{what}", what)
    else:
        who = rng.choice(sorted(story.at))
        question, answer = WHERE_IS_SOMEBODY.format(who=who), story.at[who]
        reply = SOMEBODY_REPLY.replace("{who}", who)
    return Quiz(
        task="mary",
        facts=tuple(
            Fact(text=event, depth=place) for event, place in zip(story.events, depths, strict=True)
        ),
        depth=start,
        question=question,
        answer=answer,
        reply=reply,
    )


DRAW: Mapping[Task, Callable[[random.Random, float | None], Quiz]] = MappingProxyType(
    {"passkey": _draw_passkey, "needles": _draw_needles, "mary": _draw_mary}
)


class Story:
    """People who walk about, take things along and drop them.

    Attributes:
        events: what happened, a sentence each.
        at: the place of everybody who walked.
        holder: who holds a thing.
        lies: the place of a thing that somebody dropped.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.events: list[str] = []
        self.at: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.lies: dict[str, str] = {}

    def place_of(self, what: str) -> str:
        """Where a thing is that was taken at least once."""
        return self.at[self.holder[what]] if what in self.holder else self.lies[what]

    def walk(self) -> str:
        """Somebody goes to another place; returns who."""
        who = self._rng.choice(PEOPLE)
        where = self._rng.choice([place for place in PLACES if place != self.at.get(who)])
        self.at[who] = where
        self.events.append(WENT.format(who=who, where=where))
        return who

    def take(self, who: str, what: str) -> None:
        """`who` takes `what` where it lies, or where nobody has seen it yet."""
        self.holder[what] = who
        self.lies.pop(what, None)
        self.events.append(TOOK.format(who=who, what=what))

    def drop(self, what: str) -> None:
        """Its holder drops `what`."""
        who = self.holder.pop(what)
        self.lies[what] = self.at[who]
        self.events.append(DROPPED.format(who=who, what=what))

    def go_on(self, *, carried: bool) -> None:
        """One event more; without `carried`, nobody takes or drops anything."""
        choice = self._rng.choice(("walk", "take", "drop")) if carried else "walk"
        who, what = self._rng.choice(PEOPLE), self._rng.choice(OBJECTS)
        here = self.at.get(who)
        free = what not in self.holder and self.lies.get(what, here) == here
        if choice == "take" and here is not None and free:
            self.take(who, what)
        elif choice == "drop" and self.holder.get(what) == who:
            self.drop(what)
        else:
            self.walk()


def draw_distractor(task: Task, rng: random.Random, depth: float) -> Fact:
    """A fact of another task, which is not asked for: a number, or for needles a walk."""
    if task == "needles":
        text = WENT.format(who=rng.choice(PEOPLE), where=rng.choice(PLACES))
    else:
        text = NEEDLE.format(thing=rng.choice(THINGS), key=_digits(rng, NEEDLE_DIGITS))
    return Fact(text=text, depth=depth)


def _digits(rng: random.Random, count: int) -> str:
    return f"{rng.randrange(10**count):0{count}d}"


def hide(pieces: Iterable[str], facts: Iterable[Fact], *, total_bytes: int) -> Iterator[str]:
    """Pass a text through with each fact on a line of its own, where a line begins past its depth.

    Args:
        pieces: the text, in pieces of any size, which do not matter.
        facts: what to hide, and where; those of the same depth in this order.
        total_bytes: UTF-8 bytes of the whole text.
    """
    waiting = sorted(facts, key=lambda fact: fact.depth)
    done, last = 0, "\n"
    for line in _lines(pieces):
        while waiting and done >= int(total_bytes * waiting[0].depth):
            yield ("" if last == "\n" else "\n") + waiting.pop(0).text + "\n"
            last = "\n"
        done += len(line.encode())
        last = line[-1]
        yield line
    for fact in waiting:
        yield ("" if last == "\n" else "\n") + fact.text + "\n"
        last = "\n"


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """A text by its lines; one of more than `LINE_CHARACTERS` in parts, after spaces if it can."""
    held = ""
    for piece in pieces:
        *whole, held = (held + piece).split("\n")
        for line in whole:
            yield from _parts(line + "\n")
        *parts, held = _parts(held)
        yield from parts
    if held:
        yield held


def _parts(line: str) -> list[str]:
    """Parts of a line from its start; the last has what is left."""
    parts = []
    while len(line) > LINE_CHARACTERS:
        end = line.rfind(" ", 0, LINE_CHARACTERS) + 1 or LINE_CHARACTERS
        parts.append(line[:end])
        line = line[end:]
    return [*parts, line]
