"""Batches whose images have different numbers of boxes: padded to the image with most, so that one operator does the
work of all images.

Letters: N images, R rows of each. Boxes without area and scores below 0 are padding: they match nothing, and nothing
is found there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 2**31 - 1


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


def best_first(
    boxes: Tensor, scores: Tensor, groups: Tensor, limit: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, R, 4], scores [N, R] and groups [N, R] in descending order of score, cut to the number of the image
    with most of them (but at least 1), and to ``limit``; for a graph that is exported, cut to the limit alone."""
    if torch.jit.is_tracing():
        if limit is None:
            return boxes, scores, groups
        scores, order = top(scores, limit)
        return take(boxes, order), scores, take(groups, order)
    length = max(1, most((scores >= 0).sum(1)))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :length][:, :limit], order[:, :length][:, :limit]
    return take(boxes, order), scores, take(groups, order)
