"""Images as they are stored: pixels, sizes and files.

An EXIF orientation is ignored everywhere, because the boxes of a data set refer to the pixels that are stored.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from ..errors import LeukoError

T = TypeVar("T")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {part: getattr(cv2, f"IMREAD_REDUCED_COLOR_{part}") | cv2.IMREAD_IGNORE_ORIENTATION for part in (8, 4, 2)}
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
_TIFF_WIDTH, _TIFF_HEIGHT, _ORIENTATION = 256, 257, 274
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF's
_TURN_BACK = {  # by orientation, how pixels that were turned by it become the stored ones
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, -1),
}


def read_image(path: str | Path, side: int = 0) -> np.ndarray:
    """Decode an image into [H, W, 3] uint8 RGB; grey, palette, CMYK, transparent and 16-bit images are converted.

    With ``side``, a JPEG is decoded at a half, a quarter or an eighth of its size as long as its longer side keeps that
    many pixels, which takes a fraction of the time.

    Raises LeukoError where the file is missing, cut off or no image. (A decoder fills the missing end of a JPEG with
    grey in silence, so its end marker is looked for.)
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise LeukoError(f"{path}: cannot be read: {error.strerror}") from error
    if data.startswith(_JPEG_START) and not _jpeg_is_whole(data):
        raise LeukoError(f"{path}: the JPEG is truncated ({len(data)} bytes); copy it again from its source")
    reduced = _reduction(data, side)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), reduced or _DECODE)
    except cv2.error:  # an empty file, or more pixels than OpenCV agrees to decode
        image = None
    if image is None:
        raise LeukoError(f"{path}: not a readable image ({len(data)} bytes); replace or remove it")
    if data.startswith(_TIFF_STARTS) and (turn_back := _TURN_BACK.get(_from_header(path, _orientation))):
        return np.ascontiguousarray(turn_back(image))  # OpenCV turns a TIFF whatever it is told
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image) if reduced else image  # OpenCV has no flag for both


def load_image(path: str | Path, image_size: int) -> np.ndarray:
    """The pixels that a detector sees, in training and in use: [H, W, 3] uint8 RGB, the longer side ``image_size``.

    This is the one way from a file to a detector. A JPEG is decoded no larger than needed. Raises LeukoError.
    """
    return fit(read_image(path, image_size), image_size)


def fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """Scale the longer side of [H, W, 3] to ``image_size`` pixels: by area downwards, bilinearly upwards."""
    height, width = image.shape[:2]
    scale = image_size / max(height, width)
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _reduction(data: bytes, side: int) -> int:
    """OpenCV's flag for the smallest decoded size of a JPEG whose longer side has at least ``side`` pixels."""
    if not side or not data.startswith(_JPEG_START):
        return 0
    try:
        with Image.open(io.BytesIO(data)) as image:
            longer = max(image.size)
    except Exception:  # a broken header makes Pillow's plugins stumble over anything
        return 0  # OpenCV will report what is wrong with it
    return next((flag for part, flag in _REDUCED.items() if longer >= part * side), 0)


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker follows the start of the pixel data, so that a thumbnail's own end doesn't count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _JPEG_SCAN:
            return data.rfind(_JPEG_END, at) > 0
        # Fill bytes and markers without a length are one and two bytes long; all others tell their length.
        if marker == 0xFF:
            at += 1
        else:
            at += 2 if marker == 1 or 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) of the stored pixels from the file's header alone; raises LeukoError."""
    return _from_header(path, _stored_size)


def is_turned(path: str | Path) -> bool:
    """Whether the EXIF orientation tells viewers to turn the image by a quarter; raises LeukoError."""
    return _from_header(path, _orientation) in _TURNED


def is_shown_otherwise(path: str | Path) -> bool:
    """Whether the EXIF orientation tells viewers to turn or mirror the image at all; raises LeukoError."""
    return _from_header(path, _orientation) in _TURN_BACK


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(_ORIENTATION)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # Pillow's size of a TIFF follows its orientation
        return int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
    return image.size


def _from_header(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as image:
            return read(image)
    except FileNotFoundError:
        raise LeukoError(f"{path}: no such image") from None
    # Pillow's plugins raise whatever a broken header makes them stumble over.
    except Exception as error:
        raise LeukoError(f"{path}: not a readable image ({type(error).__name__}); replace or remove it") from error


def is_image(path: str | Path) -> bool:
    """Whether a file name ends like an image's and is not hidden (macOS leaves ``._NAME.jpg`` that are none)."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return the images in a folder, sorted by path, optionally with those of its sub-folders; raises LeukoError.

    Sub-folders may be symbolic links; each folder is entered once, so that a loop of links ends.
    """
    if not os.path.isdir(folder):
        raise LeukoError(f"{folder}: no such folder")
    found = []
    entered = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        found += [Path(root, name) for name in files if is_image(name)]
        names, folders[:] = sorted(folders) if recursive else [], []
        for name in names:
            if (place := os.path.realpath(os.path.join(root, name))) not in entered:
                entered.add(place)
                folders.append(name)
    return sorted(found)


def _raise_unreadable(error: OSError) -> None:
    raise LeukoError(f"{error.filename}: cannot be read: {error.strerror}") from error
