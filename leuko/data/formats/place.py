"""Adding to the folder of a data set: its images, linked or copied, and its list of classes."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import LeukoError
from ...io import io_errors_as, make_folder


def place_images(
    images: Sequence[Path], folder: Path, fits: Callable[[int, Path], bool] = lambda number, placed: True
) -> list[Path]:
    """Put images into one folder, byte for byte, under names whose stems are unique there; return their new paths.

    An image that is in the folder already is used again if ``fits(number of the image, its path)``. A different image
    of the same name is put beside it as ``NAME-2``. Files are hard-linked, or copied where the file system cannot link.
    Raises LeukoError.
    """
    by_stem = {p.stem.casefold(): p for p in make_folder(folder).iterdir()}
    placed: dict[Path, None] = {}
    for number, image in enumerate(images):
        with io_errors_as(f"copied to {folder}", image):
            stem, attempt = image.stem, 1
            while old := by_stem.get(stem.casefold()):
                is_same = old.suffix == image.suffix and (old.samefile(image) or filecmp.cmp(old, image, shallow=False))
                if old not in placed and is_same and fits(number, old):
                    break
                attempt += 1
                stem = f"{image.stem}-{attempt}"
            else:
                old = by_stem[stem.casefold()] = folder / (stem + image.suffix)
                link_or_copy(image, old)
        placed[old] = None
    return list(placed)


def link_or_copy(file: Path, to: Path) -> None:
    """Link a file, or copy it where the file system cannot link; OSError where neither is possible."""
    try:
        os.link(file.resolve(), to)  # resolved, since otherwise a symbolic link itself would be linked
    except OSError:
        shutil.copyfile(file, to)


def check_names(file: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Raise LeukoError where the folder to write to holds a data set of other classes."""
    if list(old) != list(new):
        listed = f"{', '.join(old)}, not {', '.join(new)}"
        raise LeukoError(f"{file}: the folder holds the classes {listed}; write into another folder")
