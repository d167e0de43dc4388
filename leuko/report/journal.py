"""The journal of a job that goes through many items, such as images: what it finds is appended as it goes.

Where the job is killed, nothing that was found is lost, and the same request goes on in the same folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from ..io import io_errors_as, lock, plain, remove_unfinished
from .run import new_run

FILE = "unfinished.jsonl"  # is in the folder until its job is finished


class Journal:
    """A folder of results and, in it, a file with a line of JSON for the request and one for each record. ``records``
    are those that an earlier process has left."""

    def __init__(self, folder: Path, file: BinaryIO, records: list[dict]):
        self.folder, self.records = folder, records
        self._file = file

    @classmethod
    def open(cls, project: str | Path, name: str, request: dict) -> Journal:
        """Go on in the folder ``project/name``, or ``name-2`` ..., that the same request has left unfinished and on
        which no other process works; else begin a new one. Raises LeukoError."""
        request = plain(request)
        numbered = re.compile(re.escape(name) + r"(-\d+)?")
        for path in sorted(Path(project).glob(f"*/{FILE}")):
            if numbered.fullmatch(path.parent.name):
                with contextlib.suppress(OSError):  # another user's, or another process has just finished
                    if journal := cls._of(path, open(path, "r+b"), request):  # noqa: SIM115  open until it is finished
                        remove_unfinished(path.parent)
                        return journal
        path = new_run(project, name) / FILE
        with io_errors_as("written", path):
            new = cls._of(path, open(path, "x+b"), request)  # noqa: SIM115
        return new or cls.open(project, name, request)  # where another process that looked for one was faster

    @classmethod
    def _of(cls, path: Path, file: BinaryIO, request: dict) -> Journal | None:
        """The journal that this file is; None if it belongs to another request or another process."""
        if lock(file) and path.exists():  # a process that finishes removes it before it gives up the lock
            lines, end = _whole_lines(file)
            if not lines or lines[0] == request:
                file.seek(end)
                file.truncate()
                journal = cls(path.parent, file, lines[1:])
                if not lines:
                    journal.append(request)
                return journal
        file.close()
        return None

    def append(self, record: dict) -> dict:
        """Write a record, and return it as it will be read again; it is on the disk then. Raises LeukoError."""
        line = _line(record)
        with io_errors_as("written", self.folder / FILE):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        return json.loads(line)

    def finish(self) -> None:
        """The job is finished: the folder holds its results, and the journal goes."""
        with io_errors_as("written", self.folder / FILE):
            (self.folder / FILE).unlink()
            self._file.close()


def _line(content: dict) -> bytes:
    return json.dumps(plain(content), allow_nan=False).encode() + b"\n"


def _whole_lines(file: BinaryIO) -> tuple[list[Any], int]:
    """What the lines of a file hold, up to one that a crash cut off, and where that begins."""
    lines, end = [], 0
    for line in file:
        try:
            lines.append(json.loads(line if line.endswith(b"\n") else b""))
        except ValueError:
            break
        end += len(line)
    return lines, end
