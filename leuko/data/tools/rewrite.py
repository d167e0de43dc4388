"""A data set written anew: in another format, or with its images scaled or changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError
from ...io import write_yaml
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from ..fit import fit
from ..formats import voc
from ..images import read_image
from ..validate import MIN_SIDE
from .builder import building, check_format, in_threads, read_source, save_image, with_cells, write_splits


def convert(
    src: str | Path, dst: str | Path, to: str, *, voc_origin: int = 0, force: bool = False
) -> dict[str, Dataset]:
    """Write all splits of a data set in another format (or the same), and return them as they were read.

    Boxes come back bit for bit, with class names and ids, splits, factors, groups, crowds and attributes; images are
    linked or copied, never encoded again. What reading fixes is written fixed, and listed in ``warnings.txt``.
    The official VOC convention (``voc_origin=1``) gets a data YAML that says so. For the arguments see
    ``config.ConvertOptions``. Raises LeukoError.
    """
    check_format("--to", to)
    if voc_origin and to != "voc":
        raise LeukoError(f"--voc-origin: is about VOC, not {to}; leave it out")
    _, datasets = read_source(src, dst, to)
    with building(dst, force) as folder:
        write_splits(folder, to, datasets, **({"voc_origin": 1} if voc_origin else {}))
        if voc_origin:
            splits = {split: voc.PART.format(split=split) for split in datasets}
            names = next(iter(datasets.values())).types
            about = {"path": ".", "splits": splits, "names": names, "format": "voc", "voc_origin": 1}
            write_yaml(folder / "data.yaml", about)
    return datasets


def resize(
    src: str | Path, dst: str | Path, size: int = 600, *, force: bool = False, progress: bool = False
) -> dict[str, Dataset]:
    """Write a data set with the longer side of every image at ``size`` pixels, in its own format.

    JPEGs are decoded at the smallest of their built-in scales that is large enough. Returns the splits as they read
    back; raises LeukoError.
    """

    def change(sample: Sample, _: int) -> tuple[np.ndarray, Sample]:
        image = fit(read_image(sample.image, size), size)
        scale = np.array([image.shape[1] / sample.width, image.shape[0] / sample.height] * 2, dtype=np.float32)
        return image, replace(sample, boxes=sample.boxes * scale)

    return remake(src, dst, change, force=force, progress=progress, title="resizing")


def remake(
    src: str | Path,
    dst: str | Path,
    change: Callable[[Sample, int], tuple[np.ndarray, Sample]],
    *,
    title: str,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Write a data set with every image changed, in its own format, and return it as it reads back.

    ``change`` gives the new image of the data set's ``number``-th sample, and what is then known about it. JPEGs become
    JPEGs, all others PNGs, under their old names. An image that is in several splits with the same labels is changed
    once; with different labels it becomes two. Cells that are lost, or shrink to a pixel, are listed in
    ``warnings.txt``. Raises LeukoError.
    """
    form, datasets = read_source(src, dst)
    with building(dst, force) as folder:
        made = folder / "made"

        def job(item: tuple[int, Sample]) -> tuple[Sample, list[LabelWarning]]:
            number, sample = item
            image, changed = change(sample, number)
            is_large = (changed.boxes[:, 2:] - changed.boxes[:, :2] > MIN_SIDE).all(1)
            problem = f"is at most {MIN_SIDE:g} px wide or high after the change"
            small = np.flatnonzero(~is_large)
            warnings = [LabelWarning(sample.image, f"cell {i + 1}", problem, "dropped") for i in small]
            if lost := len(sample.boxes) - len(changed.boxes):
                warnings.append(LabelWarning(sample.image, f"{lost} cells", "lie on what was cut off", "dropped"))
            suffix = sample.image.suffix if sample.image.suffix.lower() in (".jpg", ".jpeg") else ".png"
            path = made / f"{number}" / f"{sample.image.stem}{suffix}"  # a folder each, as names may be the same
            save_image(path, image)
            changed = with_cells(changed, np.flatnonzero(is_large))
            return replace(changed, image=path, width=image.shape[1], height=image.shape[0]), warnings

        unique = {_content(s): s for dataset in datasets.values() for s in dataset.samples}
        done = in_threads(job, enumerate(unique.values()), title, progress)
        new = {key: sample for key, (sample, _) in zip(unique, done, strict=True)}
        for dataset in datasets.values():
            dataset.samples = [replace(new[_content(s)], id=s.id) for s in dataset.samples]
        next(iter(datasets.values())).warnings.extend(warning for _, warnings in done for warning in warnings)
        write_splits(folder, form, datasets)
        shutil.rmtree(made)
    return source.load_all(dst)


def _content(sample: Sample) -> tuple:
    """An image with all that is known about it except its id, as a key."""
    arrays = (sample.boxes.tobytes(), sample.labels.tobytes(), sample.crowd.tobytes())
    about = (tuple(sample.cell_factors), repr(sample.attributes), sample.factors, sample.group)
    return sample.image.resolve(), *arrays, *about
