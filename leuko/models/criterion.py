"""Criteria: what a detector learns from its predictions. Each gets its matcher, assigns targets, and gives its losses.

Letters: N images, R points or anchors of all levels of an image, G ground-truth boxes of the whole batch, K classes;
P positives and S samples (positives and negatives) of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import boxes as box_ops
from ..ops import ranks
from .base import Target
from .matcher import CoreMatcher, IoUMatcher, PointMatcher, Sampler
from .preprocess import Size

# ---------------------------------------------------------------------- losses of single predictions, not reduced


def focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5) of each logit; logits and 0/1 targets have the same shape."""
    probability = logits.sigmoid()
    miss = probability + targets - 2 * probability * targets  # 1 - p where the target is 1, else p
    weight = (1 - alpha + (2 * alpha - 1) * targets) * miss.pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def weighted_focal(logits: Tensor, targets: Tensor, class_weights: Sequence[float]) -> Tensor:
    """Focal loss [..., K], multiplied by ``class_weights`` [K], if there are any, where the target is 1."""
    loss = focal(logits.float(), targets)
    return loss * (1 + targets * (targets.new_tensor(class_weights) - 1)) if class_weights else loss


def log_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """-ln IoU of paired boxes [P, 4]: [P] (Yu et al. 2016)."""
    return -box_ops.paired_iou(predicted, target).clamp(min=box_ops.EPS).log()


