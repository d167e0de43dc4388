"""A leukocyte cut out of its picture by its own colour: which pixels are the cell's."""

from __future__ import annotations

import cv2
import numpy as np

from . import stain

WORKING_SIDE = 180  # pixels that a picture's longer side is brought to while a cell is looked for
ROUNDS = 4  # of GrabCut
AGREEMENT = 0.9  # IoU of the two ways of looking, below which an outline is uncertain
LEAST_RED = 0.15  # density of a nucleus in the red channel
REACH = 60  # grey values that a distance of the nucleus' radius counts for, beside its colour


def cell_mask(image: np.ndarray) -> np.ndarray | None:
    """The leukocyte in the middle of a crop, [H, W] bool; None where its outline cannot be told with certainty.

    The nucleus is what takes most red light away (Otsu's threshold; red cells take hardly any). The rest of the cell is
    found around it by GrabCut (Rother et al. 2004), once by colour and once by hue and distance, which must agree.

    Args:
        image: [H, W, 3] uint8 RGB, the cell near its middle and background on all sides.
    """
    height, width = image.shape[:2]
    scale = min(WORKING_SIDE / max(height, width), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (0, 0), 1)
    nucleus = _nucleus(small)
    if nucleus is None:
        return None
    hull = np.zeros(nucleus.shape, dtype=np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.argwhere(nucleus)[:, ::-1].astype(np.int32)), 1)
    by_hue, by_colour = (_whole(f, nucleus, hull > 0) for f in (_hue_and_distance(small, hull), small))
    if (by_hue & by_colour).sum() < AGREEMENT * (by_hue | by_colour).sum() or _touches_border(by_hue):
        return None
    level = cv2.resize(by_hue.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(level, (0, 0), 0.5 / scale) > 0.5


def box_of(mask: np.ndarray) -> np.ndarray:
    """The box [4] float32 xyxy around a mask [H, W] bool that holds something."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + w, y + h], dtype=np.float32)


def _touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def _nucleus(image: np.ndarray) -> np.ndarray | None:
    """The nucleus' lobes [H, W] bool: dark in red, large, and near the middle of the picture."""
    height, width = image.shape[:2]
    red = stain.to_density(image[:, :, 0], stain.bare_slide(image)[0])
    level = np.clip(red / 1.5 * 255, 0, 255).astype(np.uint8)
    cut, dark = cv2.threshold(level, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, centres = cv2.connectedComponentsWithStats(dark)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if cut / 255 * 1.5 < LEAST_RED or not (areas > 0.003 * width * height).any():
        return None
    distance = np.hypot(*(centres[1:] - np.array([width, height]) / 2).T)
    first = 1 + int((areas * np.exp(-((distance / (0.25 * min(width, height))) ** 2))).argmax())
    near = cv2.distanceTransform((parts != first).astype(np.uint8), cv2.DIST_L2, 5)
    lobes = [
        i
        for i in range(1, count)
        if areas[i - 1] > 0.05 * areas[first - 1]
        and red[parts == i].mean() > 0.65 * red[parts == first].mean()  # red cells are paler
        and near[parts == i].min() < 0.5 * np.sqrt(areas[first - 1])
    ]
    return np.isin(parts, lobes)


def _hue_and_distance(image: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: Lab's a and b, spread out, and the distance from the nucleus' middle."""
    hue = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[:, :, 1:].astype(np.float32) - 128) * 4 + 128
    height, width = hull.shape
    moments = cv2.moments(hull, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    away = np.hypot(np.arange(width) - x, np.arange(height)[:, None] - y) / np.sqrt(moments["m00"] / np.pi) * REACH
    return np.clip(np.dstack([hue, away]), 0, 255).astype(np.uint8)


def _whole(features: np.ndarray, nucleus: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Nucleus and cytoplasm [H, W] bool, by what the pixels' features [H, W, 3] uint8 have in common."""
    away = cv2.distanceTransform((~nucleus).astype(np.uint8), cv2.DIST_L2, 5)
    radius = np.sqrt(nucleus.sum() / np.pi)
    labels = np.full(nucleus.shape, cv2.GC_BGD, dtype=np.uint8)
    labels[away < 1.1 * radius] = cv2.GC_PR_BGD
    labels[away < 0.35 * radius] = cv2.GC_PR_FGD
    labels[hull] = cv2.GC_FGD
    if np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():  # GrabCut needs some of each
        cv2.setRNGSeed(0)  # of this thread: GrabCut begins at random, and must give the same in any order of calls
        cv2.grabCut(features, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(round(0.18 * radius), 1) + 1,) * 2)
    inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, kernel) | nucleus.astype(np.uint8)
    inside = cv2.morphologyEx(inside, cv2.MORPH_CLOSE, kernel)
    _, parts = cv2.connectedComponents(inside)
    main = np.bincount(parts[nucleus]).argmax()
    outline, _ = cv2.findContours((parts == main).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(inside)
    cv2.drawContours(filled, outline, -1, 1, cv2.FILLED)
    return filled.astype(bool)
