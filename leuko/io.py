"""Files: read with an error that names the file, written whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import yaml

from .errors import LeukoError

TEXT_LIMIT = 64  # megabytes; JSON of this size takes 0.7 GB of memory and 3 s
YAML_LIMIT = 1
XML_LIMIT = 8
MAX_DEPTH = 50  # of nested lists, mappings and elements
MAX_SCALAR = 4_000  # characters of one YAML value, since some numbers take quadratic time
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


def check_readable(path: str | Path, megabytes: float = math.inf) -> None:
    """Raise LeukoError unless ``path`` is a regular file (a pipe waits for ever, a device never ends) of at most this
    size."""
    if "\0" in str(path) or not os.path.lexists(path):
        raise LeukoError(f"{path}: no such file")
    with io_errors_as("read", path):
        status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise LeukoError(f"{path}: is a folder; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise LeukoError(f"{path}: is no regular file but a pipe or a device; copy its content to a file")
    if status.st_size > megabytes * 1e6:
        raise LeukoError(
            f"{path}: has {status.st_size / 1e6:,.0f} MB, more than the {megabytes:g} MB that are read of such a file; "
            "divide it, or remove it if it is not yours"
        )


def read_bytes(path: str | Path, megabytes: float = TEXT_LIMIT) -> bytes:
    """Return the content of a regular file of at most this size; raises LeukoError."""
    check_readable(path, megabytes)
    with io_errors_as("read", path):
        return Path(path).read_bytes()


def read_text(path: Path, megabytes: float = TEXT_LIMIT) -> str:
    """Return the text of a UTF-8 file without its byte-order mark; raises LeukoError."""
    try:
        return read_bytes(path, megabytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LeukoError(f"{path}: byte {error.start}: not UTF-8 text; save the file as UTF-8") from error


def read_list(path: Path) -> list[str]:
    """Return the lines of a list, stripped, without blank lines and ``#`` comments; raises LeukoError."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def read_json(path: Path, megabytes: float = TEXT_LIMIT) -> Any:
    """Return the content of a JSON file; LeukoError where it is broken, nested too deeply, or has a key twice."""
    text = read_text(path, megabytes)
    try:
        return parse_json(text)
    except ValueError as error:
        raise LeukoError(f"{path}: broken JSON: {error}") from error


def parse_json(text: str) -> Any:
    """Return what JSON text holds; ValueError where it is broken, nested too deeply, or has a key twice."""
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (value for each in level for value in (each.values() if isinstance(each, dict) else each))
        level = [value for value in inside if isinstance(value, dict | list)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of these pairs; ValueError where one of two values of a key would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f'the key "{twice}" stands twice in one mapping; keep one')
    return content


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which no key of a mapping stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f'the key "{key.value}" stands there twice; keep one'
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _check_yaml(text: str) -> None:
    """Refuse what makes a short file long: aliases, with which it expands without end, deep nesting, huge numbers."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = "aliases (*NAME) are not accepted" if isinstance(event, yaml.AliasEvent) else ""
        problem = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else problem
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            problem = f"a value of {len(event.value):,} characters"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def read_yaml(path: Path) -> dict:
    """Return the mapping that a YAML file holds ({} for an empty file); raises LeukoError."""
    text = read_text(path, YAML_LIMIT)
    try:
        _check_yaml(text)
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise LeukoError(f"{path}: {line}broken YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # such as "!!bool maybe"
        raise LeukoError(f"{path}: broken YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise LeukoError(f"{path}: is not a mapping; write one 'key: value' per line")
    return content


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree whose text can neither name entities, which expand without end, nor other files."""

    def doctype(self, *_: object) -> None:
        raise LeukoError("a DOCTYPE is not accepted; remove it")


def read_xml(path: Path) -> Element:
    """The root of an XML file; LeukoError where it is broken, nested too deeply, or has a DOCTYPE."""
    data = read_bytes(path, XML_LIMIT)
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except LeukoError as error:
        raise LeukoError(f"{path}: {error}") from error
    except ElementTree.ParseError as error:
        reason = f"line {error.position[0]}: broken XML: {str(error).partition(':')[0]}"
        raise LeukoError(f"{path}: {reason}; correct it or save it again") from error
    except (LookupError, ValueError) as error:  # an encoding that Python or expat does not know
        raise LeukoError(f"{path}: line 1: {error}; save the file as UTF-8") from error
    level = [root]
    for _ in range(MAX_DEPTH):
        level = [child for element in level for child in element]
    if level:
        raise LeukoError(f"{path}: {level[0].tag:.60}: is nested more than {MAX_DEPTH} deep; remove it")
    return root


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
        raise LeukoError(f"{path}: cannot be written: ...{named}... is not UTF-8; rename the file") from error
    write_bytes(path, data)


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write UTF-8 text as :func:`write_text` does, line by line, each with its end: it need not fit into memory."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(line.encode("utf-8", "backslashreplace") for line in lines)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON. Arrays become lists, paths strings, and numbers that JSON does not know (nan, inf) null."""
    write_text(path, json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_rows(path: str | Path, document: dict, key: str, rows: Iterable[Any]) -> None:
    """Write a mapping as :func:`write_json` does and in it, under ``key``, a list of ``rows``, a line each: they need
    not fit into memory."""
    encode = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    head = encode(plain(document | {key: []}), indent=2).removesuffix("]\n}")
    lines = (f"{',' * bool(i)}\n    {encode(plain(row))}" for i, row in enumerate(rows))
    write_lines(path, itertools.chain([head], lines, ["\n  ]\n}\n"]))


def write_yaml(path: str | Path, value: Any) -> None:
    """Write YAML, keys in the order given. Unlike JSON it knows nan and inf."""
    write_text(path, yaml.safe_dump(plain(value, finite=False), sort_keys=False, allow_unicode=True))


def write_csv(path: str | Path, rows: Iterable[dict], columns: Sequence[str] = ()) -> None:
    """Write rows under ``columns`` and, of a sequence, what else they have; what is missing, None or nan is left empty.

    A text that a spreadsheet would run as a formula, which begins with = + - or @, gets an apostrophe in front.
    """
    more = (key for row in rows for key in row) if isinstance(rows, Sequence) else ()
    columns = list(dict.fromkeys([*columns, *more]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")

    def line(values: Iterable[Any]) -> str:
        text.seek(text.truncate(0))
        writer.writerow(map(_no_formula, values))
        return text.getvalue()

    lines = (line(plain(row.get(key)) for key in columns) for row in rows)
    write_lines(path, itertools.chain([line(columns)], lines))


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


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


def lock(file: IO) -> bool:
    """Lock an open file until it is closed or the process ends, in whatever way; False where another process has it.

    (The lock is not inherited by worker processes. Where the system knows no locks, it is True.)
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return True
    return True


def digest(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal; raises LeukoError."""
    sha = hashlib.sha256()
    with io_errors_as("read", path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it; raises LeukoError."""
    with io_errors_as("made", path):
        path.mkdir(parents=True, exist_ok=True)
    return path
