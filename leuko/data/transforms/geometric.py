"""Geometric transforms: flips, rotations, scale and crop.

Each takes an ``AugmentedSample``, a numpy generator and options, and returns the changed sample. A cell of whose area
less than ``visible`` (0..1) is left is dropped.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator

from ..dataset import AugmentedSample

FILL = (124, 116, 104)  # ImageNet's mean colour: about zero once normalised


def horizontal_flip(sample: AugmentedSample, rng: Generator) -> AugmentedSample:
    """Mirror left and right."""
    width = sample.image.shape[1]
    boxes = sample.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    return replace(sample, image=cv2.flip(sample.image, 1), boxes=boxes)


def vertical_flip(sample: AugmentedSample, rng: Generator) -> AugmentedSample:
    """Mirror top and bottom; a smear has no upright orientation."""
    height = sample.image.shape[0]
    boxes = sample.boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, height, 0, height]
    return replace(sample, image=cv2.flip(sample.image, 0), boxes=boxes)


def right_angle(sample: AugmentedSample, rng: Generator) -> AugmentedSample:
    """Rotate by 90, 180 or 270 degrees."""
    for _ in range(int(rng.integers(1, 4))):
        width = sample.image.shape[1]
        x0, y0, x1, y1 = sample.boxes.T
        sample = replace(sample, image=np.rot90(sample.image), boxes=np.stack([y0, width - x1, y1, width - x0], 1))
    return sample


def rotate(sample: AugmentedSample, rng: Generator, degrees: float = 15.0, visible: float = 0.4) -> AugmentedSample:
    """Rotate about the centre by up to ``degrees``. The new box is exact for a cell that is an ellipse in its box."""
    height, width = sample.image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-1, 1) * degrees, 1)
    image = cv2.warpAffine(sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
    rotation, middle = matrix[:, :2], np.array([width, height]) / 2
    centres = ((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2 - middle) @ rotation.T + middle
    half = np.sqrt(((sample.boxes[:, 2:] - sample.boxes[:, :2]) / 2) ** 2 @ (rotation**2).T)
    return keep_visible(replace(sample, image=image, boxes=np.hstack([centres - half, centres + half])), visible)


def scale_crop(
    sample: AugmentedSample, rng: Generator, scale: tuple[float, float] = (0.7, 1.4), visible: float = 0.4
) -> AugmentedSample:
    """Scale by a factor from the range ``scale`` and crop or pad to the original size at a random position."""
    frame = np.array(sample.image.shape[1::-1])
    factor = float(np.exp(rng.uniform(*np.log(scale))))
    room = frame * (1 - factor)  # negative: how far the window can move over the image
    shift = rng.uniform(np.minimum(room, 0), np.maximum(room, 0))
    # The visible window of the image and its new position, both in whole pixels: several times faster than a warp
    # by the exact factor, and as exact, since the boxes follow the factors that result.
    start = np.round(np.maximum(-shift, 0) / factor).astype(int)
    stop = np.minimum(start + np.maximum(np.round(frame / factor).astype(int), 1), frame)
    at = np.round(np.maximum(shift, 0)).astype(int)
    size = frame if factor >= 1 else np.clip(np.round((stop - start) * factor).astype(int), 1, frame - at)
    interpolation = cv2.INTER_LINEAR if factor > 0.6 else cv2.INTER_AREA
    window = sample.image[start[1] : stop[1], start[0] : stop[0]]
    image = cv2.resize(window, size.tolist(), interpolation=interpolation)
    (left, top), (right, bottom) = at.tolist(), (frame - at - size).tolist()
    image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=FILL)
    boxes = (sample.boxes - np.tile(start, 2)) * np.tile(size / (stop - start), 2) + np.tile(at, 2)
    return keep_visible(replace(sample, image=image, boxes=boxes), visible)


def keep_visible(sample: AugmentedSample, visible: float) -> AugmentedSample:
    """Clip the boxes to the image and drop cells of which less than ``visible`` (0..1 of the area) is left."""
    height, width = sample.image.shape[:2]
    clipped = np.clip(sample.boxes, 0, [width, height, width, height])
    area = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = (sides.prod(1) >= visible * area) & (sides > 1).all(1)
    return replace(sample, boxes=clipped[kept], labels=sample.labels[kept])
