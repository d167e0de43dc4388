"""Images: their files, their pixels as they are stored, and as detectors see them.

An EXIF orientation is ignored everywhere, because the boxes of a data set refer to the pixels that are stored.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..config import MAX_PIXELS
from ..errors import LeukoError, is_out_of_memory
from ..io import read_bytes
from .fit import fit, rgb
from .header import JPEG, TIFF, ImageHeader, image_header, unreadable
from .slides import Slide, is_slide

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_DEEP = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
_REDUCED = {part: getattr(cv2, f"IMREAD_REDUCED_COLOR_{part}") for part in (8, 4, 2)}
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_JPEG_SCANS = 64  # at most
_FILE_BYTES, _FILE_MB = 4, 16  # a file is as large at most: per pixel that an image may have, and beside
_SYSTEM = {"__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "$recycle.bin", "recycler"}
_SYSTEM |= {"lost+found", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"}
_TURN_BACK = {  # by orientation, how pixels that were turned by it become the stored ones
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, -1),
}


class ImageFile:
    """An image file in memory, to be decoded once or more. ``header`` is its :class:`ImageHeader`, ``bits`` those that
    its channels use, which is known once it is decoded (see :func:`used_bits`). ``data`` are the file's bytes where
    they are at hand; ``path`` is then only its name.

    Raises LeukoError where it is missing, cut off, no image, or larger than ``max_pixels`` megapixels. (A decoder fills
    the missing end of a JPEG with grey in silence, so its end marker is looked for.)
    """

    def __init__(self, path: str | Path, max_pixels: float = MAX_PIXELS, data: bytes = b""):
        self.path, self.data = path, data
        if not data:
            with memory_errors_as(path):
                self.data = read_bytes(path, _FILE_BYTES * max_pixels + _FILE_MB)
        if self.data.startswith(JPEG):
            _check_jpeg(self.data, path)
        self.header = image_header(path, max_pixels, self.data)
        self.bits = self.header.depth

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def decode(self, side: int = 0) -> np.ndarray:
        """The stored pixels, [H, W, 3] uint8 RGB; with ``side``, perhaps reduced (see :func:`read_image`)."""
        reduction, is_deep = self.reduction(side), self.header.depth > 8
        is_plain = reduction == 1 and not is_deep
        flags = _REDUCED[reduction] if reduction > 1 else _DEEP if is_deep else cv2.IMREAD_COLOR_RGB
        with memory_errors_as(self.path):
            try:
                image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
            except cv2.error as error:
                if is_out_of_memory(error):
                    raise
                image = None
            if image is None:
                raise unreadable(self.path, f"{len(self.data)} bytes")
            if image.dtype == np.uint16:
                used = used_bits(image) if self.header.depth == 16 else 16  # to which OpenCV stretches 10 to 14
                self.bits = min(used, self.header.depth)
                np.right_shift(image, used - 8, out=image)
                image = image.astype(np.uint8)
            if not is_plain:  # OpenCV has no flag for RGB and the other; for deep TIFFs its pixels are then wrong
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
            if self.data.startswith(TIFF) and (turn_back := _TURN_BACK.get(self.header.orientation)):
                image = np.ascontiguousarray(turn_back(image))  # OpenCV turns a TIFF whatever it is told
        if reduction > 1:
            return image
        if image.shape[1::-1] != self.header[:2]:
            raise unreadable(self.path, "its pixels are not as many as its header says")
        return image

    def view(self, image_size: int, pixels: np.ndarray | None = None) -> np.ndarray:
        """The image as a detector sees it, in training and in use: [H, W, 3] uint8 RGB, the longer side ``image_size``.

        This is the one way from a file to a detector. A JPEG is decoded no larger than needed; ``pixels``, if they are
        decoded already, spare another format that.
        """
        if pixels is None or self.reduction(image_size) > 1:
            pixels = self.decode(image_size)
        with memory_errors_as(self.path):
            return fit(pixels, image_size)

    def reduction(self, side: int) -> int:
        """1, or the half, quarter or eighth at which a JPEG is decoded so that its longer side has ``side`` pixels."""
        if not side or not self.data.startswith(JPEG):
            return 1
        return next((part for part in _REDUCED if max(self.header[:2]) >= part * side), 1)


def read_image(path: str | Path, side: int = 0, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """Decode an image into [H, W, 3] uint8 RGB; grey, palette, CMYK, transparent and deep images are converted.

    With ``side``, a JPEG is decoded at a half, a quarter or an eighth of its size as long as its longer side keeps that
    many pixels, which takes a fraction of the time. Raises LeukoError as :class:`ImageFile` does.
    """
    return ImageFile(path, max_pixels).decode(side)


def used_bits(image: np.ndarray) -> int:
    """The bits that uint16 pixels use: the fewest of 8, 10, 12, 14 and 16 that hold the brightest one.

    Cameras of 10 to 14 bits are stored in 16. In bright field the empty background is the brightest, and an exposure
    puts it above a quarter of the range, which is what tells one of these numbers from the next. Of a darker image the
    scale is taken too short, and it comes out brighter than it was, never black; the same holds for true 16 bits that
    use less than a quarter of their range.
    """
    return next(bits for bits in (8, 10, 12, 14, 16) if image.max(initial=0) < 1 << bits)


@contextmanager
def memory_errors_as(path: str | Path) -> Iterator[None]:
    """Turn what is raised where an image needs more memory than there is into a LeukoError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not is_out_of_memory(error):
            raise
        raise LeukoError(f"{path}: there is not enough memory for it; cut it into fields, or lower --imgsz") from error


