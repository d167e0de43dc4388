"""FCOS (Tian et al. 2019): every point of the pyramid says which class it sees and how far the cell's sides are.

``fcos`` is the paper's first form, ``fcos_improved`` the authors' later one: distances in units of the stride,
centerness on the box tower, positives only near a box's centre, and GIoU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import anchors, assign, losses
from . import boxes as box_ops
from .base import Detection, DetectionModel, ModelOptions, Target
from .fpn import FPN
from .preprocess import Preprocess, Size

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
CENTRE_RADIUS = 1.5  # strides, for the improved form
START = 6.0  # strides: how far from its box's sides a point of fcos begins; halfway through its level's range


def tower(channels: int, depth: int, groups: int, bias: bool) -> nn.Sequential:
    """``depth`` times 3x3 convolution, group norm, ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        layers += [conv, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class FCOSHead(nn.Module):
    """Two towers shared by all levels; a map [N, C, H, W] -> class logits [N, K, H, W], distances [N, 4, H, W] (pixels,
    or strides in the improved form while training), centerness logits [N, 1, H, W]."""

    def __init__(self, channels: int, num_classes: int, improved: bool, groups: int = 32, prior: float = 0.01):
        super().__init__()
        self.per_class = {"class_logits": 1}  # rows a class in the layers that belong to classes
        self.improved = improved
        self.class_tower = tower(channels, 4, groups, bias=improved)
        self.box_tower = tower(channels, 4, groups, bias=improved)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))  # one a level
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_logits.bias, math.log(prior / (1 - prior)))
        if not improved:  # exp(0) would begin at boxes of 2 pixels, and the first epochs would go into growing them
            start = [math.log(START * stride) for stride in STRIDES]
            nn.init.constant_(self.distances.bias, start[0])
            self.scales.data = torch.tensor(start) / start[0]

    def classify(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and the class tower's last map."""
        classes = self.class_tower(feature)
        return self.class_logits(classes), classes

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Distances and centerness logits; ``classes`` is the class tower's last map."""
        boxes = self.box_tower(feature)
        distances = self.distances(boxes).float() * self.scales[level]
        if not self.improved:
            return distances.exp(), self.centerness(classes)
        distances = distances.clamp(min=0)
        return distances if self.training else distances * STRIDES[level], self.centerness(boxes)

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        outputs = []
        for level, feature in enumerate(pyramid):
            logits, classes = self.classify(feature)
            outputs.append((logits, *self.regress(feature, classes, level)))
        return outputs


def rows(output: Tensor) -> Tensor:
    """A dense output [N, C, H, W] as [N, H*W, C]."""
    return output.flatten(2).transpose(1, 2)


def centerness_of(distances: Tensor) -> Tensor:
    """Centerness (eq. 3) of points at ``distances`` [P, 4] (left, top, right, bottom) from their box: [P] in 0..1."""
    x, y = distances[:, 0::2], distances[:, 1::2]
    return (x.min(1).values / x.max(1).values * (y.min(1).values / y.max(1).values)).sqrt()


class FCOS(DetectionModel):
    """FCOS on P3 to P7."""

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
        fpn = FPN(backbone.channels, options.channels, start=1, extra="output", relu=True)
        super().__init__(preprocess=preprocess, backbone=backbone, fpn=fpn)
        self.head = FCOSHead(options.channels, num_classes, improved, min(groups, options.channels // 2))
        self.options, self.improved = options, improved
        self.nms_threshold = 0.6 if improved else 0.5
        self.candidates = 1000  # (point, class) pairs a level that go on to NMS

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        outputs = self.head(pyramid)
        logits, distances, centerness = (
            torch.cat([rows(o) for o in kind], dim=1) for kind in zip(*outputs, strict=True)
        )
        points = [anchors.points(f, s) for f, s in zip(pyramid, STRIDES, strict=True)]
        count = [len(p) for p in points]
        points = torch.cat(points)  # [R, 2]
        stride = torch.cat([points.new_full((n,), s) for n, s in zip(count, STRIDES, strict=True)])  # [R]
        ranges = torch.cat([points.new_tensor(r).expand(n, 2) for n, r in zip(count, RANGES, strict=True)])  # [R, 2]

        class_target = torch.zeros_like(logits, dtype=torch.float32)
        image_index, point_index, truth = [], [], []
        for i, target in enumerate(targets):
            radius = stride * CENTRE_RADIUS if self.improved else None
            match = assign.assign_points(points, ranges, target["boxes"], radius)
            positive = torch.nonzero(match >= 0).flatten()
            class_target[i, positive, target["labels"][match[positive]]] = 1.0
            image_index.append(torch.full_like(positive, i))
            point_index.append(positive)
            truth.append(target["boxes"][match[positive]])
        image_index, point_index, truth = torch.cat(image_index), torch.cat(point_index), torch.cat(truth)

        positives = max(len(point_index), 1)
        result = {"class": losses.focal(logits.float(), class_target) / positives}
        at, unit = points[point_index], stride[point_index, None] if self.improved else 1.0
        wanted = box_ops.box_to_distances(at, truth)
        weight = centerness_of(wanted)
        predicted = box_ops.distances_to_box(at / unit, distances[image_index, point_index])
        overlap = losses.giou if self.improved else losses.log_iou
        result["box"] = overlap(predicted, truth / unit, weight) / weight.sum().clamp(min=1e-6)
        result["centerness"] = (
            F.binary_cross_entropy_with_logits(centerness[image_index, point_index, 0].float(), weight, reduction="sum")
            / positives
        )
        return result

    def detect(self, pyramid: list[Tensor], sizes: list[Size]) -> list[Detection]:
        threshold = self.options.score_threshold
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
        for level, (feature, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
            logits, classes = self.head.classify(feature)
            scores = rows(logits).float().sigmoid()  # [N, R, K]
            if not (scores > threshold).any():
                continue  # no candidate on this level: its box tower need not run
            distances, centerness = (rows(o) for o in self.head.regress(feature, classes, level))
            points = anchors.points(feature, stride)
            for i, size in enumerate(sizes):
                point, label = torch.nonzero(scores[i] > threshold, as_tuple=True)
                score, best = scores[i][point, label].topk(min(self.candidates, len(point)))
                point, label = point[best], label[best]
                boxes = box_ops.clip(box_ops.distances_to_box(points[point], distances[i][point]), size)
                found[i].append((boxes, score * centerness[i][point, 0].float().sigmoid(), label))
        return [self._select(levels, pyramid[0]) for levels in found]

    def _select(self, levels: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> Detection:
        none = (like.new_zeros(0, 4), like.new_zeros(0), like.new_zeros(0, dtype=torch.int64))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*(levels or [none]), strict=True))
        boxes, scores, labels = box_ops.suppress(boxes, scores, labels, self.nms_threshold, self.options.max_detections)
        return {"boxes": boxes, "labels": labels, "scores": scores}
