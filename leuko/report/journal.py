"""The journal of a job that goes through many items, such as images: what it finds is appended as it goes.

Where the job is killed, nothing that was found is lost, and the same request goes on in the same folder. What is in it
stays on the disk and is read again record by record, so that it may be larger than memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import LeukoError
from ..io import io_errors_as, lock, plain, remove_unfinished, write_lines
from .run import new_run

FILE = "unfinished.jsonl"  # is in the folder until its job is finished


class Lines(Sequence):
    """What the lines of a file of JSON hold, read when they are asked for; up to one that a crash cut off. ``end`` is
    where that begins."""

    def __init__(self, file: BinaryIO):
        self._file, self._starts, self.end = file, array("q"), 0
        for line in file:
            try:
                json.loads(line if line.endswith(b"\n") else b"")
            except ValueError:
                break
            self.noted(line)

    def noted(self, line: bytes) -> None:
        """Know of a line that was written at the end."""
        self._starts.append(self.end)
        self.end += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        self._file.seek(self._starts[number])
        return json.loads(self._file.readline())


class Journal(Sequence):
    """A folder of results and, in it, a file with a line of JSON for the request and one for each record. It is the
    sequence of the records, with those that an earlier process has left."""

    def __init__(self, folder: Path, file: BinaryIO, lines: Lines):
        self.folder, self._file, self._lines = folder, file, lines

    @classmethod
    def open(cls, project: str | Path, name: str, request: dict) -> Journal:
        """Go on in the folder ``project/name``, or ``name-2`` ..., that the same request has left unfinished and on
        which no other process works; else begin a new one. Raises LeukoError."""
        request = plain(request)
        numbered = re.compile(re.escape(name) + r"(-\d+)?")
        for path in sorted(Path(project).glob(f"*/{FILE}")):
            if numbered.fullmatch(path.parent.name):
                with contextlib.suppress(OSError):  # another user's, or another process has just finished
                    journal = cls._of(path, open(path, "r+b"), request)  # noqa: SIM115  open until it is finished
                    if journal is not None:
                        remove_unfinished(path.parent)
                        return journal
        path = new_run(project, name) / FILE
        with io_errors_as("written", path):
            new = cls._of(path, open(path, "x+b"), request)  # noqa: SIM115
        return (
            cls.open(project, name, request) if new is None else new
        )  # where another process that looked for one was faster

    @classmethod
    def _of(cls, path: Path, file: BinaryIO, request: dict) -> Journal | None:
        """The journal that this file is; None if it belongs to another request or another process."""
        if lock(file) and path.exists():  # a process that finishes removes it before it gives up the lock
            lines = Lines(file)
            if not lines or lines[0] == request:
                file.truncate(lines.end)
                journal = cls(path.parent, file, lines)
                if not lines:
                    journal.append(request)
                return journal
        file.close()
        return None

    def __len__(self) -> int:
        return len(self._lines) - 1

    def __getitem__(self, number: int) -> Any:
        return self._lines[number + 1]

    def append(self, record: Any) -> int:
        """Write a record, and return its number; it is on the disk then. Raises LeukoError."""
        line = _line(record)
        with io_errors_as("written", self.folder / FILE):
            self._file.seek(self._lines.end)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._lines.noted(line)
        return len(self) - 1

    def finish(self) -> None:
        """The job is finished: the folder holds its results, and the journal goes."""
        with io_errors_as("written", self.folder / FILE):
            (self.folder / FILE).unlink()
            self._file.close()


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Write values as lines of JSON, all or none, as :func:`read_jsonl` reads them. Raises LeukoError."""
    write_lines(path, (_line(value).decode() for value in values))


def read_jsonl(path: Path) -> Lines:
    """What the lines of a file hold, read when they are asked for. Raises LeukoError."""
    with io_errors_as("read", path):
        file = open(path, "rb")  # noqa: SIM115  as long as they are read
        lines = Lines(file)
    if not lines or lines.end < path.stat().st_size:
        raise LeukoError(f"{path}: line {len(lines) + 1}: broken JSON; make this file again")
    return lines


def _line(content: Any) -> bytes:
    return json.dumps(plain(content), allow_nan=False).encode() + b"\n"
