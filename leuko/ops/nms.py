"""Non-maximum suppression (NMS), and box voting by the boxes that it drops."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from .boxes import iou


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS within each group (a class or a pyramid level); at most ``max_detections`` boxes remain.

    Boxes [R, 4], scores [R], groups [R] -> the same three of the boxes that remain, in descending order of score.
    Boxes without area are dropped first.
    """
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, groups = boxes[has_area], scores[has_area], groups[has_area]
    keep = ops.batched_nms(boxes.float(), scores.float(), groups, threshold)[:max_detections]
    return boxes[keep], scores[keep], groups[keep]


def box_voting(
    kept: Tensor, groups: Tensor, boxes: Tensor, scores: Tensor, box_groups: Tensor, threshold: float
) -> Tensor:
    """Box voting (Gidaris and Komodakis 2015, section 4): each box that NMS has kept becomes the mean, weighted by
    score, of all boxes of its group whose IoU with it is ``threshold`` or more, itself included.

    kept [R, 4] of groups [R]; the input of NMS: boxes [V, 4], scores [V] above 0, box_groups [V] -> boxes [R, 4].
    """
    weights = (iou(kept, boxes) >= threshold) * (groups[:, None] == box_groups) * scores  # [R, V]
    total = weights.sum(1)[:, None]  # [R, 1]
    mean = (weights[:, :, None] * boxes).sum(1) / total  # no matrix product: autocast would round it to half precision
    return torch.where(total > 0, mean, kept)  # the IoU of a box of almost no area is 0, even with itself
