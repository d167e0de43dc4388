"""An image as detectors see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import MAX_PIXELS
from ..errors import LeukoError
from .fit import fit
from .header import ImageHeader, image_header
from .slides import Slide, is_slide, open_image

LARGE = 16  # megapixels above which an image is decoded on its own


@dataclass
class LoadedImage:
    """An image as detectors see it: ``views`` holds it at each image size asked for, [h, w, 3] uint8 RGB; ``size`` is
    the (width, height) of the stored image, ``pixels`` [H, W, 3] uint8 the stored image itself, if asked for. Of a
    file, ``header`` is its header, and ``bits`` are those that its channels use."""

    path: Path
    size: tuple[int, int]
    views: dict[int, np.ndarray] = field(default_factory=dict)
    pixels: np.ndarray | Slide | None = None
    header: ImageHeader | None = None
    bits: int = 8

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, image_sizes: Sequence[int]) -> LoadedImage:
        """From an image [H, W, 3] uint8 RGB that is no file."""
        views = {size: fit(pixels, size) for size in image_sizes}
        return cls(Path(), (pixels.shape[1], pixels.shape[0]), views, pixels)

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
        Raises LeukoError as :func:`~leuko.data.slides.open_image` does."""
        file = open_image(path, max_pixels, data)
        pixels = file.decode() if with_pixels else None
        views = {size: file.view(size, pixels) for size in image_sizes}
        return cls(path, file.header[:2], views, pixels, file.header, file.bits)


def is_large(path: Path) -> bool:
    """Whether a worker process leaves an image to the main process, since several as large at once are more than a
    machine holds. One that cannot be read is not."""
    if is_slide(path):
        return False
    try:
        header = image_header(path, math.inf)
    except LeukoError:
        return False
    return header.width * header.height > LARGE * 1e6
