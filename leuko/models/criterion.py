"""Criteria: what a detector learns from its predictions. Each gets its matcher, assigns targets, and gives its losses.

Letters: N images; R points or anchors of all levels, M ground-truth boxes and S samples (positives and negatives) of
each image; K classes; P positives of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops import ranks
from ..ops.boxes import take
from ..ops.roi_align import RoIs
from .base import Targets
from .matcher import IGNORED, CoreMatcher, IoUMatcher, PointMatcher, Sampler

# ---------------------------------------------------------------------- losses of single predictions, not reduced


def focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5) of each logit; logits and 0/1 targets have the same shape."""
    probability = logits.sigmoid()
    miss = probability + targets - 2 * probability * targets  # 1 - p where the target is 1, else p
    weight = (1 - alpha + (2 * alpha - 1) * targets) * miss.pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def weighted_focal(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Focal loss [..., K], multiplied by ``class_weights`` [K], if there are any, where the target is 1."""
    loss = focal(logits.float(), targets)
    return loss if class_weights is None else loss * (1 + targets * (class_weights - 1))


def log_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """-ln IoU of paired boxes [P, 4]: [P] (Yu et al. 2016)."""
    return -box_ops.paired_iou(predicted, target).clamp(min=box_ops.EPS).log()


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 losses of all numbers, quadratic below ``beta``; ``beta`` 0 is plain L1."""
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")


# ---------------------------------------------------------------------- one stage


class Criterion(nn.Module):
    """Keeps ``class_weights`` [K], None if there are none, on the model's device, but not in its state."""

    def __init__(self, class_weights: Sequence[float]):
        super().__init__()
        weights = torch.tensor(class_weights, dtype=torch.float32) if len(class_weights) else None
        self.register_buffer("class_weights", weights, persistent=False)


@dataclass
class Positives:
    """The points that learn a box."""

    image: Tensor  # [P] index into N
    point: Tensor  # [P] index into R
    gt: Tensor  # [P] index into N * M
    labels: Tensor  # [P]
    gt_boxes: Tensor  # [P, 4]

    @classmethod
    def of(cls, match: Tensor, targets: Targets) -> Positives:
        """From the match [N, R] of each point to the boxes of its image."""
        image, point = torch.nonzero(match >= 0, as_tuple=True)
        gt = match[image, point] + image * targets.labels.shape[1]
        return cls(image, point, gt, targets.labels.flatten()[gt], targets.boxes.flatten(0, 1)[gt])

    def one_hot(self, like: Tensor) -> Tensor:
        """Class targets, float32 like [N, R, K]: 1 for the label of each positive."""
        targets = torch.zeros_like(like, dtype=torch.float32)
        targets[self.image, self.point, self.labels] = 1.0
        return targets


class FCOSCriterion(Criterion):
    """Focal loss of the classes, and for positives a box loss, weighted by centerness, and one of the centerness.

    ``ranges``: of the greatest distance, in pixels, that the points of each level learn. ``improved``: distances are in
    strides, and the box loss is GIoU instead of -ln IoU.
    """

    def __init__(
        self,
        *,
        matcher: PointMatcher,
        ranges: Sequence[tuple[float, float]],
        class_weights: Sequence[float] = (),
        improved: bool = False,
    ):
        super().__init__(class_weights)
        self.matcher, self.improved = matcher, improved
        self.register_buffer("ranges", torch.tensor(ranges), persistent=False)

    def forward(
        self,
        cls_logits: Tensor,
        distances: Tensor,
        centerness: Tensor,
        points: Tensor,
        strides: Tensor,
        level: Tensor,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """cls_logits [N, R, K], distances [N, R, 4], centerness logits [N, R, 1]; points [R, 2], their strides [R] and
        levels [R]."""
        match = self.matcher(points, strides, self.ranges[level], targets.boxes)  # [N, R]
        positives = Positives.of(match, targets)
        unit = strides[positives.point, None] if self.improved else 1.0  # [P, 1]
        at, gt_boxes = points[positives.point] / unit, positives.gt_boxes / unit  # [P, 2], [P, 4]
        quality = centerness_of(box_ops.box_to_distances(at, gt_boxes))  # [P]
        predicted = box_ops.distances_to_box(at, distances[positives.image, positives.point])  # [P, 4]
        box_loss = 1 - box_ops.paired_giou(predicted, gt_boxes) if self.improved else log_iou(predicted, gt_boxes)
        class_loss = weighted_focal(cls_logits, positives.one_hot(cls_logits), self.class_weights)  # [N, R, K]
        at_positives = centerness[positives.image, positives.point, 0].float()  # [P]
        centerness_loss = F.binary_cross_entropy_with_logits(at_positives, quality, reduction="sum")
        number = ranks.normaliser(len(quality), quality.device)
        return {
            "class": class_loss.sum() / number,
            "box": (box_loss * quality).sum() / ranks.normaliser(quality.sum(), quality.device, least=box_ops.EPS),
            "centerness": centerness_loss / number,
        }


def centerness_of(distances: Tensor) -> Tensor:
    """Centerness (FCOS, eq. 3) of points at ``distances`` [P, 4] (left, top, right, bottom) from their box: [P] in
    0..1."""
    least, greatest = torch.aminmax(distances.unflatten(1, (2, 2)), dim=1)  # [P, 2] along x and y
    return (least / greatest).prod(1).sqrt()


class FSAFCriterion(Criterion):
    """Focal and IoU loss of each ground-truth box on the pyramid level where both together are least (section 3.2)."""

    def __init__(self, *, matcher: CoreMatcher, levels: int, class_weights: Sequence[float] = ()):
        super().__init__(class_weights)
        self.matcher, self.levels = matcher, levels

    def forward(
        self,
        cls_logits: Tensor,
        distances: Tensor,
        points: Tensor,
        strides: Tensor,
        level: Tensor,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """cls_logits [N, R, K], distances [N, R, 4] in pixels; points [R, 2], their strides [R]
        and levels [R]."""
        match, others = self.matcher(points, strides, targets.boxes)
        positives = Positives.of(match, targets)
        class_loss = self.class_loss(cls_logits, positives, others, targets)  # [N, R, K]
        predicted = box_ops.distances_to_box(points[positives.point], distances[positives.image, positives.point])
        box_loss = log_iou(predicted, positives.gt_boxes)  # [P]
        at_positives = class_loss[positives.image, positives.point]  # [P, K]
        both = (at_positives.sum(1) + box_loss).detach()  # [P]
        level = level[positives.point]  # [P]
        best = best_levels(both, level, positives.gt, targets.labels.numel(), self.levels)  # [N * M]
        chosen = level == best[positives.gt]  # [P]
        # On the other levels the box's own class is neither right nor wrong; all other classes are wrong there too.
        ignored = at_positives.gather(1, positives.labels[:, None])[:, 0] * ~chosen
        levels = ranks.normaliser(chosen.sum(), level.device, least=0)
        points = ranks.normaliser(cls_logits[..., 0].numel(), level.device)
        normaliser = torch.where(levels > 0, levels, points)  # without any box, as many as there are points
        return {
            "class": (class_loss.sum() - ignored.sum()) / normaliser,
            "box": (box_loss * chosen).sum() / normaliser,
        }

    def class_loss(self, cls_logits: Tensor, positives: Positives, others: Tensor, targets: Targets) -> Tensor:
        """Focal loss [N, R, K], 0 for the class of any other box that a cell touches (``others`` [N, R, M])."""
        class_targets = positives.one_hot(cls_logits)
        counted = torch.ones_like(class_targets)
        image, point, gt = torch.nonzero(others, as_tuple=True)
        counted[image, point, targets.labels[image, gt]] = 0.0
        return weighted_focal(cls_logits, class_targets, self.class_weights) * torch.maximum(counted, class_targets)


def best_levels(loss: Tensor, level: Tensor, gt: Tensor, boxes: int, levels: int) -> Tensor:
    """Online feature selection (FSAF, section 3.2): the level [G] with the least mean loss over a box's positives.

    loss, level and gt [P]: each positive's loss, its level and its box, an index into the G = ``boxes`` of the batch.
    """
    of_box = gt == torch.arange(boxes, device=gt.device)[:, None]  # [G, P]
    on_level = level == torch.arange(levels, device=level.device)[:, None]  # [L, P]
    members = of_box[:, None] & on_level  # [G, L, P]
    # No matrix product: autocast would compute it in half precision, in which close levels cannot be told apart.
    mean = (members * loss).sum(2) / members.sum(2)  # [G, L], nan on levels without any
    return mean.nan_to_num(torch.inf).argmin(dim=1)


# ---------------------------------------------------------------------- two stages


@dataclass
class SampledAnchors:
    """The anchors that an RPN learns from."""

    anchor: Tensor  # [N, S] index into R
    is_positive: Tensor  # [N, S] bool
    is_sample: Tensor  # [N, S] bool: False for padding
    deltas: Tensor  # [N, S, 4] targets of the positives, else 0
    normaliser: Tensor


@dataclass(frozen=True, kw_only=True)
class RPNCriterion:
    """Objectness loss of the sampled anchors and box loss of the positives among them, both divided by the number of
    samples. ``beta``: of the smooth L1 box loss. Anchors that extend ``allowed_border`` pixels or more beyond the image
    are not trained; a negative number keeps all."""

    matcher: IoUMatcher
    sampler: Sampler
    coder: box_ops.DeltaCoder
    beta: float
    allowed_border: int

    @torch.no_grad()
    def match_and_sample(self, anchors: Tensor, sizes: Tensor, targets: Targets) -> SampledAnchors:
        """Match the anchors [R, 4] with the ground truth of each image, and draw those to learn from."""
        if self.allowed_border < 0:
            match = self.matcher(anchors, targets.boxes)  # [N, R]
        else:
            limit = sizes.flip(1)[:, None] + self.allowed_border  # [N, 1, 2]
            inside = (anchors[:, :2] >= -self.allowed_border).all(1) & (anchors[:, 2:] < limit).all(2)  # [N, R]
            match = self.matcher(anchors * inside[..., None], targets.boxes).masked_fill(~inside, IGNORED)
        anchor, is_positive, is_sample = self.sampler(match)
        gt_boxes = take(targets.boxes, match.gather(1, anchor).clamp(min=0))
        deltas = self.coder.encode(anchors[anchor], gt_boxes)
        positives = is_positive.sum(1)
        number = (positives.clamp(min=1) + (is_sample.sum(1) - positives).clamp(min=1)).sum()  # as in MMDetection
        deltas = torch.where(is_positive[..., None], deltas, 0.0)
        return SampledAnchors(anchor, is_positive, is_sample, deltas, ranks.normaliser(number, anchors.device))

    def __call__(self, objectness: Tensor, deltas: Tensor, samples: SampledAnchors) -> dict[str, Tensor]:
        """Objectness logits [N, S] and deltas [N, S, 4] of the samples."""
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness, samples.is_positive.float(), samples.is_sample.float(), reduction="sum"
        )
        box_loss = smooth_l1(torch.where(samples.is_positive[..., None], deltas, 0.0), samples.deltas, self.beta)
        return {"rpn_objectness": objectness_loss / samples.normaliser, "rpn_box": box_loss / samples.normaliser}


@dataclass
class SampledRoIs:
    """The RoIs that a head learns from; of each image the positives first."""

    boxes: Tensor  # [N, S, 4]
    labels: Tensor  # [N, S], K for background, -100 for padding
    is_gt: Tensor  # [N, S] the RoI is a ground-truth box that was added to the proposals
    positives: Tensor  # [P] index into N * S
    gt_boxes: Tensor  # [P, 4] of the positives
    normaliser: Tensor

    @property
    def positive_rois(self) -> RoIs:
        """The positives [P]."""
        return RoIs.of(self.boxes).at(self.positives)


class RoICriterion(Criterion):
    """Softmax loss of all sampled RoIs and box loss of the positives, both divided by the number of samples.

    ``beta``: of the smooth L1 box loss (0: L1).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: IoUMatcher,
        sampler: Sampler,
        coder: box_ops.DeltaCoder,
        beta: float = 0.0,
        class_weights: Sequence[float] = (),
    ):
        super().__init__([*class_weights, 1.0] if class_weights else ())  # the background has weight 1
        self.num_classes, self.matcher, self.sampler, self.coder, self.beta = num_classes, matcher, sampler, coder, beta

    @torch.no_grad()
    def match_and_sample(self, proposals: Tensor, targets: Targets) -> SampledRoIs:
        """Add the ground truth of each image to its proposals [N, R, 4], match, and draw the RoIs to learn from."""
        cells = targets.labels.shape[1]
        itself = torch.where(targets.labels >= 0, torch.arange(cells, device=proposals.device), IGNORED)  # [N, M]
        match = self.matcher(proposals, targets.boxes).masked_fill(~box_ops.has_area(proposals), IGNORED)
        match = torch.cat([itself, match], dim=1)  # [N, M + R]
        roi, is_positive, is_sample = self.sampler(match)
        boxes = take(torch.cat([targets.boxes, proposals], dim=1), roi)
        gt = match.gather(1, roi).clamp(min=0)  # [N, S]
        labels = targets.labels.gather(1, gt).masked_fill(~is_positive, self.num_classes)
        positives = torch.nonzero(is_positive.flatten())[:, 0]
        return SampledRoIs(
            boxes,
            labels.masked_fill(~is_sample, -100),
            roi < cells,
            positives,
            take(targets.boxes, gt).flatten(0, 1)[positives],
            ranks.normaliser(is_sample.sum(), boxes.device),
        )

    def forward(self, cls_logits: Tensor, deltas: Tensor, samples: SampledRoIs) -> dict[str, Tensor]:
        """cls_logits [N * S, K + 1], background last, and deltas [N * S, 1 or K, 4] of the samples."""
        deltas = deltas[samples.positives]
        return {"class": self.class_loss(cls_logits, samples), "box": self.box_loss(deltas, samples)}

    def class_loss(self, cls_logits: Tensor, samples: SampledRoIs) -> Tensor:
        """Softmax loss of cls_logits [N * S, K + 1]."""
        loss = F.cross_entropy(cls_logits, samples.labels.flatten(), self.class_weights, reduction="sum")
        return loss / samples.normaliser

    def box_loss(self, deltas: Tensor, samples: SampledRoIs) -> Tensor:
        """Box loss of the deltas [P, 1 or K, 4] of the positives."""
        targets = self.coder.encode(samples.positive_rois.boxes, samples.gt_boxes)
        if deltas.shape[1] > 1:
            deltas = take(deltas, samples.labels.flatten()[samples.positives, None])
        return smooth_l1(deltas[:, 0], targets, self.beta) / samples.normaliser
