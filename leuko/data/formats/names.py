"""Lists of class names: ``names`` in a data YAML, and ``classes.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import read_text, write_text


def parse_names(names: object, file: Path) -> dict[int, str]:
    """A data YAML's ``names``, a list or a mapping of index to name, in the order of the indices.

    Raises LeukoError where a name occurs twice or is not a name: YAML reads an unquoted NO as "false".
    """
    if not isinstance(names, dict | list | None):
        raise LeukoError(f"{file}: names: {names!r:.60} is neither a list nor a mapping of index to name")
    pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
    result: dict[int, str] = {}
    for index, name in sorted(pairs, key=lambda pair: str(pair[0]).zfill(9)):
        if isinstance(index, bool) or not str(index).isdecimal():
            raise LeukoError(f"{file}: names: {index!r} is not an index; write 0, 1, 2, ... before the names")
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise LeukoError(f"{file}: names: {index}: {name!r} is not a name; write one, in quotes if it is YAML")
        if str(name).strip() in result.values():
            raise LeukoError(f'{file}: names: "{name}" is listed twice; keep one')
        result[int(index)] = str(name).strip()
    return result


def read_names(file: Path) -> dict[int, str]:
    """The classes of a ``classes.txt`` by index, one per line; an empty line is an error, except at the end."""
    return parse_names(read_text(file).rstrip().splitlines(), file)


def write_names(file: Path, names: Sequence[str]) -> None:
    """Write a ``classes.txt``; one with other names raises LeukoError, since its labels would change meaning."""
    if file.is_file():
        check_same(file, list(read_names(file).values()), names)
    else:
        write_text(file, "".join(f"{name}\n" for name in names), errors="strict")


def check_same(file: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Raise LeukoError where the folder to write to holds a data set of other classes."""
    if list(old) != list(new):
        listed = f"{', '.join(old)}, not {', '.join(new)}"
        raise LeukoError(f"{file}: the folder holds the classes {listed}; write into another folder")
