"""IoU of boxes in numpy, which counting, matching and use without torch need."""

from __future__ import annotations

import numpy as np


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
