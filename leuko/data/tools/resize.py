"""The mini set: all images scaled to a longer side, their boxes with them, and linked to the originals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError
from ..dataset import Dataset, Sample
from ..formats.sidecar import keep_originals
from ..images import fit, read_image
from . import builder
from .convert import load_all


def resize(
    src: str | Path, dst: str | Path, size: int = 600, *, force: bool = False, progress: bool = False
) -> dict[str, Dataset]:
    """Write a data set with the longer side of every image at ``size`` pixels, in the format that it has.

    JPEGs are decoded at the smallest of their built-in scales that is large enough. ``leuko.json`` in ``dst`` notes
    each image's original, so that what is found on the small one can be drawn on it (``leuko predict --originals``).

    Returns the splits as they read back; raises LeukoError.
    """
    if not builder.MIN_SIZE <= size <= builder.MAX_SIZE:
        raise LeukoError(f"--size {size}: give {builder.MIN_SIZE} to {builder.MAX_SIZE} pixels")

    def change(sample: Sample, _: int) -> tuple[np.ndarray, Sample]:
        image = fit(read_image(sample.image, size), size)
        scale = np.array([image.shape[1] / sample.width, image.shape[0] / sample.height] * 2, dtype=np.float32)
        return image, replace(sample, boxes=sample.boxes * scale)

    def link(folder: Path, before: dict[str, Dataset]) -> None:
        now = load_all(folder)
        originals = {(split, s.id): s for split, dataset in before.items() for s in dataset.samples}
        pairs = {s.image: originals[split, s.id] for split, dataset in now.items() for s in dataset.samples}
        links = {
            image.relative_to(folder).as_posix(): {
                "image": os.path.relpath(original.image.resolve(), Path(dst).resolve()),
                "width": original.width,
                "height": original.height,
            }
            for image, original in pairs.items()
        }
        keep_originals(folder, links)

    return builder.remake(src, dst, change, force=force, progress=progress, title="resizing", finish=link)
