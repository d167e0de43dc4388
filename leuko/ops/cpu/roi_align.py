"""RoIAlign (He et al. 2017) as a weighted sum of feature rows, several times faster than a gather on a CPU.

Each output bin is the mean of bilinear samples, so a weighted sum of a few neighbouring cells of the map. The weights
of a bin are the product of those along y and along x; samples that share a cell are merged first, and
``embedding_bag`` sums the rows (a cell's C features lie together), forwards and backwards.

Letters: R boxes, S = side (bins along an axis), T cells that a bin touches along an axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(feature: Tensor, image: Tensor, boxes: Tensor, stride: int, side: int) -> Tensor:
    """Pool boxes [R, 4] (image pixels) of the images [R] (indices into N) from ``feature`` [N, C, H, W] at ``stride``.

    Returns [R, C, S, S]. The same as torchvision's ``roi_align(sampling_ratio=0, aligned=True)``: each bin is sampled
    at ceil(bin side) points along an axis. No gradient goes to the boxes.
    """
    channels, height, width = feature.shape[1:]
    corners = boxes.detach() / stride - 0.5
    y, y_weight = _axis(corners[:, 1], corners[:, 3], side, height)  # [R, S, Ty]
    x, x_weight = _axis(corners[:, 0], corners[:, 2], side, width)  # [R, S, Tx]
    row = (image[:, None, None] * height + y) * width
    cells = row[:, :, None, :, None] + x[:, None, :, None, :]  # [R, S, S, Ty, Tx]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    features = feature.float().permute(0, 2, 3, 1).reshape(-1, channels)  # [N*H*W, C]
    bins = len(boxes) * side * side
    pooled = F.embedding_bag(
        cells.reshape(bins, -1), features, per_sample_weights=weights.reshape(bins, -1), mode="sum"
    )
    return pooled.view(len(boxes), side, side, channels).permute(0, 3, 1, 2)


def _axis(start: Tensor, end: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis of ``size`` cells: which cells [R, S, T] each bin of a box touches, and with what weight."""
    bin_side = (end - start) / side  # [R]
    samples = bin_side.ceil().clamp(min=1)  # [R] points a bin
    point = torch.arange(int(samples.max()), device=start.device)  # [P]
    bins = torch.arange(side, device=start.device)  # [S]
    within = bins[:, None] + (point + 0.5) / samples[:, None, None]  # [R, S, P]
    at = start[:, None, None] + within * bin_side[:, None, None]
    counts = (point < samples[:, None, None]) & (at >= -1) & (at <= size)
    share = counts / samples[:, None, None]
    at = at.clamp(0, size - 1)
    low = at.floor()
    above = at - low
    cells = torch.cat([low, (low + 1).clamp(max=size - 1)], dim=2).long()  # [R, S, 2P]
    weights = torch.cat([(1 - above) * share, above * share], dim=2)
    first = cells.min(dim=2, keepdim=True).values
    offset = cells - first
    touched = torch.arange(int(offset.max()) + 1, device=start.device)  # [T]
    merged = weights.new_zeros(*weights.shape[:2], len(touched)).scatter_add_(2, offset, weights)
    return (first + touched).clamp(max=size - 1), merged
