"""Resizing, the same in training and in use, with or without torch."""

from __future__ import annotations

import cv2
import numpy as np


def fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """Scale the longer side of [H, W, 3] to ``image_size`` pixels: by area downwards, bilinearly upwards."""
    height, width = image.shape[:2]
    scale = image_size / max(height, width)
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
