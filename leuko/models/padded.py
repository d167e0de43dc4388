"""Detections as tensors of fixed shapes, without a branch that depends on data: the form that can be exported.

Letters: N images, R points or RoIs, P proposals and V candidates of an image, D the most detections, K classes. What is
no candidate has score 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from ..ops import boxes as box_ops
from .base import DetectionModel
from .cascade_rcnn import CascadeRCNN
from .dense import OneStage, flatten_hw
from .double_head_rcnn import DoubleHeadRCNN
from .faster_rcnn import FasterRCNN
from .grid_rcnn import SIZE as GRID_SIZE
from .grid_rcnn import GridRCNN, boxes_from_heat
from .roi_heads import RoIs, TwoStage, pool

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


def detect_padded(model: DetectionModel, pyramid: list[Tensor], sizes: Tensor) -> Padded:
    """What ``model.detect`` finds: boxes [N, D, 4], scores [N, D] in descending order, labels [N, D], and the number of
    each image's detections [N]. ``sizes`` [N, 2] are (height, width)."""
    if isinstance(model, OneStage):
        return _best_of(model, *_of_points(model, pyramid, sizes))
    boxes, there = _proposals(model, pyramid, sizes)
    image, place = torch.nonzero(there).unbind(1)
    rois, sizes_of = RoIs(image, boxes[image, place]), sizes[image]
    if isinstance(model, CascadeRCNN):
        logits = []
        for head, criterion in zip(model.heads, model.criteria, strict=True):
            cls_logits, deltas = head(pyramid, rois)
            moved = criterion.coder.decode(rois.boxes, deltas[:, 0])
            rois = RoIs(image, clip(moved[:, None], sizes_of)[:, 0])
            logits.append(cls_logits)
        probabilities, boxes = (sum(logits) / len(logits)).softmax(1), rois.boxes[:, None]
    elif isinstance(model, FasterRCNN):
        cls_logits, deltas = model.head(pyramid, rois)
        probabilities, boxes = cls_logits.softmax(1), model.criterion.coder.decode(rois.boxes, deltas)
    elif isinstance(model, DoubleHeadRCNN):
        probabilities = model.head(pyramid, rois).softmax(1)
        above = torch.nonzero((probabilities[:, :-1] > model.score_threshold).any(1)).flatten()
        image, place, sizes_of = image[above], place[above], sizes_of[above]
        rois, probabilities = RoIs(image, rois.boxes[above]), probabilities[above]
        boxes = model.criterion.coder.decode(rois.boxes, model.box_head(pyramid, rois))
    else:
        probabilities, boxes = model.head(pyramid, rois).softmax(1), rois.boxes[:, None]
    scores = probabilities[:, :-1]
    scores = torch.where(scores > model.score_threshold, scores, torch.zeros_like(scores))  # [R, K]
    boxes = clip(boxes, sizes_of).expand(-1, model.num_classes, -1)  # [R, K, 4]
    all_scores = scores.new_zeros(*there.shape, model.num_classes).index_put((image, place), scores)
    all_boxes = boxes.new_zeros(*there.shape, model.num_classes, 4).index_put((image, place), boxes)
    labels = torch.arange(model.num_classes).expand_as(all_scores).flatten(1)
    found = _best_of(model, all_boxes.flatten(1, 2), all_scores.flatten(1), labels)
    return _located(model, pyramid, sizes, *found) if isinstance(model, GridRCNN) else found


def _best_of(model: DetectionModel, boxes: Tensor, scores: Tensor, labels: Tensor) -> Padded:
    """NMS of an image's candidates [N, V], and box voting if the model has it."""
    kept, index = best(suppressed(boxes, scores, labels, model.nms_threshold), model.max_detections)
    chosen, groups = of_rows(boxes, index), labels.gather(1, index)
    if getattr(model, "box_voting", False) and model.options.vote:
        same = (box_ops.iou(chosen, boxes) >= model.options.vote) & (groups[:, :, None] == labels[:, None])
        weights = same * scores[:, None]  # [N, D, V]
        total = weights.sum(2, keepdim=True)
        chosen = torch.where(total > 0, (weights[..., None] * boxes[:, None]).sum(2) / total, chosen)
    return chosen, kept, groups, (kept > 0).sum(1)


def _of_points(model: OneStage, pyramid: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of a dense head: boxes [N, V, 4], scores and labels [N, V]."""
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
    return tuple(torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))


def _proposals(model: TwoStage, pyramid: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals [N, P, 4] of each image, and which of them there are [N, P]."""
    rpn = model.rpn
    number, proposals = (round(model.crowding * n[1]) for n in (rpn.candidates, rpn.proposals))
    candidates = []
    for level, (anchors, logits, deltas) in enumerate(zip(rpn.anchors(pyramid), *rpn(pyramid), strict=True)):
        score, index = best(logits.sigmoid(), number)
        moved = rpn.criterion.coder.decode(anchors[index].flatten(0, 1), of_rows(deltas, index).flatten(0, 1))
        boxes = clip(moved.reshape(-1, number, 4), sizes)
        candidates.append((boxes, score, torch.full_like(index, level)))
    boxes, scores, levels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
    scores, index = best(suppressed(boxes, scores, levels, rpn.nms_threshold), proposals)
    return of_rows(boxes, index), scores > 0


def _located(
    model: GridRCNN, pyramid: list[Tensor], sizes: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, counts: Tensor
) -> Padded:
    """Detections whose boxes are located by the grid."""
    image, place = torch.nonzero(scores > 0).unbind(1)
    rois = RoIs(image, boxes[image, place])
    logits, _ = model.grid_head(pool(pyramid, rois, GRID_SIZE))
    located = clip(boxes_from_heat(rois.boxes, logits)[:, None], sizes[image])[:, 0]
    return boxes.index_put((image, place), located), scores, labels, counts
