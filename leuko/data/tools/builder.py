"""Data sets of pictures that leuko makes: each drawn from the seed and its number, and written in any format."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...errors import LeukoError, nearest
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from ..formats import coco, voc, yolo
from ..validate import MIN_SIDE
from .convert import check_apart, check_names, list_warnings, load_all
from .folder import building

Writer = Callable[[Dataset, Path, str], None]
FORMATS: dict[str, tuple[Writer, str]] = {
    "coco": (coco.write, "images"),
    "voc": (voc.write, "JPEGImages"),
    "yolo": (yolo.write, "images/{split}"),
}
"""For each format its writer, and the folder where it keeps a split's images, so that they are drawn in place."""

MIN_SIZE, MAX_SIZE = 64, 8192
QUALITY = 95  # of the JPEGs


@dataclass(frozen=True)
class Picture:
    """A picture that was made, and what is known of it (see ``Sample``)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    cell_factors: list[tuple[str, ...]] = field(default_factory=list)
    factors: tuple[str, ...] = ()
    group: str = ""


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
    write, images = FORMATS[format]
    with building(dst, force) as folder:
        jobs = []
        for split, numbers in splits.items():
            home = folder / images.format(split=split)
            home.mkdir(parents=True, exist_ok=True)
            jobs += [(home / f"{i:06d}.jpg", split, i) for i in numbers]
        pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
        try:
            done = pool.map(lambda job: _save(*job, draw), jobs)
            samples = list(tqdm(done, title, len(jobs), unit="image", disable=not progress))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk, what is queued is not begun
        datasets = {split: Dataset(list(types), samples[r.start : r.stop]) for split, r in splits.items()}
        for split, dataset in datasets.items():
            write(dataset, folder, split)
    for sample in samples:
        sample.image = dst / sample.image.relative_to(folder)
    return datasets


def _save(path: Path, split: str, number: int, draw: Draw) -> Sample:
    picture = draw(split, number)
    save_jpeg(path, picture.image)
    height, width = picture.image.shape[:2]
    return Sample(
        path,
        width,
        height,
        picture.boxes,
        picture.labels,
        id=number + 1,
        cell_factors=picture.cell_factors,
        factors=picture.factors,
        group=picture.group,
    )


Change = Callable[[Sample, int], tuple[np.ndarray, Sample]]
"""Makes a sample's image anew, the ``number``-th of the data set, with what is then known of it."""


def remake(
    src: str | Path,
    dst: str | Path,
    change: Change,
    *,
    force: bool = False,
    progress: bool = False,
    title: str = "changing",
    finish: Callable[[Path, dict[str, Dataset]], None] = lambda folder, datasets: None,
) -> dict[str, Dataset]:
    """Write a data set with every image changed, in its own format, and return it as it reads back.

    JPEGs become JPEGs, all else PNGs, under their old names. An image that stands in several splits with the same
    labels is changed once; with other labels it becomes two. A cell that shrinks to a pixel is dropped, and listed in
    ``warnings.txt``.
    ``finish`` is called with the new folder and what was read before it takes its place. Raises LeukoError.
    """
    form = source.find(src).format
    datasets = load_all(src)
    check_names(datasets, form)
    check_apart(src, dst, datasets)
    with building(dst, force) as folder:
        made = folder / "made"
        unique = {_content(s): s for dataset in datasets.values() for s in dataset.samples}
        lost: list[LabelWarning] = []

        def job(number: int, sample: Sample) -> Sample:
            image, changed = change(sample, number)
            changed = _without_small(changed, lost)
            home = made / f"{number}"  # a folder each, since names may be the same
            home.mkdir(parents=True)
            is_jpeg = sample.image.suffix.lower() in (".jpg", ".jpeg")
            path = home / (sample.image.name if is_jpeg else f"{sample.image.stem}.png")
            save_jpeg(path, image) if is_jpeg else _save_png(path, image)
            return replace(changed, image=path, width=image.shape[1], height=image.shape[0])

        pool = ThreadPoolExecutor()
        try:
            results = pool.map(job, range(len(unique)), unique.values())
            done = list(tqdm(results, title, len(unique), unit="image", disable=not progress))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what is queued is not begun
        new = dict(zip(unique, done, strict=True))
        for split, dataset in datasets.items():
            samples = [replace(new[_content(s)], id=s.id) for s in dataset.samples]
            FORMATS[form][0](replace(dataset, samples=samples), folder, split)
        shutil.rmtree(made)
        first = next(iter(datasets))
        list_warnings(
            folder, {**datasets, first: replace(datasets[first], warnings=[*datasets[first].warnings, *lost])}
        )
        finish(folder, datasets)
    return load_all(dst)


def _content(sample: Sample) -> tuple:
    """An image with all that is known of it but its id."""
    arrays = (sample.boxes.tobytes(), sample.labels.tobytes(), sample.crowd.tobytes())
    about = (tuple(sample.cell_factors), repr(sample.attributes), sample.factors, sample.group)
    return sample.image.resolve(), *arrays, *about


def _without_small(sample: Sample, lost: list[LabelWarning]) -> Sample:
    """The sample without cells that are too small to be read back, which are added to ``lost``."""
    kept = np.flatnonzero((sample.boxes[:, 2:] - sample.boxes[:, :2] > MIN_SIDE).all(1))
    if len(kept) == len(sample.boxes):
        return sample
    for i in sorted(set(range(len(sample.boxes))) - set(kept.tolist())):
        problem = f"is at most {MIN_SIDE:g} px wide or high after the change"
        lost.append(LabelWarning(sample.image, f"cell {i + 1}", problem, "dropped"))
    return replace(
        sample,
        boxes=sample.boxes[kept],
        labels=sample.labels[kept],
        crowd=sample.crowd[kept],
        cell_factors=[sample.cell_factors[i] for i in kept],
        attributes=[sample.attributes[i] for i in kept],
    )


def _save_png(path: Path, image: np.ndarray) -> None:
    _, png = cv2.imencode(".png", image[:, :, ::-1])
    path.write_bytes(png.tobytes())


def save_jpeg(path: Path, image: np.ndarray) -> None:
    """Write a picture [H, W, 3] uint8 RGB as JPEG; raises OSError."""
    _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    path.write_bytes(jpeg.tobytes())
