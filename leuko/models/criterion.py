"""Loss functions that more than one detector uses. None reduces its input: the caller weights, sums and divides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import boxes as box_ops


def focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5) of each logit; logits and 0/1 targets have one shape."""
    probability = logits.sigmoid()
    miss = probability + targets - 2 * probability * targets  # 1 - p where the target is 1, else p
    weight = (1 - alpha + (2 * alpha - 1) * targets) * miss.pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def by_class(targets: Tensor, weights: Sequence[float]) -> Tensor:
    """What a focal loss is multiplied with to weigh classes: ``weights`` [K] where a target [..., K] is 1, else 1."""
    return 1 + targets * (targets.new_tensor(weights) - 1) if weights else torch.ones_like(targets[..., :1])


def log_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """-ln IoU of paired boxes [P, 4]: [P] (Yu et al. 2016)."""
    return -box_ops.paired_iou(predicted, target).clamp(min=box_ops.EPS).log()


def giou(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of paired boxes [P, 4]: [P] in 0..2 (Rezatofighi et al. 2019)."""
    return 1 - box_ops.paired_giou(predicted, target)


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Smooth L1 with its knee at ``beta`` of each number; ``beta`` 0 is plain L1. The shape is kept."""
    if beta == 0:
        return F.l1_loss(predicted, target, reduction="none")
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="none")
