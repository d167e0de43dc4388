"""Cases in processes with a limit of time and memory, for `mutations.py`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

PATIENCE = 60  # seconds after which a process that does not compute hangs
T = TypeVar("T")


@contextlib.contextmanager
def more_memory(size: int) -> Iterator[None]:
    """Let this process' address space grow by at most ``size`` bytes in the block."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _work(connection: Connection, function: Callable[[int], T]) -> None:
    """Answer cases until the other end is closed. What libraries print is left out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(function(connection.recv()))


class _Worker:
    """A process and the case that it is at; one that is late or dies is replaced."""

    def __init__(self, function: Callable[[int], T], seconds: float) -> None:
        self.function, self.seconds = function, seconds
        self.start()

    def start(self) -> None:
        self.connection, other = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=_work, args=(other, self.function), daemon=True)
        self.process.start()
        other.close()

    def send(self, case: int) -> None:
        self.case, self.started, self.worked = case, time.monotonic(), self.processor_time()
        self.connection.send(case)

    def processor_time(self) -> float:
        """Seconds that the process has computed, which another job on the machine doesn't change."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def is_late(self) -> bool:
        """Whether it has computed too long, or waits for something that doesn't come."""
        waited = time.monotonic() - self.started
        return waited > self.seconds and (waited > PATIENCE or self.processor_time() - self.worked > self.seconds)

    def outcome(self) -> T | tuple[int, str, str] | None:
        """What its case gave, or (case, kind, "") of a fault; None if it goes on."""
        kind = ""
        if self.connection.poll():
            try:
                return self.connection.recv()
            except EOFError:
                kind = "process died"
        elif self.is_late():
            kind = f"over {self.seconds:g} s"
        if not kind:
            return None
        self.stop()
        self.start()
        return self.case, kind, ""

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(
    function: Callable[[int], T], cases: Sequence[int], processes: int, seconds: float
) -> list[T | tuple[int, str, str]]:
    """``function`` of each case, in any order; for a case over the time, or whose process dies, (case, kind, "")."""
    workers = [_Worker(function, seconds) for _ in range(processes)]
    outcomes, left = [], iter(cases)
    idle, busy = workers, []
    with tqdm(total=len(cases), unit="case") as bar:
        while len(outcomes) < len(cases):
            for worker in idle:
                if (case := next(left, None)) is not None:
                    worker.send(case)
                    busy.append(worker)
            wait([worker.connection for worker in busy], timeout=0.2)
            ended = [(worker, outcome) for worker in busy if (outcome := worker.outcome())]
            outcomes += [outcome for _, outcome in ended]
            idle = [worker for worker, _ in ended]
            busy = [worker for worker in busy if worker not in idle]
            bar.update(len(ended))
    for worker in workers:
        worker.stop()
    return outcomes
