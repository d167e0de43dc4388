"""Transforms that bring in cells of other fields: copy-paste, mosaic, mixup.

Each takes a ``AugmentedSample``, a numpy generator and ``others``, which draws another field of the training set (the cells of a
rare type, if asked), and returns the field changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ...synth.cutout import box_of, cell_mask
from .sample import FILL, AugmentedSample, keep_visible

Others = Callable[[np.random.Generator, bool], AugmentedSample]


class Mixing:
    """A transform that is called with ``others``, too."""


@dataclass(frozen=True)
class CopyPaste(Mixing):
    """Lay a cell of a rare type, cut out of another field by its own colour, where no other cell lies.

    A type is drawn the more often the fewer cells it has. ``cells`` are tried; one whose outline is uncertain, or that
    finds no room, is left out.
    """

    cells: int = 1

    def __call__(self, field: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        for _ in range(self.cells):
            other = others(rng, True)
            if len(other.boxes):
                field = _pasted(field, other, int(rng.integers(len(other.boxes))), rng)
        return field


def _pasted(field: AugmentedSample, other: AugmentedSample, cell: int, rng: np.random.Generator) -> AugmentedSample:
    x0, y0, x1, y1 = other.boxes[cell]
    reach = 0.5 * max(x1 - x0, y1 - y0)
    height, width = other.image.shape[:2]
    left, top = max(int(x0 - reach), 0), max(int(y0 - reach), 0)
    crop = other.image[top : min(int(y1 + reach), height), left : min(int(x1 + reach), width)]
    mask = cell_mask(crop)
    if mask is None:
        return field
    bx0, by0, bx1, by1 = box_of(mask).astype(int)
    found, meant = np.array([bx0 + left, by0 + top, bx1 + left, by1 + top]), other.boxes[cell]
    both = (np.minimum(found[2:], meant[2:]) - np.maximum(found[:2], meant[:2])).clip(0).prod()
    size, room = found[2:] - found[:2], np.array(field.image.shape[1::-1])
    if both < 0.6 * max(size.prod(), (meant[2:] - meant[:2]).prod()) or (size > room).any():
        return field  # something else was found than what the box is about
    cover = cv2.GaussianBlur(mask[by0:by1, bx0:bx1].astype(np.float32), (0, 0), 0.8)[:, :, None]
    for _ in range(20):
        corner = rng.integers(0, room - size + 1)
        box = np.concatenate([corner, corner + size]).astype(np.float32)
        if (np.minimum(box[2:], field.boxes[:, 2:]) > np.maximum(box[:2], field.boxes[:, :2])).all(1).any():
            continue
        image = field.image.copy()
        view = image[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]]
        view[:] = view * (1 - cover) + crop[by0:by1, bx0:bx1] * cover + 0.5
        return AugmentedSample(image, np.vstack([field.boxes, box]), np.append(field.labels, other.labels[cell]))
    return field


@dataclass(frozen=True)
class Mosaic(Mixing):
    """Four fields around a point near the middle, each cut to its corner; a cell stays by its ``visible`` part."""

    visible: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        height, width = field.image.shape[:2]
        x, y = (int(v) for v in rng.uniform([0.3 * width, 0.3 * height], [0.7 * width, 0.7 * height]))
        image = np.empty_like(field.image)
        image[:] = FILL
        boxes, labels = [], []
        corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        for i, (x0, y0, x1, y1) in enumerate(corners):
            part = field if i == 0 else others(rng, False)
            h, w = part.image.shape[:2]
            cut_w, cut_h = min(x1 - x0, w), min(y1 - y0, h)
            left, top = (int(v) for v in rng.integers(0, [w - cut_w + 1, h - cut_h + 1]))
            window = part.image[top : top + cut_h, left : left + cut_w]
            image[y0 : y0 + cut_h, x0 : x0 + cut_w] = window
            moved = replace(part, image=window, boxes=part.boxes - np.array([left, top, left, top]))
            kept = keep_visible(moved, self.visible)
            boxes.append(kept.boxes + np.array([x0, y0, x0, y0]))
            labels.append(kept.labels)
        return AugmentedSample(image, np.concatenate(boxes), np.concatenate(labels))


@dataclass(frozen=True)
class MixUp(Mixing):
    """The mean of two fields, with the cells of both; a cell stays by its ``visible`` part."""

    visible: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator, others: Others) -> AugmentedSample:
        other = others(rng, False)
        h, w = np.minimum(field.image.shape[:2], other.image.shape[:2])
        image = field.image.copy()
        image[:h, :w] = cv2.addWeighted(image[:h, :w], 0.5, np.ascontiguousarray(other.image[:h, :w]), 0.5, 0)
        cut = keep_visible(replace(other, image=other.image[:h, :w]), self.visible)
        return AugmentedSample(
            image, np.concatenate([field.boxes, cut.boxes]), np.concatenate([field.labels, cut.labels])
        )
