"""Assigners say which ground truth each anchor, RoI or point learns from; the sampler says which of them count.

Letters: R anchors, RoIs or points; M ground-truth boxes of one image. A match is an index into the M boxes,
``NEGATIVE`` for background, or ``IGNORED`` for what is neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import boxes as box_ops

NEGATIVE = -1
IGNORED = -2


@dataclass(frozen=True)
class IoUAssigner:
    """Match by IoU (Faster R-CNN, section 3.1.2).

    At or above ``positive`` with its best ground truth: positive. Below ``negative``: background. Between: ignored.
    With ``low_quality``, every box that has a ground truth's highest IoU is positive for it, if at least ``floor``.
    """

    positive: float
    negative: float
    floor: float
    low_quality: bool = False

    def __call__(self, candidates: Tensor, gt_boxes: Tensor) -> Tensor:
        """Candidates [R, 4], gt_boxes [M, 4] -> match [R] int64."""
        match = torch.full((len(candidates),), IGNORED, dtype=torch.int64, device=candidates.device)
        if len(gt_boxes) == 0 or len(candidates) == 0:
            return match.fill_(NEGATIVE)
        overlap = box_ops.iou(candidates, gt_boxes)  # [R, M]
        best, best_gt = overlap.max(dim=1)
        match[best < self.negative] = NEGATIVE
        match = torch.where(best >= self.positive, best_gt, match)
        if self.low_quality:
            highest = overlap.max(dim=0).values  # [M]
            tied = (overlap == highest) & (highest >= self.floor)
            # Where one candidate is the best of several ground truths, the last one gets it, as in the reference.
            last = (tied * torch.arange(1, len(gt_boxes) + 1, device=tied.device)).max(dim=1).values
            match = torch.where(last > 0, last - 1, match)
        return match


def sample(match: Tensor, number: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at most ``number`` of the matched and unmatched, at most the fraction of them positive.

    match [R] -> indices of the positives and of the negatives, each drawn from torch's random stream where there are
    more than wanted.
    """
    positive = torch.nonzero(match >= 0).flatten()
    negative = torch.nonzero(match == NEGATIVE).flatten()
    positive = _draw(positive, int(number * positive_fraction))
    return positive, _draw(negative, number - len(positive))


def _draw(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


def assign_points(points: Tensor, ranges: Tensor, gt_boxes: Tensor, radius: Tensor | None = None) -> Tensor:
    """Match points to boxes (FCOS, section 3.1 and 3.2).

    A point is positive for a box that it lies strictly inside of, or, with ``radius`` [R] in pixels, inside the part of
    that box within ``radius`` of its centre; and whose greatest distance to a side lies in the point's ``ranges``
    [R, 2] in pixels. Of several boxes the smallest wins. points [R, 2], gt_boxes [M, 4] -> match [R] int64.
    """
    if len(gt_boxes) == 0:
        return torch.full((len(points),), NEGATIVE, dtype=torch.int64, device=points.device)
    distances = box_ops.box_to_distances(points[:, None], gt_boxes[None])  # [R, M, 4]
    inside = distances
    if radius is not None:
        centre = (gt_boxes[:, :2] + gt_boxes[:, 2:]) * 0.5
        reach = radius[:, None, None]
        core = torch.cat(
            [torch.maximum(centre - reach, gt_boxes[:, :2]), torch.minimum(centre + reach, gt_boxes[:, 2:])], dim=-1
        )  # [R, M, 4]
        inside = box_ops.box_to_distances(points[:, None], core)
    greatest = distances.max(dim=-1).values
    allowed = (inside.min(dim=-1).values > 0) & (greatest >= ranges[:, :1]) & (greatest <= ranges[:, 1:])
    size = torch.where(allowed, box_ops.area(gt_boxes), torch.inf)  # [R, M]
    smallest, match = size.min(dim=1)
    return torch.where(smallest.isinf(), NEGATIVE, match)


def assign_cores(
    points: Tensor, side: Tensor, gt_boxes: Tensor, core: float = 0.2, least: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Match square cells to the middles of boxes (FSAF, section 3.2).

    A cell, ``side`` [R] pixels wide about its point [R, 2], touches a box if more than ``least`` of it lies in the
    box's core: the box shrunk to ``core`` of its sides about its centre. It is positive for the smallest box that it
    touches and whose inside its point lies in. Returns the match [R] int64, and which of the other boxes each cell
    touches too [R, M]: their classes are neither right nor wrong there.
    """
    match = torch.full((len(points),), NEGATIVE, dtype=torch.int64, device=points.device)
    if len(gt_boxes) == 0:
        return match, match.new_zeros(len(points), 0, dtype=torch.bool)
    half = side[:, None] * 0.5
    cells = torch.cat([points - half, points + half], dim=1)
    cores = box_ops.scaled(gt_boxes, core)
    touches = box_ops.intersection(cells[:, None], cores) / box_ops.area(cells)[:, None] > least  # [R, M]
    within = box_ops.box_to_distances(points[:, None], gt_boxes).min(dim=2).values > 0
    size = torch.where(touches & within, box_ops.area(gt_boxes), torch.inf)
    smallest, best = size.min(dim=1)
    match = torch.where(smallest.isinf(), match, best)
    others = touches & (match[:, None] != torch.arange(len(gt_boxes), device=points.device))
    return match, others
