"""What an image file says about its pixels, before one of them is decoded.

Pillow's readers are asked directly: ``Image.open`` has a limit of its own, which belongs to the whole process, and
``getexif`` decodes a PNG. TIFF directories (EXIF data is one, too) are read here, because Pillow loads every tag of
them, and tags can overlap: a file of 2 MB can stand for 60 GB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..config import MAX_PIXELS
from ..errors import LeukoError
from ..io import check_readable, io_errors_as

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF's
_READERS = {JPEG: JpegImageFile, PNG: PngImageFile, b"BM": BmpImageFile, b"RIFF": WebPImageFile}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _ORIENTATION, _FORMAT = _TAGS = (254, 256, 257, 258, 274, 339)
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4  # TIFF's sample formats
_NO_PAGE = 0b101  # bits of a directory that holds a smaller copy or a mask
_TYPE_SIZES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}  # bytes of TIFF's whole numbers, by their type
_MOST_ENTRIES = _MOST_PAGES = 1000


class ImageHeader(NamedTuple):
    """``width`` and ``height`` of the pixels as they are stored; the EXIF ``orientation``, 1 to 8, 1 where there is
    none or it is invalid; ``pages`` of a TIFF, of which the first is read (smaller copies and masks do not count, and
    counting ends at 1,000); ``depth``, the bits per channel in the file, up to 16."""

    width: int
    height: int
    orientation: int = 1
    pages: int = 1
    depth: int = 8

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.width * self.height / 1e6

    @property
    def quarter_turn(self) -> bool:
        """Whether the orientation tells viewers to swap width and height."""
        return self.orientation >= 5

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height as viewers show the image."""
        return (self.height, self.width) if self.quarter_turn else (self.width, self.height)


def turn_boxes(boxes: np.ndarray, header: ImageHeader, back: bool = False) -> np.ndarray:
    """Boxes [N, 4] xyxy in an image's stored pixels as they lie in the image that EXIF turns; ``back``: the reverse."""
    x0, y0, x1, y1 = boxes.T
    orientation = header.orientation
    width, height = header[:2] if back else header.shown_size
    if back:
        orientation = {6: 8, 8: 6}.get(orientation, orientation)
    if orientation >= 5:
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = height - y1, height - y0
    return np.stack([x0, y0, x1, y1], axis=1)


def image_header(path: str | Path, max_pixels: float = MAX_PIXELS, data: bytes = b"") -> ImageHeader:
    """Read the header of an image file, or of its ``data``, where they are at hand; nothing but a regular file is
    opened. Raises LeukoError where the file is missing, no image, of pixels that cannot be read, or of more than
    ``max_pixels`` megapixels."""
    if not data:
        check_readable(path)
    with io_errors_as("read", path), io.BytesIO(data) if data else open(path, "rb") as file:
        return _read(file, path, max_pixels)


def _read(file: BinaryIO, path: str | Path, max_pixels: float) -> ImageHeader:
    try:
        header = _parse(file)
    except LeukoError as error:  # pixels of a kind that is not read
        raise LeukoError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them stumble over
        raise unreadable(path, type(error).__name__) from error
    if min(header.width, header.height) < 1:
        raise unreadable(path, "no pixels")
    if header.megapixels > max_pixels:
        size = f"{header.width}x{header.height}"
        raise LeukoError(
            f"{path}: {size} is too large ({header.megapixels:.0f} megapixels; up to {max_pixels:g} are read); cut it "
            f"into fields, or let leuko predict read it with --max-pixels {header.megapixels + 1:.0f}"
        )
    return header


def unreadable(path: str | Path, why: str) -> LeukoError:
    """The error about a file that holds no image."""
    return LeukoError(f"{path}: not a readable image ({why}); replace or remove it")


def _parse(file: BinaryIO) -> ImageHeader:
    start = file.read(32)
    file.seek(0)
    if start.startswith(TIFF):
        return _parse_tiff(file)
    reader = next((known for magic, known in _READERS.items() if start.startswith(magic)), None)
    if not reader:
        raise LeukoError("not a readable image (neither JPEG, PNG, BMP, TIFF nor WebP); replace or remove it")
    image = reader(file)
    is_png = start.startswith(PNG)
    exif = image.info.get("exif") or (_png_exif(file) if is_png else b"")
    depth = start[24] if is_png else 8
    return ImageHeader(*image.size, _exif_orientation(exif), depth=depth)


def _png_exif(file: BinaryIO) -> bytes:
    """The EXIF data of a PNG, which may stand behind the pixels."""
    file.seek(len(PNG))
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return file.read(length)
        file.seek(length + 4, io.SEEK_CUR)  # its checksum, too
    return b""


def _exif_orientation(exif: bytes) -> int:
    try:
        directory = next(_directories(io.BytesIO(exif.removeprefix(b"Exif\0\0"))), {})
    except (OverflowError, ValueError):  # an offset that no file has: the pixels are none the worse for it
        directory = {}
    return _valid_orientation(directory)


def _valid_orientation(directory: dict[int, int]) -> int:
    orientation = directory.get(_ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


# ---------------------------------------------------------------- TIFF


def _parse_tiff(file: BinaryIO) -> ImageHeader:
    directories = list(islice(_directories(file), _MOST_PAGES))
    first = directories[0]
    bits, kind = first.get(_BITS, 1), first.get(_FORMAT, _UNSIGNED)
    if kind not in (_UNSIGNED, _UNDEFINED) or bits > 16:
        name = {_SIGNED: "signed integer", _FLOAT: "float"}.get(kind, "integer")
        raise LeukoError(f"its pixels are {bits}-bit {name}, whose black and white are not known; save as 8-bit")
    pages = sum(not directory.get(_SUBFILE, 0) & _NO_PAGE for directory in directories)
    size = first.get(_WIDTH, 0), first.get(_HEIGHT, 0)
    return ImageHeader(*size, _valid_orientation(first), max(pages, 1), max(bits, 8))


def _directories(file: BinaryIO) -> Iterator[dict[int, int]]:
    """The directories of a TIFF in their order: the first value of each tag of ``_TAGS``, by its number."""

    def number(data: bytes) -> int:
        return int.from_bytes(data, "little" if head[:2] == b"II" else "big")

    head = file.read(16)
    is_big = number(head[2:4]) == 43
    count_size, entry_size, word = (8, 20, 8) if is_big else (2, 12, 4)
    at = number(head[8:16] if is_big else head[4:8])
    seen = set()  # a chain may lead back
    while at and at not in seen:
        seen.add(at)
        file.seek(at)
        count = number(file.read(count_size))
        if not 0 < count <= _MOST_ENTRIES:
            return
        entries, at = file.read(count * entry_size), number(file.read(word))
        found: dict[int, int] = {}
        for entry in (entries[i : i + entry_size] for i in range(0, len(entries), entry_size)):
            tag, size = number(entry[:2]), _TYPE_SIZES.get(number(entry[2:4]))
            if tag in _TAGS and size:
                value = entry[4 + word :]
                if size * number(entry[4 : 4 + word]) > word:  # the values are elsewhere
                    file.seek(number(value))
                    value = file.read(size)
                found.setdefault(tag, number(value[:size]))
        yield found
