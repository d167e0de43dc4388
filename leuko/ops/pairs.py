"""Which boxes of a field overlap, without a table of all with all: a wide field has more than fit into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 512  # boxes at once


def box_iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU of every box of ``a`` [N, 4] with every box of ``b`` [M, 4], numpy arrays: [N, M] float64 in 0..1.

    For a ``crowd`` box ([M] bool) it is the share of the area of ``a`` that lies inside it, as in COCO. Boxes without
    area have IoU 0 with everything.
    """
    a = np.asarray(a, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(b, dtype=np.float64).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # [N, M, 2]
    common = sides.clip(min=0).prod(-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b))  # [N, 1], [1, M]
    whole = area_a + area_b - common
    if crowd is not None:
        whole = np.where(crowd, area_a, whole)
    return np.divide(common, whole, out=np.zeros_like(common), where=common > 0)


def overlapping_pairs(
    boxes: np.ndarray, least: float, overlap: Callable[[np.ndarray, np.ndarray], np.ndarray] = box_iou
) -> np.ndarray:
    """The pairs of boxes [N, 4] xyxy whose ``overlap`` is more than ``least``: [P, 2] int64 indices, the smaller first,
    in ascending order. ``overlap`` takes boxes [A, 4] and [B, 4], gives [A, B], and is 0 for boxes that do not meet."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(boxes[:, 0], kind="stable")
    left = boxes[order, 0]
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, len(boxes), BLOCK):
        rows = order[start : start + BLOCK]
        others = order[start : np.searchsorted(left, boxes[rows, 2].max())]  # all that begin before these end
        a, b = np.nonzero(overlap(boxes[rows], boxes[others]) > least)
        once = a < b
        found.append(np.stack([rows[a[once]], others[b[once]]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def firsts(pairs: np.ndarray, number: int) -> np.ndarray:
    """Which of ``number`` things, the best first, remain where of each of the ``pairs`` (as :func:`overlapping_pairs`
    gives them) the first removes the second, unless it is itself removed: [number] bool."""
    stays = np.ones(number, bool)
    for better, worse in pairs.tolist():
        if stays[better]:
            stays[worse] = False
    return stays


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, least: float) -> np.ndarray:
    """Indices of the boxes [N, 4] that no better one of their label overlaps by an IoU of more than ``least``, the best
    first: what ``torchvision.ops.batched_nms`` does, without torch."""
    order = np.argsort(-scores, kind="stable")
    pairs = overlapping_pairs(boxes[order], least)
    alike = labels[order][pairs[:, 0]] == labels[order][pairs[:, 1]]
    return order[firsts(pairs[alike], len(order))]


def box_sides(boxes: np.ndarray) -> np.ndarray:
    """How large boxes [N, 4] are: the side [N] of the square of the same area."""
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))


def share_of_smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of the smaller of two boxes that lies in the other: boxes [A, 4], [B, 4] -> [A, B] in 0..1."""
    inside = box_iou(a, b, np.ones(len(b), bool)), box_iou(b, a, np.ones(len(a), bool)).T
    return np.maximum(*inside)
