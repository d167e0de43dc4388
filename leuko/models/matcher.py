"""Matchers assign each anchor, RoI or point the ground-truth box that it learns; a sampler chooses which of them count.

Letters: R anchors, RoIs or points; M ground-truth boxes of one image. A match is an index into the M boxes,
``NEGATIVE`` for background, or ``IGNORED`` for neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import boxes as box_ops

NEGATIVE = -1
IGNORED = -2


@dataclass(frozen=True)
class IoUMatcher:
    """Match by IoU (Faster R-CNN, section 3.1.2).

    At or above ``positive`` with its best ground truth: positive. Below ``negative``: background. Between: ignored.
    With ``low_quality``, every box that has a ground truth's highest IoU is positive for it, if that is at least
    ``min_pos_iou``.
    """

    positive: float
    negative: float
    min_pos_iou: float = 0.0
    low_quality: bool = False

    def __call__(self, candidates: Tensor, gt_boxes: Tensor) -> Tensor:
        """Candidates [R, 4], gt_boxes [M, 4] -> match [R] int64."""
        match = torch.full((len(candidates),), IGNORED, dtype=torch.int64, device=candidates.device)
        if len(gt_boxes) == 0 or len(candidates) == 0:
            return match.fill_(NEGATIVE)
        iou = box_ops.iou(candidates, gt_boxes)  # [R, M]
        best, best_gt = iou.max(dim=1)
        match[best < self.negative] = NEGATIVE
        match = torch.where(best >= self.positive, best_gt, match)
        if self.low_quality:
            highest = iou.max(dim=0).values  # [M]
            tied = (iou == highest) & (highest >= self.min_pos_iou)  # [R, M]
            # Where one candidate is the best of several ground truths, the last one gets it, as in MMDetection.
            last = (tied * torch.arange(1, len(gt_boxes) + 1, device=tied.device)).max(dim=1).values
            match = torch.where(last > 0, last - 1, match)
        return match


@dataclass(frozen=True)
class PointMatcher:
    """Match points to boxes (FCOS, sections 3.1 and 3.2).

    A point is positive for a box if it lies strictly inside and its greatest distance to a side lies in the range of
    its pyramid level. With ``radius`` (in strides) it must also lie within that distance of the box's centre, along
    both axes. Of several boxes the smallest wins.
    """

    radius: float | None = None

    def __call__(self, points: Tensor, strides: Tensor, ranges: Tensor, gt_boxes: Tensor) -> Tensor:
        """points [R, 2], strides [R], ranges [R, 2] in pixels, gt_boxes [M, 4] -> match [R] int64."""
        if len(gt_boxes) == 0:
            return torch.full((len(points),), NEGATIVE, dtype=torch.int64, device=points.device)
        distances = box_ops.box_to_distances(points[:, None], gt_boxes)  # [R, M, 4]
        allowed = distances.min(dim=-1).values > 0  # [R, M]
        if self.radius is not None:
            centre = (gt_boxes[:, :2] + gt_boxes[:, 2:]) * 0.5  # [M, 2]
            allowed &= ((points[:, None] - centre).abs() < self.radius * strides[:, None, None]).all(dim=-1)
        greatest = distances.max(dim=-1).values
        allowed &= (greatest >= ranges[:, :1]) & (greatest <= ranges[:, 1:])
        return _smallest(allowed, gt_boxes)


@dataclass(frozen=True)
class CoreMatcher:
    """Match square cells to the cores of boxes (FSAF, section 3.2).

    The core is the box shrunk to ``core`` of its sides about its centre. A cell, one stride wide about its point,
    touches a box if more than ``min_overlap`` of the cell lies in the core. It is positive for the smallest box that it
    touches and whose inside its point lies in.
    """

    core: float = 0.2
    min_overlap: float = 0.01

    def __call__(self, points: Tensor, strides: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """points [R, 2], strides [R], gt_boxes [M, 4] -> match [R] int64, and whether a cell touches each other box,
        [R, M] bool: the classes of those are ignored there."""
        if len(gt_boxes) == 0:
            match = torch.full((len(points),), NEGATIVE, dtype=torch.int64, device=points.device)
            return match, torch.zeros(len(points), 0, dtype=torch.bool, device=points.device)
        half = strides[:, None] * 0.5
        cells = torch.cat([points - half, points + half], dim=1)  # [R, 4]
        cores = box_ops.scaled(gt_boxes, self.core)  # [M, 4]
        overlap = box_ops.intersection(cells[:, None], cores) / box_ops.area(cells)[:, None]  # [R, M]
        touches = overlap > self.min_overlap
        inside = box_ops.box_to_distances(points[:, None], gt_boxes).min(dim=2).values > 0  # [R, M]
        match = _smallest(touches & inside, gt_boxes)
        return match, touches & (match[:, None] != torch.arange(len(gt_boxes), device=points.device))


def _smallest(allowed: Tensor, gt_boxes: Tensor) -> Tensor:
    """The smallest of the allowed boxes: allowed [R, M] bool, gt_boxes [M, 4] -> match [R]."""
    size, match = torch.where(allowed, box_ops.area(gt_boxes), torch.inf).min(dim=1)
    return torch.where(size.isinf(), NEGATIVE, match)


@dataclass(frozen=True)
class Sampler:
    """Draw at most ``number`` of the positives and negatives, at most ``positive_fraction`` of them positive."""

    number: int
    positive_fraction: float

    def __call__(self, match: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """match [R] -> indices of the positives and of the negatives, drawn at random where there are too many."""
        most = int(self.number * self.positive_fraction)
        positive = _draw(torch.nonzero(match >= 0).flatten(), most, generator)
        return positive, _draw(torch.nonzero(match == NEGATIVE).flatten(), self.number - len(positive), generator)


def _draw(indices: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), generator=generator, device=indices.device)[:number]]
