"""The second stage: pooling a box's features, heads that class and move it, and what a stage learns from.

A RoI (region of interest) is a proposal or the box that an earlier stage made of it. R is the number of RoIs of the
whole batch, each image's in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import boxes as box_ops
from ..ops.cpu.roi_align import roi_align
from . import criterion
from .base import Detection, DetectionModel, ModelOptions, Target
from .fpn import FPN
from .matcher import IoUAssigner, sample
from .preprocess import Preprocess, Size
from .rpn import RPN

ROI_STRIDES = (4, 8, 16, 32)
SIDE = 7  # cells of a pooled RoI


def pool(pyramid: list[Tensor], boxes: list[Tensor], side: int, scale: float = 1.0) -> Tensor:
    """RoIAlign of boxes [R_i, 4] of each image, each box from the level that suits its size (FPN, eq. 1):
    [R, C, side, side]. ``scale`` takes more of the map, or less, about the box's centre; the level stays."""
    image = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
    rois = torch.cat(boxes)
    level_of = (box_ops.area(rois).sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(ROI_STRIDES) - 1)
    rois = rois if scale == 1 else box_ops.scaled(rois, scale)
    pooled = torch.zeros(len(rois), pyramid[0].shape[1], side, side, device=rois.device)
    for level, stride in enumerate(ROI_STRIDES):
        here = torch.nonzero(level_of == level).flatten()
        if len(here):
            pooled[here] = roi_align(pyramid[level], image[here], rois[here], stride, side)
    return pooled


