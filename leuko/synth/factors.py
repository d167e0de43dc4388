"""The nine interference factors (Li et al. 2022), applied to an image of a smear at a severity of 1 to 5.

Six concern an image: stain by an alkaline or an acid buffer, dye residue, cell debris, dust, defocus. Three concern a
cell: others overlap it, the border cuts it, it is small. What lies on a slide absorbs light (see ``stain``), so it
darkens what is below it instead of hiding it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .. import cells
from . import stain
from .canvas import Plane, arc, lay, outline, rotated, tinted
from .leukocytes import LACE, VIOLET
from .render import RED_CELL, default_red_cell, red_cell

SEVERITIES = range(1, 6)
# Values for severity 1 to 5:
OVERSTAINED_PH = (6.85, 6.95, 7.05, 7.2, 7.35)
UNDERSTAINED_PH = (6.35, 6.25, 6.12, 5.98, 5.8)
DEFOCUS = (0.035, 0.06, 0.09, 0.13, 0.18)  # radius of the disc that a point becomes, in red cell diameters
SHRINK = (0.85, 0.75, 0.66, 0.58, 0.5)  # scale of a small cell
VISIBLE = (0.50, 0.44, 0.38, 0.31, 0.25)  # share of an incomplete cell's box
MIN_VISIBLE = 0.1  # share of any other cell that is cut as well, below which it is dropped
BOX_PER_RED_CELL = 1.8  # size of a leukocyte's box, in red cell diameters
LENS = 2.6  # radius around a shrunk cell within which its surroundings are stretched, in radii of the cell


@dataclass(frozen=True)
class FactorResult:
    """An image with a factor.

    ``image`` [H, W, 3] uint8 RGB; ``boxes`` [M, 4] float32 xyxy of the cells that are left; ``kept`` [M], their indices
    among the given cells; ``marked`` [M] bool, the cells that the factor concerns (none for a factor of the image).
    """

    image: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray
    marked: np.ndarray


def apply_factor(
    name: str, rng: Generator, image: np.ndarray, boxes: np.ndarray, severity: int, crowd: np.ndarray | None = None
) -> FactorResult:
    """Apply a factor (one of ``leuko.cells.FACTORS``) to an image [H, W, 3] uint8 RGB with leukocytes.

    ``overlap`` and ``small_cell`` apply to every cell, ``incomplete`` to one, because the image is cut there (and
    becomes smaller). ``boxes`` are [N, 4] xyxy in pixels; where ``crowd`` [N] bool is true, a box is around many cells:
    it moves with the image, and no factor applies to it. Raises KeyError for an unknown factor.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    is_cell = np.ones(len(boxes), dtype=bool) if crowd is None else ~crowd
    scale = default_red_cell(image.shape[1], image.shape[0])
    if is_cell.any():
        scale = float(np.median(np.sqrt((boxes[is_cell, 2:] - boxes[is_cell, :2]).prod(1)))) / BOX_PER_RED_CELL
    if name in _CELL_FACTORS and is_cell.any():
        return _CELL_FACTORS[name](rng, image, boxes, is_cell, severity, scale)
    if name not in _CELL_FACTORS:
        image = _IMAGE_FACTORS[name](rng, image, severity, scale)
    return FactorResult(image, boxes, np.arange(len(boxes)), np.zeros(len(boxes), dtype=bool))


# ---------------------------------------------------------------- of the image; ``scale``: red cell diameter, pixels


