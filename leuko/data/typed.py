"""Cells to learn types from: those of data sets and crops of single cells, by centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cells import NONE
from ..errors import LeukoError
from ..ops.pairs import box_iou
from ..synth.cutout import cell_box
from . import source
from .crops import MARGIN, crops_of, stain_of
from .dataset import Dataset, Sample
from .images import is_hidden, list_images, read_image
from .tools.builder import in_threads

BESIDE = 0.05  # IoU with every cell, below which a box is of none
MIDDLE = np.float32([0.4, 0.4, 0.6, 0.6])  # of a crop: where a small thing that has no nucleus is


@dataclass
class TypedCells:
    """Cells as crops ``MARGIN`` times as wide as a typing network of ``side`` and ``view`` sees them: ``crops`` [N, M,
    M, 3] uint8 RGB in one stain, ``labels`` [N] indices into ``types``, len(types) for none, and their ``centres``."""

    types: list[str]
    side: int
    view: float
    crops: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    centres: list[str] = field(default_factory=list)

    def add_fields(self, centre: str, dataset: Dataset, seed: int) -> None:
        """Add the cells of a data set's fields, and of each field one box beside them as none."""
        new_label = [self.types.index(name) for name in dataset.types]

        def job(item: tuple[int, Sample]) -> tuple[Sequence[np.ndarray], list[int]]:
            number, sample = item
            boxes = sample.boxes[~sample.crowd]
            if not len(boxes):
                return [], []
            labels = [new_label[label] for label in sample.labels[~sample.crowd]]
            beside = _beside(np.random.default_rng([seed, number]), sample)
            pixels = read_image(sample.image)
            crops = self._cut(pixels, np.concatenate([boxes, beside]), boxes)
            return crops, labels + [len(self.types)] * len(beside)

        for crops, labels in in_threads(job, enumerate(dataset.samples), f"cells of {centre}", progress=True):
            self._add(centre, crops, labels)

    def add_crops(self, centre: str, folder: Path) -> int:
        """Add crops of single cells from a folder with one folder per class; a class that is none of the types is
        learned as none, also where no nucleus is seen: of such a crop (a platelet's), the middle is taken. Returns the
        number of crops of types that are left out, since no nucleus is seen in them."""
        paths = [(name, path) for name, images in crop_folders(folder).items() for path in images]

        def job(item: tuple[str, Path]) -> np.ndarray | None:
            name, path = item
            pixels = read_image(path)
            if (box := cell_box(pixels)) is not None:
                return self._cut(pixels, box[None], box[None])[0]
            if name in self.types:
                return None
            box = np.float32([*pixels.shape[1::-1], *pixels.shape[1::-1]]) * MIDDLE
            return self._cut(pixels, box[None], np.zeros((0, 4)))[0]

        found = in_threads(job, paths, f"cells of {centre}", progress=True)
        there = [(crop, name) for crop, (name, _) in zip(found, paths, strict=True) if crop is not None]
        labels = [self.types.index(name) if name in self.types else len(self.types) for _, name in there]
        self._add(centre, [crop for crop, _ in there], labels)
        return len(paths) - len(there)

    def _cut(self, pixels: np.ndarray, boxes: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """The crops of boxes [N, 4] on an image whose stain ``cells`` [M, 4] show."""
        return crops_of(pixels, boxes, round(self.side * MARGIN), self.view * MARGIN, stain_of(pixels, cells))

    def _add(self, centre: str, crops: Sequence[np.ndarray], labels: Sequence[int]) -> None:
        self.crops += list(crops)
        self.labels += labels
        self.centres += [centre] * len(labels)

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of cells by centre and type, none included."""
        counts = {centre: dict.fromkeys([*self.types, NONE], 0) for centre in self.centres}
        for centre, label in zip(self.centres, self.labels, strict=True):
            counts[centre][[*self.types, NONE][label]] += 1
        return counts


def centre_and_path(given: str) -> tuple[str, str]:
    """``CENTRE=PATH`` as (centre, path); a path alone, also one that exists with a ``=`` in it, is a centre of its
    own."""
    centre, _, path = given.partition("=")
    return (centre, path) if centre and path and not Path(given).exists() else (given, given)


def load_split(path: str | Path, split: str) -> Dataset:
    """A split of a data set; where it has only one, that. Raises LeukoError."""
    splits = source.splits(path)
    return source.load(path, splits[0] if len(splits) == 1 else split)


def crop_folders(folder: Path) -> dict[str, list[Path]]:
    """The images in each folder of crops, by class; hidden folders are ignored. LeukoError where there is none."""
    classes = sorted(folder.iterdir()) if folder.is_dir() else []
    classes = [each for each in classes if each.is_dir() and not is_hidden(each.name)]
    if crops := {each.name: images for each in classes if (images := list_images(each))}:
        return crops
    raise LeukoError(f"{folder}: no crops there; name a folder that holds a folder of images per class")


def _beside(rng: np.random.Generator, sample: Sample) -> np.ndarray:
    """A box of a cell's size that lies on none: [1, 4], or [0, 4] where there is no room."""
    width, height = sample.width, sample.height
    sides = sample.boxes[rng.integers(len(sample.boxes))]
    w, h = (sides[2:] - sides[:2]) * rng.uniform(0.5, 1.0)
    for _ in range(20):
        x, y = rng.uniform(0, max(width - w, 1)), rng.uniform(0, max(height - h, 1))
        box = np.float32([[x, y, min(x + w, width), min(y + h, height)]])
        if box_iou(box, sample.boxes).max(initial=0) < BESIDE:
            return box
    return np.zeros((0, 4), dtype=np.float32)
