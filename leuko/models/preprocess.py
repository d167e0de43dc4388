"""From images of any size to one batch that a network takes: resizing, normalising, padding.

All detectors share this module, in training as in use, so that they see the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import torch
from torch import Tensor, nn

from ..errors import LeukoError
from ..ops import ranks

Size = tuple[int, int]  # height, width


class Preprocess(nn.Module):
    """Scale the longer side to ``image_size``, normalise by ImageNet's mean and std, pad to a multiple of ``divisor``.

    Images from files arrive at ``image_size``: :func:`leuko.data.images.load_image` scales them in the loader's
    workers, the same way in training and in use, and here they are only normalised and padded. A tensor of another size
    is resized here, with the pixels that the loader gives up to its rounding to integers: :func:`resize`.
    """

    def __init__(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], divisor: int = 32):
        super().__init__()
        self.image_size, self.divisor = image_size, divisor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def resized(self, size: Size) -> Size:
        """The (height, width) that an image of ``size`` is scaled to."""
        scale = self.image_size / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Images [3, H, W] RGB, uint8 or float in 0..1 -> batch [N, 3, H', W'] on the device of this module, and the
        (height, width) of each image before padding.

        uint8 images of the right size are stacked where they are, copied to the device at once, and normalised there;
        [N, 3, H, W] is a stack already.
        """
        shapes = [tuple(image.shape[-2:]) for image in images]
        sizes = [self.resized(shape) for shape in shapes]
        for i, image in enumerate(images):
            if image.dim() != 3 or image.shape[0] != 3 or not (image.is_floating_point() or image.dtype == torch.uint8):
                raise LeukoError(
                    f"image {i} is {image.dtype} of shape {list(image.shape)}; give RGB [3, H, W], uint8 or in 0..1"
                )
        if sizes != shapes or len({image.dtype for image in images}) > 1:
            images = [resize(to_unit(image), size) for image, size in zip(images, sizes, strict=True)]
        height, width = (-(-max(side) // self.divisor) * self.divisor for side in zip(*sizes, strict=True))
        if self.training:
            height, width = ranks.largest(height, width)  # losses and group norms depend on the padding
        whole = all(size == (height, width) for size in sizes)
        batch = images if whole and isinstance(images, Tensor) else self._stack(images, height, width)
        batch = (to_unit(upload(batch, self.mean.device)) - self.mean).div_(self.std)
        if not whole:
            rows, columns = (
                upload(torch.arange(side) >= torch.tensor(ends)[:, None], batch.device)
                for side, ends in zip((height, width), zip(*sizes, strict=True), strict=True)
            )
            batch.masked_fill_((rows[:, :, None] | columns[:, None])[:, None], 0)
        return batch, sizes

    @staticmethod
    def _stack(images: Sequence[Tensor], height: int, width: int) -> Tensor:
        batch = images[0].new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return batch


def to_unit(images: Tensor) -> Tensor:
    """uint8 as float32 in 0..1; floats as they are."""
    return images if images.is_floating_point() else images.float().div_(255)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device; to a GPU from pinned memory, so that the CPU goes on meanwhile."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def scales(originals: Sequence[Size], sizes: Sequence[Size]) -> Tensor:
    """Factors [N, 1, 4] by which xyxy boxes on the originals are multiplied to lie on the resized images."""
    pairs = zip(originals, sizes, strict=True)
    return torch.tensor([[(w / width, h / height) * 2] for (height, width), (h, w) in pairs])


def resize(image: Tensor, size: Size) -> Tensor:
    """Resize [3, H, W] to ``size`` as the loader does, by OpenCV: by area when shrinking, else bilinear."""
    if size == tuple(image.shape[-2:]):
        return image
    how = cv2.INTER_LINEAR if max(size) > max(image.shape[-2:]) else cv2.INTER_AREA
    pixels = image.detach().float().permute(1, 2, 0).cpu().numpy()
    return torch.from_numpy(cv2.resize(pixels, size[::-1], interpolation=how)).permute(2, 0, 1).to(image.device)
