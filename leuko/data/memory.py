"""Images in memory: arrays, tensors and Pillow's images as the pixels that an image file would give."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import LeukoError

if TYPE_CHECKING:
    import torch

_ACCEPTED = "a uint8 array [H, W, 3] RGB or [H, W] grey, a tensor [3, H, W] or [H, W], or Pillow's image"


def in_memory(image: np.ndarray | torch.Tensor | Image.Image, max_pixels: float) -> np.ndarray:
    """An image in memory as [H, W, 3] uint8 RGB; LeukoError where it is none."""
    if isinstance(image, Image.Image):
        return _pillow_pixels(image, max_pixels)
    torch = sys.modules.get("torch")  # who gives a tensor has imported it
    is_tensor = torch is not None and isinstance(image, torch.Tensor)
    if not is_tensor and not isinstance(image, np.ndarray):
        raise LeukoError(f"image of type {type(image).__name__}: give a file, {_ACCEPTED}")
    is_colour = image.ndim == 3 and image.shape[0 if is_tensor else 2] == 3
    if (
        image.dtype != (torch.uint8 if is_tensor else np.uint8)
        or not (is_colour or image.ndim == 2)
        or 0 in image.shape
    ):
        raise LeukoError(f"image of {image.dtype} and shape {list(image.shape)}: give {_ACCEPTED}")
    pixels = (image.permute(1, 2, 0) if is_colour else image).cpu().numpy() if is_tensor else image
    return pixels if is_colour else np.dstack([pixels] * 3)


def _pillow_pixels(image: Image.Image, max_pixels: float) -> np.ndarray:
    if image.mode[0] in "IF":  # 16 and 32 bits, float
        raise LeukoError(f"image of Pillow's mode {image.mode}: give one of 8 bits, or its file")
    if not 0 < image.width * image.height <= max_pixels * 1e6:
        raise LeukoError(f"image of {image.width}x{image.height} pixels: give 1 to {max_pixels:g} million")
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # it reads its file only now
        raise LeukoError(f"image of Pillow's that cannot be read: {error}") from error
