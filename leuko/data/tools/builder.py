"""What all that writes a data set shares: its source, images, and a folder that appears when all is done or not at all,
and replaces only a data set."""

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

from ...errors import LeukoError, nearest
from ...io import io_errors_as, write_text
from .. import source
from ..dataset import Dataset, Sample
from ..formats import FORMATS, coco, sidecar
from ..images import IMAGE_SUFFIXES

T, R = TypeVar("T"), TypeVar("R")
_CONTENT = ("images", "labels", "JPEGImages", "Annotations", "ImageSets")
_CONTENT += ("classes.txt", "data.yaml", "warnings.txt", "reviewed.csv", sidecar.SIDECAR)
_SUFFIXES = (*IMAGE_SUFFIXES, ".xml", ".txt", ".json", ".yaml", ".csv", ".cache")  # of a data set's files


def check_format(flag: str, form: str) -> None:
    """Raise LeukoError unless ``form``, given by an option, is a format."""
    if form not in FORMATS:
        raise LeukoError(f"{flag} {form}: is not a format{nearest(form, FORMATS)}; give {', '.join(FORMATS)}")


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


def write_splits(
    folder: Path, form: str, datasets: dict[str, Dataset], read: dict[str, Dataset] | None = None, **how: int
) -> None:
    """Write splits in a format, and ``warnings.txt`` about them or about ``read``, the splits of the source, where they
    are others; ``how`` is for the format's writer."""
    for split, dataset in datasets.items():
        FORMATS[form].write(dataset, folder, split, **how)
    write_warnings(folder, read or datasets)


def write_warnings(folder: Path, datasets: dict[str, Dataset]) -> None:
    """Write ``warnings.txt``, a line for each thing that was fixed or left out, if anything was."""
    lines = [f"{split}: {note}" for split, dataset in datasets.items() for note in dataset.notes]
    lines += [str(warning) for dataset in datasets.values() for warning in dataset.warnings]
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
    if not dst.exists() or not any(dst.iterdir()):
        return
    if not force:
        raise LeukoError(f"{dst}: exists and is not empty; choose another folder, or replace its data set with --force")
    for path in sorted(dst.rglob("*")):
        top = dst / path.relative_to(dst).parts[0]
        is_ours = top.name in _CONTENT or coco.is_coco(top) or re.fullmatch(r"fold\d+\.yaml", top.name)
        if not is_ours or (path.is_file() and path.suffix.lower() not in _SUFFIXES):
            name = path.relative_to(dst)
            raise LeukoError(f'{dst}: holds "{name}", which is no part of a data set; choose another folder')
    try:
        source.find(dst)
    except LeukoError as error:
        raise LeukoError(f"{dst}: holds no data set to replace ({error}); choose another folder") from error


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
