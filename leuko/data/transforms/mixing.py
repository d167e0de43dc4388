"""Transforms that add cells of other samples: copy-paste, mosaic, mixup.

Each takes an ``AugmentedSample``, a numpy generator and ``others``, which draws another sample of the training set
(cells of a rare type, on request), and returns the changed sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ...ops.boxes import box_iou
from ...synth.cutout import box_of, cell_mask
from .sample import FILL, AugmentedSample, keep_visible, option

Others = Callable[[np.random.Generator, bool], AugmentedSample]
MIN_SHARE = 0.6  # of the labelled box and of the segmented cell's, each inside the other


class Mixing:
    """A transform that takes ``others`` as well."""


@dataclass(frozen=True)
class CopyPaste(Mixing):
    """Paste ``cells`` cells of rare types, segmented by their colour in other samples, where no cell lies.

    The fewer cells a type has, the more often it is drawn. A cell is left out if its outline is uncertain or it finds
    no room.
    """

    cells: int = option(1, 1, 20)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        for _ in range(self.cells):
            other = others(rng, True)
            if len(other.boxes):
                sample = _pasted(sample, other, int(rng.integers(len(other.boxes))), rng)
        return sample


def _pasted(sample: AugmentedSample, other: AugmentedSample, cell: int, rng: np.random.Generator) -> AugmentedSample:
    """The sample with one cell of another pasted into it, if that is possible."""
    x0, y0, x1, y1 = other.boxes[cell]
    margin = 0.5 * max(x1 - x0, y1 - y0)
    height, width = other.image.shape[:2]
    left, top = max(int(x0 - margin), 0), max(int(y0 - margin), 0)
    crop = other.image[top : min(int(y1 + margin), height), left : min(int(x1 + margin), width)]
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
            return AugmentedSample(
                image, np.concatenate([sample.boxes, box]), np.append(sample.labels, other.labels[cell])
            )
    return sample


@dataclass(frozen=True)
class Mosaic(Mixing):
    """Four samples around a point near the centre, each cropped to its corner.

    A cell of whose area less than ``visible`` is left is dropped.
    """

    visible: float = option(0.4, high=1)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        height, width = sample.image.shape[:2]
        x, y = (int(v) for v in rng.uniform([0.3 * width, 0.3 * height], [0.7 * width, 0.7 * height]))
        image = np.empty_like(sample.image)
        image[:] = FILL
        boxes, labels = [], []
        corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        for i, (x0, y0, x1, y1) in enumerate(corners):
            part = sample if i == 0 else others(rng, False)
            h, w = part.image.shape[:2]
            crop_w, crop_h = min(x1 - x0, w), min(y1 - y0, h)
            left, top = (int(v) for v in rng.integers(0, [w - crop_w + 1, h - crop_h + 1]))
            crop = part.image[top : top + crop_h, left : left + crop_w]
            image[y0 : y0 + crop_h, x0 : x0 + crop_w] = crop
            moved = replace(part, image=crop, boxes=part.boxes - np.array([left, top, left, top]))
            kept = keep_visible(moved, self.visible)
            boxes.append(kept.boxes + np.array([x0, y0, x0, y0]))
            labels.append(kept.labels)
        return AugmentedSample(image, np.concatenate(boxes), np.concatenate(labels))


@dataclass(frozen=True)
class MixUp(Mixing):
    """The mean of two samples, with the cells of both.

    A cell of the other sample of whose area less than ``visible`` is left is dropped.
    """

    visible: float = option(0.4, high=1)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        other = others(rng, False)
        h, w = np.minimum(sample.image.shape[:2], other.image.shape[:2])
        image = sample.image.copy()
        image[:h, :w] = cv2.addWeighted(image[:h, :w], 0.5, np.ascontiguousarray(other.image[:h, :w]), 0.5, 0)
        other = keep_visible(replace(other, image=other.image[:h, :w]), self.visible)
        return AugmentedSample(
            image, np.concatenate([sample.boxes, other.boxes]), np.concatenate([sample.labels, other.labels])
        )
