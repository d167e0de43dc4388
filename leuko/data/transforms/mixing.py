"""Transforms that add cells of other samples: copy-paste, mosaic.

Each takes an ``AugmentedSample``, a numpy generator, ``others``, which draws another sample of the training set (cells
of a rare type, on request), and options, and returns the changed sample. A cell of whose area less than ``visible``
(0..1) is left is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator

from ...ops.pairs import box_iou
from ...synth.cutout import box_of, cell_mask
from ..dataset import AugmentedSample
from .geometric import FILL, keep_visible

Others = Callable[[Generator, bool], AugmentedSample]
MIN_SHARE = 0.6  # of the labelled box and of the segmented cell's, each inside the other


def copy_paste(sample: AugmentedSample, rng: Generator, others: Others, cells: int = 1) -> AugmentedSample:
    """Paste ``cells`` cells of rare types, segmented by their colour in other samples, where no cell lies.

    The fewer cells a type has, the more often it is drawn. A cell is left out if its outline is uncertain or it finds
    no room.
    """
    for _ in range(cells):
        other = others(rng, True)
        if len(other.boxes):
            sample = _pasted(sample, other, int(rng.integers(len(other.boxes))), rng)
    return sample


def _pasted(sample: AugmentedSample, other: AugmentedSample, cell: int, rng: Generator) -> AugmentedSample:
    """The sample with one cell of another pasted into it, if that is possible."""
    x0, y0, x1, y1 = other.boxes[cell]
    margin = 0.5 * max(x1 - x0, y1 - y0)
    left, top = max(int(x0 - margin), 0), max(int(y0 - margin), 0)
    crop = other.image[top : int(y1 + margin), left : int(x1 + margin)]
    mask = cell_mask(crop)
    if mask is None:
        return sample
    bx0, by0, bx1, by1 = box_of(mask).astype(int)
    segmented, labelled = np.array([[bx0 + left, by0 + top, bx1 + left, by1 + top]]), other.boxes[[cell]]
    one = np.ones(1, dtype=bool)
    is_the_cell = min(box_iou(segmented, labelled, one), box_iou(labelled, segmented, one)) >= MIN_SHARE
    size, room = np.array([bx1 - bx0, by1 - by0]), np.array(sample.image.shape[1::-1])
    if not is_the_cell or (size > room).any():
        return sample
    cover = cv2.GaussianBlur(mask[by0:by1, bx0:bx1].astype(np.float32), (0, 0), 0.8)[:, :, None]
    for _ in range(20):
        x, y = rng.integers(0, room - size + 1)
        box = np.array([[x, y, x + size[0], y + size[1]]], dtype=np.float32)
        if not box_iou(box, sample.boxes).any():
            image = sample.image.copy()
            view = image[y : y + size[1], x : x + size[0]]
            view[:] = view * (1 - cover) + crop[by0:by1, bx0:bx1] * cover + 0.5
            return _joined(image, sample, AugmentedSample(crop, box, other.labels[[cell]]))
    return sample


def mosaic(sample: AugmentedSample, rng: Generator, others: Others, visible: float = 0.4) -> AugmentedSample:
    """Four samples around a point near the centre, each cropped to its corner."""
    height, width = sample.image.shape[:2]
    x, y = (int(v) for v in rng.uniform([0.3 * width, 0.3 * height], [0.7 * width, 0.7 * height]))
    image = np.full((height, width, 3), FILL, dtype=np.uint8)
    parts = []
    for x0, y0, x1, y1 in ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)):
        part = others(rng, False) if parts else sample
        h, w = part.image.shape[:2]
        crop_w, crop_h = min(x1 - x0, w), min(y1 - y0, h)
        left, top = (int(v) for v in rng.integers(0, [w - crop_w + 1, h - crop_h + 1]))
        crop = part.image[top : top + crop_h, left : left + crop_w]
        image[y0 : y0 + crop_h, x0 : x0 + crop_w] = crop
        kept = keep_visible(replace(part, image=crop, boxes=part.boxes - [left, top, left, top]), visible)
        parts.append(replace(kept, boxes=kept.boxes + np.array([x0, y0, x0, y0])))
    return _joined(image, *parts)


def _joined(image: np.ndarray, *parts: AugmentedSample) -> AugmentedSample:
    """The image with the cells of all parts."""
    boxes, labels = np.concatenate([p.boxes for p in parts]), np.concatenate([p.labels for p in parts])
    return AugmentedSample(image, boxes, labels)
