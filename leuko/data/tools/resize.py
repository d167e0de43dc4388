"""The mini set: all images scaled to a longer side, with their boxes, and linked to the originals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..dataset import Dataset, Sample
from ..fit import fit
from ..images import read_image
from . import builder


def resize(
    src: str | Path, dst: str | Path, size: int = 600, *, force: bool = False, progress: bool = False
) -> dict[str, Dataset]:
    """Write a data set with the longer side of every image at ``size`` pixels, in its own format.

    JPEGs are decoded at the smallest of their built-in scales that is large enough. ``leuko.json`` in ``dst`` holds
    each image's original, so that cells found on the small image can be drawn on it (``leuko predict --originals``).

    Returns the splits as they read back; raises LeukoError.
    """

    def change(sample: Sample, _: int) -> tuple[np.ndarray, Sample]:
        image = fit(read_image(sample.image, size), size)
        scale = np.array([image.shape[1] / sample.width, image.shape[0] / sample.height] * 2, dtype=np.float32)
        return image, replace(sample, boxes=sample.boxes * scale)

    return builder.remake(src, dst, change, force=force, progress=progress, title="resizing", keep_originals=True)
