"""FCOS (Tian et al. 2019): each point of the pyramid predicts a class and the distances to the sides of its box.

``fcos`` is the paper's first form, ``fcos_improved`` the authors' later one: distances in units of the stride,
centerness on the box tower, positives only near a box's centre, and GIoU.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .base import ModelOptions
from .criterion import FCOSCriterion
from .dense import STRIDES, DenseHead, OneStage, init_normal
from .matcher import PointMatcher

RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
CENTRE_RADIUS = 1.5  # strides, for the improved form
START = 6.0  # strides: initial distance of a point to the sides of its box; the middle of its level's range
GROUPS = 32  # of the group norms


class FCOSHead(DenseHead):
    """Towers with group norm; a map [N, C, H, W] -> class logits [N, K, H, W], distances [N, 4, H, W] (pixels, or
    strides in the improved form while training), centerness logits [N, 1, H, W]."""

    def __init__(self, channels: int, num_classes: int, improved: bool, groups: int):
        super().__init__(channels, num_classes, groups, bias=improved)
        self.improved = improved
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        init_normal(self.centerness)
        # Starting at 0, fcos would spend its first epochs on growing boxes of 2 pixels, and fcos_improved would lose
        # each side that its random weights make negative: clamped to 0, it has no gradient.
        start = [START] * len(STRIDES) if improved else [math.log(START * stride) for stride in STRIDES]
        nn.init.constant_(self.bbox_pred.bias, start[0])
        self.scales = nn.Parameter(torch.tensor(start) / start[0])  # one per level
        if not improved:
            self.bbox_pred.weight.data /= START  # ln d starts as close to its mean as d / stride

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        boxes = self.box_tower(feature)
        distances = self.bbox_pred(boxes).float() * self.scales[level]
        if not self.improved:
            return distances.exp(), self.centerness(classes)
        distances = distances.clamp(min=0)
        return distances if self.training else distances * STRIDES[level], self.centerness(boxes)


class FCOS(OneStage):
    """FCOS on P3 to P7."""

    extra = "output"
    improved = False
    wants_normalized_features = False  # the heads have norm layers, and boxes are tighter from maps as they are
    channels_multiple = GROUPS
    # A change of .1 in ln d moves a side by 10 %, in d / stride, which starts at START, by 1.7 %. So ln d has START
    # times the gradient and the effect, and at the improved form's rate the boxes oscillate.
    lr_multipliers = MappingProxyType({"head.bbox_pred": START**-2, "head.scales": math.log(START * STRIDES[0]) ** -2})

    def __init__(self, *, num_classes: int, options: ModelOptions, groups: int = GROUPS, **parts: nn.Module):
        super().__init__(num_classes=num_classes, options=options, **parts)
        self.head = FCOSHead(options.channels, num_classes, self.improved, min(groups, options.channels // 2))
        self.criterion = FCOSCriterion(
            matcher=PointMatcher(radius=CENTRE_RADIUS if self.improved else None),
            ranges=RANGES,
            class_weights=options.class_weights,
            improved=self.improved,
        )


class FCOSImproved(FCOS):
    """The authors' later form."""

    improved = True
    lr_multipliers = MappingProxyType({})
    nms_threshold = 0.6
