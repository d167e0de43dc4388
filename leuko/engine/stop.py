"""Being stopped by Ctrl-C and SIGTERM without cutting anything in two."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.workers import SIGNALS
from ..ops import ranks


class Stop:
    """Ctrl-C and SIGTERM (from Slurm or Docker) during a training.

    They raise KeyboardInterrupt at once, but not where that would cut something in two: while ``held``, the first only
    counts as ``requested``, and the second raises; ``at_all_costs`` (a file is being written) even that waits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.patience = 0  # signals that are only counted

    def requested(self) -> bool:
        """Whether a signal has come to this process, or to one that it trains with; they all ask together."""
        (self.count,) = ranks.largest(self.count)
        return self.count > 0

    def __enter__(self) -> Stop:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # signals reach the main thread alone
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None:  # Python loses an exception that is raised while it deletes an object
            self._raise_if_due()

    @contextmanager
    def held(self, at_all_costs: bool = False) -> Iterator[None]:
        """Let the first signal wait for the end of the block; ``at_all_costs``, all of them."""
        before, self.patience = self.patience, math.inf if at_all_costs else 1
        try:
            yield
        finally:
            self.patience = before
        self._raise_if_due()

    def _note(self, *_: object) -> None:
        self.count += 1
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self.count > self.patience:
            raise KeyboardInterrupt