def load_image(path: str | Path, image_size: int) -> np.ndarray:
    """The pixels that a detector sees, in training and in use: :meth:`ImageFile.view` of a file; raises LeukoError."""
    return ImageFile(path).view(image_size)


def _check_jpeg(data: bytes, path: str | Path) -> None:
    """LeukoError where the end marker does not follow the pixel data (a thumbnail's own end doesn't count), or where
    there are so many scans that a small file would be decoded for minutes."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _JPEG_SCAN[1]:
        marker = data[at + 1]
        # Fill bytes and markers without a length are one and two bytes long; all others tell their length.
        if marker == 0xFF:
            at += 1
        else:
            at += 2 if marker == 1 or 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if not data.startswith(_JPEG_SCAN, at) or data.rfind(_JPEG_END, at) < 0:
        raise LeukoError(f"{path}: the JPEG is truncated ({len(data)} bytes); copy it again from its source")
    if (scans := data.count(_JPEG_SCAN, at)) > _JPEG_SCANS:
        raise LeukoError(
            f"{path}: a progressive JPEG of {scans} scans, where 10 are usual; save it again, or remove it"
        )


# ---------------------------------------------------------------- images as detectors see them

LARGE = 16  # megapixels above which an image is decoded on its own


def open_image(path: str | Path, max_pixels: float = MAX_PIXELS, data: bytes = b"") -> ImageFile | Slide:
    """An image file, read whole, or its bytes; or a slide. Raises LeukoError as these do."""
    return Slide(path) if not data and is_slide(path, max_pixels) else ImageFile(path, max_pixels, data)


@dataclass
class LoadedImage:
    """An image as detectors see it: ``views`` holds it at each image size asked for, [h, w, 3] uint8 RGB, and
    ``pixels`` [H, W, 3] uint8 are the stored image itself, if asked for. ``header`` is its file's, or what a file of
    these pixels would say, and ``bits`` are those that its channels use."""

    path: Path
    header: ImageHeader
    views: dict[int, np.ndarray]
    pixels: np.ndarray | Slide | None
    bits: int = 8

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the stored image."""
        return self.header[:2]

    @classmethod
    def of_pixels(cls, image: np.ndarray, image_sizes: Sequence[int]) -> LoadedImage:
        """From an image in memory, as :func:`~leuko.data.fit.rgb` takes it; raises LeukoError as that does."""
        pixels = rgb(image)
        views = {size: fit(pixels, size) for size in image_sizes}
        return cls(Path(), ImageHeader(*pixels.shape[1::-1]), views, pixels)

    @classmethod
    def of_file(
        cls,
        path: Path,
        image_sizes: Sequence[int],
        with_pixels: bool = False,
        max_pixels: float = MAX_PIXELS,
        data: bytes = b"",
    ) -> LoadedImage:
        """From a file, read once, or from its bytes; or a slide, whose ``pixels`` are read as they are asked for.
        Raises LeukoError as :func:`open_image` does."""
        file = open_image(path, max_pixels, data)
        pixels = file.decode() if with_pixels else None
        views = {size: file.view(size, pixels) for size in image_sizes}
        return cls(path, file.header, views, pixels, file.bits)


def is_large(path: Path) -> bool:
    """Whether a worker process leaves an image to the main process, since several as large at once are more than a
    machine holds. A slide, and one that cannot be read, is not."""
    try:
        return not is_slide(path, math.inf) and image_header(path, math.inf).megapixels > LARGE
    except LeukoError:
        return False


def image_size(path: str | Path, max_pixels: float = MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) of the stored pixels from the file's header alone; raises LeukoError."""
    return image_header(path, max_pixels)[:2]


# ---------------------------------------------------------------- files


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never data: hidden, a waste bin, or what a system leaves behind. To be
    asked of names below the folder that the user named, not of that folder or its parents."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM


def is_image(path: str | Path) -> bool:
    """Whether a path, perhaps one of Windows, ends like an image's and is not hidden (macOS leaves ``._NAME.jpg``)."""
    name = str(path).replace("\\", "/").rpartition("/")[2]
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def list_images(
    folder: str | Path,
    recursive: bool = False,
    hidden: list[Path] | None = None,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> list[Path]:
    """Return the images in a folder, sorted by path, optionally with those of its sub-folders; raises LeukoError.

    Hidden files and folders are ignored at every level (see :func:`is_hidden`); the images among them are appended
    to ``hidden``, if it is given. Sub-folders may be symbolic links; each folder is entered once, so that a loop of
    links ends.
    """
    if not os.path.isdir(folder):
        raise LeukoError(f"{folder}: no such folder")
    found, ignored, hidden_folders = [], [], []
    entered = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        named = [name for name in files if name.lower().endswith(suffixes)]
        found += [Path(root, name) for name in named if not is_hidden(name)]
        ignored += [Path(root, name) for name in named if is_hidden(name)]
        names, folders[:] = sorted(folders) if recursive else [], []
        for name in names:
            place = os.path.join(root, name)
            if is_hidden(name):
                hidden_folders.append(place)
            elif (real := os.path.realpath(place)) not in entered:
                entered.add(real)
                folders.append(name)
    if hidden is not None:
        for top in (place for place in hidden_folders if not os.path.islink(place)):
            for root, _, files in os.walk(top):  # those that may not be read are ignored, too
                ignored += [Path(root, name) for name in files if name.lower().endswith(suffixes)]
        hidden += sorted(ignored)
    return sorted(found)


def _raise_unreadable(error: OSError) -> None:
    raise LeukoError(f"{error.filename}: cannot be read: {error.strerror}") from error
