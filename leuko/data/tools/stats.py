"""What a data set is like, in numbers: cells, their sizes, colours, factors (``leuko data stats``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...cells import beside
from ..dataset import Dataset, Sample
from ..images import read_image
from .builder import in_threads

PERCENTILES = (5, 50, 95)
STEP = 4  # every fourth pixel of every fourth row counts for an image's colour


@dataclass(frozen=True)
class Colour:
    """The colour of a group's images: mean and standard deviation over all pixels of R, G and B, 0 to 255; then the
    standard deviation of the images' means."""

    group: str
    images: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    between_images: tuple[float, float, float]

    def row(self) -> dict[str, object]:
        """A line of a CSV file."""
        named = {"mean": self.mean, "std": self.std, "between_images": self.between_images}
        channels = {f"{key}_{c}": round(v, 2) for key, of in named.items() for c, v in zip("RGB", of, strict=True)}
        return {"group": self.group, "images": self.images, **channels}


def counts(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """Cells per split and type, and images that hold any; a line ``all`` per split, with all its images."""
    rows = []
    for split, dataset in datasets.items():
        per_image = dataset.counts_per_image()
        cells = [*per_image.sum(0).tolist(), int(per_image.sum())]
        images = [*(per_image > 0).sum(0).tolist(), len(dataset)]
        named = zip([*beside(dataset.types, ["all"]), "all"], cells, images, strict=True)
        rows += [{"split": split, "type": name, "cells": n, "images": i} for name, n, i in named]
    return rows


def sizes(dataset: Dataset) -> list[dict[str, object]]:
    """Per type percentiles of the cells' size, the square root of the box's area, in pixels and in percent of the
    image's shorter side; and of the ratio of width to height."""
    rows = []
    for k, name in enumerate(dataset.types):
        boxes = [s.boxes[~s.crowd & (s.labels == k)] for s in dataset.samples]
        side = np.repeat([min(s.width, s.height) for s in dataset.samples], [len(b) for b in boxes])
        width, height = np.concatenate([b[:, 2:] - b[:, :2] for b in boxes]).T
        size = np.sqrt(width * height)
        row: dict[str, object] = {"type": name, "cells": len(side)}
        for key, values in (("px", size), ("percent", 100 * size / side), ("ratio", width / height)):
            at = np.percentile(values, PERCENTILES) if len(values) else [float("nan")] * len(PERCENTILES)
            row |= {f"{key}_p{p}": round(float(v), 2) for p, v in zip(PERCENTILES, at, strict=True)}
        rows.append(row)
    return rows


def cells_per_image(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """For each number of cells the images of each split that have so many."""
    numbers = {split: Counter(int((~s.crowd).sum()) for s in d.samples) for split, d in datasets.items()}
    most = max(max(c) for c in numbers.values())
    return [{"cells": n, **{split: c[n] for split, c in numbers.items()}} for n in range(most + 1)]


def factors(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """Per split and interference factor the images, and the cells, that are tagged with it."""
    rows = []
    for split, dataset in datasets.items():
        images = Counter(factor for s in dataset.samples for factor in s.factors)
        cells = Counter(factor for s in dataset.samples for of_cell in s.cell_factors for factor in of_cell)
        for name in sorted({*images, *cells}):
            rows.append({"split": split, "factor": name, "images": images[name], "cells": cells[name]})
    return rows


def colours(dataset: Dataset, group_of: dict[str, str], progress: bool = False) -> list[Colour]:
    """The colours of each group of images, in the order of the groups' names.

    ``group_of`` names the group of an image (by its path) that has none of its own. Raises LeukoError for an image
    that cannot be read.
    """

    def moments(sample: Sample) -> np.ndarray:
        pixels = read_image(sample.image)[::STEP, ::STEP].reshape(-1, 3).astype(np.float64)
        return np.stack([pixels.mean(0), (pixels**2).mean(0)])

    groups: dict[str, list[np.ndarray]] = {}
    of_images = in_threads(moments, dataset.samples, "reading colours", progress)
    for sample, of_image in zip(dataset.samples, of_images, strict=True):
        groups.setdefault(sample.group or group_of[str(sample.image)], []).append(of_image)
    result = []
    for name, of_group in sorted(groups.items()):
        mean, square = np.mean(of_group, axis=0)  # every image has the same weight
        std = np.sqrt(np.maximum(square - mean**2, 0))
        between = np.std([of_image[0] for of_image in of_group], axis=0)
        result.append(Colour(name, len(of_group), *(tuple(v.tolist()) for v in (mean, std, between))))
    return result
