"""Whether the fields of a dataclass hold what their annotations say: for values from a file.

require_field_types(manifest)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require_field_types(instance: Any) -> None:
    """Check every field of a dataclass, those of dataclasses inside it among them.

    An int counts as a float; a bool as neither.

    Raises:
        TypeError: a field holds something else.
    """
    kind: Any = type(instance)
    hints = _hints_of(kind)
    for field in fields(instance):
        value = getattr(instance, field.name)
        if not _is_a(value, hints[field.name]):
            raise TypeError(f"{field.name} is {value!r}, and must be {field.type}")


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_a(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_a(value, each) for each in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(each, args[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _is_a(key, args[0]) and _is_a(each, args[1]) for key, each in value.items()
        )
    if not isinstance(value, (int, float) if hint is float else hint):
        return False
    if is_dataclass(value):
        require_field_types(value)
    return not isinstance(value, bool) or hint is bool
