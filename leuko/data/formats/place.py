"""Text read with an error that names the file, text written whole or not at all, images linked or copied."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path

from ...errors import LeukoError
from ...io import make_folder


def _temporary(path: Path) -> Path:
    return path.with_name(f".leuko-{os.getpid()}.tmp")


def place_images(
    images: Sequence[Path], folder: Path, fits: Callable[[int, Path], bool] = lambda number, there: True
) -> list[Path]:
    """Bring images into one folder, byte for byte, under names whose stems are unique there; return their new paths.

    An image that is there already keeps its place, if ``fits(number of the image, its path there)``. Another image of
    the same name goes beside it as ``NAME-2``. Files are hard-linked, or copied where the file system cannot link.
    Raises LeukoError.
    """
    make_folder(folder)
    there = {p.stem.casefold(): p for p in folder.iterdir()}
    placed: dict[Path, None] = {}
    for number, image in enumerate(images):
        try:
            placed[_place(image, folder, there, placed, partial(fits, number))] = None
        except OSError as error:
            raise LeukoError(f"{image}: cannot be copied to {folder}: {error.strerror}") from error
    return list(placed)


def _place(
    image: Path, folder: Path, there: dict[str, Path], placed: Container[Path], fits: Callable[[Path], bool]
) -> Path:
    number, stem = 1, image.stem
    while (old := there.get(stem.casefold())) is not None:
        if old not in placed and old.suffix == image.suffix and _same(old, image) and fits(old):
            return old
        number += 1
        stem = f"{image.stem}-{number}"
    new = there[stem.casefold()] = folder / (stem + image.suffix)
    _link_or_copy(image, new)
    return new


def _same(a: Path, b: Path) -> bool:
    return a.samefile(b) or filecmp.cmp(a, b, shallow=False)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # resolved, because a symbolic link would be linked itself
    except OSError:
        temporary = _temporary(target)
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
