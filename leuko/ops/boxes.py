"""Box geometry: areas, IoU, the two ways of coding a box, clipping and non-maximum suppression.

Boxes are [..., 4] float ``xyxy`` in pixels of the resized image that the network sees; sizes are (height, width).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

EPS = 1e-6


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Square pixels that boxes [..., 4] and [..., 4], which broadcast against each other, have in common: [...]."""
    corner0 = torch.maximum(a[..., :2], b[..., :2])
    corner1 = torch.minimum(a[..., 2:], b[..., 2:])
    return (corner1 - corner0).clamp(min=0).prod(-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes that broadcast against each other."""
    common = intersection(a, b)
    return common, area(a) + area(b) - common


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` [N, 4] with every box of ``b`` [M, 4]: [N, M] in 0..1."""
    return paired_iou(a[:, None], b[None])


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes that stand at the same place: [..., 4], [..., 4] -> [...] in 0..1."""
    common, union = _overlap(a, b)
    return common / union.clamp(min=EPS)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019): [..., 4], [..., 4] -> [...] in -1..1."""
    common, union = _overlap(a, b)
    union = union.clamp(min=EPS)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = hull.clamp(min=EPS)
    return common / union - (hull - union) / hull


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes [..., 4] to an image of (height, width)."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


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
    """R-CNN's box coding: the shift of the centre and the log ratio of the sides, divided by ``std`` (x, y, w, h).

    The log ratio is clamped to ``ln(1000 / 16)`` either way when decoding, so that no exponential overflows.
    """

    def __init__(self, std: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)):
        self.std = std
        self.max_log_ratio = math.log(1000.0 / 16.0)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [R, 4] that take ``anchors`` [R, 4] to ``boxes`` [R, 4]."""
        anchor_size = anchors[:, 2:] - anchors[:, :2]
        box_size = boxes[:, 2:] - boxes[:, :2]
        shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) * 0.5 / anchor_size
        return torch.cat([shift, (box_size / anchor_size).log()], dim=1) / boxes.new_tensor(self.std)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Boxes that ``deltas`` [R, 4] or [R, K, 4] make of ``anchors`` [R, 4]: the same shape as ``deltas``."""
        if deltas.dim() == 3:
            anchors = anchors[:, None]
        deltas = deltas * deltas.new_tensor(self.std)
        anchor_size = anchors[..., 2:] - anchors[..., :2]
        centre = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + deltas[..., :2] * anchor_size
        half = anchor_size * deltas[..., 2:].clamp(-self.max_log_ratio, self.max_log_ratio).exp() * 0.5
        return torch.cat([centre - half, centre + half], dim=-1)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, at_most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression within each group (a class or a level); the ``at_most`` best by score are kept.

    Boxes [R, 4], scores [R], groups [R] -> the same three of what is left, by falling score. Empty boxes go first.
    """
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, groups = boxes[solid], scores[solid], groups[solid]
    keep = batched_nms(boxes.float(), scores.float(), groups, threshold)[:at_most]
    return boxes[keep], scores[keep], groups[keep]


def vote(kept: Tensor, groups: Tensor, boxes: Tensor, scores: Tensor, box_groups: Tensor, threshold: float) -> Tensor:
    """Box voting (Gidaris and Komodakis 2015, section 4): each box that NMS has kept becomes the mean, by score, of all
    boxes of its group that overlap it by an IoU of ``threshold`` or more, itself among them.

    kept [R, 4] of groups [R]; boxes [V, 4], scores [V] above 0, box_groups [V] as they went into NMS -> boxes [R, 4].
    """
    weights = (iou(kept, boxes) >= threshold) * (groups[:, None] == box_groups) * scores  # [R, V]
    total = weights.sum(1)[:, None]
    mean = (weights[:, :, None] * boxes).sum(1) / total  # no matrix product: autocast would round it to half precision
    return torch.where(total > 0, mean, kept)  # a box of next to no area does not even overlap itself


def box_iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU of every numpy box of ``a`` [N, 4] with every one of ``b`` [M, 4]: [N, M] float64 in 0..1. With a box of
    ``b`` that is a ``crowd`` ([M] bool) it is the share of ``a`` inside the crowd, as COCO's evaluation has it."""
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (a, b))
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    union = area_a[:, None] + area_b - common
    if crowd is not None:
        union = np.where(crowd, area_a[:, None], union)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
