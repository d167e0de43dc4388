"""Files: read with an error that names the file, written whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .errors import LeukoError

REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


@contextmanager
def io_errors_as(action: str, path: str | Path = "") -> Iterator[None]:
    """Turn an OSError into a LeukoError of one line: which file cannot be ``action`` ("read", "written"), why, and, for
    writing, the remedy. ``path`` is the file where the system does not name it. Also a decorator."""
    try:
        yield
    except OSError as error:
        file = path or error.filename or "the data"
        if action == "read":
            raise LeukoError(f"{file}: cannot be read: {error.strerror}") from error
        remedy = REMEDIES.get(error.errno or 0, "check the folder, or choose another one")
        raise LeukoError(f"{file}: cannot be {action} ({error.strerror or error}); {remedy}") from error


# ---------------------------------------------------------------- reading


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without its byte-order mark; raises LeukoError."""
    try:
        with io_errors_as("read", path):
            return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LeukoError(f"{path}: byte {error.start}: not UTF-8 text; save the file as UTF-8") from error


def read_list(path: Path) -> list[str]:
    """Return the lines of a list, stripped, without blank lines and ``#`` comments; raises LeukoError."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a short file can expand without end."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*NAME) are not accepted", problem_mark=mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict:
    """Return the mapping that a YAML file holds ({} for an empty file); raises LeukoError."""
    text = read_text(path)
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise LeukoError(f"{path}: {line}broken YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # such as "!!bool maybe"
        raise LeukoError(f"{path}: broken YAML: {one_line(str(error))}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise LeukoError(f"{path}: is not a mapping; write one 'key: value' per line")
    return content


def one_line(text: str) -> str:
    """Replace control characters, which a name in a file may hold, so that a message stays on one line."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


# ---------------------------------------------------------------- writing


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to; at the end of the block it takes the place of ``path``.

    If the block fails, ``path`` is left as it was and the temporary file is removed. Raises LeukoError where the
    system refuses to write.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    with io_errors_as("written", path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process left of the files it was writing (see ``replacing``)."""
    for leftover in Path(folder).rglob(".*.tmp"):
        leftover.unlink()


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a whole file or none (see ``replacing``)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, errors: str = "backslashreplace") -> None:
    """Write UTF-8 text, whole or not at all. A file name that is not valid Unicode is written as an escape,
    ``\\udcff``; with ``errors="strict"`` it raises LeukoError, since a label file must name its image exactly."""
    try:
        data = text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        named = error.object[max(error.start - 20, 0) : error.end + 20].encode("utf-8", "backslashreplace").decode()
        raise LeukoError(f"{path}: cannot be written: ...{one_line(named)}... is not UTF-8; rename the file") from error
    write_bytes(path, data)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON. Arrays become lists, paths strings, and numbers that JSON does not know (nan, inf) null."""
    write_text(path, json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write YAML, keys in the order given. Unlike JSON it knows nan and inf."""
    write_text(path, yaml.safe_dump(plain(value, finite=False), sort_keys=False, allow_unicode=True))


def write_csv(path: str | Path, rows: Sequence[dict], columns: Sequence[str] = ()) -> None:
    """Write rows under ``columns`` and whatever else they have; what is missing, None or nan is left empty."""
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(row) for row in rows)
    write_text(path, text.getvalue())


def plain(value: Any, finite: bool = True) -> Any:
    """Return ``value`` made of dicts, lists, strings, numbers, booleans and None only; nan and inf become None where
    numbers must be ``finite``."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(item, finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, finite) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist(), finite)
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value), finite)
    return value


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it; raises LeukoError."""
    with io_errors_as("made", path):
        path.mkdir(parents=True, exist_ok=True)
    return path
