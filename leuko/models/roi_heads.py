"""The R-CNN family: pooling the features of a box, heads that classify and move it, and the two-stage detector.

A RoI (region of interest) is a proposal or the box that an earlier stage made of it. R is the number of RoIs of the
whole batch, those of one image in a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops.boxes import Found
from ..ops.roi_align import RoIs, roi_align
from .base import DetectionModel, ModelOptions, Targets
from .criterion import RoICriterion, RPNCriterion
from .fpn import FPN
from .matcher import IoUMatcher, Sampler
from .rpn import RPN

ROI_STRIDES = (4, 8, 16, 32)
SIZE = 7  # cells along a side of a pooled RoI
BBOX_STD = (0.1, 0.2)


def pool(pyramid: list[Tensor], rois: RoIs, size: int, scale: float = 1.0) -> Tensor:
    """RoIAlign of each RoI from the level that suits its area (FPN, eq. 1): [R, C, size, size]. ``scale`` enlarges the
    box about its centre; the level stays that of the box itself."""
    numbers = range(len(ROI_STRIDES))
    level = (box_ops.area(rois.boxes).sqrt() / 56 + 1e-6).log2().floor().clamp(0, numbers[-1])  # [R]
    exported = torch.jit.is_tracing()
    if exported:  # a graph cannot split RoIs by what it counts
        of_levels = [torch.nonzero(level == i).flatten() for i in numbers]
    else:
        counts = (level == torch.arange(len(numbers), device=level.device)[:, None]).sum(1).tolist()
        of_levels = level.argsort()[: sum(counts)].split(counts)  # boxes of nan, from weights that diverged, come last
    image, boxes = rois if scale == 1 else (rois.image, box_ops.scaled(rois.boxes, scale))
    pooled = torch.zeros(boxes.shape[0], pyramid[0].shape[1], size, size, device=boxes.device)
    for feature, stride, here in zip(pyramid, ROI_STRIDES, of_levels, strict=False):
        if exported or len(here):
            pooled[here] = roi_align(feature, image[here], boxes[here], stride, size)
    return pooled


class ClassHead(nn.Module):
    """Two fully-connected layers, then class logits [R, K + 1], background last."""

    def __init__(self, channels: int, hidden: int, num_classes: int):
        super().__init__()
        self.per_class = {"cls_logits": 1}  # layers with outputs per class, and how many per class
        self.fc1 = nn.Linear(channels * SIZE * SIZE, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.cls_logits = output_layer(hidden, num_classes + 1, std=0.01)
        for fc in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)

    def features(self, pyramid: list[Tensor], rois: RoIs) -> Tensor:
        """The output of the two layers for each box: [R, hidden]."""
        return F.relu(self.fc2(F.relu(self.fc1(pool(pyramid, rois, SIZE).flatten(1)))))

    def forward(self, pyramid: list[Tensor], rois: RoIs) -> Tensor:
        return self.cls_logits(self.features(pyramid, rois)).float()


class TwoFCHead(ClassHead):
    """Class logits [R, K + 1] and, from the same two layers, deltas [R, 1 or K, 4]."""

    def __init__(self, channels: int, hidden: int, num_classes: int, class_agnostic: bool):
        super().__init__(channels, hidden, num_classes)
        if not class_agnostic:
            self.per_class["bbox_pred"] = 4
        self.bbox_pred = output_layer(hidden, 4 if class_agnostic else 4 * num_classes, std=0.001)

    def forward(self, pyramid: list[Tensor], rois: RoIs) -> tuple[Tensor, Tensor]:
        hidden = self.features(pyramid, rois)
        return self.cls_logits(hidden).float(), self.bbox_pred(hidden).float().reshape(
            -1, self.bbox_pred.out_features // 4, 4
        )


def output_layer(hidden: int, outputs: int, std: float) -> nn.Linear:
    """A last layer whose outputs start near zero."""
    layer = nn.Linear(hidden, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


class TwoStage(DetectionModel):
    """An RPN on P2 to P6, then RoI stages, which a subclass builds; and the selection of detections.

    ``allowed_border`` and ``rpn_beta`` are those of :class:`~leuko.models.criterion.RPNCriterion`; ``proposals`` per
    image go on to the RoI stages in training (1,000 in eval mode).
    """

    allowed_border = -1
    rpn_beta = 0.0
    proposals = 1000
    box_voting = True

    def __init__(self, *, backbone: nn.Module, options: ModelOptions, **parts: object):
        fpn = FPN(backbone.channels, options.channels)
        super().__init__(backbone=backbone, fpn=fpn, options=options, **parts)
        self.rpn = RPN(
            options.channels,
            criterion=RPNCriterion(
                matcher=IoUMatcher(positive=0.7, negative=0.3, min_pos_iou=0.3, low_quality=True),
                sampler=Sampler(256, positive_fraction=0.5),
                coder=box_ops.DeltaCoder(),
                beta=self.rpn_beta,
                allowed_border=self.allowed_border,
            ),
            proposals=(options.proposals or self.proposals, options.proposals or 1000),
            candidates=(2 * options.proposals or 2000, 2 * options.proposals or 1000),
        )

    def roi_criterion(
        self,
        iou: float = 0.5,
        std: tuple[float, float] = BBOX_STD,
        beta: float = 0.0,
        low_quality: bool = False,
    ) -> RoICriterion:
        """The criterion of a RoI stage: positives at ``iou``, a quarter of the RoIs at most."""
        return RoICriterion(
            num_classes=self.num_classes,
            matcher=IoUMatcher(positive=iou, negative=iou, min_pos_iou=iou, low_quality=low_quality),
            sampler=Sampler(self.options.rois, positive_fraction=0.25),
            coder=box_ops.DeltaCoder(std),
            beta=beta,
            class_weights=self.options.class_weights,
        )

    def roi_losses(
        self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Scalar losses of the second stage by name; proposals [N, P, 4]."""
        raise NotImplementedError

    def roi_detect(self, pyramid: list[Tensor], proposals: Tensor, sizes: Tensor) -> Found:
        """Detections from the proposals [N, P, 4]."""
        raise NotImplementedError

    def losses(self, pyramid: list[Tensor], sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        rpn_losses, proposals = self.rpn.losses(pyramid, sizes, targets)
        return rpn_losses | self.roi_losses(pyramid, proposals, sizes, targets)

    def detect(self, pyramid: list[Tensor], sizes: Tensor) -> Found:
        proposals = self.rpn.propose(*self.rpn(pyramid), self.rpn.anchors(pyramid), sizes, self.crowding)
        return self.roi_detect(pyramid, proposals, sizes)

    def select_rois(self, cls_logits: Tensor, boxes: Tensor, sizes: Tensor) -> Found:
        """The detections among RoIs: class logits [N * P, K + 1], their boxes [N, P, 1 or K, 4]."""
        scores = cls_logits.softmax(1)[:, :-1].reshape(*boxes.shape[:2], self.num_classes)
        return self.select(scores, box_ops.clip(boxes, sizes))
