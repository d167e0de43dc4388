"""RoIAlign (He et al. 2017): torchvision's on a GPU; on a CPU, one that is 2 to 15 times faster.

On a CPU, each output bin, the mean of bilinear samples, is a weighted sum of a few neighbouring cells of the map. The
weights of a bin are the product of those along y and along x; samples that share a cell are merged first, and
``embedding_bag`` sums the rows (the C features of a cell are contiguous), forwards and backwards. Every RoI of a call
gets as many cells as the largest one needs along each axis: among 1,024 RoIs, one wide and one tall sliver make a
training step 10 times slower at 150 x 150 cells. So RoIs with bins longer than :data:`MAX_BIN` cells go to
torchvision's, too. (A square RoI has bins of 2 to 4 cells on the pyramid level that suits it.)

Letters: R boxes, S = size (bins along an axis), T cells that a bin touches along an axis: the most of any RoI.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

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
        return on_cpu(feature, image_index, boxes, stride, size)
    pooled = boxes.new_empty(len(boxes), feature.shape[1], size, size)
    pooled[~large] = on_cpu(feature, image_index[~large], boxes[~large], stride, size)
    pooled[large] = _torchvision(feature, image_index[large], boxes[large], stride, size)
    return pooled


def _torchvision(feature: Tensor, image_index: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    rois = torch.cat([image_index[:, None].float(), boxes.float()], dim=1)
    return ops.roi_align(feature.float(), rois, size, 1 / stride, sampling_ratio=0, aligned=True)


def on_cpu(feature: Tensor, image_index: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """As :func:`roi_align`. Allocates R * S * S * Ty * Tx indices and weights."""
    channels, height, width = feature.shape[1:]
    if not len(boxes):
        return feature.new_zeros(0, channels, size, size, dtype=torch.float32)
    corners = boxes / stride - 0.5
    y, y_weight = _axis(corners[:, 1], corners[:, 3], size, height)  # [R, S, Ty]
    x, x_weight = _axis(corners[:, 0], corners[:, 2], size, width)  # [R, S, Tx]
    row = (image_index[:, None, None] * height + y) * width
    cells = row[:, :, None, :, None] + x[:, None, :, None, :]  # [R, S, S, Ty, Tx]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    features = feature.float().permute(0, 2, 3, 1).reshape(-1, channels)  # [N*H*W, C]
    bins = len(boxes) * size * size
    pooled = F.embedding_bag(
        cells.reshape(bins, -1), features, per_sample_weights=weights.reshape(bins, -1), mode="sum"
    )
    return pooled.view(len(boxes), size, size, channels).permute(0, 3, 1, 2)


def _axis(start: Tensor, end: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """The cells [R, S, T] that each bin touches along an axis of ``length`` cells, and their weights [R, S, T]."""
    bin_side = (end - start) / size  # [R]
    samples = bin_side.ceil().clamp(min=1)  # [R] points per bin
    point = torch.arange(int(samples.max()), device=start.device)  # [P]
    bins = torch.arange(size, device=start.device)  # [S]
    within = bins[:, None] + (point + 0.5) / samples[:, None, None]  # [R, S, P]
    at = start[:, None, None] + within * bin_side[:, None, None]
    counts = (point < samples[:, None, None]) & (at >= -1) & (at <= length)
    share = counts / samples[:, None, None]
    at = at.clamp(0, length - 1)
    low = at.floor()
    above = at - low
    cells = torch.cat([low, (low + 1).clamp(max=length - 1)], dim=2).long()  # [R, S, 2P]
    weights = torch.cat([(1 - above) * share, above * share], dim=2)
    first = cells.min(dim=2, keepdim=True).values
    offset = cells - first
    touched = torch.arange(int(offset.max()) + 1, device=start.device)  # [T]
    merged = weights.new_zeros(*weights.shape[:2], len(touched)).scatter_add_(2, offset, weights)
    return (first + touched).clamp(max=length - 1), merged
