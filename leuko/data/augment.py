"""On-line augmentation: a composition of transforms, each with its own probability.

A transform takes a field and a numpy generator and returns the field changed. Fields are uint8 RGB [H, W, 3] with
their boxes; all randomness comes from the generator, so that a seed gives the same pictures on any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

FILL = (124, 116, 104)  # ImageNet's mean colour: near zero once normalised


@dataclass(frozen=True)
class Field:
    """An image [H, W, 3] uint8 RGB, its boxes [N, 4] xyxy in pixels and their labels [N]."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    def __call__(self, field: Field, rng: np.random.Generator) -> Field:
        width = field.image.shape[1]
        boxes = field.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        return replace(field, image=field.image[:, ::-1], boxes=boxes)


@dataclass(frozen=True)
class VerticalFlip:
    """Mirror top and bottom; a smear has no upside."""

    def __call__(self, field: Field, rng: np.random.Generator) -> Field:
        height = field.image.shape[0]
        boxes = field.boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, height, 0, height]
        return replace(field, image=field.image[::-1], boxes=boxes)


@dataclass(frozen=True)
class ScaleCrop:
    """Scale by a factor of ``scale`` and cut a window of the field's own size at a random place.

    A cell stays if at least ``visible`` of its area does, its box clipped to the window.
    """

    scale: tuple[float, float] = (0.7, 1.4)
    visible: float = 0.4

    def __call__(self, field: Field, rng: np.random.Generator) -> Field:
        height, width = field.image.shape[:2]
        factor = float(np.exp(rng.uniform(*np.log(self.scale))))
        room = np.array([width, height]) * (1 - factor)  # negative: how far the window can move over the field
        shift = rng.uniform(np.minimum(room, 0), np.maximum(room, 0))
        matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
        image = cv2.warpAffine(field.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
        boxes = field.boxes * factor + np.tile(shift, 2)
        return keep_visible(replace(field, image=image, boxes=boxes), self.visible)


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation, each by a factor of 1 +- its amount, and each channel's gain by ``gain``."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    gain: float = 0.05

    def __call__(self, field: Field, rng: np.random.Generator) -> Field:
        amounts = np.array([self.brightness, self.contrast, self.saturation] + [self.gain] * 3)
        brightness, contrast, saturation, *gain = 1 + rng.uniform(-amounts, amounts)
        grey = cv2.cvtColor(field.image, cv2.COLOR_RGB2GRAY)
        image = cv2.addWeighted(field.image, saturation, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 1 - saturation, 0)
        levels = (np.arange(256)[:, None] * np.array(gain) - 128) * contrast + 128
        table = np.clip(levels * brightness, 0, 255).round().astype(np.uint8)
        return replace(field, image=cv2.LUT(image, table[:, None]))


def keep_visible(field: Field, visible: float) -> Field:
    """Clip the boxes to the image and drop the cells of which less than ``visible`` (0..1 of the area) is left."""
    height, width = field.image.shape[:2]
    clipped = np.clip(field.boxes, 0, [width, height, width, height])
    before = (field.boxes[:, 2:] - field.boxes[:, :2]).prod(1)
    side = clipped[:, 2:] - clipped[:, :2]
    stays = (side.prod(1) >= visible * before) & (side > 1).all(1)
    return replace(field, boxes=clipped[stays], labels=field.labels[stays])


Step = tuple[float, object]  # probability, transform

STANDARD: tuple[Step, ...] = (
    (0.5, HorizontalFlip()),
    (0.5, VerticalFlip()),
    (0.7, ScaleCrop()),
    (0.7, ColourJitter()),
)


def augment(field: Field, steps: Sequence[Step], rng: np.random.Generator) -> Field:
    """Apply each transform with its probability, in order."""
    for probability, transform in steps:
        if rng.random() < probability:
            field = transform(field, rng)
    return field
