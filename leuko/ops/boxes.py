"""Box geometry: areas, IoU, clipping, and the two ways of encoding a box relative to an anchor or a point.

Boxes are [..., 4] float ``xyxy`` in pixels; sizes are (height, width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-6


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def has_area(boxes: Tensor) -> Tensor:
    """Whether x0 < x1 and y0 < y1: [..., 4] -> [...] bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of boxes [..., 4] and [..., 4], which broadcast against each other: [...] square pixels."""
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` [..., R, 4] with every box of ``b`` [..., M, 4]: [..., R, M] in 0..1."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes at the same index: [..., 4], [..., 4] -> [...] in 0..1."""
    common = intersection(a, b)
    return common / (area(a) + area(b) - common).clamp(min=EPS)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes at the same index: [..., 4], [..., 4] -> [...] in -1..1."""
    common = intersection(a, b)
    union = (area(a) + area(b) - common).clamp(min=EPS)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = hull.clamp(min=EPS)
    return common / union - (hull - union) / hull


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [N, ..., 4] to images of ``sizes`` [N, 2] (height, width)."""
    corner = sizes.flip(1).repeat(1, 2)  # [N, 4]
    return boxes.clamp(min=0).minimum(corner.reshape(sizes.shape[0], *[1] * (boxes.dim() - 2), 4))


def scaled(boxes: Tensor, factor: float) -> Tensor:
    """Boxes [..., 4] with ``factor`` times their sides, about the same centres."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) * 0.5, (boxes[..., 2:] - boxes[..., :2]) * (0.5 * factor)
    return torch.cat([centre - half, centre + half], dim=-1)


def distances_to_box(points: Tensor, distances: Tensor) -> Tensor:
    """Points [R, 2] (x, y) and their distances [R, 4] to left, top, right, bottom -> boxes [R, 4] (FCOS, eq. 1)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def box_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of :func:`distances_to_box`; negative where a point lies outside its box."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


class DeltaCoder:
    """R-CNN's box encoding: the shift of the centre and the log ratio of the sides, divided by ``std`` (that of the
    shift, that of the ratio).

    When decoding, the log ratio is clamped to ``ln(1000 / 16)`` in both directions, so that no exponential overflows.
    """

    def __init__(self, std: tuple[float, float] = (1.0, 1.0)):
        self.std = std
        self.max_log_ratio = math.log(1000.0 / 16.0)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [..., 4] that transform ``anchors`` [..., 4] into ``boxes`` [..., 4]."""
        anchor_size = anchors[..., 2:] - anchors[..., :2]
        box_size = boxes[..., 2:] - boxes[..., :2]
        shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) * 0.5 / anchor_size
        return torch.cat([shift / self.std[0], (box_size / anchor_size).log() / self.std[1]], dim=-1)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Apply ``deltas`` [..., 4] to ``anchors`` [..., 4], which broadcast: boxes [..., 4]."""
        anchor_size = anchors[..., 2:] - anchors[..., :2]
        centre = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + deltas[..., :2] * self.std[0] * anchor_size
        log_ratio = (deltas[..., 2:] * self.std[1]).clamp(-self.max_log_ratio, self.max_log_ratio)
        half = anchor_size * log_ratio.exp() * 0.5
        return torch.cat([centre - half, centre + half], dim=-1)
