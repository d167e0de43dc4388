"""Detections as tensors of fixed shapes, without a branch that depends on data: the form that can be exported.

Letters: N images, R points, V candidates of an image, D the most detections. What is no candidate has score 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from ..ops import boxes as box_ops
from .dense import OneStage, flatten_hw

Padded = tuple[Tensor, Tensor, Tensor, Tensor]


class KeptByNMS(torch.autograd.Function):
    """NMS for each image of boxes [N, V, 4] with scores [N, 1, V], of which those above 0 take part: rows (image, 0,
    candidate) [P, 3] of what is kept. In an exported graph it is ONNX's operator."""

    @staticmethod
    def forward(_: object, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        rows = []
        for i, (of_image, score) in enumerate(zip(boxes, scores[:, 0], strict=True)):
            taking_part = torch.nonzero(score > 0).flatten()
            kept = taking_part[ops.nms(of_image[taking_part], score[taking_part], threshold)]
            rows.append(F.pad(kept[:, None], (2, 0)).index_fill(1, torch.tensor([0]), i))
        return torch.cat(rows)

    @staticmethod
    def symbolic(graph, boxes, scores, threshold: float):
        constants = (
            graph.op("Constant", value_t=torch.tensor([value]))
            for value in (torch.iinfo(torch.int32).max, threshold, 0.0)
        )
        return graph.op("NonMaxSuppression", boxes, scores, *constants)


def best(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The best of scores [N, V] in descending order, and where they are: [N, number] each, filled up with 0."""
    scores, index = F.pad(scores, (0, number)).topk(number)
    return scores, torch.where(scores > 0, index, torch.zeros_like(index))


def of_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [N, D] of values [N, V, C]: [N, D, C]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [N, R, 4] within images of sizes [N, 2] (height, width)."""
    return torch.minimum(boxes.clamp(min=0), sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype))


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Scores [N, V] after NMS of boxes [N, V, 4] within each group [N, V]: 0 for what is not kept."""
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(2)
    scores = torch.where(has_area, scores, torch.zeros_like(scores))
    apart = boxes + (groups * (boxes.amax() + 1))[..., None]
    image, _, candidate = KeptByNMS.apply(apart, scores[:, None], threshold).unbind(1)
    kept = torch.zeros_like(scores).index_put((image, candidate), torch.ones_like(image, dtype=scores.dtype))
    return scores * kept


def detect_padded(model: OneStage, pyramid: list[Tensor], sizes: Tensor) -> Padded:
    """What ``model.detect`` finds: boxes [N, D, 4], scores [N, D] in descending order, labels [N, D], and the number of
    each image's detections [N]."""
    candidates = []
    number = round(model.crowding * model.candidates)
    for level, (feature, points) in enumerate(zip(pyramid, model.points(pyramid), strict=True)):
        logits, classes = model.head.classify(feature)
        distances, *centerness = (flatten_hw(o) for o in model.head.regress(feature, classes, level))
        scores = flatten_hw(logits).sigmoid()  # [N, R, K]
        above = torch.where(scores > model.score_threshold, scores, torch.zeros_like(scores))
        score, index = best(above.flatten(1), number)
        point, label = index // model.num_classes, index % model.num_classes
        boxes = clip(box_ops.distances_to_box(points[point], of_rows(distances, point)), sizes)
        for quality in centerness:
            score = score * of_rows(quality.sigmoid(), point)[..., 0]
        candidates.append((boxes, score, label))
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
    scores, index = best(suppressed(boxes, scores, labels, model.nms_threshold), model.max_detections)
    return of_rows(boxes, index), scores, labels.gather(1, index), (scores > 0).sum(1)
