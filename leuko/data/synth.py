"""Data sets that leuko renders itself: every pixel and box follow from a seed, nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from leuko.cells import TYPES
from leuko.data import coco, voc, yolo
from leuko.data.folder import building
from leuko.data.sample import Dataset, Sample
from leuko.errors import LeukoError, nearest
from leuko.smear.render import render_field

Writer = Callable[[Dataset, Path, str], None]
FORMATS: dict[str, tuple[Writer, str]] = {
    "coco": (coco.write, "images"),
    "voc": (voc.write, "JPEGImages"),
    "yolo": (yolo.write, "images/{split}"),
}
"""For each format its writer, and the folder where it keeps a split's images, so that they are rendered in place."""

MIN_SIZE, MAX_SIZE = 64, 8192
_CELLS_A_FIELD = (0.24, 0.30, 0.24, 0.14, 0.08)  # share of the fields with 1, 2, ... 5 leukocytes


def synth(
    dst: str | Path,
    images: int = 200,
    size: int = 320,
    format: str = "coco",
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    force: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Render a data set of Wright-stained fields with the five leukocyte types, and write it.

    Args:
        dst: the folder to make. It appears when all is done, or not at all.
        images: how many, at least 1.
        size: their side in pixels, 64 to 8192.
        format: ``coco``, ``voc`` or ``yolo``.
        seed: image ``i`` of a seed is always the same, whatever the other arguments but ``size`` and the workers.
        val, test: shares of the images; the rest, at least one image, is for training. A share of 0 makes no split.
        force: replace a data set that is in ``dst``.
        workers: threads, 0 for one a core.
        progress: show a bar on the terminal.

    Returns:
        The data set of each split by name, with 1 to 5 cells an image, fewer where a cell found no room.

    Raises:
        LeukoError: an argument is out of range, ``dst`` exists, or it cannot be written.
    """
    _check(images, size, format, seed, val, test)
    dst = Path(dst).resolve()
    with building(dst, force) as folder:
        datasets = _build(folder, _shares(images, val, test), size, format, seed, workers, progress)
    for dataset in datasets.values():
        for sample in dataset.samples:
            sample.image = dst / sample.image.relative_to(folder)
    return datasets


def _check(images: int, size: int, format: str, seed: int, val: float, test: float) -> None:
    if format not in FORMATS:
        raise LeukoError(f'format "{format}" is unknown{nearest(format, FORMATS)}; use {", ".join(FORMATS)}')
    if images < 1:
        raise LeukoError(f"images {images}: give at least 1")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise LeukoError(f"size {size}: give {MIN_SIZE} to {MAX_SIZE} pixels")
    if seed < 0:
        raise LeukoError(f"seed {seed}: give 0 or more")
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise LeukoError(f"val {val} and test {test}: give shares of at least 0 that leave some images for training")


def _shares(images: int, val: float, test: float) -> dict[str, range]:
    """The numbers of the images in each split; training comes first and is never empty."""
    n_val = min(round(images * val), images - 1)
    n_test = min(round(images * test), images - 1 - n_val)
    n_train = images - n_val - n_test
    ends = {"train": (0, n_train), "val": (n_train, n_train + n_val), "test": (n_train + n_val, images)}
    return {split: range(*bounds) for split, bounds in ends.items() if bounds[0] < bounds[1]}


def _build(
    folder: Path, shares: dict[str, range], size: int, format: str, seed: int, workers: int, progress: bool
) -> dict[str, Dataset]:
    write, images = FORMATS[format]
    jobs = []
    for split, numbers in shares.items():
        home = folder / images.format(split=split)
        home.mkdir(parents=True, exist_ok=True)
        jobs += [(home / f"{i:06d}.jpg", size, seed, i) for i in numbers]
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        done = pool.map(lambda job: _render(*job), jobs)
        samples = list(tqdm(done, "rendering", len(jobs), unit="image", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk, what is queued is not begun
    codes = [t.code for t in TYPES]
    datasets = {split: Dataset(codes, samples[r.start : r.stop]) for split, r in shares.items()}
    for split, dataset in datasets.items():
        write(dataset, folder, split)
    return datasets


def _render(path: Path, size: int, seed: int, number: int) -> Sample:
    """Render image ``number`` of a seed into ``path``."""
    rng = np.random.default_rng([seed, number])
    n = 1 + rng.choice(len(_CELLS_A_FIELD), p=_CELLS_A_FIELD)
    kinds = rng.integers(0, len(TYPES), n)
    kinds[0] = number % len(TYPES)  # so that any five images in a row show every type
    types = [TYPES[k].code for k in kinds]
    image, boxes, labels = render_field(rng, size, size, types)
    _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.write_bytes(jpeg.tobytes())
    return Sample(path, size, size, boxes, labels, id=number + 1)
