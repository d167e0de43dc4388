"""Whole slides, of which a region is read at a time: the files of slide scanners, and TIFFs that are too large to be
read whole. OpenSlide reads them (the extra ``slides``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..config import MAX_PIXELS
from ..errors import LeukoError, one_line
from ..io import check_readable, digest
from .fit import fit
from .header import ImageHeader, image_header, unreadable

if TYPE_CHECKING:
    import openslide

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
BLOCK = 2048  # pixels of the file that are read at once along each side, however many a result takes


class Slide:
    """A slide file, which stands for an :class:`~leuko.data.images.ImageFile` and for its pixels [H, W, 3] uint8 RGB:
    ``slide[top:bottom, left:right]`` reads these. What was not scanned is white.

    It can be sent to another process. Raises LeukoError where the file is missing or no slide, or OpenSlide is.
    """

    bits = 8

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.header = ImageHeader(*self._file.dimensions)

    def __getstate__(self) -> dict:
        return {"path": self.path, "header": self.header}

    @cached_property
    def _file(self) -> openslide.OpenSlide:
        try:
            import openslide
        except ImportError as error:
            raise LeukoError(f"{self.path}: a whole slide is read by OpenSlide; pip install 'leuko[slides]'") from error
        check_readable(self.path)
        try:
            return openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise unreadable(self.path, str(error)[:100]) from error

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the pixels' array."""
        return self.header.height, self.header.width, 3

    @property
    def sha256(self) -> str:
        """Of the file."""
        return digest(self.path)

    @property
    def microns(self) -> float:
        """The width of a pixel in micrometres, as the scanner says; 0 where it does not."""
        try:
            return max(float(self._file.properties.get("openslide.mpp-x", 0)), 0.0)
        except ValueError:
            return 0.0

    def decode(self, side: int = 0) -> Slide:
        """Its pixels, which it is itself."""
        return self

    def view(self, image_size: int, pixels: object = None) -> np.ndarray:
        """The slide with a longer side of ``image_size`` pixels, [H, W, 3] uint8."""
        return self.part((0, 0, *self.header[:2]), image_size)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (s.indices(n) for s, n in zip(where, self.shape[:2], strict=True))
        return self.part((left, top, max(right, left), max(bottom, top)))

    def part(self, box: Sequence[int], side: int = 0) -> np.ndarray:
        """The pixels of a region (x0, y0, x1, y1), as they are stored or, with ``side``, its longer side scaled to so
        many: [h, w, 3] uint8. It comes from the coarsest level of the file that is fine enough."""
        x0, y0, x1, y1 = map(int, box)
        corner, size = np.array([x0, y0]), np.array([x1 - x0, y1 - y0])
        if not size.all():
            return np.zeros((size[1], size[0], 3), np.uint8)
        target = np.maximum((size * (side / size.max())).round().astype(int), 1) if side else size
        if (target > size).any():
            return fit(self.part(box), side)
        step = size / target  # stored pixels per pixel of the result
        level = self._file.get_best_level_for_downsample(
            float(step.min()) * 1.001
        )  # levels are rounded to whole pixels
        scale = self._file.level_downsamples[level]
        block = max(int(BLOCK * scale / step.max()), 1)
        result = np.empty((target[1], target[0], 3), np.uint8)
        for top in range(0, target[1], block):
            for left in range(0, target[0], block):
                here = np.array([left, top])
                end = np.minimum(here + block, target)
                low, high = (here * step).round().astype(int), (end * step).round().astype(int)
                read = self._read(low + corner, level, np.maximum(((high - low) / scale).round().astype(int), 1))
                if read.shape[1::-1] != tuple(end - here):
                    read = cv2.resize(read, (end - here).tolist(), interpolation=cv2.INTER_AREA)
                result[top : end[1], left : end[0]] = read
        return result

    def _read(self, corner: np.ndarray, level: int, size: np.ndarray) -> np.ndarray:
        """A region of a level; ``corner`` is in stored pixels, ``size`` in the level's: [h, w, 3] uint8."""
        import openslide

        try:
            rgba = np.asarray(self._file.read_region(tuple(corner.tolist()), level, tuple(size.tolist())))
        except openslide.OpenSlideError as error:
            raise LeukoError(
                one_line(f"{self.path}: cannot be read: {error}; copy it again from its source")
            ) from error
        rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        return (255 - alpha + rgb.astype(np.uint16) * alpha // 255).astype(np.uint8)


def is_slide(path: str | Path, max_pixels: float = MAX_PIXELS) -> bool:
    """Whether a file is a slide: by its name or, of TIFFs, where it has more than ``max_pixels`` megapixels and
    OpenSlide is there and knows it. Raises LeukoError for a TIFF whose header cannot be read."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".tif", ".tiff") or image_header(path, math.inf).megapixels <= max_pixels:
        return suffix in SLIDE_SUFFIXES
    try:
        import openslide
    except ImportError:
        return False
    return openslide.OpenSlide.detect_format(path) is not None