def giou(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of paired boxes [P, 4]: [P] in 0..2 (Rezatofighi et al. 2019)."""
    return 1 - box_ops.paired_giou(predicted, target)


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 losses of all numbers, quadratic below ``beta``; ``beta`` 0 is plain L1."""
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")


# ---------------------------------------------------------------------- one stage


@dataclass
class Positives:
    """The points that learn a box."""

    image: Tensor  # [P] index into N
    point: Tensor  # [P] index into R
    gt: Tensor  # [P] index into G
    labels: Tensor  # [P]
    gt_boxes: Tensor  # [P, 4]

    @classmethod
    def of(cls, match: Tensor, targets: list[Target]) -> Positives:
        """From the match [N, R] of each point to the boxes of its image."""
        image, point = torch.nonzero(match >= 0, as_tuple=True)
        counts = torch.tensor([len(t["boxes"]) for t in targets], device=match.device)
        gt = match[image, point] + (counts.cumsum(0) - counts)[image]
        return cls(image, point, gt, *(torch.cat([t[key] for t in targets])[gt] for key in ("labels", "boxes")))

    def one_hot(self, like: Tensor) -> Tensor:
        """Class targets, float32 like [N, R, K]: 1 for the label of each positive."""
        targets = torch.zeros_like(like, dtype=torch.float32)
        targets[self.image, self.point, self.labels] = 1.0
        return targets


@dataclass(frozen=True, kw_only=True)
class FCOSCriterion:
    """Focal loss of the classes, and for positives a box loss, weighted by centerness, and one of the centerness.

    ``ranges``: of the greatest distance, in pixels, that the points of each level learn. ``improved``: distances are in
    strides, and the box loss is GIoU instead of -ln IoU.
    """

    matcher: PointMatcher
    ranges: Sequence[tuple[float, float]]
    class_weights: Sequence[float] = ()
    improved: bool = False

    def __call__(
        self,
        cls_logits: Tensor,
        distances: Tensor,
        centerness: Tensor,
        points: Tensor,
        strides: Tensor,
        level: Tensor,
        targets: list[Target],
    ) -> dict[str, Tensor]:
        """cls_logits [N, R, K], distances [N, R, 4], centerness logits [N, R, 1]; points [R, 2], their strides [R] and
        levels [R]."""
        ranges = points.new_tensor(self.ranges)[level]  # [R, 2]
        match = torch.stack([self.matcher(points, strides, ranges, t["boxes"]) for t in targets])  # [N, R]
        positives = Positives.of(match, targets)
        unit = strides[positives.point, None] if self.improved else 1.0  # [P, 1]
        at, gt_boxes = points[positives.point] / unit, positives.gt_boxes / unit  # [P, 2], [P, 4]
        quality = centerness_of(box_ops.box_to_distances(at, gt_boxes))  # [P]
        predicted = box_ops.distances_to_box(at, distances[positives.image, positives.point])  # [P, 4]
        return {
            "class": self.class_loss(cls_logits, positives),
            "box": self.box_loss(predicted, gt_boxes, quality),
            "centerness": self.centerness_loss(centerness[positives.image, positives.point, 0], quality),
        }

    def class_loss(self, cls_logits: Tensor, positives: Positives) -> Tensor:
        """Sum over all points and classes [N, R, K], divided by the number of positives."""
        loss = weighted_focal(cls_logits, positives.one_hot(cls_logits), self.class_weights)
        return loss.sum() / ranks.normaliser(len(positives.point), loss.device)

    def box_loss(self, predicted: Tensor, gt_boxes: Tensor, quality: Tensor) -> Tensor:
        """Mean over the positives [P, 4], weighted by their centerness [P]."""
        loss = giou(predicted, gt_boxes) if self.improved else log_iou(predicted, gt_boxes)  # [P]
        return (loss * quality).sum() / ranks.normaliser(quality.sum(), loss.device, least=box_ops.EPS)

    def centerness_loss(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Mean cross entropy over the positives [P]."""
        loss = F.binary_cross_entropy_with_logits(logits.float(), quality, reduction="sum")
        return loss / ranks.normaliser(len(quality), loss.device)


def centerness_of(distances: Tensor) -> Tensor:
    """Centerness (FCOS, eq. 3) of points at ``distances`` [P, 4] (left, top, right, bottom) from their box: [P] in
    0..1."""
    x, y = distances[:, 0::2], distances[:, 1::2]
    return (x.min(1).values / x.max(1).values * (y.min(1).values / y.max(1).values)).sqrt()


@dataclass(frozen=True, kw_only=True)
class FSAFCriterion:
    """Focal and IoU loss of each ground-truth box on the pyramid level where both together are least (section 3.2)."""

    matcher: CoreMatcher
    levels: int
    class_weights: Sequence[float] = ()

    def __call__(
        self,
        cls_logits: Tensor,
        distances: Tensor,
        points: Tensor,
        strides: Tensor,
        level: Tensor,
        targets: list[Target],
    ) -> dict[str, Tensor]:
        """cls_logits [N, R, K], distances [N, R, 4] in pixels; points [R, 2], their strides [R]
        and levels [R]."""
        match, others = zip(*(self.matcher(points, strides, t["boxes"]) for t in targets), strict=True)
        positives = Positives.of(torch.stack(match), targets)
        class_loss = self.class_loss(cls_logits, positives, others, targets)  # [N, R, K]
        predicted = box_ops.distances_to_box(points[positives.point], distances[positives.image, positives.point])
        box_loss = log_iou(predicted, positives.gt_boxes)  # [P]
        both = (class_loss[positives.image, positives.point].sum(1) + box_loss).detach()  # [P]
        boxes = sum(len(t["boxes"]) for t in targets)
        best = best_levels(both, level[positives.point], positives.gt, boxes, self.levels)  # [G]
        chosen = level[positives.point] == best[positives.gt]  # [P]
        # On the other levels the box's own class is neither right nor wrong; all other classes are wrong there too.
        ignored = class_loss[positives.image, positives.point, positives.labels][~chosen]
        levels = ranks.normaliser(chosen.sum(), level.device, least=0)
        points = ranks.normaliser(cls_logits[..., 0].numel(), level.device)
        normaliser = torch.where(levels > 0, levels, points)  # without any box, as many as there are points
        return {
            "class": (class_loss.sum() - ignored.sum()) / normaliser,
            "box": box_loss[chosen].sum() / normaliser,
        }

    def class_loss(
        self, cls_logits: Tensor, positives: Positives, others: Sequence[Tensor], targets: list[Target]
    ) -> Tensor:
        """Focal loss [N, R, K], 0 for the class of any other box that a cell touches (``others`` [R, M] per image)."""
        class_targets = positives.one_hot(cls_logits)
        counted = torch.ones_like(class_targets)
        for i, (other, target) in enumerate(zip(others, targets, strict=True)):
            point, gt = torch.nonzero(other, as_tuple=True)
            counted[i, point, target["labels"][gt]] = 0.0
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

    image: Tensor  # [S] index into N
    anchor: Tensor  # [S] index into R
    is_positive: Tensor  # [S] bool
    deltas: Tensor  # [P, 4] targets of the positives
    normaliser: Tensor | float


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
    def sample(self, anchors: Tensor, sizes: list[Size], targets: list[Target]) -> SampledAnchors:
        """Match the anchors [R, 4] with the ground truth of each image, and draw those to learn from."""
        image, index, is_positive, deltas = [], [], [], []
        normaliser = 0
        generators = ranks.generators(len(targets), anchors.device)
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            inside = self._inside(anchors, size)  # [I] indices
            match = self.matcher(anchors[inside], target["boxes"])
            positive, negative = self.sampler(match, generators[i])
            normaliser += max(len(positive), 1) + max(len(negative), 1)  # as in MMDetection
            chosen = inside[torch.cat([positive, negative])]
            image.append(torch.full_like(chosen, i))
            index.append(chosen)
            is_positive.append(torch.arange(len(chosen), device=chosen.device) < len(positive))
            deltas.append(self.coder.encode(anchors[inside[positive]], target["boxes"][match[positive]]))
        normaliser = ranks.normaliser(normaliser, anchors.device)
        return SampledAnchors(*(torch.cat(parts) for parts in (image, index, is_positive, deltas)), normaliser)

    def _inside(self, anchors: Tensor, size: Size) -> Tensor:
        if self.allowed_border < 0:
            return torch.arange(len(anchors), device=anchors.device)
        limit = anchors.new_tensor([size[1], size[0]]) + self.allowed_border
        inside = (anchors[:, :2] >= -self.allowed_border).all(1) & (anchors[:, 2:] < limit).all(1)
        return torch.nonzero(inside).flatten()

    def __call__(self, objectness: Tensor, deltas: Tensor, samples: SampledAnchors) -> dict[str, Tensor]:
        """Objectness logits [S] and deltas [S, 4] of the samples."""
        target = samples.is_positive.float()
        objectness_loss = F.binary_cross_entropy_with_logits(objectness, target, reduction="sum")
        box_loss = smooth_l1(deltas[samples.is_positive], samples.deltas, self.beta)
        return {"rpn_objectness": objectness_loss / samples.normaliser, "rpn_box": box_loss / samples.normaliser}


@dataclass
class SampledRoIs:
    """The RoIs of one image that a head learns from, positives first."""

    boxes: Tensor  # [S, 4]
    labels: Tensor  # [S], K for background
    gt_boxes: Tensor  # [P, 4] of the positives
    is_gt: Tensor  # [S] the RoI is a ground-truth box that was added to the proposals

    @property
    def positives(self) -> Tensor:
        """Boxes [P, 4] of the positives."""
        return self.boxes[: len(self.gt_boxes)]


@dataclass(frozen=True, kw_only=True)
class RoICriterion:
    """Softmax loss of all sampled RoIs and box loss of the positives, both divided by the number of samples.

    ``beta``: of the smooth L1 box loss (0: L1).
    """

    num_classes: int
    matcher: IoUMatcher
    sampler: Sampler
    coder: box_ops.DeltaCoder
    beta: float = 0.0
    class_weights: Sequence[float] = ()

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[SampledRoIs]:
        """Add the ground truth of each image to its proposals [R, 4], match, and draw the RoIs to learn from."""
        samples = []
        generators = ranks.generators(len(targets), proposals[0].device)
        for boxes, target, generator in zip(proposals, targets, generators, strict=True):
            itself = torch.arange(len(target["boxes"]), device=boxes.device)
            match = torch.cat([itself, self.matcher(boxes, target["boxes"])])  # [M + R]
            candidates = torch.cat([target["boxes"], boxes])
            positive, negative = self.sampler(match, generator)
            chosen = torch.cat([positive, negative])  # [S]
            labels = torch.full_like(chosen, self.num_classes)
            labels[: len(positive)] = target["labels"][match[positive]]
            gt_boxes = target["boxes"][match[positive]]
            samples.append(SampledRoIs(candidates[chosen], labels, gt_boxes, chosen < len(itself)))
        return samples

    def __call__(self, cls_logits: Tensor, deltas: Tensor, samples: list[SampledRoIs]) -> dict[str, Tensor]:
        """cls_logits [S, K + 1], background last, and deltas [S, 1 or K, 4] of the samples of all images in a row."""
        positive = torch.cat([s.labels for s in samples]) < self.num_classes  # [S]
        return {"class": self.class_loss(cls_logits, samples), "box": self.box_loss(deltas[positive], samples)}

    def class_loss(self, cls_logits: Tensor, samples: list[SampledRoIs]) -> Tensor:
        """Softmax loss of cls_logits [S, K + 1]; the background has weight 1."""
        labels = torch.cat([s.labels for s in samples])
        weights = cls_logits.new_tensor([*self.class_weights, 1.0]) if self.class_weights else None
        loss = F.cross_entropy(cls_logits, labels, weights, reduction="sum")
        return loss / ranks.normaliser(len(labels), loss.device)

    def box_loss(self, deltas: Tensor, samples: list[SampledRoIs]) -> Tensor:
        """Box loss of the deltas [P, 1 or K, 4] of the positives."""
        labels = torch.cat([s.labels[: len(s.gt_boxes)] for s in samples])  # [P]
        targets = self.coder.encode(torch.cat([s.positives for s in samples]), torch.cat([s.gt_boxes for s in samples]))
        column = labels if deltas.shape[1] > 1 else torch.zeros_like(labels)
        predicted = deltas[torch.arange(len(labels), device=labels.device), column]  # [P, 4]
        number = sum(len(s.boxes) for s in samples)
        return smooth_l1(predicted, targets, self.beta) / ranks.normaliser(number, deltas.device)
