"""The same picture twice: byte for byte, or nearly, in another size, encoding, light or orientation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

COARSE, FINE = 24, 96  # sides that pictures are compared at: all with all, then those that look alike
ALIKE = 0.93  # correlation of coarse pictures that are compared finely
SAME = 0.975  # correlation of fine pictures that are the same
FLAT = 2.0  # deviation in grey values below which a picture shows nothing to compare
BLOCK = 512


def digest(path: Path) -> str:
    """The file's content as a SHA-256 number."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def look(image: np.ndarray) -> np.ndarray | None:
    """What a picture [H, W, 3] uint8 looks like: [FINE, FINE] float32 of mean 0 and length 1; None if it is flat."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (FINE, FINE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return None if small.std() < FLAT else _standard(small)


def near(looks: Sequence[np.ndarray | None]) -> list[tuple[int, int]]:
    """Pairs of pictures (numbers, the lower first) that look the same, turned by right angles and mirrored or not."""
    there = [i for i, each in enumerate(looks) if each is not None]
    if len(there) < 2:
        return []
    coarse = np.stack([_coarse(looks[i]) for i in there])
    rows = coarse.reshape(len(there), -1)
    pairs: set[tuple[int, int]] = set()
    for way in range(8):
        turned = np.stack([_turned(c, way) for c in coarse]).reshape(len(there), -1)
        for start in range(0, len(there), BLOCK):
            for a, b in np.argwhere(rows[start : start + BLOCK] @ turned.T > ALIKE):
                i, j = there[start + a], there[b]
                if i < j and (looks[i] * _turned(looks[j], way)).sum() > SAME:
                    pairs.add((i, j))
    return sorted(pairs)


def _standard(image: np.ndarray) -> np.ndarray:
    image = image - image.mean()
    return image / max(float(np.linalg.norm(image)), 1e-9)


def _coarse(image: np.ndarray) -> np.ndarray:
    return _standard(cv2.resize(image, (COARSE, COARSE), interpolation=cv2.INTER_AREA))


def _turned(image: np.ndarray, way: int) -> np.ndarray:
    """One of the eight ways to lay a square picture."""
    turned = np.rot90(image, way % 4)
    return turned[:, ::-1] if way > 3 else turned
