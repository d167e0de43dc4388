"""Interference factors put on a data set: ``leuko data factors``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError, nearest
from ...synth.factors import FACTORS, IMAGE_FACTORS, SEVERITIES, put
from ..dataset import Dataset, Sample
from ..images import read_image
from . import builder


def put_on(
    src: str | Path,
    dst: str | Path,
    factor: str,
    severity: int = 3,
    *,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Write a data set with an interference factor on every image, tagged, in the format that it has.

    Args:
        src: the data set. All its splits are taken.
        dst: the folder to make. It appears when all is done, or not at all.
        factor: one of the nine, several with commas between, or ``all``; of several, each image gets one by turns.
        severity: 1 to 5.
        seed: where every choice comes from.
        force: replace a data set that is in ``dst``.
        progress: show a bar on the terminal.

    Returns:
        The splits as they read back. A cell-level factor's tag is on the cells that it is on, an image-level one's on
        the image. A cell that ``incomplete`` cuts off, or leaves a tenth of, is gone with that part of the image.

    Raises:
        LeukoError: an argument is out of range, the data set cannot be read, or ``dst`` cannot be written.
    """
    names = chosen(factor)
    if severity not in SEVERITIES:
        raise LeukoError(f"--severity {severity}: give 1 to 5")
    if seed < 0:
        raise LeukoError(f"--seed {seed}: give 0 or more")

    def change(sample: Sample, number: int) -> tuple[np.ndarray, Sample]:
        rng = np.random.default_rng([seed, number])
        return marked(sample, read_image(sample.image), names[number % len(names)], severity, rng)

    return builder.remake(src, dst, change, force=force, progress=progress, title="putting factors on")


def chosen(factor: str) -> list[str]:
    """The factors that a text names; LeukoError for one that is none."""
    names = list(FACTORS) if factor == "all" else [name.strip() for name in factor.split(",")]
    for name in names:
        if name not in FACTORS:
            raise LeukoError(f'factor "{name}" is unknown{nearest(name, FACTORS)} (there are: {", ".join(FACTORS)})')
    return names


def marked(
    sample: Sample, image: np.ndarray, name: str, severity: int, rng: np.random.Generator
) -> tuple[np.ndarray, Sample]:
    """A sample and its image with a factor on it."""
    put_there = put(name, rng, image, sample.boxes, severity, sample.crowd)
    tags = [
        (*dict.fromkeys((*sample.cell_factors[i], name)),) if on else sample.cell_factors[i]
        for i, on in zip(put_there.kept, put_there.marked, strict=True)
    ]
    return put_there.image, replace(
        sample,
        boxes=put_there.boxes,
        labels=sample.labels[put_there.kept],
        crowd=sample.crowd[put_there.kept],
        cell_factors=tags,
        attributes=[sample.attributes[i] for i in put_there.kept],
        factors=tuple(dict.fromkeys((*sample.factors, name))) if name in IMAGE_FACTORS else sample.factors,
    )
