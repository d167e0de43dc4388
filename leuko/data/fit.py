"""Resizing, the same in training and in use, with or without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from .slides import Slide


def fit(image: np.ndarray, image_size: int) -> np.ndarray:
    """Scale the longer side of [H, W, 3] to ``image_size`` pixels: by area downwards, bilinearly upwards."""
    size = image.shape[1::-1]
    if max(size) == image_size:
        return image
    interpolation = cv2.INTER_AREA if max(size) > image_size else cv2.INTER_LINEAR
    return cv2.resize(image, fitted_size(size, image_size), interpolation=interpolation)


def fitted_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(width, height) with the longer side scaled to ``image_size`` pixels."""
    scale = image_size / max(size)
    return tuple(max(1, round(side * scale)) for side in size)


def fitted(pixels: np.ndarray | Slide, side: int) -> np.ndarray:
    """An image or a slide with a longer side of ``side`` pixels (see :func:`fit`)."""
    return fit(pixels, side) if isinstance(pixels, np.ndarray) else pixels.view(side)
