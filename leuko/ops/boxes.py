"""Boxes as tensors: their geometry, what a network predicts of them, batches of them, and which of them are kept.

Boxes are [..., 4] float ``xyxy`` in pixels; sizes are (height, width). Letters: N images, R boxes of each. Images that
have fewer boxes than others are padded, so that one operator does the work of all: boxes without area and scores below
0 are padding; they match nothing, and nothing is found there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

EPS = 1e-6
MANY = 2**31 - 1
AT_ONCE = 20_000  # boxes that one call of NMS compares on a GPU, all with all: 50 MB of bits


class Found(NamedTuple):
    """The detections of a batch, padded, in descending order of score; groups of an NMS stand where labels do."""

    boxes: Tensor  # [N, R, 4]
    scores: Tensor  # [N, R]
    labels: Tensor  # [N, R]


# ---------------------------------------------------------------- geometry


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def has_area(boxes: Tensor) -> Tensor:
    """Whether x0 < x1 and y0 < y1: [..., 4] -> [...] bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of boxes [..., 4] and [..., 4], which broadcast against each other: [...] square pixels."""
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` [..., R, 4] with every box of ``b`` [..., M, 4]: [..., R, M] in 0..1."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes at the same index: [..., 4], [..., 4] -> [...] in 0..1."""
    common = intersection(a, b)
    return common / (area(a) + area(b) - common).clamp(min=EPS)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes at the same index: [..., 4], [..., 4] -> [...] in -1..1."""
    common = intersection(a, b)
    union = (area(a) + area(b) - common).clamp(min=EPS)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = hull.clamp(min=EPS)
    return common / union - (hull - union) / hull


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [N, ..., 4] to images of ``sizes`` [N, 2] (height, width)."""
    corner = sizes.flip(1).repeat(1, 2)  # [N, 4]
    return boxes.clamp(min=0).minimum(corner.reshape(sizes.shape[0], *[1] * (boxes.dim() - 2), 4))


def scaled(boxes: Tensor, factor: float) -> Tensor:
    """Boxes [..., 4] with ``factor`` times their sides, about the same centres."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) * 0.5, (boxes[..., 2:] - boxes[..., :2]) * (0.5 * factor)
    return torch.cat([centre - half, centre + half], dim=-1)


# ---------------------------------------------------------------- points, and boxes relative to points and anchors


def points(feature: Tensor, stride: int, offset: float) -> Tensor:
    """Where a dense head predicts: image coordinates (x, y) of the cells of ``feature`` [..., H, W], [H*W, 2]:
    ``(column + offset) * stride``."""
    y, x = (
        torch.arange(offset * stride, side * stride, stride, device=feature.device, dtype=torch.float32)
        for side in feature.shape[-2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def distances_to_box(points: Tensor, distances: Tensor) -> Tensor:
    """Points [R, 2] (x, y) and their distances [R, 4] to left, top, right, bottom -> boxes [R, 4] (FCOS, eq. 1)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def box_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of :func:`distances_to_box`; negative where a point lies outside its box."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


class DeltaCoder:
    """R-CNN's box encoding: the shift of the centre and the log ratio of the sides, divided by ``std`` (that of the
    shift, that of the ratio).

    When decoding, the log ratio is clamped to ``ln(1000 / 16)`` in both directions, so that no exponential overflows.
    """

    def __init__(self, std: tuple[float, float] = (1.0, 1.0)):
        self.std = std
        self.max_log_ratio = math.log(1000.0 / 16.0)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [..., 4] that transform ``anchors`` [..., 4] into ``boxes`` [..., 4]."""
        anchor_size = anchors[..., 2:] - anchors[..., :2]
        box_size = boxes[..., 2:] - boxes[..., :2]
        shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) * 0.5 / anchor_size
        return torch.cat([shift / self.std[0], (box_size / anchor_size).log() / self.std[1]], dim=-1)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Apply ``deltas`` [..., 4] to ``anchors`` [..., 4], which broadcast: boxes [..., 4]."""
        anchor_size = anchors[..., 2:] - anchors[..., :2]
        centre = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + deltas[..., :2] * self.std[0] * anchor_size
        log_ratio = (deltas[..., 2:] * self.std[1]).clamp(-self.max_log_ratio, self.max_log_ratio)
        half = anchor_size * log_ratio.exp() * 0.5
        return torch.cat([centre - half, centre + half], dim=-1)


# ---------------------------------------------------------------- padded batches


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [N, D] of ``values`` [N, R, ...]: [N, D, ...]."""
    index = index.reshape(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def most(counts: Tensor) -> int | list[int]:
    """The largest of each row of ``counts`` [..., N]; it waits for a GPU. For a graph that is exported, which has the
    same shapes whatever the data, it is as many as there may be."""
    return (counts.new_full(counts.shape[:-1], MANY) if torch.jit.is_tracing() else counts.amax(-1)).tolist()


def top(scores: Tensor, number: int, least: float = -1.0) -> tuple[Tensor, Tensor]:
    """The ``number`` best of scores [N, R], in descending order, and their indices; all, where there are fewer. A graph
    that is exported fills up with ``least`` and index 0."""
    if not torch.jit.is_tracing():
        return scores.topk(min(number, scores.shape[1]))
    rows = scores.shape[1]
    scores, index = F.pad(scores, (0, number), value=least).topk(number)
    return scores, torch.where(index < rows, index, torch.zeros_like(index))


def best_first(boxes: Tensor, scores: Tensor, groups: Tensor, limit: int | None = None) -> Found:
    """Boxes [N, R, 4], scores [N, R] and groups [N, R] in descending order of score, cut to the number of the image
    with most of them (but at least 1), and to ``limit``; for a graph that is exported, cut to the limit alone."""
    if torch.jit.is_tracing():
        if limit is None:
            return Found(boxes, scores, groups)
        scores, order = top(scores, limit)
        return Found(take(boxes, order), scores, take(groups, order))
    length = max(1, most((scores >= 0).sum(1)))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :length][:, :limit], order[:, :length][:, :limit]
    return Found(take(boxes, order), scores, take(groups, order))


# ---------------------------------------------------------------- non-maximum suppression (NMS), and box voting


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, limit: int) -> Found:
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
    return Found(torch.where((scores >= 0)[..., None], boxes, 0.0), scores, groups)


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


def box_voting(found: Found, candidates: Found, threshold: float) -> Tensor:
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
