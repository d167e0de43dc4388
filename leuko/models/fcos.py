"""FCOS (Tian et al. 2019): every point of the pyramid says which class it sees and how far the cell's sides are.

``fcos`` is the paper's first form, ``fcos_improved`` the authors' later one: distances in units of the stride,
centerness on the box tower, positives only near a box's centre, and GIoU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from . import criterion, matcher
from .base import ModelOptions, Target
from .dense import STRIDES, DenseHead, OneStage, rows
from .preprocess import Preprocess, Size

RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
CENTRE_RADIUS = 1.5  # strides, for the improved form
START = 6.0  # strides: how far from its box's sides a point begins; halfway through its level's range


class FCOSHead(DenseHead):
    """Towers with group norm; a map [N, C, H, W] -> class logits [N, K, H, W], distances [N, 4, H, W] (pixels, or
    strides in the improved form while training), centerness logits [N, 1, H, W]."""

    def __init__(self, channels: int, num_classes: int, improved: bool, groups: int = 32):
        super().__init__(channels, num_classes, groups, bias=improved)
        self.improved = improved
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))  # one a level
        self.initialise()
        # From 0 on, fcos would spend its first epochs on growing boxes of 2 pixels, and fcos_improved would lose each
        # side that its random weights make negative: clamped to 0, it has no gradient.
        start = [START] * len(STRIDES) if improved else [math.log(START * stride) for stride in STRIDES]
        nn.init.constant_(self.distances.bias, start[0])
        self.scales.data = torch.tensor(start) / start[0]
        if not improved:
            self.distances.weight.data /= START  # ln d is to begin as near to its start as d / stride

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        boxes = self.box_tower(feature)
        distances = self.distances(boxes).float() * self.scales[level]
        if not self.improved:
            return distances.exp(), self.centerness(classes)
        distances = distances.clamp(min=0)
        return distances if self.training else distances * STRIDES[level], self.centerness(boxes)


def centerness_of(distances: Tensor) -> Tensor:
    """Centerness (eq. 3) of points at ``distances`` [P, 4] (left, top, right, bottom) from their box: [P] in 0..1."""
    x, y = distances[:, 0::2], distances[:, 1::2]
    return (x.min(1).values / x.max(1).values * (y.min(1).values / y.max(1).values)).sqrt()


class FCOS(OneStage):
    """FCOS on P3 to P7."""

    wants_normalized_features = False  # norm layers see to the heads, and boxes are tighter from maps as they are

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        num_classes: int,
        options: ModelOptions,
        improved: bool = False,
        groups: int = 32,
    ):
        super().__init__(preprocess=preprocess, backbone=backbone, options=options, extra="output", relu=True)
        self.head = FCOSHead(options.channels, num_classes, improved, min(groups, options.channels // 2))
        self.improved = improved
        if improved:
            self.nms_threshold = 0.6
        else:
            # .1 more in ln d moves a side by 10 %, in d / stride, which is START at first, by 1.7 %. So ln d has START
            # times the gradient and the effect, and at the improved form's rate the boxes swing.
            self.lr_multipliers = {"head.distances": START**-2, "head.scales": math.log(START * STRIDES[0]) ** -2}

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        outputs = self.head(pyramid)
        logits, distances, centerness = (
            torch.cat([rows(o) for o in kind], dim=1) for kind in zip(*outputs, strict=True)
        )
        points = self.points(pyramid)
        count = [len(p) for p in points]
        points = torch.cat(points)  # [R, 2]
        stride = torch.cat([points.new_full((n,), s) for n, s in zip(count, STRIDES, strict=True)])  # [R]
        ranges = torch.cat([points.new_tensor(r).expand(n, 2) for n, r in zip(count, RANGES, strict=True)])  # [R, 2]

        class_target = torch.zeros_like(logits, dtype=torch.float32)
        image_index, point_index, truth = [], [], []
        for i, target in enumerate(targets):
            radius = stride * CENTRE_RADIUS if self.improved else None
            match = matcher.assign_points(points, ranges, target["boxes"], radius)
            positive = torch.nonzero(match >= 0).flatten()
            class_target[i, positive, target["labels"][match[positive]]] = 1.0
            image_index.append(torch.full_like(positive, i))
            point_index.append(positive)
            truth.append(target["boxes"][match[positive]])
        image_index, point_index, truth = torch.cat(image_index), torch.cat(point_index), torch.cat(truth)

        positives = max(len(point_index), 1)
        class_loss = criterion.focal(logits.float(), class_target)
        class_loss = class_loss * criterion.by_class(class_target, self.options.class_weights)
        result = {"class": class_loss.sum() / positives}
        at, unit = points[point_index], stride[point_index, None] if self.improved else 1.0
        wanted = box_ops.box_to_distances(at, truth)
        weight = centerness_of(wanted)
        predicted = box_ops.distances_to_box(at / unit, distances[image_index, point_index])
        overlap = criterion.giou if self.improved else criterion.log_iou
        result["box"] = (overlap(predicted, truth / unit) * weight).sum() / weight.sum().clamp(min=1e-6)
        result["centerness"] = (
            F.binary_cross_entropy_with_logits(centerness[image_index, point_index, 0].float(), weight, reduction="sum")
            / positives
        )
        return result
