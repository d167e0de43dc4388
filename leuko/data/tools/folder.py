"""The folder that a data set is made in: it appears when all is done, or not at all, and replaces only a data set."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import LeukoError
from .. import source
from ..formats.coco import is_coco
from ..formats.sidecar import SIDE_FILE
from ..images import IMAGE_SUFFIXES

_OWN = {
    "images",
    "labels",
    "JPEGImages",
    "Annotations",
    "ImageSets",
    "classes.txt",
    "data.yaml",
    "warnings.txt",
    "reviewed.csv",
    SIDE_FILE,
}


_SUFFIXES = (*IMAGE_SUFFIXES, ".xml", ".txt", ".json", ".csv", ".cache")  # of files in a data set's folders


@contextmanager
def building(dst: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``dst`` to build a data set in, which takes the place of ``dst`` in the end.

    If the block fails, ``dst`` is as it was. Raises LeukoError where ``dst`` is a file, holds a data set and ``force``
    is not given, holds anything else, or cannot be written.
    """
    dst = Path(dst).resolve()  # behind a symbolic link the folder itself is replaced
    _check_free(dst, force)
    folder = dst.with_name(f".{dst.name}.leuko-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        _swap(folder, dst)
    except OSError as error:
        raise LeukoError(f"{dst}: cannot be written: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_free(dst: Path, force: bool) -> None:
    """Refuse a destination that would be overwritten without consent, or that holds more than a data set."""
    if dst.exists() and not dst.is_dir():
        raise LeukoError(f"{dst}: is a file; name a folder")
    there = sorted(dst.iterdir()) if dst.is_dir() else []
    if there and not force:
        raise LeukoError(f"{dst}: exists and is not empty; choose another folder, or replace its data set with --force")
    foreign = [p for p in there if p.name not in _OWN and not is_coco(p) and not re.fullmatch(r"fold\d+\.yaml", p.name)]
    foreign += [p for top in there for p in sorted(top.rglob("*")) if p.is_file() and p.suffix.lower() not in _SUFFIXES]
    if foreign:
        name = foreign[0].relative_to(dst)
        raise LeukoError(f'{dst}: holds "{name}", which is no part of a data set; choose another folder')
    if there:
        try:
            source.find(dst)
        except LeukoError as error:
            raise LeukoError(f"{dst}: holds no data set to replace ({error}); choose another folder") from error


def _swap(folder: Path, dst: Path) -> None:
    """Put the finished folder in ``dst``'s place."""
    if not dst.exists():
        folder.rename(dst)
        return
    old = folder.with_name(folder.name + "-old")
    dst.rename(old)
    try:
        folder.rename(dst)
    except OSError:
        old.rename(dst)
        raise
    shutil.rmtree(old)
