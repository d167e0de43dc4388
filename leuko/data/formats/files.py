"""The files of a data set: the images that labels name, whatever tool wrote the names, are found, and others added."""

from __future__ import annotations

import filecmp
import os
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import takewhile
from operator import eq
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ...errors import LeukoError
from ...io import io_errors_as, make_folder
from ..dataset import Note
from ..images import list_images


def spelled(name: str) -> str:
    """A file's name as it is compared: macOS writes an umlaut as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def inside(root: Path, folder: Path, name: str) -> Path | None:
    """The path that a name in ``folder`` means; None where that leaves ``root``."""
    path = Path(os.path.normpath(folder / name))
    return path if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)) else None


class ImageFinder:
    """Finds the images of a data set by the names in its label files.

    A name is tried as it is, with backslashes as slashes, and URL-decoded. Where no image is there, the one below
    ``root`` that has the same name and shares most of the folders above it is taken: exports are unpacked elsewhere,
    and tools write the paths of their own servers. ``moved`` lists these as (name, image).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moved: list[tuple[str, Path]] = []

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        by_name = defaultdict(list)
        for image in list_images(self.root, recursive=True):
            by_name[spelled(image.name)].append(image)
        return by_name

    def find(self, name: str, folders: Sequence[Path]) -> Path:
        """The image that is called ``name``, relative to one of the folders; one that is missing in the first of them.

        Raises LeukoError where the name is none, leaves the data set's folder, or fits several images.
        """
        slashes = name.replace("\\", "/")
        if "\0" in name or PurePosixPath(slashes).name in ("", ".", ".."):
            raise LeukoError(f"{name!r:.60} names no image; correct it")
        names = dict.fromkeys((name, slashes, unquote(slashes)))
        paths = [inside(self.root, folder, each) for each in names for folder in folders]
        if there := next((path for path in paths if path and path.is_file()), None):
            return there
        parts = [spelled(part) for part in reversed(PurePosixPath(unquote(slashes)).parts)]
        alike = self._by_name.get(parts[0], []) if os.path.isdir(self.root) else []
        ends = ([spelled(part) for part in reversed(image.parts)] for image in alike)
        shared = [len(list(takewhile(bool, map(eq, end, parts)))) for end in ends]
        best = [image for image, number in zip(alike, shared, strict=True) if number == max(shared)]
        if len(best) > 1:
            raise LeukoError(f'"{name}": several images fit ({best[0]}, {best[1]}); write which one is meant')
        if best:
            self.moved.append((name, best[0]))
            return best[0]
        if None in paths:
            raise LeukoError(f'"{name}" leaves the data set\'s folder, {self.root}; name an image inside it')
        return paths[0]

    def notes(self) -> list[Note]:
        """A line about the images that were found elsewhere, if there are any."""
        if not self.moved:
            return []
        name, image = self.moved[0]
        text = f"{len(self.moved)} images lie elsewhere than their label files say, such as {image} for {name}"
        return [Note(text, (image for _, image in self.moved))]


# ---------------------------------------------------------------- writing


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
