"""Images linked or copied into the folder of a data set."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...io import io_errors_as, make_folder, replacing


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
                if old not in placed and old.suffix == image.suffix and _same(old, image) and fits(number, old):
                    break
                attempt += 1
                stem = f"{image.stem}-{attempt}"
            else:
                old = by_stem[stem.casefold()] = folder / (stem + image.suffix)
                _link_or_copy(image, old)
        placed[old] = None
    return list(placed)


def _same(a: Path, b: Path) -> bool:
    return a.samefile(b) or filecmp.cmp(a, b, shallow=False)


def _link_or_copy(image: Path, target: Path) -> None:
    try:
        os.link(image.resolve(), target)  # resolved, since otherwise a symbolic link itself would be linked
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(image, temporary)
