"""What transforms have in common: the colour that fills, and which cells stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..dataset import AugmentedSample

FILL = (124, 116, 104)  # ImageNet's mean colour: about zero once normalised


def keep_visible(sample: AugmentedSample, visible: float) -> AugmentedSample:
    """Clip the boxes to the image and drop cells of which less than ``visible`` (0..1 of the area) is left."""
    height, width = sample.image.shape[:2]
    clipped = np.clip(sample.boxes, 0, [width, height, width, height])
    area = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = (sides.prod(1) >= visible * area) & (sides > 1).all(1)
    return replace(sample, boxes=clipped[kept], labels=sample.labels[kept])
