"""Transforms of where things are: flips, turns, scale and crop, translation, erasing.

Each takes a ``AugmentedSample`` and a numpy generator and returns the field changed; the fields of the class are its options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from .sample import FILL, AugmentedSample, keep_visible


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        width = field.image.shape[1]
        boxes = field.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        return replace(field, image=cv2.flip(field.image, 1), boxes=boxes)


@dataclass(frozen=True)
class VerticalFlip:
    """Mirror top and bottom; a smear has no upside."""

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height = field.image.shape[0]
        boxes = field.boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, height, 0, height]
        return replace(field, image=cv2.flip(field.image, 0), boxes=boxes)


@dataclass(frozen=True)
class ScaleCrop:
    """Scale by a factor of ``scale`` and cut a window of the field's own size at a random place.

    A cell stays if at least ``visible`` of its area does, its box clipped to the window.
    """

    scale: tuple[float, float] = (0.7, 1.4)
    visible: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = field.image.shape[:2]
        factor = float(np.exp(rng.uniform(*np.log(self.scale))))
        room = np.array([width, height]) * (1 - factor)  # negative: how far the window can move over the field
        shift = rng.uniform(np.minimum(room, 0), np.maximum(room, 0))
        # The window of the field that is seen, in whole pixels, and where it comes to lie: several times faster than a
        # warp by the exact factor, and as exact, since the boxes follow the factors that result.
        frame = np.array([width, height])
        start = np.round(np.maximum(-shift, 0) / factor).astype(int)
        stop = np.minimum(start + np.maximum(np.round(frame / factor).astype(int), 1), frame)
        at = np.round(np.maximum(shift, 0)).astype(int)
        size = frame if factor >= 1 else np.clip(np.round((stop - start) * factor).astype(int), 1, frame - at)
        how = cv2.INTER_LINEAR if factor > 0.6 else cv2.INTER_AREA
        image = cv2.resize(field.image[start[1] : stop[1], start[0] : stop[0]], size.tolist(), interpolation=how)
        if factor < 1:
            left, top, right, bottom = (*at.tolist(), *(frame - at - size).tolist())
            image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=FILL)
        scale = np.tile(size / (stop - start), 2)
        boxes = (field.boxes - np.tile(start, 2)) * scale + np.tile(at, 2)
        return keep_visible(replace(field, image=image, boxes=boxes), self.visible)


@dataclass(frozen=True)
class RightAngle:
    """Turn by 90, 180 or 270 degrees."""

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        for _ in range(int(rng.integers(1, 4))):
            width = field.image.shape[1]
            x0, y0, x1, y1 = field.boxes.T
            field = replace(field, image=np.rot90(field.image), boxes=np.stack([y0, width - x1, y1, width - x0], 1))
        return field


@dataclass(frozen=True)
class Rotate:
    """Turn about the middle by up to ``degrees``. A cell is taken for the ellipse in its box, whose new box is exact.

    A cell stays if at least ``visible`` of its area does.
    """

    degrees: float = 15.0
    visible: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = field.image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-1, 1) * self.degrees, 1)
        image = cv2.warpAffine(field.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
        turn, middle = matrix[:, :2], np.array([width, height]) / 2
        centres = ((field.boxes[:, :2] + field.boxes[:, 2:]) / 2 - middle) @ turn.T + middle
        reach = np.sqrt(((field.boxes[:, 2:] - field.boxes[:, :2]) / 2) ** 2 @ (turn**2).T)
        return keep_visible(
            replace(field, image=image, boxes=np.hstack([centres - reach, centres + reach])), self.visible
        )


@dataclass(frozen=True)
class Translate:
    """Shift by up to ``share`` of the field's width and height. A cell stays if ``visible`` of its area does."""

    share: float = 0.1
    visible: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = field.image.shape[:2]
        shift = np.round(rng.uniform(-self.share, self.share, 2) * [width, height])
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        image = cv2.warpAffine(field.image, matrix, (width, height), borderValue=FILL)
        return keep_visible(replace(field, image=image, boxes=field.boxes + np.tile(shift, 2)), self.visible)


@dataclass(frozen=True)
class Erase:
    """Paint up to ``patches`` rectangles grey, each at most ``side`` of the field's width and height.

    A patch by which more than 40 % of a cell's box would be hidden, earlier ones counted, is left out.
    """

    patches: int = 3
    side: float = 0.15

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = field.image.shape[:2]
        image = field.image.copy()
        hidden = np.zeros((height, width), dtype=bool)
        for _ in range(int(rng.integers(1, self.patches + 1))):
            w, h = np.maximum(rng.uniform(0.2, 1, 2) * self.side * [width, height], 1)
            x0, y0 = rng.uniform([0, 0], [width - w, height - h])
            x0, y0, x1, y1 = (round(v) for v in (x0, y0, x0 + w, y0 + h))
            more = hidden.copy()
            more[y0:y1, x0:x1] = True
            if all(_share(more, box) <= 0.4 for box in field.boxes):
                hidden = more
        image[hidden] = FILL
        return replace(field, image=image)


def _share(mask: np.ndarray, box: np.ndarray) -> float:
    """How much of a box's pixels a mask [H, W] covers: 0..1."""
    (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return float(mask[y0:y1, x0:x1].mean())
