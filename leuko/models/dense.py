"""What the one-stage detectors share: a head on P3 to P7 that predicts at each point the class and the distances to the
sides of the box, and the selection of detections."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops.nms import batched_nms
from . import anchors
from .base import Detection, DetectionModel, ModelOptions, Target
from .criterion import FCOSCriterion, FSAFCriterion
from .fpn import FPN
from .preprocess import Size

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

    head: DenseHead
    criterion: FCOSCriterion | FSAFCriterion
    # Half that of the R-CNNs, as in MMDetection; at .01 the heads oscillate, and can fail to learn the types at all.
    default_lr = 0.005
    offset = 0.5
    nms_threshold = 0.5
    candidates = 1000  # (point, class) pairs per level that go on to NMS, for 100 detections

    def __init__(
        self,
        *,
        backbone: nn.Module,
        options: ModelOptions,
        extra: Literal["output", "input"],
        relu: bool,
        **parts: object,
    ):
        fpn = FPN(backbone.channels, options.channels, start=1, extra=extra, relu=relu)
        super().__init__(backbone=backbone, fpn=fpn, options=options, **parts)

    def points(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Points (x, y) [R, 2] of each level."""
        return [anchors.points(f, s, self.offset) for f, s in zip(pyramid, STRIDES, strict=True)]

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        # Over all levels: [N, R, K], [N, R, 4] and, with centerness, [N, R, 1].
        outputs = [torch.cat([flatten_hw(o) for o in kind], dim=1) for kind in zip(*self.head(pyramid), strict=True)]
        points = self.points(pyramid)
        level = torch.cat([torch.full((len(p),), i, device=p.device) for i, p in enumerate(points)])  # [R]
        points = torch.cat(points)  # [R, 2]
        return self.criterion(*outputs, points, points.new_tensor(STRIDES)[level], level, targets)

    def detect(self, pyramid: list[Tensor], sizes: list[Size]) -> list[Detection]:
        threshold = self.score_threshold
        none = pyramid[0].new_zeros(0, 4), pyramid[0].new_zeros(0), pyramid[0].new_zeros(0, dtype=torch.int64)
        candidates: list[list[tuple[Tensor, Tensor, Tensor]]] = [[none] for _ in sizes]
        for level, (feature, points) in enumerate(zip(pyramid, self.points(pyramid), strict=True)):
            logits, classes = self.head.classify(feature)
            scores = flatten_hw(logits).float().sigmoid()  # [N, R, K]
            if not (scores > threshold).any():
                continue  # no candidate on this level: its box tower need not run
            distances, *centerness = (flatten_hw(o) for o in self.head.regress(feature, classes, level))
            for i, size in enumerate(sizes):
                point, label = torch.nonzero(scores[i] > threshold, as_tuple=True)
                score, best = scores[i][point, label].topk(min(round(self.crowding * self.candidates), len(point)))
                point, label = point[best], label[best]
                boxes = box_ops.clip(box_ops.distances_to_box(points[point], distances[i][point]), size)
                for quality in centerness:
                    score = score * quality[i][point, 0].float().sigmoid()
                candidates[i].append((boxes, score, label))
        return [self._select(levels) for levels in candidates]

    def _select(self, levels: list[tuple[Tensor, Tensor, Tensor]]) -> Detection:
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        boxes, scores, labels = batched_nms(boxes, scores, labels, self.nms_threshold, self.max_detections)
        return {"boxes": boxes, "labels": labels, "scores": scores}
