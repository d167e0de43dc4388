"""What a data set is like, in numbers: cells, their sizes, colours, factors (``leuko data stats``)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..dataset import Dataset, Sample
from ..images import read_image

PERCENTILES = (5, 50, 95)
STEP = 4  # every so many pixels of a row and of a column count for an image's colour


@dataclass(frozen=True)
class Colour:
    """The colour of a group's images: mean and deviation over all pixels of R, G and B, 0 to 255; then the deviation
    of the images' means about the group's."""

    group: str
    images: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    between_images: tuple[float, float, float]

    def row(self) -> dict[str, object]:
        """A line of a CSV file."""
        named = {"mean": self.mean, "deviation": self.deviation, "between_images": self.between_images}
        channels = {f"{key}_{c}": round(v, 2) for key, of in named.items() for c, v in zip("RGB", of, strict=True)}
        return {"group": self.group, "images": self.images, **channels}


def counts(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """A line a split and type: cells, and images that hold any; and a line ``all`` a split, its images all counted."""
    rows = []
    for split, dataset in datasets.items():
        cells = dataset.counts()
        for k, name in enumerate(dataset.types):
            images = sum(bool((s.labels[~s.crowd] == k).any()) for s in dataset.samples)
            rows.append({"split": split, "type": name, "cells": int(cells[k]), "images": images})
        rows.append({"split": split, "type": "all", "cells": int(cells.sum()), "images": len(dataset)})
    return rows


def sizes(dataset: Dataset) -> list[dict[str, object]]:
    """A line a type: percentiles of the cells' size, the square root of the box's area, in pixels and in percent of
    the image's shorter side; and of the ratio of width to height."""
    rows = []
    for k, name in enumerate(dataset.types):
        boxes = [s.boxes[~s.crowd & (s.labels == k)] for s in dataset.samples]
        side = np.concatenate(
            [np.full(len(b), min(s.width, s.height)) for s, b in zip(dataset.samples, boxes, strict=True)]
        )
        width, height = (np.concatenate([b[:, i + 2] - b[:, i] for b in boxes]) for i in (0, 1))
        row: dict[str, object] = {"type": name, "cells": len(side)}
        size = np.sqrt(width * height)
        for key, values in (("px", size), ("percent", 100 * size / side), ("ratio", width / height)):
            at = np.percentile(values, PERCENTILES) if len(values) else [float("nan")] * len(PERCENTILES)
            row |= {f"{key}_p{p}": round(float(v), 2) for p, v in zip(PERCENTILES, at, strict=True)}
        rows.append(row)
    return rows


def cells_per_image(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """A line for each number of cells that an image has, with the images of each split that have so many."""
    numbers = {split: Counter(int((~s.crowd).sum()) for s in d.samples) for split, d in datasets.items()}
    most = max(max(c) for c in numbers.values())
    return [{"cells": n, **{split: c[n] for split, c in numbers.items()}} for n in range(most + 1)]


def factors(datasets: dict[str, Dataset]) -> list[dict[str, object]]:
    """A line a split and interference factor: the images, and the cells, that it is noted of."""
    rows = []
    for split, dataset in datasets.items():
        images = Counter(factor for s in dataset.samples for factor in s.factors)
        cells = Counter(factor for s in dataset.samples for of in s.cell_factors for factor in of)
        for name in sorted({*images, *cells}):
            rows.append({"split": split, "factor": name, "images": images[name], "cells": cells[name]})
    return rows


def colours(dataset: Dataset, group_of: dict[str, str], progress: bool = False) -> list[Colour]:
    """The colours of each group of images, in the order of the groups' names.

    ``group_of`` names the group of an image (by its path) that has none of its own. Raises LeukoError for an image
    that cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        measured = list(
            tqdm(
                pool.map(_moments, dataset.samples),
                total=len(dataset),
                desc="reading colours",
                unit="image",
                disable=not progress,
            )
        )
    groups: dict[str, list[np.ndarray]] = {}
    for sample, moments in zip(dataset.samples, measured, strict=True):
        groups.setdefault(sample.group or group_of[str(sample.image)], []).append(moments)
    found = []
    for name, of in sorted(groups.items()):
        first, second = np.mean(of, axis=0)  # every image weighs the same
        between = np.std([m[0] for m in of], axis=0)
        deviation = np.sqrt(np.maximum(second - first**2, 0))
        found.append(Colour(name, len(of), *(tuple(map(float, v)) for v in (first, deviation, between))))
    return found


def _moments(sample: Sample) -> np.ndarray:
    """Means of an image's R, G, B and of their squares: [2, 3]."""
    pixels = read_image(sample.image)[::STEP, ::STEP].reshape(-1, 3).astype(np.float64)
    return np.stack([pixels.mean(0), (pixels**2).mean(0)])
