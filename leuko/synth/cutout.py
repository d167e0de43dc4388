"""Segmentation of the leukocyte in the middle of a crop, by its colour."""

from __future__ import annotations

import cv2
import numpy as np

from . import stain

AGREEMENT = 0.9  # IoU of the two segmentations, below which the outline is uncertain
MIN_RED_DENSITY = 0.15  # of a nucleus
BOX_SIDE = 110  # pixels of a crop's longer side in which its cell is boxed


def cell_mask(image: np.ndarray) -> np.ndarray | None:
    """The leukocyte in the middle of a crop [H, W, 3] uint8 RGB, with background on all sides: [H, W] bool; None if its
    outline is uncertain.

    The nucleus is what absorbs most red light (Otsu's threshold; red cells absorb hardly any). The rest of the cell is
    segmented around it by GrabCut (Rother et al. 2004) twice, by colour and by hue and distance; both must agree.
    """
    height, width = image.shape[:2]
    scale = min(180 / max(height, width), 1)
    small = _reduced(image, scale, 1)
    nucleus = _nucleus(small)
    if nucleus is None:
        return None
    hull = _hull(nucleus)
    by_hue, by_colour = (_grab_cut(f, nucleus, hull > 0) for f in (_hue_and_distance(small, hull), small))
    touches_border = by_hue[[0, -1]].any() or by_hue[:, [0, -1]].any()
    if touches_border or (by_hue & by_colour).sum() < AGREEMENT * (by_hue | by_colour).sum():
        return None
    mask = cv2.resize(by_hue.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(mask, (0, 0), 0.5 / scale) > 0.5


def box_of(mask: np.ndarray) -> np.ndarray:
    """The box [4] float32 xyxy around a mask [H, W] bool that is not empty."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + w, y + h], dtype=np.float32)


def cell_box(image: np.ndarray) -> np.ndarray | None:
    """The box [4] float32 xyxy of the cell in the middle of a crop [H, W, 3] uint8 RGB: around its outline as in
    :func:`cell_mask`, of which nobody asks here whether it is certain; None where there is no nucleus."""
    scale = BOX_SIDE / max(image.shape[:2])
    small = _reduced(image, scale, 0.6)
    nucleus = _nucleus(small)
    if nucleus is None:
        return None
    hull = _hull(nucleus)
    mask = _grab_cut(_hue_and_distance(small, hull), nucleus, hull > 0)
    if mask[[0, -1]].any() or mask[:, [0, -1]].any():  # more than a cell
        mask = cv2.dilate(hull, np.ones((5, 5), np.uint8)) > 0
    return box_of(mask) / np.float32(scale)


def _reduced(image: np.ndarray, scale: float, sigma: float) -> np.ndarray:
    """An image scaled by area and blurred."""
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (0, 0), sigma)


def _hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of a mask [H, W] bool that is not empty: [H, W] uint8, 1 inside."""
    hull = np.zeros(mask.shape, dtype=np.uint8)
    return cv2.fillConvexPoly(hull, cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32)), 1)


def _nucleus(image: np.ndarray) -> np.ndarray | None:
    """The lobes of the nucleus, [H, W] bool: dark in red, large, near the crop's middle; None if there are none."""
    height, width = image.shape[:2]
    red = stain.to_density(image[:, :, 0], stain.bare_slide(image)[0])
    level = np.clip(red / 1.5 * 255, 0, 255).astype(np.uint8)
    threshold, dark = cv2.threshold(level, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, centres = cv2.connectedComponentsWithStats(dark)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if threshold / 255 * 1.5 < MIN_RED_DENSITY or not (areas > 0.003 * width * height).any():
        return None
    distance = np.hypot(*(centres[1:] - np.array([width, height]) / 2).T)
    first = 1 + int((areas * np.exp(-((distance / (0.25 * min(width, height))) ** 2))).argmax())
    from_first = cv2.distanceTransform((parts != first).astype(np.uint8), cv2.DIST_L2, 5)
    lobes = [
        i
        for i in range(1, count)
        if areas[i - 1] > 0.05 * areas[first - 1]
        and red[parts == i].mean() > 0.65 * red[parts == first].mean()  # red cells are paler
        and from_first[parts == i].min() < 0.5 * np.sqrt(areas[first - 1])
    ]
    return np.isin(parts, lobes)


def _hue_and_distance(image: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: a and b of Lab, amplified, and the distance from the centre of the nucleus, whose radius is as
    much as 60 grey values."""
    hue = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[:, :, 1:].astype(np.float32) - 128) * 4 + 128
    height, width = hull.shape
    moments = cv2.moments(hull, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    distance = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y) / np.sqrt(moments["m00"] / np.pi)
    return np.clip(np.dstack([hue, distance * 60]), 0, 255).astype(np.uint8)


def _grab_cut(features: np.ndarray, nucleus: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Nucleus and cytoplasm, [H, W] bool, by the features [H, W, 3] uint8 of the pixels."""
    distance = cv2.distanceTransform((~nucleus).astype(np.uint8), cv2.DIST_L2, 5)
    radius = np.sqrt(nucleus.sum() / np.pi)
    near = [hull, distance < 0.35 * radius, distance < 1.1 * radius]
    labels = np.select(near, [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD).astype(np.uint8)
    if np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():  # GrabCut needs both foreground and background
        cv2.setRNGSeed(0)  # per thread: GrabCut starts at random, and must not depend on the order of calls
        cv2.grabCut(features, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(round(0.18 * radius), 1) + 1,) * 2)
    inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, kernel) | nucleus.astype(np.uint8)
    inside = cv2.morphologyEx(inside, cv2.MORPH_CLOSE, kernel)
    _, parts = cv2.connectedComponents(inside)
    main = np.bincount(parts[nucleus]).argmax()
    contour, _ = cv2.findContours((parts == main).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(inside), contour, -1, 1, cv2.FILLED) > 0
