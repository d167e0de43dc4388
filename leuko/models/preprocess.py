"""From images of any size to one batch that a network takes, and back: resizing, normalising, padding.

All detectors share this module, in training as at test time, so that they see the same pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LeukoError

Size = tuple[int, int]  # height, width


class Preprocess(nn.Module):
    """Scale the longer side to ``image_size``, normalise by ImageNet's mean and deviation, pad to ``divisor``."""

    def __init__(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], divisor: int = 32):
        super().__init__()
        self.image_size, self.divisor = image_size, divisor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def resized(self, size: Size) -> Size:
        """The (height, width) that an image of ``size`` is scaled to."""
        scale = self.image_size / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def forward(self, images: list[Tensor]) -> tuple[Tensor, list[Size]]:
        """Images [3, H, W], RGB in 0..1 -> batch [N, 3, H', W'] and the (height, width) of each before padding."""
        sizes, scaled = [], []
        for i, image in enumerate(images):
            if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
                raise LeukoError(
                    f"image {i} is {image.dtype} of shape {list(image.shape)}; give float RGB [3, H, W] in 0..1"
                )
            size = self.resized(tuple(image.shape[-2:]))
            if size != tuple(image.shape[-2:]):
                image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
            sizes.append(size)
            scaled.append(image)
        height, width = (-(-max(side) // self.divisor) * self.divisor for side in zip(*sizes, strict=True))
        batch = scaled[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, scaled, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = (image - self.mean) / self.std
        return batch, sizes

    @staticmethod
    def scale(original: Size, resized: Size, like: Tensor) -> Tensor:
        """Factors [4] by which xyxy boxes on the original are multiplied to lie on the resized image."""
        x, y = resized[1] / original[1], resized[0] / original[0]
        return like.new_tensor([x, y, x, y])
