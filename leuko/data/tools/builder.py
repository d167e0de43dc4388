"""Data sets whose images leuko makes: drawn from a seed and a number, or another data set's changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ...errors import LeukoError, nearest
from ...synth.dataset import Picture
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from ..formats import FORMATS, sidecar
from ..validate import MIN_SIDE
from .folder import building, read_source, write_warnings

T, R = TypeVar("T"), TypeVar("R")
MIN_SIZE, MAX_SIZE = 64, 8192  # of an image's side in pixels
QUALITY = 95  # of the JPEGs


def in_threads(function: Callable[[T], R], items: Iterable[T], title: str, progress: bool, workers: int = 0) -> list[R]:
    """``function`` of each item in order, with a bar on the terminal; 0 workers: one per core."""
    items = list(items)
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        results = pool.map(function, items)
        return list(tqdm(results, title, len(items), unit="image", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what is queued is not started


def with_cells(sample: Sample, kept: Sequence[int]) -> Sample:
    """The sample with some of its cells, by their indices."""
    return replace(
        sample,
        boxes=sample.boxes[kept],
        labels=sample.labels[kept],
        crowd=sample.crowd[kept],
        cell_factors=[sample.cell_factors[i] for i in kept],
        attributes=[sample.attributes[i] for i in kept],
    )


# ---------------------------------------------------------------- drawn images


Draw = Callable[[str, int], Picture]
"""Draws picture ``number`` (of all splits together) of a split."""


def check(images: int, size: int, format: str, seed: int, val: float, test: float, workers: int = 0) -> None:
    """Raise LeukoError naming the argument whose value cannot be used."""
    if format not in FORMATS:
        raise LeukoError(f'format "{format}" is unknown{nearest(format, FORMATS)}; use {", ".join(FORMATS)}')
    if images < 1:
        raise LeukoError(f"images {images}: give at least 1")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise LeukoError(f"size {size}: give {MIN_SIZE} to {MAX_SIZE} pixels")
    for name, value in (("seed", seed), ("workers", workers)):
        if value < 0:
            raise LeukoError(f"{name} {value}: give 0 or more")
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise LeukoError(f"val {val} and test {test}: give shares of at least 0 that leave some images for training")


def shares(images: int, val: float, test: float) -> dict[str, range]:
    """The numbers of the images in each split; training comes first and is never empty."""
    n_val = min(round(images * val), images - 1)
    n_test = min(round(images * test), images - 1 - n_val)
    n_train = images - n_val - n_test
    ends = {"train": (0, n_train), "val": (n_train, n_train + n_val), "test": (n_train + n_val, images)}
    return {split: range(*bounds) for split, bounds in ends.items() if bounds[0] < bounds[1]}


def produce(
    dst: str | Path,
    types: Sequence[str],
    splits: dict[str, range],
    draw: Draw,
    *,
    format: str,
    force: bool,
    workers: int = 0,
    progress: bool = False,
    title: str = "rendering",
) -> dict[str, Dataset]:
    """Draw the numbered pictures of each split into ``dst``, which appears when all is done, and return the splits."""
    dst = Path(dst).resolve()
    with building(dst, force) as folder:

        def job(place: tuple[str, int]) -> Sample:
            split, number = place
            picture = draw(split, number)
            path = folder / FORMATS[format].IMAGES.format(split=split) / f"{number:06d}.jpg"
            save_image(path, picture.image)
            about = {"factors": picture.factors, "group": picture.group, "cell_factors": picture.cell_factors}
            height, width = picture.image.shape[:2]
            return Sample(path, width, height, picture.boxes, picture.labels, number + 1, **about)

        places = [(split, number) for split, numbers in splits.items() for number in numbers]
        samples = in_threads(job, places, title, progress, workers)
        datasets = {split: Dataset(list(types), samples[r.start : r.stop]) for split, r in splits.items()}
        for split, dataset in datasets.items():
            FORMATS[format].write(dataset, folder, split)
    for sample in samples:
        sample.image = dst / sample.image.relative_to(folder)
    return datasets


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image [H, W, 3] uint8 RGB as its name's suffix says; raises OSError."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    _, data = cv2.imencode(path.suffix, image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if is_jpeg else [])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


# ---------------------------------------------------------------- changed images


Change = Callable[[Sample, int], tuple[np.ndarray, Sample]]
"""The new image of a sample, the ``number``-th of the data set, and what is then known about it."""


def remake(
    src: str | Path,
    dst: str | Path,
    change: Change,
    *,
    force: bool = False,
    progress: bool = False,
    title: str = "changing",
    keep_originals: bool = False,
) -> dict[str, Dataset]:
    """Write a data set with every image changed, in its own format, and return it as it reads back.

    JPEGs become JPEGs, all others PNGs, under their old names. An image that is in several splits with the same labels
    is changed once; with different labels it becomes two. Cells that are lost, or shrink to a pixel, are listed in
    ``warnings.txt``. With ``keep_originals`` the sidecar holds the original of each image. Raises LeukoError.
    """
    form, datasets = read_source(src, dst)
    with building(dst, force) as folder:
        made = folder / "made"

        def job(item: tuple[int, Sample]) -> tuple[Sample, list[LabelWarning]]:
            number, sample = item
            image, changed = change(sample, number)
            changed, warnings = _without_small(changed)
            if lost := len(sample.boxes) - len(changed.boxes) - len(warnings):
                warnings.append(LabelWarning(sample.image, f"{lost} cells", "lie on what was cut off", "dropped"))
            suffix = sample.image.suffix if sample.image.suffix.lower() in (".jpg", ".jpeg") else ".png"
            path = made / f"{number}" / f"{sample.image.stem}{suffix}"  # a folder each, as names may be the same
            save_image(path, image)
            return replace(changed, image=path, width=image.shape[1], height=image.shape[0]), warnings

        unique = {_content(s): s for dataset in datasets.values() for s in dataset.samples}
        done = in_threads(job, enumerate(unique.values()), title, progress)
        new = {key: sample for key, (sample, _) in zip(unique, done, strict=True)}
        originals = {}
        for split, dataset in datasets.items():
            samples = [replace(new[_content(s)], id=s.id) for s in dataset.samples]
            images = FORMATS[form].write(replace(dataset, samples=samples), folder, split)
            originals |= {
                image.relative_to(folder).as_posix(): {
                    "image": os.path.relpath(sample.image.resolve(), Path(dst).resolve()),
                    "width": sample.width,
                    "height": sample.height,
                }
                for image, sample in zip(images, dataset.samples, strict=True)
            }
        shutil.rmtree(made)
        next(iter(datasets.values())).warnings.extend(warning for _, warnings in done for warning in warnings)
        write_warnings(folder, datasets)
        if keep_originals:
            sidecar.update(folder, originals=originals)
    return source.load_all(dst)


def _content(sample: Sample) -> tuple:
    """An image with all that is known about it except its id, as a key."""
    arrays = (sample.boxes.tobytes(), sample.labels.tobytes(), sample.crowd.tobytes())
    about = (tuple(sample.cell_factors), repr(sample.attributes), sample.factors, sample.group)
    return sample.image.resolve(), *arrays, *about


def _without_small(sample: Sample) -> tuple[Sample, list[LabelWarning]]:
    """The sample without cells that are too small to be read back, and a warning for each of them."""
    is_large = (sample.boxes[:, 2:] - sample.boxes[:, :2] > MIN_SIDE).all(1)
    problem = f"is at most {MIN_SIDE:g} px wide or high after the change"
    warnings = [LabelWarning(sample.image, f"cell {i + 1}", problem, "dropped") for i in np.flatnonzero(~is_large)]
    return with_cells(sample, np.flatnonzero(is_large)), warnings
