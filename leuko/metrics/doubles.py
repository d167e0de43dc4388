"""One cell on two overlapping fields of a slide: found by what it looks like with its surroundings.

Nobody tells leuko where on the slide a field lies. But no two cells have the same neighbours in the same places, and
two pictures of one cell have, wherever its two boxes differ a little.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 32  # pixels of a look
SURROUNDINGS = 3.0  # times the longer side of the box
SHIFT = 3  # pixels of a look by which two boxes of one cell may differ
ALIKE = 0.5  # correlation of looks that are worth aligning
SAME, SURROUNDED = 0.9, 0.75  # of one cell: correlation of the looks, and of what surrounds the cell
DARK = 50  # levels of grey below the surroundings' median, from which all is as dark
LEAST_KNOWN = 0.6  # of a look's pixels are inside both fields
OUTSIDE = 0  # the value of a pixel beyond the image's border
BLOCK = 1000  # looks that are compared at once
_AROUND = np.ones((SIDE, SIDE), bool)  # what is not the cell itself
_AROUND[10:-10, 10:-10] = False


def look(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a cell looks like with its surroundings: [32, 32] uint8 grey, from an image [H, W, 3] uint8 RGB and a box
    xyxy in its pixels. Pixels beyond the border are 0, and only they."""
    x0, y0, x1, y1 = (float(v) for v in box)
    half = max(x1 - x0, y1 - y0, 1) * SURROUNDINGS / 2
    left, top = (x0 + x1) / 2 - half, (y0 + y1) / 2 - half
    size = image.shape[1::-1]
    first = np.floor([left, top]).astype(int).clip(0, np.array(size) - 1)
    last = np.ceil([left + 2 * half, top + 2 * half]).astype(int).clip(first + 1, size)
    crop = np.maximum(cv2.cvtColor(image[first[1] : last[1], first[0] : last[0]], cv2.COLOR_RGB2GRAY), OUTSIDE + 1)
    scale = SIDE / (2 * half)
    reduced = np.maximum(np.round((last - first) * min(scale, 1)), 1).astype(int)  # by area, so that grain stays out
    crop = cv2.resize(crop, reduced.tolist(), interpolation=cv2.INTER_AREA)
    per_pixel = reduced / (last - first)
    move = np.diag(scale / per_pixel) @ np.eye(2, 3) + np.outer((first - [left, top]) * scale, [0, 0, 1])
    pixels = cv2.warpAffine(crop, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    known = cv2.warpAffine(np.full_like(crop, 255), move, (SIDE, SIDE), flags=cv2.INTER_LINEAR) > 127
    return np.where(known, pixels, OUTSIDE).astype(np.uint8)


def doubles(looks: np.ndarray, images: Sequence[int]) -> np.ndarray:
    """Which cells of a slide are on an earlier image, too: [N] bool; ``looks`` [N, 32, 32], ``images`` [N] the numbers
    of their images. Cells of one image are different ones."""
    images = np.asarray(images)
    flat = np.stack([_normalised(each, each != OUTSIDE).ravel() for each in looks]) if len(looks) else looks
    is_double = np.zeros(len(looks), bool)
    for start in range(0, len(looks), BLOCK):
        here = slice(start, start + BLOCK)
        alike = (flat[here] @ flat[: start + BLOCK].T > ALIKE) & (images[here, None] > images[None, : start + BLOCK])
        for later, earlier in np.argwhere(alike):
            later += start
            is_double[later] = is_double[later] or _are_one(looks[later], looks[earlier])
    return is_double


def _normalised(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Known pixels with a mean of 0, all with a length of 1, unknown ones 0, as float32."""
    values = np.where(known, pixels.astype(np.float32) - pixels.mean(where=known, dtype=np.float32), 0)
    return values / (np.linalg.norm(values) + 1e-6)


def _are_one(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two looks, shifted to where they fit best, are of one cell: alike, and in what surrounds the cell, too,
    since any two dark cells on a pale field look alike. Of the surroundings, red cells count as much as nuclei do."""
    inside = slice(SHIFT, SIDE - SHIFT)
    middle = one[inside, inside]
    filled = [_normalised(each, each != OUTSIDE) for each in (other, middle)]
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(*filled, cv2.TM_CCORR_NORMED))
    there = other[y : y + len(middle), x : x + len(middle)]
    both = (middle != OUTSIDE) & (there != OUTSIDE)
    around = both & _AROUND[inside, inside]
    return (
        both.mean() >= LEAST_KNOWN
        and _correlation(middle, there, both) >= SAME
        and _correlation(*(np.maximum(each, np.median(each[around]) - DARK) for each in (middle, there)), around)
        >= SURROUNDED
    )


def _correlation(one: np.ndarray, other: np.ndarray, known: np.ndarray) -> float:
    return float((_normalised(one, known) * _normalised(other, known)).sum())
