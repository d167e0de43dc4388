"""Arrays and sizes of images, the same in training and in use: with numpy and OpenCV alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..errors import LeukoError

if TYPE_CHECKING:
    from .slides import Slide


def rgb(image: np.ndarray) -> np.ndarray:
    """An image in memory, [H, W, 3] uint8 RGB or [H, W] uint8 grey, as [H, W, 3]; LeukoError where it is none."""
    accepted = "a uint8 array [H, W, 3] RGB or [H, W] grey"
    if not isinstance(image, np.ndarray):
        remedy = f"give a file, or {accepted}, as numpy.asarray makes it of Pillow's image"
        raise LeukoError(f"image of type {type(image).__name__}: {remedy}")
    if image.dtype != np.uint8 or 0 in image.shape or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise LeukoError(f"image of {image.dtype} and shape {list(image.shape)}: give {accepted}")
    return image if image.ndim == 3 else np.dstack([image] * 3)


def fit(image: np.ndarray | Slide, image_size: int) -> np.ndarray:
    """Scale the longer side of [H, W, 3], or of a slide, to ``image_size`` pixels: by area downwards, bilinearly
    upwards."""
    if not isinstance(image, np.ndarray):
        return image.view(image_size)
    size = image.shape[1::-1]
    if max(size) == image_size:
        return image
    interpolation = cv2.INTER_AREA if max(size) > image_size else cv2.INTER_LINEAR
    return cv2.resize(image, fitted_size(size, image_size), interpolation=interpolation)


def fitted_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(width, height) with the longer side scaled to ``image_size`` pixels."""
    scale = image_size / max(size)
    return tuple(max(1, round(side * scale)) for side in size)
