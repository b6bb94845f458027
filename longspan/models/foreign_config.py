"""A strict reader for other projects' ``config.json``: every key is known, or refused by name.

FIELDS = {"d_model": Field(int), "rms_norm": Field(bool, default=True, only=(True,))}
values = read_fields(data, FIELDS, where="mamba/config.json", family="mamba")
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import BadCheckpoint


class _Required:
    """The default of a key that has none."""


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Field:
    """What a key may hold.

    Attributes:
        kind: type of the value; `object` where it is ignored, or checked by the family itself.
        default: value of an absent key; `REQUIRED` if it must be there.
        only: the values that longspan supports; empty for any.
        positive: whether a number must be above zero.
        ignored: whether the value says nothing about what the model computes.
    """

    kind: type = object
    default: Any = REQUIRED
    only: tuple[Any, ...] = ()
    positive: bool = False
    ignored: bool = False


def ignored(*keys: str) -> dict[str, Field]:
    """Keys that may be there and say nothing about what the model computes."""
    return dict.fromkeys(keys, Field(default=None, ignored=True))


def count(default: Any = REQUIRED) -> Field:
    """A whole number above zero."""
    return Field(int, default, positive=True)


def load_config(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadCheckpoint: the file is not there, or holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(
            f"{path} was asked for as a config and cannot be read ({error}). "
            "It must be a JSON object. Check the path, or download the file again."
        ) from error
    if not isinstance(data, dict):
        raise BadCheckpoint(
            f"{path} was asked for as a config and holds a {type(data).__name__}. "
            "It must be a JSON object. Download the file again."
        )
    return data


def read_fields(
    data: Mapping[str, Any], fields: Mapping[str, Field], *, where: str, family: str
) -> dict[str, Any]:
    """Check `data` against `fields`, and fill in the defaults.

    Args:
        data: a config as its author wrote it.
        fields: every key that the family knows.
        where: what to call the config in a message, such as its path.
        family: name of the family, for messages.

    Raises:
        BadCheckpoint: a key is unknown, missing, of the wrong type, or has an unsupported value.
    """
    for key in data:
        if key not in fields:
            raise BadCheckpoint(
                f"{where} has the key {key!r}, which a {family} config does not have"
                f"{_nearest(key, fields)}. Every key must be known, "
                "because an ignored one could change the model. Correct or remove it."
            )
    return {key: _value(key, field, data, where, family) for key, field in fields.items()}


def _value(key: str, field: Field, data: Mapping[str, Any], where: str, family: str) -> Any:
    if key not in data:
        if field.default is REQUIRED:
            raise BadCheckpoint(
                f"{where} lacks the key {key!r}. A {family} config must have it. Add it."
            )
        return field.default
    value = data[key]
    if field.only and value not in field.only:
        raise BadCheckpoint(
            f"{where} has {key} = {json.dumps(value)}; longspan supports {_values(field.only)} "
            f"for a {family} model. This checkpoint cannot be exported by this version."
        )
    if value is None and field.default is None:
        return None
    if not _fits(value, field):
        rule = ("a positive " if field.positive else "a ") + field.kind.__name__
        raise BadCheckpoint(
            f"{where} has {key} = {json.dumps(value)}; it must be {rule}. Correct it."
        )
    return value


def _fits(value: Any, field: Field) -> bool:
    if field.kind is object:
        return True
    if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    exact = isinstance(value, field.kind) and (field.kind is bool or not isinstance(value, bool))
    return exact and (not field.positive or value > 0)


def _values(values: Iterable[Any]) -> str:
    return "only " + " or ".join(json.dumps(value) for value in values)


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f" (the nearest known key is {near[0]!r})" if near else ""
