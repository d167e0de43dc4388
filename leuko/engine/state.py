"""What a run resumes from: its progress, the data that it began with, ``resume.pt``, and the lock on its folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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


Labels = list[list[str]]  # [file name, size, number of cells, digest of the labels] of each image of a split
KINDS = {"model": dict, "progress": dict, "types": list[str], "data": dict[str, Labels]}
PROGRESS = get_type_hints(Progress)


@dataclass
class State:
    """The content of ``resume.pt``: the loop's own ``parts``, the progress, and what the data was."""

    path: Path
    parts: dict
    progress: Progress
    types: list[str]
    data: dict[str, Labels]

    def check_data(self, datasets: Mapping[str, Dataset]) -> None:
        """LeukoError if the data is no longer what the run began with; it names what changed."""
        anew = f"start a new run with --weights {self.path.parent}"
        remedy = f"put them back, or {anew}"
        if not self.data:
            raise LeukoError(f"{self.path}: of an older leuko, which kept nothing of what the labels were; {anew}")
        for split, dataset in datasets.items():
            if self.types != dataset.types:
                then, now = ", ".join(self.types), ", ".join(dataset.types)
                raise LeukoError(f"{self.path}: the types were {then} when the run began, and are {now}; {remedy}")
            before, now = self.data.get(split, []), labels_of(dataset)
            names, named = ([" ".join(image[:1]) for image in images] for images in (before, now))
            if names != named:
                odd = sorted(set(names) ^ set(named)) or ["another order"]
                raise LeukoError(
                    f"{self.path}: the {split} images are not those the run began with ({len(names)} then, "
                    f"{len(named)} now, such as {odd[0]}); {remedy}"
                )
            changed = [(old, new) for old, new in zip(before, now, strict=True) if old != new]
            if changed:
                (name, *then), (_, *new) = changed[0]
                raise LeukoError(
                    f"{self.path}: the labels of {len(changed)} of {len(now)} {split} images changed since the run "
                    f"began, such as {name} (then {', '.join(then)}; now {', '.join(new)}); {remedy}"
                )


def labels_of(dataset: Dataset) -> Labels:
    """What a training depends on of each image but its pixels."""
    return [[s.image.name, f"{s.width}x{s.height}", f"{len(s.boxes)} cells", _digest(s)] for s in dataset.samples]


def _digest(sample: Sample) -> str:
    parts = (sample.boxes, sample.labels, sample.crowd)
    return "labels " + hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]


# ---------------------------------------------------------------- the file


def save_state(path: Path, parts: dict, progress: Progress, types: list[str], data: dict[str, Labels]) -> None:
    """Write the state of a run: tensors, numbers, strings, lists and dicts, under a temporary name, then renamed."""
    state = {**parts, "progress": asdict(progress), "types": types, "data": data}
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
        raise LeukoError(f"{path}: no such file; name a run folder that leuko.train has written a state into")
    content = read_archive(path, "start a new run, with --weights if it helps")
    problem = misfit(content, KINDS, optional=("data",), more=True)
    problem = problem or misfit(content["progress"], PROGRESS, optional=PROGRESS, finite=False)
    if not problem:
        progress = Progress(**content.pop("progress"))
        is_possible = min(progress.epoch, progress.batch, progress.stopped) >= 0
        if not is_possible or (progress.rows and len(progress.rows) != progress.epoch):
            problem = f"epoch {progress.epoch}, batch {progress.batch}, {len(progress.rows)} rows of results"
    if problem:
        raise LeukoError(
            f"{path}: not the state of a run ({problem:.200}); start a new run with --weights {path.parent}"
        )
    common = {"types": content.pop("types"), "data": content.pop("data", {})}
    return State(path, progress=progress, parts=content, **common)


# ---------------------------------------------------------------- one process at a time

_held: set[int] = set()  # descriptors of locked folders, which a loader process must not keep locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; LeukoError if one does. The system holds the lock, on the folder
    itself, so that it ends with the process, however that dies. Where folders cannot be locked, nothing is."""
    descriptor = None
    try:
        if fcntl:
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
