"""Batches whose images have different numbers of boxes: padded to the image with most, so that one operator does the
work of all images.

Letters: N images, R rows of each. Boxes without area and scores below 0 are padding: they match nothing, and nothing
is found there.
"""

from __future__ import annotations

from torch import Tensor


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [N, D] of ``values`` [N, R, ...]: [N, D, ...]."""
    index = index.reshape(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def most(counts: Tensor) -> int | list[int]:
    """The largest of each row of ``counts`` [..., N]; it waits for a GPU."""
    return counts.amax(-1).tolist()


def best_first(
    boxes: Tensor, scores: Tensor, groups: Tensor, limit: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, R, 4], scores [N, R] and groups [N, R] in descending order of score, cut to the number of the image
    with most of them (but at least 1), and to ``limit``."""
    length = max(1, most((scores >= 0).sum(1)))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :length][:, :limit], order[:, :length][:, :limit]
    return take(boxes, order), scores, take(groups, order)