class ClassHead(nn.Module):
    """Two fully-connected layers, then class logits [R, K + 1], background last."""

    def __init__(self, channels: int, hidden: int, num_classes: int):
        super().__init__()
        self.per_class = {"cls_logits": 1}  # rows a class in the layers that belong to classes
        self.fc1 = nn.Linear(channels * SIDE * SIDE, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.cls_logits = output_layer(hidden, num_classes + 1, std=0.01)
        for fc in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)

    def features(self, pyramid: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """What the two layers make of each box: [R, hidden]."""
        return F.relu(self.fc2(F.relu(self.fc1(pool(pyramid, boxes, SIDE).flatten(1)))))

    def forward(self, pyramid: list[Tensor], boxes: list[Tensor]) -> Tensor:
        return self.cls_logits(self.features(pyramid, boxes)).float()


class TwoFCHead(ClassHead):
    """Class logits [R, K + 1] and, from the same two layers, deltas [R, 1 or K, 4]."""

    def __init__(self, channels: int, hidden: int, num_classes: int, class_agnostic: bool):
        super().__init__(channels, hidden, num_classes)
        if not class_agnostic:
            self.per_class["deltas"] = 4
        self.deltas = output_layer(hidden, 4 if class_agnostic else 4 * num_classes, std=0.001)

    def forward(self, pyramid: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.features(pyramid, boxes)
        return self.cls_logits(hidden).float(), self.deltas(hidden).float().unflatten(1, (-1, 4))


def output_layer(hidden: int, rows: int, std: float) -> nn.Linear:
    """A last layer that begins near zero."""
    layer = nn.Linear(hidden, rows)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass
class SampledRoIs:
    """The RoIs of one image that a stage learns from, positives first."""

    boxes: Tensor  # [R, 4]
    labels: Tensor  # [R], K for background
    truth: Tensor  # [P, 4] ground truth of the positives
    is_truth: Tensor  # [R] the RoI is a ground-truth box that was added to the proposals

    @property
    def positives(self) -> Tensor:
        """Boxes [P, 4] of the positives."""
        return self.boxes[: len(self.truth)]


class RoIStage:
    """What a head learns from and how it is read: IoU assigner, sampler, box coder and losses.

    ``rois`` are drawn an image, a quarter of them positive if there are as many; ``beta`` is the knee of the smooth L1
    box loss (0: L1).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        rois: int,
        iou: float = 0.5,
        low_quality: bool = False,
        std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        beta: float = 0.0,
        class_weights: Sequence[float] = (),
    ):
        self.num_classes, self.rois, self.beta, self.class_weights = num_classes, rois, beta, class_weights
        self.assigner = IoUAssigner(positive=iou, negative=iou, floor=iou, low_quality=low_quality)
        self.coder = box_ops.DeltaCoder(std)
        self.positive_fraction = 0.25

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[SampledRoIs]:
        """Match proposals [P, 4] and the ground truth itself to the ground truth, and draw the RoIs to learn from."""
        drawn = []
        for boxes, target in zip(proposals, targets, strict=True):
            itself = torch.arange(len(target["boxes"]), device=boxes.device)
            match = torch.cat([itself, self.assigner(boxes, target["boxes"])])
            candidates = torch.cat([target["boxes"], boxes])
            is_truth = torch.arange(len(candidates), device=boxes.device) < len(itself)
            positive, negative = sample(match, self.rois, self.positive_fraction)
            chosen = torch.cat([positive, negative])
            labels = torch.full_like(chosen, self.num_classes)
            labels[: len(positive)] = target["labels"][match[positive]]
            drawn.append(SampledRoIs(candidates[chosen], labels, target["boxes"][match[positive]], is_truth[chosen]))
        return drawn

    def class_loss(self, logits: Tensor, drawn: list[SampledRoIs]) -> Tensor:
        """Softmax loss over all RoIs, divided by their number; logits [R, K + 1]."""
        labels = torch.cat([d.labels for d in drawn])
        weights = logits.new_tensor([*self.class_weights, 1.0]) if self.class_weights else None  # background: 1
        return F.cross_entropy(logits, labels, weights, reduction="sum") / max(len(labels), 1)

    def box_loss(self, deltas: Tensor, drawn: list[SampledRoIs]) -> Tensor:
        """Box loss of the positives, divided by the number of all RoIs; deltas [P, 1 or K, 4] of the positives."""
        labels = torch.cat([d.labels[: len(d.truth)] for d in drawn])
        wanted = self.coder.encode(torch.cat([d.positives for d in drawn]), torch.cat([d.truth for d in drawn]))
        column = labels if deltas.shape[1] > 1 else torch.zeros_like(labels)
        moved = deltas[torch.arange(len(labels), device=labels.device), column]
        return criterion.smooth_l1(moved, wanted, self.beta).sum() / max(sum(len(d.boxes) for d in drawn), 1)

    def losses(self, logits: Tensor, deltas: Tensor, drawn: list[SampledRoIs]) -> dict[str, Tensor]:
        """Both losses of a head that gives logits and deltas of all RoIs."""
        positive = torch.cat([d.labels for d in drawn]) < self.num_classes
        return {"class": self.class_loss(logits, drawn), "box": self.box_loss(deltas[positive], drawn)}


class TwoStage(DetectionModel):
    """What the R-CNN family shares: an RPN on P2 to P6, then RoI stages; and how its detections are selected.

    ``border`` and ``rpn_beta`` are the RPN's; ``proposals`` go on to the RoI stages in training (1,000 at test time).
    """

    border = -1
    rpn_beta = 0.0
    proposals = 1000
    nms_threshold = 0.5
    votes = True  # the boxes that NMS drops can vote on the one it keeps, as options.vote says

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        num_classes: int,
        options: ModelOptions,
    ):
        super().__init__(preprocess=preprocess, backbone=backbone, fpn=FPN(backbone.channels, options.channels))
        keep = (options.proposals or self.proposals, options.proposals or 1000)
        self.rpn = RPN(options.channels, border=self.border, beta=self.rpn_beta, keep=keep)
        if options.proposals:
            self.rpn.candidates = (2 * options.proposals, 2 * options.proposals)
        self.num_classes, self.options = num_classes, options

    def roi_losses(
        self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Scalar losses of the second stage by name."""
        raise TypeError(f"{type(self).__name__} does not define roi_losses")

    def roi_detect(self, pyramid: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detection]:
        """Detections of each image from its proposals [P, 4]."""
        raise TypeError(f"{type(self).__name__} does not define roi_detect")

    def losses(self, pyramid: list[Tensor], sizes: list[Size], targets: list[Target]) -> dict[str, Tensor]:
        levels = self.rpn.anchors(pyramid)
        rpn_losses = self.rpn.losses(pyramid, levels, sizes, targets)
        with torch.no_grad():
            proposals = self.rpn.propose(*self.rpn(pyramid), levels, sizes)
        return rpn_losses | self.roi_losses(pyramid, proposals, sizes, targets)

    def detect(self, pyramid: list[Tensor], sizes: list[Size]) -> list[Detection]:
        proposals = self.rpn.propose(*self.rpn(pyramid), self.rpn.anchors(pyramid), sizes)
        return self.roi_detect(pyramid, proposals, sizes)

    def select(self, probabilities: Tensor, boxes: Tensor, size: Size) -> Detection:
        """Threshold, class-wise NMS and voting for one image: probabilities [R, K + 1], boxes [R, 1 or K, 4]."""
        roi, label = torch.nonzero(probabilities[:, :-1] > self.score_threshold, as_tuple=True)
        column = label if boxes.shape[1] > 1 else torch.zeros_like(label)
        candidates = box_ops.clip(boxes[roi, column], size), probabilities[roi, label], label
        boxes, scores, labels = box_ops.suppress(*candidates, self.nms_threshold, self.options.max_detections)
        if self.votes and self.options.vote:
            boxes = box_ops.vote(boxes, labels, *candidates, self.options.vote)
        return {"boxes": boxes, "labels": labels, "scores": scores}
