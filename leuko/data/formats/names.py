"""Lists of class names in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import read_text, write_text


def by_index(names: object, file: Path) -> dict[int, str]:
    """Read a data YAML's ``names``, a list or a mapping of index to name, in the order of the indices.

    Raises LeukoError where a name stands twice or is none: YAML takes an unquoted NO for "false".
    """
    if names is None:
        return {}
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else None
    if pairs is None:
        raise LeukoError(f"{file}: names: {names!r:.60} is neither a list nor a mapping of index to name")
    result: dict[int, str] = {}
    for index, name in sorted(pairs, key=lambda pair: str(pair[0]).zfill(9)):
        if isinstance(index, bool) or not str(index).isdecimal():
            raise LeukoError(f"{file}: names: {index!r} is not an index; write 0, 1, 2, ... before the names")
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise LeukoError(f"{file}: names: {index}: {name!r} is not a name; write one there, in YAML in quotes")
        if str(name).strip() in result.values():
            raise LeukoError(f'{file}: names: "{name}" stands there twice; keep one')
        result[int(index)] = str(name).strip()
    return result


def names_in(file: Path) -> dict[int, str]:
    """Read a ``classes.txt``: a class a line, as :func:`by_index`; an empty one is refused."""
    return by_index(read_text(file).rstrip().splitlines(), file)


def keep_names(file: Path, names: Sequence[str]) -> None:
    """Write class names, one a line; a file of other names there raises LeukoError, as its labels would change."""
    if file.is_file():
        check_same(file, list(names_in(file).values()), names)
    else:
        write_text(file, "".join(f"{name}\n" for name in names))


def check_same(file: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Raise LeukoError where a folder that is written to holds a data set of other classes."""
    if list(old) != list(new):
        raise LeukoError(
            f"{file}: the folder holds the classes {', '.join(old)}, not {', '.join(new)}; write into another folder"
        )
