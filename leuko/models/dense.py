"""What the one-stage detectors share: a head on P3 to P7 that says of every point which class it sees and how far the
cell's sides are, and how its detections are selected."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import boxes as box_ops
from . import anchors
from .base import Detection, DetectionModel, ModelOptions
from .fpn import FPN
from .preprocess import Preprocess, Size

STRIDES = (8, 16, 32, 64, 128)
DEPTH = 4  # convolutions of a tower
PRIOR = 0.01  # class score of an untrained head (Lin et al. 2017, section 4.1)


class DenseHead(nn.Module):
    """A class tower and a box tower shared by all levels, each four times 3x3 convolution, norm if any, ReLU.

    A map [N, C, H, W] -> class logits [N, K, H, W] and what a subclass makes of the box tower. ``groups``: of the group
    norm after each convolution, 0 for none.
    """

    def __init__(self, channels: int, num_classes: int, groups: int, bias: bool = True):
        super().__init__()
        self.per_class = {"cls_logits": 1}  # rows a class in the layers that belong to classes
        self.normed = groups > 0
        self.cls_tower = tower(channels, groups, bias)
        self.box_tower = tower(channels, groups, bias)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)

    def initialise(self) -> None:
        """Small weights, and class scores of :data:`PRIOR`, so that the background does not drown all else.

        Towers without norm are He's instead: by small weights each of their convolutions would make the signal four
        times weaker, and the head would not learn anything in the first thousands of steps.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in [*self.cls_tower, *self.box_tower]:
            if isinstance(module, nn.Conv2d) and not self.normed:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.constant_(self.cls_logits.bias, math.log(PRIOR / (1 - PRIOR)))

    def classify(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and the class tower's last map."""
        classes = self.cls_tower(feature)
        return self.cls_logits(classes), classes

    def regress(self, feature: Tensor, classes: Tensor, level: int) -> tuple[Tensor, ...]:
        """Distances [N, 4, H, W] to left, top, right and bottom, and centerness logits [N, 1, H, W] if the detector has
        them. ``classes`` is the class tower's last map. Distances are in pixels in eval mode."""
        raise TypeError(f"{type(self).__name__} does not define regress")

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """(class logits, *regress) of each level."""
        outputs = []
        for level, feature in enumerate(pyramid):
            logits, classes = self.classify(feature)
            outputs.append((logits, *self.regress(feature, classes, level)))
        return outputs


def tower(channels: int, groups: int, bias: bool) -> nn.Sequential:
    """:data:`DEPTH` times 3x3 convolution, group norm (with ``groups`` > 0), ReLU."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        layers += [nn.GroupNorm(groups, channels)] if groups else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def rows(output: Tensor) -> Tensor:
    """A dense output [N, C, H, W] as [N, H*W, C]."""
    return output.flatten(2).transpose(1, 2)


class OneStage(DetectionModel):
    """A dense head on P3 to P7; a subclass builds the head. ``offset`` is where a cell's point lies, in strides."""

    head: DenseHead
    default_lr = (
        0.005  # half the R-CNNs', as in MMDetection; at .01 the heads swing, and can fail to learn the types at all
    )
    offset = 0.5
    nms_threshold = 0.5
    candidates = 1000  # (point, class) pairs a level that go on to NMS

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        options: ModelOptions,
        extra: Literal["output", "input"],
        relu: bool,
    ):
        fpn = FPN(backbone.channels, options.channels, start=1, extra=extra, relu=relu)
        super().__init__(preprocess=preprocess, backbone=backbone, fpn=fpn)
        self.options = options

    def points(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Points (x, y) [R, 2] of each level."""
        return [anchors.points(f, s, self.offset) for f, s in zip(pyramid, STRIDES, strict=True)]

    def detect(self, pyramid: list[Tensor], sizes: list[Size]) -> list[Detection]:
        threshold = self.score_threshold
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
        for level, (feature, points) in enumerate(zip(pyramid, self.points(pyramid), strict=True)):
            logits, classes = self.head.classify(feature)
            scores = rows(logits).float().sigmoid()  # [N, R, K]
            if not (scores > threshold).any():
                continue  # no candidate on this level: its box tower need not run
            distances, *centerness = (rows(o) for o in self.head.regress(feature, classes, level))
            for i, size in enumerate(sizes):
                point, label = torch.nonzero(scores[i] > threshold, as_tuple=True)
                score, best = scores[i][point, label].topk(min(self.candidates, len(point)))
                point, label = point[best], label[best]
                boxes = box_ops.clip(box_ops.distances_to_box(points[point], distances[i][point]), size)
                for quality in centerness:
                    score = score * quality[i][point, 0].float().sigmoid()
                found[i].append((boxes, score, label))
        return [self._select(levels, pyramid[0]) for levels in found]

    def _select(self, levels: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> Detection:
        none = (like.new_zeros(0, 4), like.new_zeros(0), like.new_zeros(0, dtype=torch.int64))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*(levels or [none]), strict=True))
        boxes, scores, labels = box_ops.suppress(boxes, scores, labels, self.nms_threshold, self.options.max_detections)
        return {"boxes": boxes, "labels": labels, "scores": scores}
