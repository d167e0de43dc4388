"""Whether what a file holds is what leuko writes there: keys, and values by Python's type hints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .errors import nearest

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
LARGEST = 1e300  # of a finite number; an integer beyond it is no float


def fits(value: object, hint: Any, finite: bool = True) -> bool:
    """Whether a value is of the kind of a hint: bool, int, float (an integer is one, too; ``finite`` excludes nan and
    inf), str, None, Literal, unions, lists, tuples and dicts of these, or a mapping of keys to hints."""
    kind, inside = get_origin(hint), get_args(hint)
    if isinstance(hint, Mapping):
        return not misfit(value, hint, finite=finite)
    if kind in (Union, UnionType):
        return any(fits(value, each, finite) for each in inside)
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in inside)
    if kind is dict:
        return isinstance(value, dict) and all(
            fits(k, inside[0], finite) and fits(v, inside[1], finite) for k, v in value.items()
        )
    if kind in (list, tuple):  # which JSON does not tell apart
        return isinstance(value, list | tuple) and all(fits(item, inside[0], finite) for item in value)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float) and (abs(value) < LARGEST or (type(value) is float and not finite))
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is hint if hint is bool else isinstance(value, hint)


def misfit(
    given: object, kinds: Mapping[str, Any], optional: Collection[str] = (), finite: bool = True, more: bool = False
) -> str:
    """What is wrong with a mapping that should hold ``kinds``, key by key, and with ``more`` may hold others; "" where
    nothing is."""
    if not isinstance(given, dict):
        return f"{given!r:.60} is not a mapping"
    for key in kinds:
        if key not in given and key not in optional:
            return f'no "{key}"'
    for key, value in given.items():
        if key not in kinds and not more:
            return f'unknown "{key}"{nearest(str(key), kinds)}'
        if key in kinds and not fits(value, kinds[key], finite):
            return f"{key}: {value!r:.60} is not {_named(kinds[key])}"
    return ""


def _named(hint: Any) -> str:
    """A hint in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_named(each) for each in inside if each is not type(None))
    if kind in (list, tuple):
        return f"a list ({_named(inside[0])} each)"
    if kind is Literal:
        return " or ".join(str(value) for value in inside if value not in ("", None))
    return "a mapping" if isinstance(hint, Mapping) or kind is dict else WORDS.get(hint, str(hint))
