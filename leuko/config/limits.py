"""What options of several commands share: limits, and their checks."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import LeukoError

POSITIONAL = {"positional": True}  # metadata of an option that is given by its place on the command line
MAX_PIXELS = 80  # megapixels of an image that is read: its decoding then takes at most 1 GB
LEAST_SIDE, MOST_SIDE = 64, 8192  # pixels to which the longer side of an image is scaled
MOST_DETECTIONS = 10_000  # that --max-detections may ask for


def check_sizes(sizes: Sequence[int] | None) -> None:
    """LeukoError unless the sizes of images, in pixels, are large enough and differ."""
    if len(set(sizes or ())) < len(sizes or ()):
        raise LeukoError(f"--imgsz {' '.join(map(str, sizes))}: names a size twice")
    for size in sizes or ():
        if not LEAST_SIDE <= size <= MOST_SIDE:
            raise LeukoError(f"--imgsz {size}: give at least {LEAST_SIDE} pixels, and at most {MOST_SIDE}")


def check_cell_size(number: float) -> None:
    """LeukoError unless the width of a cell in pixels is usable."""
    if number and not 4 <= number <= 4096:
        raise LeukoError(f"--cell-size {number:g}: give pixels from 4 to 4096, or 0")


def check_pixels(number: int) -> None:
    """LeukoError unless a number of megapixels is usable."""
    if not 1 <= number <= 1000:
        raise LeukoError(f"--max-pixels {number}: give megapixels from 1 to 1000")


def check_workers(workers: int) -> None:
    """LeukoError for more loader processes than a machine has use for."""
    if workers > 256:
        raise LeukoError(f"--workers {workers}: give at most 256")


def check_max_detections(number: int) -> None:
    """LeukoError unless a number of detections per image is usable."""
    if not 1 <= number <= MOST_DETECTIONS:
        raise LeukoError(f"--max-detections {number}: give 1 to {MOST_DETECTIONS:,}")
