"""Writing a data set: read from another one or not, its images made or changed, in a folder that appears when all is
done, or not at all, and replaces only a data set."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ...errors import LeukoError
from ...io import io_errors_as, write_text
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from ..formats import FORMATS, coco, sidecar
from ..images import IMAGE_SUFFIXES
from ..validate import MIN_SIDE

T, R = TypeVar("T"), TypeVar("R")
_CONTENT = ("images", "labels", "JPEGImages", "Annotations", "ImageSets")
_CONTENT += ("classes.txt", "data.yaml", "warnings.txt", "reviewed.csv", sidecar.SIDECAR)
_SUFFIXES = (*IMAGE_SUFFIXES, ".xml", ".txt", ".json", ".csv", ".cache")  # of files in a data set's folders


def read_source(
    src: str | Path, dst: str | Path, form: str = "", names: Sequence[str] = ()
) -> tuple[str, dict[str, Dataset]]:
    """The format to write, ``form`` or else the source's own, and all splits of the source.

    Raises LeukoError where ``dst`` is the source, lies in it or holds any of it, since that would be changed, or where
    the name of a split (the source's own, or ``names``) is not a file's name or would be read back as another.
    """
    found = source.find(src)
    form = form or found.format
    for name in names or found.splits:
        if name.startswith(".") or not name.strip() or re.search(r"[/\\\x00-\x1f]", name):
            raise LeukoError(f'split "{name}": cannot be a file\'s name; rename it')
        file = Path(f"{name}.json")
        if form == "coco" and (coco.split_name(file) != name or file.name == sidecar.SIDECAR):
            raise LeukoError(f'split "{name}": a COCO file {file} would not read back as that split; rename it')
    datasets = source.load_all(src)
    here, there = Path(src).resolve(), Path(dst).resolve()
    parts = {here, *(part.resolve() for parts in found.splits.values() for part in parts)}
    parts |= {folder.resolve() for dataset in datasets.values() for folder in {s.image.parent for s in dataset.samples}}
    lies_in_source = here.is_dir() and here in (there, *there.parents)
    if lies_in_source or any(there in (part, *part.parents) for part in parts):
        raise LeukoError(f"{dst}: is the source, lies in it or holds it; name another folder")
    return form, datasets


def write_warnings(folder: Path, datasets: dict[str, Dataset]) -> None:
    """Write ``warnings.txt``, a line for each thing that was fixed or left out, if anything was."""
    lines = [str(warning) for dataset in datasets.values() for warning in (*dataset.notes, *dataset.warnings)]
    for split, dataset in datasets.items():
        for name, number in dataset.ignored.items():
            lines.append(f"{split}: class {name}: {number} cells; left out, as the data YAML says")
    if lines:
        write_text(folder / "warnings.txt", "\n".join(dict.fromkeys(lines)) + "\n")


@contextmanager
def building(dst: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``dst`` to build a data set in, which takes the place of ``dst`` at the end.

    If the block fails, ``dst`` is left as it was. Raises LeukoError where ``dst`` is a file, holds a data set and
    ``force`` is not given, holds anything else, or cannot be written.
    """
    dst = Path(dst).resolve()  # so that behind a symbolic link the folder itself is replaced
    _check_free(dst, force)
    folder = dst.with_name(f".{dst.name}.leuko-{os.getpid()}")
    old = folder.with_name(folder.name + "-old")
    try:
        with io_errors_as("written", dst):
            folder.mkdir(parents=True)
            yield folder
            if dst.exists():
                dst.rename(old)
            folder.rename(dst)
    finally:
        if old.exists() and not dst.exists():
            old.rename(dst)
        for leftover in (folder, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_free(dst: Path, force: bool) -> None:
    """Refuse a destination that would be overwritten without consent, or that holds more than a data set."""
    if dst.exists() and not dst.is_dir():
        raise LeukoError(f"{dst}: is a file; name a folder")
    if not dst.exists() or not (content := sorted(dst.iterdir())):
        return
    if not force:
        raise LeukoError(f"{dst}: exists and is not empty; choose another folder, or replace its data set with --force")
    foreign = [p for p in content if p.name not in _CONTENT]
    foreign = [p for p in foreign if not coco.is_coco(p) and not re.fullmatch(r"fold\d+\.yaml", p.name)]
    inside = (p for top in content for p in sorted(top.rglob("*")))
    foreign += [p for p in inside if p.is_file() and p.suffix.lower() not in _SUFFIXES]
    if foreign:
        name = foreign[0].relative_to(dst)
        raise LeukoError(f'{dst}: holds "{name}", which is no part of a data set; choose another folder')
    try:
        source.find(dst)
    except LeukoError as error:
        raise LeukoError(f"{dst}: holds no data set to replace ({error}); choose another folder") from error


# ---------------------------------------------------------------- images made or changed


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


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image [H, W, 3] uint8 RGB as its name's suffix says; raises OSError."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    _, data = cv2.imencode(path.suffix, image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95] if is_jpeg else [])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def remake(
    src: str | Path,
    dst: str | Path,
    change: Callable[[Sample, int], tuple[np.ndarray, Sample]],
    *,
    title: str,
    force: bool = False,
    progress: bool = False,
    keep_originals: bool = False,
) -> dict[str, Dataset]:
    """Write a data set with every image changed, in its own format, and return it as it reads back.

    ``change`` gives the new image of the data set's ``number``-th sample, and what is then known about it. JPEGs become
    JPEGs, all others PNGs, under their old names. An image that is in several splits with the same labels is changed
    once; with different labels it becomes two. Cells that are lost, or shrink to a pixel, are listed in
    ``warnings.txt``. With ``keep_originals`` the sidecar holds the original of each image. Raises LeukoError.
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
        originals = {}
        for split, dataset in datasets.items():
            samples = [replace(new[_content(s)], id=s.id) for s in dataset.samples]
            images = FORMATS[form].write(replace(dataset, samples=samples), folder, split)
            for image, s in zip(images, dataset.samples, strict=True):
                original = os.path.relpath(s.image.resolve(), Path(dst).resolve())
                about = {"image": original, "width": s.width, "height": s.height}
                originals[image.relative_to(folder).as_posix()] = about
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
