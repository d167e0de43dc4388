"""What a run resumes from: its progress, the data that it began with, ``resume.pt``, and the lock on its folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import get_type_hints

import torch

from ..data.dataset import Dataset, Sample
from ..errors import LeukoError
from ..io import replacing
from ..kinds import misfit
from ..models.tensors import read_archive

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass
class Progress:
    """Where a run is: ``epoch`` complete epochs, ``batch`` batches of the next, and what they gave so far."""

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of each loss term over the batches of this epoch
    seconds: float = 0.0
    best: float = -1.0  # the highest value of options.best_by so far
    best_epoch: int = 0
    stopped: int = 0  # the epochs that the run was to have when --patience ended it
    extended_at: int = 0  # the epoch at which it had been stopped and was extended: --patience counts from there
    rows: list[dict[str, float]] = field(default_factory=list)  # of results.csv

    def is_finished(self, epochs: int) -> bool:
        """Whether the run has so many epochs, or was stopped early when it was to have so many."""
        return max(self.epoch, self.stopped) >= epochs

    def extend(self) -> None:
        """Let a run that --patience had stopped go on."""
        if self.stopped:
            self.extended_at, self.stopped = self.epoch, 0


Described = dict[str, list[str]]  # the types, and a line for each image of a split
KINDS = {"model": dict, "progress": dict, "data": Described}
PROGRESS = get_type_hints(Progress)


@dataclass
class State:
    """The content of ``resume.pt``: the loop's own ``parts``, the progress, and what the data was."""

    path: Path
    parts: dict
    progress: Progress
    data: Described

    def check_data(self, now: Described) -> None:
        """LeukoError if the data is no longer what the run began with; it names what changed."""
        for what, new in now.items():
            old = self.data.get(what, [])
            changed = [pair for pair in zip_longest(old, new, fillvalue="none") if pair[0] != pair[1]]
            if changed:
                raise LeukoError(
                    f"{self.path}: the {what} are not those the run began with ({len(old)} then, {len(new)} now; first "
                    f'"{changed[0][0]}" then, "{changed[0][1]}" now); put them back, or start a new run with --weights '
                    f"{self.path.parent}"
                )


def described(train_set: Dataset, val_set: Dataset) -> Described:
    """What a training depends on of its data but the pixels."""
    splits = {"train images": train_set, "val images": val_set}
    lines = {name: [_line(sample) for sample in dataset.samples] for name, dataset in splits.items()}
    return {"types": train_set.types, **lines}


def _line(sample: Sample) -> str:
    """The file name, size, number of cells and digest of the labels of an image."""
    parts = (sample.boxes, sample.labels, sample.crowd)
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]
    return f"{sample.image.name}, {sample.width}x{sample.height}, {len(sample.boxes)} cells, labels {digest}"


# ---------------------------------------------------------------- the file


def save_state(path: Path, parts: dict, progress: Progress, data: Described) -> None:
    """Write the state of a run: tensors, numbers, strings, lists and dicts, under a temporary name, then renamed."""
    state = {**parts, "progress": asdict(progress), "data": data}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # torch hides the system's refusal to write behind one of its own
                raise e.__context__ from None
            raise


def load_state(path: Path) -> State:
    """Read a run's state without running code; LeukoError if it is missing, broken, or not as this leuko writes it."""
    if not path.exists():
        raise LeukoError(f"{path}: no such file; restore it, or start a new run with --weights {path.parent}")
    parts = read_archive(path, "start a new run, with --weights if it helps")
    problem = misfit(parts, KINDS, more=True) or misfit(parts["progress"], PROGRESS, finite=False)
    if not problem:
        epoch, batch, rows = (parts["progress"][name] for name in ("epoch", "batch", "rows"))
        if min(epoch, batch, parts["progress"]["stopped"]) < 0 or len(rows) != epoch:
            problem = f"epoch {epoch}, batch {batch}, {len(rows)} rows of results"
    if problem:
        raise LeukoError(
            f"{path}: not the state of a run ({problem:.200}); start a new run with --weights {path.parent}"
        )
    return State(path, progress=Progress(**parts.pop("progress")), data=parts.pop("data"), parts=parts)


# ---------------------------------------------------------------- one process at a time

_held: set[int] = set()  # descriptors of locked folders, which a loader process must not keep locked


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other processes from training in a folder, if any is given; LeukoError if one does. The system holds the
    lock, on the folder itself, so that it ends with the process, however that dies. Where folders cannot be locked,
    nothing is."""
    descriptor = None
    try:
        if fcntl and folder:
            descriptor = os.open(folder, os.O_RDONLY)
            _held.add(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        _held.discard(descriptor)
        raise LeukoError(f"{folder}: another process trains in it; wait for its end, or stop it first") from e
    except OSError:
        print(f"{folder}: this file system has no locks; see to it that no other process trains in it")
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _release() -> None:
    while _held:
        os.close(_held.pop())


if fcntl:
    os.register_at_fork(after_in_child=_release)
