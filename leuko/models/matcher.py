"""Matchers assign each anchor, RoI or point the ground-truth box that it learns; a sampler chooses which of them count.

Letters: N images; R anchors, RoIs or points of each; M ground-truth boxes of each, padded with boxes without area,
which match nothing. A match is an index into the M boxes, ``NEGATIVE`` for background, or ``IGNORED`` for neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import boxes as box_ops
from ..ops import ranks

NEGATIVE = -1
IGNORED = -2
AT_ONCE = 2**22  # IoUs that are held in memory: of 8 images with 5 cells each and 90,000 anchors


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
        """Candidates [R, 4] or [N, R, 4], gt_boxes [N, M, 4] -> match [N, R] int64."""
        candidates = candidates.expand(len(gt_boxes), -1, -1)
        step = max(1, AT_ONCE // max(1, candidates.shape[1] * gt_boxes.shape[1]))
        return torch.cat(
            [self._match(*some) for some in zip(candidates.split(step), gt_boxes.split(step), strict=True)]
        )

    def _match(self, candidates: Tensor, gt_boxes: Tensor) -> Tensor:
        iou = box_ops.iou(candidates, gt_boxes)  # [N, R, M]
        best, match = iou.max(dim=2)
        match = match.masked_fill(best < self.positive, IGNORED).masked_fill(best < self.negative, NEGATIVE)
        if self.low_quality and candidates.shape[1]:
            highest = iou.amax(dim=1, keepdim=True)  # [N, 1, M]
            tied = (iou == highest) & (highest >= self.min_pos_iou)  # [N, R, M]
            # Where one candidate is the best of several ground truths, the last one gets it, as in MMDetection.
            last = (tied * torch.arange(1, gt_boxes.shape[1] + 1, device=tied.device)).amax(dim=2)
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
        """points [R, 2], strides [R], ranges [R, 2] in pixels, gt_boxes [N, M, 4] -> match [N, R] int64."""
        boxes = gt_boxes[:, None]  # [N, 1, M, 4]
        distances = box_ops.box_to_distances(points[:, None], boxes)  # [N, R, M, 4]
        allowed = distances.amin(dim=-1) > 0  # [N, R, M]
        if self.radius is not None:
            centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5  # [N, 1, M, 2]
            allowed &= ((points[:, None] - centre).abs() < self.radius * strides[:, None, None]).all(dim=-1)
        greatest = distances.amax(dim=-1)
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
        """points [R, 2], strides [R], gt_boxes [N, M, 4] -> match [N, R] int64, and whether a cell touches each other
        box, [N, R, M] bool: the classes of those are ignored there."""
        half = strides[:, None] * 0.5
        cells = torch.cat([points - half, points + half], dim=1)[:, None]  # [R, 1, 4]
        cores = box_ops.scaled(gt_boxes, self.core)[:, None]  # [N, 1, M, 4]
        overlap = box_ops.intersection(cells, cores) / box_ops.area(cells)  # [N, R, M]
        touches = overlap > self.min_overlap
        inside = box_ops.box_to_distances(points[:, None], gt_boxes[:, None]).amin(dim=-1) > 0  # [N, R, M]
        match = _smallest(touches & inside, gt_boxes)
        return match, touches & (match[..., None] != torch.arange(gt_boxes.shape[1], device=points.device))


def _smallest(allowed: Tensor, gt_boxes: Tensor) -> Tensor:
    """The smallest of the allowed boxes: allowed [N, R, M] bool, gt_boxes [N, M, 4] -> match [N, R]."""
    size, match = torch.where(allowed, box_ops.area(gt_boxes)[:, None], torch.inf).min(dim=2)
    return match.masked_fill(size.isinf(), NEGATIVE)


@dataclass(frozen=True)
class Sampler:
    """Draw at most ``number`` of the positives and negatives, at most ``positive_fraction`` of them positive."""

    number: int
    positive_fraction: float

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """match [N, R] -> S indices per image, [N, S], drawn at random where there are too many: the positives first,
        then the negatives, then what is neither where there are too few; and whether each is positive, and whether it
        is drawn at all, [N, S] bool."""
        draw = ranks.random(*match.shape, match.device)
        key = torch.where(match >= 0, draw, -1.0)
        most = int(self.number * self.positive_fraction)
        beyond = key.topk(most + 1).values[:, most:] if most < match.shape[1] else -1.0  # the first one too many
        key = torch.where(key > beyond, draw + 2, torch.where(match == NEGATIVE, draw, -1.0))
        key, index = key.topk(min(self.number, match.shape[1]))
        return index, key >= 2, key >= 0
