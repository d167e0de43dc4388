"""The one kind of error that a user can cause and fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeukoError(ValueError):
    """What went wrong in one line: the file, the object in it, and the remedy.

    Commands print the line and exit with status 2; no traceback is shown.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean "KNOWN"?'`` for the known word closest to ``word``, or ``""``."""
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f'; did you mean "{by_lower[match[0]]}"?' if match else ""
