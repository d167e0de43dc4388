"""Images that look the same in another size, encoding, light or orientation."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

COARSE, FINE = 24, 96  # sides at which images are compared: all with all, then those that look alike
ALIKE = 0.93  # correlation of coarse images above which the fine ones are compared
SAME = 0.975  # correlation of fine images above which they are the same
FLAT = 2.0  # standard deviation in grey values below which an image shows nothing to compare
BLOCK = 512


def look(image: np.ndarray) -> np.ndarray | None:
    """What an image [H, W, 3] uint8 looks like: [FINE, FINE] float32 of mean 0 and length 1; None if it is flat."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (FINE, FINE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return None if small.std() < FLAT else _normalized(small)


def near(looks: Sequence[np.ndarray | None]) -> list[tuple[int, int]]:
    """Pairs of images (indices, the lower first) that look the same, turned by right angles and mirrored or not."""
    index = [i for i, each in enumerate(looks) if each is not None]
    if len(index) < 2:
        return []
    coarse = [_normalized(cv2.resize(looks[i], (COARSE, COARSE), interpolation=cv2.INTER_AREA)) for i in index]
    rows = np.stack(coarse).reshape(len(index), -1)
    pairs: set[tuple[int, int]] = set()
    for way in range(8):
        turned = np.stack([_turned(c, way) for c in coarse]).reshape(len(index), -1)
        for start in range(0, len(index), BLOCK):
            for a, b in np.argwhere(rows[start : start + BLOCK] @ turned.T > ALIKE):
                i, j = index[start + a], index[b]
                if i < j and (looks[i] * _turned(looks[j], way)).sum() > SAME:
                    pairs.add((i, j))
    return sorted(pairs)


def _normalized(image: np.ndarray) -> np.ndarray:
    image = image - image.mean()
    return image / max(float(np.linalg.norm(image)), 1e-9)


def _turned(image: np.ndarray, way: int) -> np.ndarray:
    """One of the eight orientations of a square image."""
    turned = np.rot90(image, way % 4)
    return turned[:, ::-1] if way > 3 else turned
