"""What a transform takes and gives: an image and its cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FILL = (124, 116, 104)  # ImageNet's mean colour: near zero once normalised


@dataclass(frozen=True)
class AugmentedSample:
    """An image [H, W, 3] uint8 RGB, its boxes [N, 4] xyxy in pixels and their labels [N]."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def keep_visible(field: AugmentedSample, visible: float) -> AugmentedSample:
    """Clip the boxes to the image and drop the cells of which less than ``visible`` (0..1 of the area) is left."""
    height, width = field.image.shape[:2]
    clipped = np.clip(field.boxes, 0, [width, height, width, height])
    before = (field.boxes[:, 2:] - field.boxes[:, :2]).prod(1)
    side = clipped[:, 2:] - clipped[:, :2]
    stays = (side.prod(1) >= visible * before) & (side > 1).all(1)
    return replace(field, boxes=clipped[stays], labels=field.labels[stays])
