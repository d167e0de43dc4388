"""Worker processes: how many, how they are started, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: of an exception in what Python does at a fork, or where it
    deletes an object, it prints a traceback, and nobody else hears of it.

    The handlers are exchanged, since a mask holds for one thread only, and any other may take the signal.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set, and raise
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def worker_count(workers: int) -> int:
    """The ``--workers`` option as a number: -1 is one process per core but one, at most 8; where torchrun has started
    several processes on this machine, they divide the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(cores - 1, 0)) if workers < 0 else workers


def start_worker(_: int) -> None:
    """What a worker process does first."""
    cv2.setNumThreads(0)
    # Ctrl-C and a scheduler's SIGTERM reach all processes of a job; only the one that trains may stop, after its step.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this process a second after its parent: results that nobody takes any more would hold it for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
