"""What a story of people who walk, take and drop comes to, told by its sentences alone."""

from __future__ import annotations

from collections.abc import Iterable

EVENT = r"(\w+) (went to|took|dropped) the (\w+)\."


def where_it_ended(events: Iterable[tuple[str, str, str]], asked: str) -> str:
    """Where somebody or something is, by who did what to what or whither."""
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    for who, verb, what in events:
        if verb == "went to":
            assert at.get(who) != what, "nobody goes where they are"
            at[who] = what
            at |= {thing: what for thing, by in holder.items() if by == who}
        elif verb == "took":
            assert what not in holder, "nobody else holds it"
            assert at.get(what, at[who]) == at[who], "it lies where it is taken"
            holder[what] = who
            at[what] = at[who]
        else:
            assert holder.pop(what) == who, "only its holder drops it"
    return at[asked]
