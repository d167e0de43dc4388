"""What a transform takes and gives: an image and its cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..dataset import AugmentedSample

FILL = (124, 116, 104)  # ImageNet's mean colour: near zero once normalised


def keep_visible(field: AugmentedSample, visible: float) -> AugmentedSample:
    """Clip the boxes to the image and drop the cells of which less than ``visible`` (0..1 of the area) is left."""
    height, width = field.image.shape[:2]
    clipped = np.clip(field.boxes, 0, [width, height, width, height])
    before = (field.boxes[:, 2:] - field.boxes[:, :2]).prod(1)
    side = clipped[:, 2:] - clipped[:, :2]
    stays = (side.prod(1) >= visible * before) & (side > 1).all(1)
    return replace(field, boxes=clipped[stays], labels=field.labels[stays])
