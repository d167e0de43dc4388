"""The journal of a job that goes through many items, such as images: what it finds is appended as it goes.

Where the job is killed, nothing that was found is lost, and the same request goes on in the same folder. What is in it
stays on the disk and is read again record by record, so that it may be larger than memory.
"""

from __future__ import annotations

import contextlib
import itertools
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


class Journal(Sequence):
    """A file of JSON lines: ``head``, which says what the others are of, and the records, of which it is the sequence;
    they are read when they are asked for, up to one that a crash cut off."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file, self._starts, self._end = path, file, array("q"), 0
        for line in file:
            try:
                json.loads(line if line.endswith(b"\n") else b"")
            except ValueError:
                break
            self._starts.append(self._end)
            self._end += len(line)

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
        if new is None:  # another process that looked for one was faster
            return cls.open(project, name, request)
        return new

    @classmethod
    def _of(cls, path: Path, file: BinaryIO, request: dict) -> Journal | None:
        """The journal that this file is; None if it belongs to another request or another process."""
        if lock(file) and path.exists():  # a process that finishes removes it before it gives up the lock
            journal = cls(path, file)
            if not journal._starts:
                journal.append(request)
            if journal.head == request:
                file.truncate(journal._end)
                return journal
        file.close()
        return None

    @classmethod
    def read(cls, path: Path) -> Journal:
        """The whole file that :func:`write_journal` has written. Raises LeukoError."""
        with io_errors_as("read", path):
            journal = cls(path, open(path, "rb"))  # noqa: SIM115  as long as it is read
        if not journal._starts or journal._end < path.stat().st_size:
            raise LeukoError(f"{path}: line {len(journal._starts) + 1}: broken JSON; make this file again")
        return journal

    @property
    def folder(self) -> Path:
        """The folder of results that the file lies in."""
        return self.path.parent

    @property
    def head(self) -> Any:
        """What the first line says."""
        return self._line(0)

    def _line(self, number: int) -> Any:
        self._file.seek(self._starts[number])
        return json.loads(self._file.readline())

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Any:
        return self._line(number + 1)

    def append(self, record: Any) -> int:
        """Write a record, and return its number; it is on the disk then. Raises LeukoError."""
        line = _encoded(record)
        with io_errors_as("written", self.path):
            self._file.seek(self._end)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._starts.append(self._end)
        self._end += len(line)
        return len(self) - 1

    def finish(self) -> None:
        """The job is finished: the folder holds its results, and the journal goes."""
        with io_errors_as("written", self.path):
            self.path.unlink()
            self._file.close()


def write_journal(path: Path, head: Any, records: Iterable[Any]) -> None:
    """Write a whole journal, or nothing, for :meth:`Journal.read`. Raises LeukoError."""
    write_lines(path, (_encoded(value).decode() for value in itertools.chain([head], records)))


def _encoded(content: Any) -> bytes:
    return json.dumps(plain(content), allow_nan=False).encode() + b"\n"
