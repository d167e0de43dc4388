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
    """Cells as crops ``MARGIN`` times as wide as a typing network sees them: ``crops`` [N, M, M, 3] uint8 RGB in one
    stain, ``labels`` [N] indices into ``types``, len(types) for none, ``centres`` [N] indices into ``names``."""

    types: list[str]
    names: list[str] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    centres: list[int] = field(default_factory=list)

    def add(self, centre: str, crops: Sequence[np.ndarray], labels: Sequence[int]) -> None:
        """Add cells of a centre."""
        if centre not in self.names:
            self.names.append(centre)
        self.crops += list(crops)
        self.labels += [int(label) for label in labels]
        self.centres += [self.names.index(centre)] * len(labels)

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of cells by centre and type, none included."""
        labels, centres = np.array(self.labels), np.array(self.centres)
        names = [*self.types, NONE]
        return {
            centre: {name: int(((centres == c) & (labels == k)).sum()) for k, name in enumerate(names)}
            for c, centre in enumerate(self.names)
        }


def centre_and_path(given: str) -> tuple[str, str]:
    """``CENTRE=PATH`` as (centre, path); a path alone, also one that exists with a ``=`` in it, is a centre of its
    own."""
    centre, _, path = given.partition("=")
    return (centre, path) if centre and path and not Path(given).exists() else (given, given)


def load_split(path: str | Path, split: str) -> Dataset:
    """A split of a data set; where it has only one, that. Raises LeukoError."""
    splits = source.splits(path)
    return source.load(path, splits[0] if len(splits) == 1 else split)


def types_of(datasets: Sequence[Dataset]) -> list[str]:
    """All types of data sets, in the order of the first that has them."""
    return list(dict.fromkeys(name for dataset in datasets for name in dataset.types))


def add_fields(
    cells: TypedCells, centre: str, dataset: Dataset, side: int, view: float, seed: int, progress: bool = True
) -> None:
    """Add the cells of a data set's fields, and of each field one box beside them as none."""
    new_label = [cells.types.index(name) for name in dataset.types]
    cut_side, cut_view = round(side * MARGIN), view * MARGIN

    def job(item: tuple[int, Sample]) -> tuple[np.ndarray, list[int]]:
        number, sample = item
        boxes = sample.boxes[~sample.crowd]
        if not len(boxes):
            return np.zeros((0, cut_side, cut_side, 3), dtype=np.uint8), []
        labels = [new_label[label] for label in sample.labels[~sample.crowd]]
        beside = _beside(np.random.default_rng([seed, number]), sample)
        pixels = read_image(sample.image)
        boxes = np.concatenate([boxes, beside])
        crops = crops_of(pixels, boxes, cut_side, cut_view, stain_of(pixels, boxes[: len(labels)]))
        return crops, labels + [len(cells.types)] * len(beside)

    for crops, labels in in_threads(job, enumerate(dataset.samples), f"cells of {centre}", progress):
        cells.add(centre, crops, labels)


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


def crop_classes(folder: Path) -> list[Path]:
    """The folders of crops, one per class, in a folder; hidden ones are passed over. LeukoError where there is none."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    if classes := [child for child in there if child.is_dir() and not is_hidden(child.name)]:
        return classes
    raise LeukoError(f"{folder}: no crops there; name a folder that holds a folder of images per class")


def add_crops(cells: TypedCells, centre: str, folder: Path, side: int, view: float, progress: bool = True) -> int:
    """Add crops of single cells from a folder with one folder per class; a class that is none of the types is learned
    as none, also where no nucleus is seen: of such a crop (a platelet's), the middle is taken. Returns the number of
    crops of types that are left out, since no nucleus is seen in them."""
    paths = [(child.name, path) for child in crop_classes(folder) for path in list_images(child)]
    if not paths:
        raise LeukoError(f"{folder}: its folders hold no image; put the crops of each class into its folder")
    cut_side, cut_view = round(side * MARGIN), view * MARGIN

    def job(item: tuple[str, Path]) -> np.ndarray | None:
        pixels = read_image(item[1])
        box = cell_box(pixels)
        if box is not None:
            return crops_of(pixels, box[None], cut_side, cut_view)[0]
        if item[0] in cells.types:
            return None
        box = np.float32([*pixels.shape[1::-1], *pixels.shape[1::-1]]) * MIDDLE
        return crops_of(pixels, box[None], cut_side, cut_view, stain_of(pixels, np.zeros((0, 4))))[0]

    found = in_threads(job, paths, f"cells of {centre}", progress)
    there = [(crop, name) for crop, (name, _) in zip(found, paths, strict=True) if crop is not None]
    labels = [cells.types.index(name) if name in cells.types else len(cells.types) for _, name in there]
    cells.add(centre, [crop for crop, _ in there], labels)
    return len(paths) - len(there)
