"""RoIAlign (He et al. 2017): the fastest implementation for the device and the RoI.

On a GPU that is torchvision's. On a CPU, leuko's own (``cpu/roi_align.py``) is 2 to 15 times faster for RoIs of any
size, but it gives every RoI of a call as many cells as the largest one needs along each axis: among 1,024 RoIs, one
wide and one tall sliver make a training step 10 times slower at 150 x 150 cells. So RoIs with bins longer than
:data:`MAX_BIN` cells go to torchvision's. (A square RoI has bins of 2 to 4 cells on the pyramid level that suits it.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import ops

from .cpu import roi_align as cpu

MAX_BIN = 6.0  # cells; measured: 4 sends too many ordinary RoIs to torchvision's, above 6 nothing is gained


class RoIs(NamedTuple):
    """Boxes to be pooled, and the image of each."""

    image: Tensor  # [R] index into N
    boxes: Tensor  # [R, 4]

    @classmethod
    def of(cls, boxes: Tensor) -> RoIs:
        """All boxes [N, S, 4] of a batch, those of one image in a row."""
        images, number = boxes.shape[:2]
        return cls(torch.arange(images, device=boxes.device).repeat_interleave(number), boxes.flatten(0, 1))

    def at(self, index: Tensor) -> RoIs:
        """Some of them."""
        return RoIs(self.image[index], self.boxes[index])


def roi_align(feature: Tensor, image_index: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """Pool boxes [R, 4] (image pixels) of the images [R] (indices into N) from ``feature`` [N, C, H, W] at ``stride``.

    Returns [R, C, size, size] float32. Each bin is sampled at ceil(bin side) points along each axis. No gradient
    reaches the boxes.
    """
    boxes = boxes.detach()
    if feature.device.type != "cpu" or torch.jit.is_tracing():  # of it there is an operator of ONNX
        return _torchvision(feature, image_index, boxes, stride, size)
    large = (boxes[:, 2:] - boxes[:, :2]).amax(1) > MAX_BIN * size * stride  # [R]
    if not large.any():
        return cpu.roi_align(feature, image_index, boxes, stride, size)
    pooled = boxes.new_empty(len(boxes), feature.shape[1], size, size)
    pooled[~large] = cpu.roi_align(feature, image_index[~large], boxes[~large], stride, size)
    pooled[large] = _torchvision(feature, image_index[large], boxes[large], stride, size)
    return pooled


def _torchvision(feature: Tensor, image_index: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    rois = torch.cat([image_index[:, None].float(), boxes.float()], dim=1)
    return ops.roi_align(feature.float(), rois, size, 1 / stride, sampling_ratio=0, aligned=True)
