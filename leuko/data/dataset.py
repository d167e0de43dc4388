"""What a data set is once it is read: samples, the list of types, and what was wrong with the files.

Boxes are float32 ``xyxy`` in pixels of the image they belong to, continuous, ``0 <= x0 < x1 <= width``.
Labels are 0-based indices into ``Dataset.types``; there is no background index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import one_line


@dataclass(frozen=True)
class LabelWarning:
    """Something wrong in a data set that leuko fixed: the file, the object in it, the problem, and what was done; where
    they are known, the image, the cell's type and its box as the file has it, xyxy in pixels."""

    file: Path
    object: str
    problem: str
    action: str
    image: Path | None = None
    type: str = ""
    box: tuple[float, ...] = ()

    def __str__(self) -> str:
        return one_line(f"{self.file}: {self.object}: {self.problem}; {self.action}")


class Note(str):
    """A line about a split as a whole, and the images that it is about, if any."""

    images: tuple[Path, ...]

    def __new__(cls, text: str, images: Iterable[Path] = ()) -> Note:
        note = super().__new__(cls, one_line(text))
        note.images = tuple(images)
        return note


@dataclass
class Sample:
    """One image and its cells.

    ``boxes`` [N, 4] float32, ``labels`` [N] int64, ``crowd`` [N] bool (COCO's ``iscrowd``: a region that evaluation
    ignores and training leaves out). ``cell_factors`` has a tuple of interference factors per cell, ``attributes`` a
    dict per cell (VOC's ``difficult``, ``truncated``, ...); both may be left empty, which means none. ``id`` is the
    image id in COCO results; ``group`` the smear or patient that the image came from.
    """

    image: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    id: int
    crowd: np.ndarray = field(default=None)  # type: ignore[assignment]
    cell_factors: list[tuple[str, ...]] = field(default_factory=list)
    attributes: list[dict] = field(default_factory=list)
    factors: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        self.labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        n = len(self.boxes)
        self.crowd = np.zeros(n, dtype=bool) if self.crowd is None else np.asarray(self.crowd, dtype=bool)
        self.cell_factors = self.cell_factors or [()] * n
        self.attributes = self.attributes or [{} for _ in range(n)]


@dataclass
class Dataset:
    """One split of a data set, read and checked.

    ``types`` are the class names in label order; ``category_ids`` their ids in COCO files (1-based unless the source
    says otherwise); ``ignored`` counts the objects of the classes that the data YAML ignores; ``notes`` are lines about
    the split as a whole that a person should know; ``split`` is its name.
    """

    types: list[str]
    samples: list[Sample]
    category_ids: list[int] = field(default_factory=list)
    warnings: list[LabelWarning] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    split: str = ""

    def __post_init__(self) -> None:
        self.category_ids = self.category_ids or list(range(1, len(self.types) + 1))

    def __len__(self) -> int:
        return len(self.samples)

    def groups(self) -> set[str]:
        """The groups that images belong to."""
        return {s.group for s in self.samples if s.group}

    def crowds(self) -> int:
        """The number of crowds."""
        return sum(int(s.crowd.sum()) for s in self.samples)

    def counts_per_image(self) -> np.ndarray:
        """Cells per image and type, [samples, types] int64, crowds left out."""
        counts = [np.bincount(s.labels[~s.crowd], minlength=len(self.types)) for s in self.samples]
        return np.array(counts, dtype=np.int64).reshape(len(self.samples), len(self.types))

    def counts(self) -> np.ndarray:
        """Cells per type, [types] int64, crowds left out."""
        return self.counts_per_image().sum(0)


@dataclass(frozen=True)
class AugmentedSample:
    """A sample with its pixels, as transforms take and return it: an image [H, W, 3] uint8 RGB, boxes [N, 4] xyxy in
    its pixels, labels [N]. Crowds are left out."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
