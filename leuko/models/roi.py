"""The second stage: pooling a box's features, heads that class and move it, and what a stage learns from.

A RoI (region of interest) is a proposal or the box that an earlier stage made of it. R is the number of RoIs of the
whole batch, each image's in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import boxes as box_ops
from . import losses
from .assign import IoUAssigner, sample
from .base import Detection, DetectionModel, ModelOptions, Target
from .fpn import FPN
from .preprocess import Preprocess, Size
from .roi_align import roi_align
from .rpn import RPN

ROI_STRIDES = (4, 8, 16, 32)


def pool(pyramid: list[Tensor], boxes: list[Tensor], side: int = 7) -> Tensor:
    """RoIAlign of boxes [R_i, 4] of each image, each box from the level that suits its size (FPN, eq. 1):
    [R, C, side, side]."""
    image = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
    rois = torch.cat(boxes)
    level_of = (box_ops.area(rois).sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(ROI_STRIDES) - 1)
    parts, order = [pyramid[0].new_zeros(0, pyramid[0].shape[1], side, side)], []
    for level, stride in enumerate(ROI_STRIDES):
        here = torch.nonzero(level_of == level).flatten()
        order.append(here)
        if len(here):
            parts.append(roi_align(pyramid[level], image[here], rois[here], stride, side))
    return torch.cat(parts)[torch.cat(order).argsort()]


class TwoFCHead(nn.Module):
    """Two fully-connected layers, then class logits [R, K + 1] (background last) and deltas [R, 1 or K, 4]."""

    def __init__(self, channels: int, hidden: int, num_classes: int, class_agnostic: bool):
        super().__init__()
        self.per_class = {"class_logits": 1} | ({} if class_agnostic else {"deltas": 4})  # rows a class
        self.fc1 = nn.Linear(channels * 7 * 7, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.class_logits = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        for fc in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
        for fc, std in ((self.class_logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(fc.weight, std=std)
            nn.init.zeros_(fc.bias)

    def forward(self, pyramid: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.fc1(pool(pyramid, boxes).flatten(1)))
        hidden = F.relu(self.fc2(hidden))
        return self.class_logits(hidden).float(), self.deltas(hidden).float().unflatten(1, (-1, 4))


@dataclass
class Sampled:
    """The RoIs of one image that a stage learns from, positives first."""

    boxes: Tensor  # [R, 4]
    labels: Tensor  # [R], K for background
    truth: Tensor  # [P, 4] ground truth of the positives
    is_truth: Tensor  # [R] the RoI is a ground-truth box that was added to the proposals


class RoIStage(nn.Module):
    """A head with what it takes to train and read it: IoU assigner, sampler, box coder and box loss."""

    def __init__(
        self,
        head: nn.Module,
        num_classes: int,
        *,
        rois: int,
        iou: float = 0.5,
        std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        beta: float = 0.0,
    ):
        super().__init__()
        self.head, self.num_classes, self.rois, self.beta = head, num_classes, rois, beta
        self.assigner = IoUAssigner(positive=iou, negative=iou, floor=iou)
        self.coder = box_ops.DeltaCoder(std)
        self.positive_fraction = 0.25

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[Target]) -> list[Sampled]:
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
            drawn.append(Sampled(candidates[chosen], labels, target["boxes"][match[positive]], is_truth[chosen]))
        return drawn

    def losses(self, logits: Tensor, deltas: Tensor, drawn: list[Sampled]) -> dict[str, Tensor]:
        """Softmax loss over all RoIs and box loss of the positives, both divided by the number of RoIs."""
        labels = torch.cat([d.labels for d in drawn])
        total = max(len(labels), 1)
        positive = torch.nonzero(labels < self.num_classes).flatten()
        anchor, truth = torch.cat([d.boxes for d in drawn])[positive], torch.cat([d.truth for d in drawn])
        column = labels[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        wanted = self.coder.encode(anchor, truth)
        return {
            "class": F.cross_entropy(logits, labels, reduction="sum") / total,
            "box": losses.smooth_l1(deltas[positive, column], wanted, self.beta) / total,
        }


class TwoStage(DetectionModel):
    """What the R-CNN family shares: an RPN on P2 to P6, then RoI stages; and how its detections are selected."""

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        num_classes: int,
        options: ModelOptions,
        border: int,
        rpn_beta: float,
        proposals: int,
    ):
        super().__init__(preprocess=preprocess, backbone=backbone, fpn=FPN(backbone.channels, options.channels))
        keep = (options.proposals or proposals, options.proposals or 1000)
        self.rpn = RPN(options.channels, border=border, beta=rpn_beta, keep=keep)
        if options.proposals:
            self.rpn.candidates = (2 * options.proposals, 2 * options.proposals)
        self.num_classes, self.options = num_classes, options
        self.nms_threshold = 0.5

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
        """Threshold and class-wise NMS for one image: probabilities [R, K + 1], boxes [R, 1 or K, 4]."""
        roi, label = torch.nonzero(probabilities[:, :-1] > self.options.score_threshold, as_tuple=True)
        column = label if boxes.shape[1] > 1 else torch.zeros_like(label)
        boxes, scores, labels = box_ops.suppress(
            box_ops.clip(boxes[roi, column], size),
            probabilities[roi, label],
            label,
            self.nms_threshold,
            self.options.max_detections,
        )
        return {"boxes": boxes, "labels": labels, "scores": scores}
