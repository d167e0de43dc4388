"""What the one-stage detectors share: a head on P3 to P7 that predicts at each point the class and the distances to the
sides of the box, and the selection of detections."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops.boxes import Found, batched_nms, most, take, top
from .base import DetectionModel, ModelOptions, Targets
from .criterion import FCOSCriterion, FSAFCriterion
from .fpn import FPN

STRIDES = (8, 16, 32, 64, 128)
DEPTH = 4  # convolutions of a tower
PRIOR = 0.01  # class score of an untrained head (Lin et al. 2017, section 4.1)


class DenseHead(nn.Module):
    """A class tower and a box tower shared by all levels, each four times 3x3 convolution, group norm if any, ReLU.

    A map [N, C, H, W] -> class logits [N, K, H, W] and what a subclass computes from the box tower. ``groups``: of the
    group norm after each convolution, 0 for none.
    """

    def __init__(self, channels: int, num_classes: int, groups: int, bias: bool = True):
        super().__init__()
        self.per_class = {"cls_logits": 1}  # layers with outputs per class, and how many per class
        self.cls_tower = tower(channels, groups, bias)
        self.box_tower = tower(channels, groups, bias)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        # Class scores start at PRIOR, so that the background does not dominate the loss.
        init_normal(self.cls_logits, bias=math.log(PRIOR / (1 - PRIOR)))
        init_normal(self.bbox_pred)

    def classify(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and the class tower's last map."""
        classes = self.cls_tower(feature)
        return self.cls_logits(classes), classes

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor, ...]:
        """Distances [N, 4, H, W] to left, top, right and bottom, and centerness logits [N, 1, H, W] if the detector has
        them. ``classes`` is the class tower's last map. Distances are in pixels in eval mode."""
        raise NotImplementedError

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """(class logits, *regress) of each level."""
        outputs = []
        for level, feature in enumerate(pyramid):
            logits, classes = self.classify(feature)
            outputs.append((logits, *self.regress(feature, classes, level)))
        return outputs


def init_normal(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Small random weights."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


def tower(channels: int, groups: int, bias: bool) -> nn.Sequential:
    """:data:`DEPTH` times 3x3 convolution, group norm (with ``groups`` > 0), ReLU."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers.append(conv := nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        init_normal(conv)
        if groups:
            layers.append(nn.GroupNorm(groups, channels))
        else:  # small weights would make the signal four times weaker per convolution, and nothing would be learned
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def flatten_hw(output: Tensor) -> Tensor:
    """A dense output [N, C, H, W] as [N, H*W, C]."""
    return output.flatten(2).transpose(1, 2)


class OneStage(DetectionModel):
    """A dense head on P3 to P7, which a subclass builds. ``offset`` is the position of a cell's point, in strides."""

    extra: Literal["output", "input"]  # of the FPN
    head: DenseHead
    criterion: FCOSCriterion | FSAFCriterion
    # Half that of the R-CNNs, as in MMDetection; at .01 the heads oscillate, and can fail to learn the types at all.
    default_lr = 0.005
    offset = 0.5
    candidates = 1000  # (point, class) pairs per level that go on to NMS, for 100 detections

    def __init__(self, *, backbone: nn.Module, options: ModelOptions, **parts: object):
        fpn = FPN(backbone.channels, options.channels, self.extra)
        super().__init__(backbone=backbone, fpn=fpn, options=options, **parts)
        self.register_buffer("strides", torch.tensor(STRIDES, dtype=torch.float32), persistent=False)

    def points(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Points (x, y) [R, 2] of each level."""
        return [box_ops.points(f, s, self.offset) for f, s in zip(pyramid, STRIDES, strict=True)]

    def losses(self, pyramid: list[Tensor], sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        # Over all levels: [N, R, K], [N, R, 4] and, with centerness, [N, R, 1].
        outputs = [torch.cat([flatten_hw(o) for o in kind], dim=1) for kind in zip(*self.head(pyramid), strict=True)]
        points = self.points(pyramid)
        levels = torch.arange(len(points), device=self.strides.device)
        level = torch.cat([i.expand(len(p)) for i, p in zip(levels, points, strict=True)])  # [R]
        return self.criterion(*outputs, torch.cat(points), self.strides[level], level, targets)

    def detect(self, pyramid: list[Tensor], sizes: Tensor) -> Found:
        threshold, limit = self.score_threshold, round(self.crowding * self.candidates)
        classified = [self.head.classify(feature) for feature in pyramid]
        scores = [flatten_hw(logits).float().sigmoid().flatten(1) for logits, _ in classified]  # [N, R * K] each
        counts = most(torch.stack([(score > threshold).sum(1) for score in scores]))
        last = len(pyramid) - 1
        candidates = []
        for level, (points, count) in enumerate(zip(self.points(pyramid), counts, strict=True)):
            if not count and level < last:
                continue  # no candidate on this level: its box tower need not run
            score, index = top(scores[level], min(limit, max(count, 1)))  # [N, V]
            point, label = index // self.num_classes, index % self.num_classes
            outputs = self.head.regress(pyramid[level], classified[level][1], level)
            distances, *centerness = (take(flatten_hw(output), point) for output in outputs)  # [N, V, 4], [N, V, 1]
            total = score
            for quality in centerness:
                total = total * quality[..., 0].float().sigmoid()
            total = torch.where(score > threshold, total, -1.0)
            candidates.append((box_ops.distances_to_box(points[point], distances), total, label))
        boxes, total, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        boxes = box_ops.clip(boxes, sizes)
        return batched_nms(boxes, total, labels, self.nms_threshold, self.max_detections)
