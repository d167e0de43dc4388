"""Arrays and sizes of images, the same in training and in use: with numpy and OpenCV alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..errors import LeukoError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .slides import Slide


def rgb(image: np.ndarray | Image) -> np.ndarray:
    """An image in memory, [H, W, 3] uint8 RGB, [H, W] uint8 grey, or Pillow's of 8 bits, as [H, W, 3]; LeukoError where
    it is none."""
    accepted = "a uint8 array [H, W, 3] RGB or [H, W] grey"
    if hasattr(image, "convert") and hasattr(image, "mode"):  # Pillow's, which need not be installed
        if image.mode[0] in "IF":  # 16 and 32 bits, float
            raise LeukoError(f"image of Pillow's mode {image.mode}: give one of 8 bits, or its file")
        try:
            image = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # it reads its file only now
            raise LeukoError(f"image of Pillow's that cannot be read: {error}") from error
    if not isinstance(image, np.ndarray):
        raise LeukoError(f"image of type {type(image).__name__}: give a file, {accepted}, or Pillow's image")
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
