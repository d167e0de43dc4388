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
    """What an image [H, W, 3] uint8 looks like: [FINE, FINE] uint8 in grey; None if it is flat."""
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (FINE, FINE), interpolation=cv2.INTER_AREA)
    return None if small.std() < FLAT else small


def near(looks: Sequence[np.ndarray | None]) -> list[tuple[int, int]]:
    """Pairs of images (indices, the lower first) that look the same, turned by right angles and mirrored or not: each
    image with the first that it looks like, so that n copies of one are n pairs, not n * n / 2."""
    index = [i for i, each in enumerate(looks) if each is not None]
    if len(index) < 2:
        return []
    coarse = [_normalized(cv2.resize(looks[i], (COARSE, COARSE), interpolation=cv2.INTER_AREA)) for i in index]
    rows = np.stack(coarse).reshape(len(index), -1)
    mean, std = (np.array([getattr(looks[i], name)() for i in index]) for name in ("mean", "std"))
    first = np.arange(len(index))  # of each row, the row that it looks like: itself, or one before it

    def is_same(i: int, j: int, way: int) -> bool:
        product = np.vdot(looks[index[i]].astype(np.float32), _turned(looks[index[j]], way).astype(np.float32))
        return product / FINE**2 - mean[i] * mean[j] > SAME * std[i] * std[j]

    for way in range(8):
        turned = np.stack([_turned(c, way) for c in coarse]).reshape(len(index), -1)
        for start in range(0, len(index), BLOCK):
            a, b = np.nonzero(rows[start : start + BLOCK] @ turned.T > ALIKE)
            is_earlier = a + start < first[b]
            for i, j in zip((a + start)[is_earlier].tolist(), b[is_earlier].tolist(), strict=True):
                if i < first[j] and is_same(i, j, way):
                    first[j] = i
    return sorted((index[i], index[j]) for j, i in enumerate(first) if i < j)


def _normalized(image: np.ndarray) -> np.ndarray:
    """The image as float32 of mean 0 and length 1."""
    image = image.astype(np.float32) - image.mean(dtype=np.float32)
    return image / max(float(np.linalg.norm(image)), 1e-9)


def _turned(image: np.ndarray, way: int) -> np.ndarray:
    """One of the eight orientations of a square image."""
    turned = np.rot90(image, way % 4)
    return turned[:, ::-1] if way > 3 else turned
