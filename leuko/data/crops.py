"""Crops of single cells for the typing network: each cell of the same size, and all in one stain."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator

from ..synth.stain import REFERENCE, Stain, from_density, mapped_density, to_density
from .fit import fit

STAIN_SIDE = 512  # pixels of a field's longer side, which are enough to see how it is stained
AT_ONCE = 64  # crops that are brought to the reference together: a slide has thousands
LEAST_SIDE = 16  # pixels of a cell there, below which its nucleus is not seen
MOST_CELLS, SURROUNDINGS = 16, 3.0  # that are looked at instead, and the width that each shows, in those of the cell
MARGIN = 1.5  # times a crop: what is kept of a cell's surroundings, so that it can be turned, moved and scaled


def stain_of(pixels: np.ndarray, boxes: np.ndarray) -> Stain:
    """The stain of a field [H, W, 3] uint8 RGB, or a slide, with leukocytes in ``boxes`` [N, 4], the surest first."""
    scale = min(1.0, STAIN_SIDE / max(pixels.shape[:2]))
    if len(boxes) and np.median((boxes[:, 2:] - boxes[:, :2]).max(1)) * scale < LEAST_SIDE:
        pixels, boxes = _strip(pixels, boxes)
        scale = 1.0
    return Stain.of(fit(pixels, STAIN_SIDE) if scale < 1 else pixels, np.asarray(boxes) * scale)


def _strip(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first cells of a field that is too wide to show how they are stained, each in its surroundings, side by side:
    an image [S, N * S, 3] uint8, and their boxes in it."""
    side, boxes = STAIN_SIDE // 4, np.asarray(boxes[:MOST_CELLS], dtype=np.float64)
    strip = np.concatenate([_square(pixels, box, side, SURROUNDINGS) for box in boxes], axis=1)
    half = (boxes[:, 2:] - boxes[:, :2]) / np.maximum(boxes[:, 2:] - boxes[:, :2], 1).max(1)[:, None]
    half *= side / SURROUNDINGS / 2
    middle = np.stack([side * (np.arange(len(boxes)) + 0.5), np.full(len(boxes), side / 2)], axis=1)
    return strip, np.concatenate([middle - half, middle + half], axis=1)


def crops_of(pixels: np.ndarray, boxes: np.ndarray, side: int, view: float, stain: Stain | None = None) -> np.ndarray:
    """The cells in ``boxes`` [N, 4] of a field, in the stain of ``REFERENCE``: [N, side, side, 3] uint8 RGB.

    ``stain`` is that of the field; without it, it is taken from these cells and what lies around them. A crop is a
    square around the middle of a box, ``view`` times as wide as the longer side of the box.
    """
    if not len(boxes):
        return np.zeros((0, side, side, 3), dtype=np.uint8)
    stain = stain or stain_of(pixels, boxes)
    density_map, crops = stain.to_reference(), np.empty((len(boxes), side, side, 3), np.uint8)
    for start in range(0, len(boxes), AT_ONCE):
        squares = np.concatenate([_square(pixels, box, side, view) for box in boxes[start : start + AT_ONCE]])
        light = from_density(mapped_density(squares, stain.white, density_map), REFERENCE.white)
        crops[start : start + AT_ONCE] = np.clip(light + 0.5, 0, 255).reshape(-1, side, side, 3)
    return crops


def _square(pixels: np.ndarray, box: np.ndarray, side: int, view: float) -> np.ndarray:
    """A square of an image around a box, scaled to ``side`` pixels; beyond the border the image is mirrored."""
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    middle, width = np.array([x0 + x1, y0 + y1]) / 2, max(x1 - x0, y1 - y0, 1.0) * view
    low, high = np.floor(middle - width / 2 - 2).astype(int), np.ceil(middle + width / 2 + 2).astype(int)
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, pixels.shape[1::-1])
    part, middle = pixels[top:bottom, left:right], middle - [left, top]
    scale = side / width
    if scale < 0.75:  # by area first, so that nothing is lost between the pixels that are taken
        smaller = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        middle = middle * [smaller[0] / part.shape[1], smaller[1] / part.shape[0]]
        part, scale = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA), 1.0
    # OpenCV counts from the middle of the first pixel.
    moved = np.array([[scale, 0, (side - 1) / 2 - scale * (middle[0] - 0.5)], [0, scale, 0]])
    moved[1, 2] = (side - 1) / 2 - scale * (middle[1] - 0.5)
    return cv2.warpAffine(part, moved, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


# ---------------------------------------------------------------- crops to learn from


def augmented(crop: np.ndarray, side: int, rng: Generator) -> np.ndarray:
    """A crop as another smear, microscope, camera and detector would give it: [side, side, 3] uint8 RGB.

    ``crop`` [M, M, 3] shows ``MARGIN`` times what the result does. It is turned, mirrored, scaled, moved as by a
    detector's box, stained anew in density (each channel and all of them stronger or weaker, and mixed), and given
    another tone curve, focus and noise.
    """
    height = crop.shape[0]
    angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    scale, stretch = np.exp(rng.normal(0, [0.08, 0.04])) * [MARGIN * side / height, 1.0]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([scale * flip * stretch, scale / stretch])
    moved = (side - 1) / 2 + rng.normal(0, SHIFT * side, 2) - linear @ np.full(2, (height - 1) / 2)
    image = cv2.warpAffine(
        crop, np.column_stack([linear, moved]), (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    density = to_density(image, REFERENCE.white)
    if rng.random() < 0.7:
        density = cv2.transform(density, np.eye(3) + rng.normal(0, 0.12, (3, 3)))
    density *= np.exp(rng.normal(0, 0.2, 3) + rng.normal(0, 0.25)).astype(np.float32)
    density -= rng.normal(0, 0.04, 3).astype(np.float32)
    light = from_density(density * np.exp(rng.normal(0, 0.15)).astype(np.float32), REFERENCE.white)
    if rng.random() < 0.3:
        light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.3, 1.6) * side / 96)
    if rng.random() < 0.3:
        light += rng.standard_normal(light.shape, dtype=np.float32) * rng.uniform(0, 10)
    return np.clip(light + 0.5, 0, 255).astype(np.uint8)


SHIFT = 0.05  # of a crop's side: standard deviation of a box's place


def balanced(labels: Sequence[int], centres: Sequence[int], none: int) -> np.ndarray:
    """How often each cell is drawn [N], summing to 1: each centre equally often, and within it each type, but for those
    of which it has few (below ``FEW``); the class ``none`` less often."""
    labels, centres = np.asarray(labels), np.asarray(centres)
    weights = np.zeros(len(labels))
    for centre in np.unique(centres):
        for label in np.unique(labels[centres == centre]):
            mine = (centres == centre) & (labels == label)
            weights[mine] = min(1.0, mine.sum() / FEW) * (NONE_SHARE if label == none else 1.0) / mine.sum()
        weights[centres == centre] /= weights[centres == centre].sum()
    return weights / weights.sum()


FEW = 20  # cells of a type, below which each is not shown more often than one of 20 would be
NONE_SHARE = 0.6  # of how often a type is drawn
