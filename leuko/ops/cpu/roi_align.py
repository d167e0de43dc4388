"""RoIAlign (He et al. 2017) for a CPU: a weighted sum of feature rows, several times faster than a gather.

Each output bin is the mean of bilinear samples, that is, a weighted sum of a few neighbouring cells of the map. The
weights of a bin are the product of those along y and along x; samples that share a cell are merged first, and
``embedding_bag`` sums the rows (the C features of a cell are contiguous), forwards and backwards.

Letters: R boxes, S = size (bins along an axis), T cells that a bin touches along an axis: the most of any RoI.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(feature: Tensor, image_index: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """As :func:`leuko.ops.roi_align.roi_align`. Allocates R * S * S * Ty * Tx indices and weights."""
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
