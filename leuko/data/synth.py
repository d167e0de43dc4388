"""Data sets that leuko renders itself: every pixel and box follow from a seed, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leuko.cells import TYPES
from leuko.data import made
from leuko.data.sample import Dataset
from leuko.smear.render import render_field

_CELLS_A_FIELD = (0.24, 0.30, 0.24, 0.14, 0.08)  # share of the fields with 1, 2, ... 5 leukocytes


def synth(
    dst: str | Path,
    images: int = 200,
    size: int = 320,
    format: str = "coco",
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    force: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Render a data set of Wright-stained fields with the five leukocyte types, and write it.

    Args:
        dst: the folder to make. It appears when all is done, or not at all.
        images: how many, at least 1.
        size: their side in pixels, 64 to 8192.
        format: ``coco``, ``voc`` or ``yolo``.
        seed: image ``i`` of a seed is always the same, whatever the other arguments but ``size`` and the workers.
        val, test: shares of the images; the rest, at least one image, is for training. A share of 0 makes no split.
        force: replace a data set that is in ``dst``.
        workers: threads, 0 for one a core.
        progress: show a bar on the terminal.

    Returns:
        The data set of each split by name, with 1 to 5 cells an image, fewer where a cell found no room.

    Raises:
        LeukoError: an argument is out of range, ``dst`` exists, or it cannot be written.
    """
    made.check(images, size, format, seed, val, test)

    def draw(split: str, number: int) -> made.Picture:
        return _render(size, seed, number)

    codes = [t.code for t in TYPES]
    about = {"format": format, "force": force, "workers": workers, "progress": progress}
    return made.produce(dst, codes, made.shares(images, val, test), draw, **about)


def _render(size: int, seed: int, number: int) -> made.Picture:
    """Render image ``number`` of a seed."""
    rng = np.random.default_rng([seed, number])
    n = 1 + rng.choice(len(_CELLS_A_FIELD), p=_CELLS_A_FIELD)
    kinds = rng.integers(0, len(TYPES), n)
    kinds[0] = number % len(TYPES)  # so that any five images in a row show every type
    types = [TYPES[k].code for k in kinds]
    return made.Picture(*render_field(rng, size, size, types))