def overstained(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """An alkaline buffer: the basic dyes bind more, eosin less."""
    return stain.restain(image, np.diag(stain.uptake(OVERSTAINED_PH[severity - 1])))


def understained(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """An acid buffer and too much rinsing: pale nuclei, a reddish smear."""
    amounts = stain.uptake(UNDERSTAINED_PH[severity - 1])
    amounts[0] = amounts[0] ** 0.3  # most of the additional eosin is rinsed out again
    return stain.restain(image, np.diag(amounts))


def dye_residue(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Precipitated dye: clusters of round violet-black grains, in focus, on cells and between them."""
    height, width = image.shape[:2]
    clusters = rng.uniform([0, 0], [width, height], (_number(rng, image, scale, 0.012 * severity), 2))
    grains = []
    for cluster in clusters:
        n = int(rng.integers(3, 10 + 12 * severity))
        grains.append(cluster + scale * rng.uniform(0.15, 0.2 + 0.12 * severity) * rng.normal(0, 1, (n, 2)))
    grains = np.concatenate(grains)
    radii = scale * 0.022 * np.exp(rng.normal(0.1 * severity, 0.35, len(grains)))
    levels = np.floor(255 * rng.uniform(0.5, 1, len(grains))) / 255
    mask = Plane(image.shape[:2]).discs(grains, np.maximum(radii, 0.6), levels)
    return _absorb(image, stain.mix(tinted(mask, VIOLET * rng.uniform(1.0, 1.5))))


def cell_debris(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Smudged nuclei without a border, and fragments of nuclei, stained like nuclei but paler."""
    height, width = shape = image.shape[:2]
    plane, smudges = Plane(shape), np.zeros(shape, dtype=np.float32)
    for _ in range(_number(rng, image, scale, 0.006 * severity)):
        points = outline(rng, scale * rng.uniform(0.35, 0.85), rng.uniform(0.25, 0.5), rng.uniform(1.0, 2.2))
        smudge = plane.fill(points + rng.uniform([0, 0], [width, height]))
        smudge = cv2.GaussianBlur(smudge, (0, 0), scale * rng.uniform(0.05, 0.12))
        smudges = np.maximum(smudges, smudge * rng.uniform(0.3, 0.75))
    lumps = rng.standard_normal([int(side / (0.16 * scale)) + 2 for side in shape], dtype=np.float32)
    smudges *= 1 + 0.35 * (1.3 * cv2.resize(lumps, (width, height), interpolation=cv2.INTER_CUBIC))
    fragments = np.zeros_like(smudges)
    for place in rng.uniform([0, 0], [width, height], (_number(rng, image, scale, 0.02 * severity), 2)):
        points = outline(rng, scale * rng.uniform(0.05, 0.16), 0.25, rng.uniform(1, 1.8)) + place
        fragments = np.maximum(fragments, plane.fill(points) * rng.uniform(0.4, 0.9))
    fragments = cv2.GaussianBlur(fragments, (0, 0), max(0.02 * scale, 0.5))
    return _absorb(image, stain.mix(tinted(np.maximum(smudges, fragments).clip(0), LACE)))


def dust(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Specks and fibres on the glass, grey and out of focus."""
    height, width = shape = image.shape[:2]
    plane, grey = Plane(shape), np.zeros(shape, dtype=np.float32)
    for i in range(_number(rng, image, scale, 0.012 * severity)):
        place = rng.uniform([0, 0], [width, height])
        if i % 3 == 0:
            bend = arc(1, rng.uniform(0, 6.28), rng.uniform(0.6, 2.8)) * [1, rng.uniform(0.3, 1)]
            fibre = rotated(bend - bend.mean(0), rng.uniform(0, 6.28)) * scale * rng.uniform(0.8, 0.9 + 0.45 * severity)
            mask = plane.stroke(fibre + place, scale * rng.uniform(0.03, 0.08))
        else:
            speck = outline(rng, scale * rng.uniform(0.05, 0.12 + 0.035 * severity), 0.3, rng.uniform(1, 1.8))
            mask = plane.fill(speck + place)
        mask = cv2.GaussianBlur(mask, (0, 0), max(scale * rng.uniform(0.015, 0.06), 0.5))
        grey = np.maximum(grey, mask * rng.uniform(0.5, 1.3))
    return _absorb(image, grey[:, :, None] * np.float32([1.0, 1.05, 1.15]))


def defocus(rng: Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Out of focus: every point becomes a disc."""
    return out_of_focus(image, DEFOCUS[severity - 1] * scale)


def out_of_focus(image: np.ndarray, radius: float) -> np.ndarray:
    """An image [H, W, 3] uint8 in which every point has become a disc of ``radius`` pixels."""
    fine = 8  # the disc is drawn larger and then reduced, because the radius is not an integer
    reach = int(np.ceil(radius))
    side = (2 * reach + 1) * fine
    disc = np.zeros((side, side), dtype=np.uint8)
    cv2.circle(disc, (side // 2, side // 2), round(radius * fine), 255, -1, cv2.LINE_AA)
    kernel = cv2.resize(disc.astype(np.float32), (2 * reach + 1,) * 2, interpolation=cv2.INTER_AREA)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


# ---------------------------------------------------------------- of cells; ``is_cell`` [N] bool: False for crowds


def overlap(
    rng: Generator, image: np.ndarray, boxes: np.ndarray, is_cell: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """Red cells lie on the edge of each leukocyte; their number is the severity."""
    slide = np.zeros(image.shape[:2], dtype=np.float32)
    for x0, y0, x1, y1 in boxes[is_cell]:
        angles = rng.uniform(0, 2 * np.pi) + (np.arange(severity) + rng.uniform(-0.2, 0.2, severity)) * 2 * np.pi / 5
        for angle in angles:
            distance = rng.uniform(0.75, 1.0)
            x = (x0 + x1) / 2 + distance * (x1 - x0) / 2 * np.cos(angle)
            y = (y0 + y1) / 2 + distance * (y1 - y0) / 2 * np.sin(angle)
            lay(slide, red_cell(rng, scale / 2 * rng.uniform(0.9, 1.1), rng.uniform(0.1, 0.5)), x, y, hide=0.3)
    # As dense as this image's red cells, the median of what is neither empty slide nor nucleus.
    density = stain.to_density(image[::2, ::2], stain.bare_slide(image)).reshape(-1, 3)
    stained = density[(density[:, 1] > 0.12) & (density[:, 1] < 0.8)]
    tint = np.median(stained, axis=0) if len(stained) else stain.mix(RED_CELL * 2)
    return FactorResult(_absorb(image, slide[:, :, None] * tint), boxes, np.arange(len(boxes)), is_cell)


def incomplete(
    rng: Generator, image: np.ndarray, boxes: np.ndarray, is_cell: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """The image is cut through one cell, of which 50 (severity 1) to 25 % stay visible; the boxes are clipped.

    The cell is chosen at random. Of the cuts from its four sides, that one is made which leaves the fewest slivers of
    other cells and, among equals, the largest image.
    """
    height, width = image.shape[:2]
    cells = np.flatnonzero(is_cell)
    x0, y0, x1, y1 = boxes[cells[int(rng.integers(len(cells)))]]
    hidden = 1 - VISIBLE[severity - 1]
    right, down = round(x0 + hidden * (x1 - x0)), round(y0 + hidden * (y1 - y0))
    left, up = round(x1 - hidden * (x1 - x0)), round(y1 - hidden * (y1 - y0))
    windows = np.array([(right, 0, width, height), (0, 0, left, height), (0, down, width, height), (0, 0, width, up)])
    inside = np.minimum(boxes[:, None, 2:], windows[:, 2:]) - np.maximum(boxes[:, None, :2], windows[:, :2])
    visible = inside.clip(0).prod(2) / (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]  # [N, 4]
    slivers = ((visible > 0) & (visible < VISIBLE[-1] - 0.05))[is_cell].sum(0)
    best = np.lexsort([-(windows[:, 2:] - windows[:, :2]).prod(1), slivers])[0]
    window, share = windows[best], visible[:, best]
    kept = np.flatnonzero(share >= MIN_VISIBLE)
    low, high = (np.tile(corner, 2).astype(np.float32) for corner in (window[:2], window[2:]))
    clipped = np.clip(boxes[kept], low, high) - low
    image = np.ascontiguousarray(image[window[1] : window[3], window[0] : window[2]])
    return FactorResult(image, clipped, kept, (share[kept] < 0.99) & is_cell[kept])


def small_cell(
    rng: Generator, image: np.ndarray, boxes: np.ndarray, is_cell: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """Each cell shrinks about its centre, and its surroundings are stretched to meet it."""
    for i in np.flatnonzero(is_cell):
        image, boxes = _shrink(image, boxes, i, SHRINK[severity - 1])
    return FactorResult(image, boxes, np.arange(len(boxes)), is_cell)


def _shrink(image: np.ndarray, boxes: np.ndarray, cell: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale the ellipse around one box (radius 1) by ``factor`` and stretch the ring between it and radius ``LENS``."""
    centre = (boxes[cell, :2] + boxes[cell, 2:]) / 2
    axes = (boxes[cell, 2:] - boxes[cell, :2]) / 2 * np.float32(np.sqrt(2))
    height, width = image.shape[:2]
    low = np.maximum(np.floor(centre - LENS * axes), 0).astype(int)
    high = np.minimum(np.ceil(centre + LENS * axes), [width, height]).astype(int)
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5 - centre[0], np.arange(low[1], high[1]) + 0.5 - centre[1])
    radius = np.hypot(x / axes[0], y / axes[1])
    stretch = (LENS - 1) / (LENS - factor)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(radius < LENS, (1 + (radius - factor) * stretch) / radius, 1)  # old radius / new radius
    ratio = np.where(radius <= factor, 1 / factor, ratio)
    source = [(d * ratio + c - 0.5).astype(np.float32) for d, c in zip((x, y), centre, strict=True)]
    blurred = cv2.GaussianBlur(image, (0, 0), 0.5)  # against aliasing
    image = image.copy()
    image[low[1] : high[1], low[0] : high[0]] = cv2.remap(
        blurred, *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    t, none = np.linspace(0, 1, 33), np.zeros(33)
    edge = np.concatenate([np.stack(xy, 1) for xy in ((t, none), (t, none + 1), (none, t), (none + 1, t))])
    points = (boxes[:, None, :2] + edge * (boxes[:, None, 2:] - boxes[:, None, :2]) - centre) / axes  # [N, 132, 2]
    old = np.hypot(points[..., 0], points[..., 1])
    new = np.where(old <= 1, old * factor, np.where(old < LENS, factor + (old - 1) / stretch, old))
    points = points * (new / np.maximum(old, 1e-6))[..., None] * axes + centre
    boxes = np.hstack([points.min(1), points.max(1)]).clip(0, [width, height] * 2)
    return image, boxes.astype(np.float32)


# ---------------------------------------------------------------- helpers


def _number(rng: Generator, image: np.ndarray, scale: float, density: float) -> int:
    """A random number of objects, at least 1: ``density`` per square of a red cell's diameter on average."""
    return max(1, int(rng.poisson(density * image.shape[0] * image.shape[1] / scale**2)))


def _absorb(image: np.ndarray, density: np.ndarray) -> np.ndarray:
    """The image [H, W, 3] uint8 after its light has passed a further ``density`` [H, W, 3]."""
    return (image * np.exp(-density) + 0.5).astype(np.uint8)


_IMAGE_FACTORS = {f.__name__: f for f in (overstained, understained, dye_residue, cell_debris, dust, defocus)}
_CELL_FACTORS = {f.__name__: f for f in (overlap, incomplete, small_cell)}
assert (tuple(_IMAGE_FACTORS), tuple(_CELL_FACTORS)) == (cells.IMAGE_FACTORS, cells.CELL_FACTORS)
