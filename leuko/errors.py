"""The one kind of error that a user can cause and fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


class LeukoError(ValueError):
    """What went wrong in one line: the file, the object in it, and the remedy.

    Commands print the line and exit with status 2; no traceback is shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Replace what a name in a file may hold and a terminal would obey: line ends, control characters, and characters
    that turn the direction of writing."""
    return _UNPRINTABLE.sub(" ", text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, in the words of Python, torch or OpenCV."""
    words = "(out of|can't allocate|not enough|insufficient) memory|failed to allocate|bad_alloc"
    return isinstance(error, MemoryError) or re.search(words, str(error), re.IGNORECASE) is not None


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``'; did you mean "KNOWN"?'`` for the known word closest to ``word``, or ``""``
    where none is as like it as ``cutoff``, 0 to 1."""
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return f'; did you mean "{by_lower[match[0]]}"?' if match else ""
