"""Non-maximum suppression (NMS), and box voting by the boxes that it drops.

Letters: N images, R boxes of each, padded as :mod:`leuko.ops.padded` says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from .boxes import has_area, iou
from .padded import MANY, best_first

AT_ONCE = 20_000  # boxes that one call compares on a GPU, all with all: 50 MB of bits


Padded = tuple[Tensor, Tensor, Tensor]  # boxes [N, R, 4], scores [N, R], groups [N, R]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, limit: int) -> Padded:
    """NMS within each group (a class or a pyramid level) of each image; at most ``limit`` boxes per image remain.

    Boxes [N, R, 4], scores [N, R], groups [N, R] -> the same three of the D boxes that remain, in descending order of
    score; padding has boxes of zeros and scores of -1.
    """
    scores = torch.where(has_area(boxes), scores.float(), -1.0)
    boxes, scores, groups = best_first(boxes.float(), scores, groups)
    on_device = _kept_on_cpu if boxes.device.type == "cpu" else _kept
    kept = (_kept_in_onnx if torch.jit.is_tracing() else on_device)(boxes, scores, groups, threshold)
    scores = torch.where(kept & (scores >= 0), scores, -1.0)
    boxes, scores, groups = best_first(boxes, scores, groups, limit)
    return torch.where((scores >= 0)[..., None], boxes, 0.0), scores, groups


def _kept(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which boxes remain, [N, R] bool: one NMS for several images, which are moved side by side, and the groups one
    below the other, so that none meets another."""
    images = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(groups)
    apart = boxes + (torch.stack([images, groups], dim=2) * (boxes.amax() + 1)).repeat(1, 1, 2)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    step = max(1, AT_ONCE // boxes.shape[1])
    for some, score, keep in zip(apart.split(step), scores.split(step), kept.split(step), strict=True):
        keep.view(-1)[ops.nms(some.flatten(0, 1), score.flatten(), threshold)] = True
    return kept


def _kept_on_cpu(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The same, where comparing few boxes counts for more than few calls."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for keep, box, score, group, number in zip(kept, boxes, scores, groups, (scores >= 0).sum(1).tolist(), strict=True):
        keep[ops.batched_nms(box[:number], score[:number], group[:number], threshold)] = True
    return kept


def _kept_in_onnx(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The same in a graph that is exported, by ONNX's operator, for which the groups are moved apart."""
    apart = boxes + (groups * (boxes.amax() + 1))[..., None]
    image, _, row = _NonMaxSuppression.apply(apart, scores[:, None], threshold).unbind(1)
    return torch.zeros_like(scores).index_put((image, row), torch.ones_like(row, dtype=scores.dtype)) > 0


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator: boxes [N, R, 4], scores [N, 1, R] -> rows (image, 0, box) [P, 3] of what remains."""

    @staticmethod
    def forward(_: object, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        kept = _kept_on_cpu(boxes, scores[:, 0], torch.zeros_like(scores[:, 0]), threshold)
        image, row = torch.nonzero(kept).unbind(1)
        return torch.stack([image, torch.zeros_like(image), row], dim=1)

    @staticmethod
    def symbolic(graph, boxes, scores, threshold: float):
        numbers = torch.tensor([MANY]), torch.tensor([threshold]), torch.tensor([-0.5])  # padding has a score of -1
        constants = (graph.op("Constant", value_t=number) for number in numbers)
        return graph.op("NonMaxSuppression", boxes, scores, *constants)


def box_voting(found: Padded, candidates: Padded, threshold: float) -> Tensor:
    """Box voting (Gidaris and Komodakis 2015, section 4): each box that NMS has kept becomes the mean, weighted by
    score, of all boxes of its group whose IoU with it is ``threshold`` or more, itself included.

    What NMS found among the candidates, (boxes, scores, groups) each -> boxes [N, D, 4].
    """
    (kept, _, kept_groups), (boxes, scores, groups) = found, candidates
    weights = (iou(kept, boxes) >= threshold) & (kept_groups[:, :, None] == groups[:, None])  # [N, D, R]
    weights = weights * scores.clamp(min=0)[:, None]
    total = weights.sum(2)[..., None]  # [N, D, 1]
    mean = (weights[..., None] * boxes[:, None]).sum(2) / total  # no matrix product: autocast would round it
    return torch.where(total > 0, mean, kept)  # the IoU of a box of almost no area is 0, even with itself
