"""The nine interference factors (Li et al. 2022), put on a picture of a smear at a severity of 1 to 5.

Six belong to an image: stain by an alkaline or an acid buffer, residue of dye, debris of cells, dust, defocus. Three
belong to a cell: others overlap it, the border cuts it, it is small. What lies on a slide takes light away (see
``stain``), so that it darkens what is below it instead of hiding it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from . import stain
from .canvas import arc, lay, outline, tinted, turn
from .leukocytes import LACE, VIOLET
from .render import RED_CELL, default_red_cell, red_cell

SEVERITIES = range(1, 6)
OVERSTAINED_PH = (6.85, 6.95, 7.05, 7.2, 7.35)
UNDERSTAINED_PH = (6.35, 6.25, 6.12, 5.98, 5.8)
BLUR = (0.035, 0.06, 0.09, 0.13, 0.18)  # radius of the circle that a point becomes, in red cells
SHRINK = (0.85, 0.75, 0.66, 0.58, 0.5)
VISIBLE = (0.50, 0.44, 0.38, 0.31, 0.25)  # of an incomplete cell's box
LEAST_VISIBLE = 0.1  # of another cell that is cut along with it, below which it has no box any more
SIZE_TO_RED_CELL = 1.8  # a leukocyte's box to a red cell's diameter
LENS = 2.6  # how far around a cell that shrinks the rest is stretched, in radii


@dataclass(frozen=True)
class FactorResult:
    """A picture with a factor on it.

    ``image`` [H, W, 3] uint8 RGB, ``boxes`` [M, 4] xyxy of the cells that are still there, ``kept`` [M] their numbers
    among those given, ``marked`` [M] bool: the cells that the factor is on (none, where it is on the whole image).
    """

    image: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray = field(default=None)  # type: ignore[assignment]
    marked: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        n = len(self.boxes)
        object.__setattr__(self, "kept", np.arange(n) if self.kept is None else self.kept)
        object.__setattr__(self, "marked", np.zeros(n, dtype=bool) if self.marked is None else self.marked)


def put(
    name: str,
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    severity: int,
    crowd: np.ndarray | None = None,
) -> FactorResult:
    """Put a factor on a picture.

    Args:
        name: one of ``IMAGE_FACTORS`` or ``CELL_FACTORS``. ``overlap`` and ``small_cell`` come on every cell,
            ``incomplete`` on one, since the picture is cut there (and becomes smaller).
        rng: where every choice comes from.
        image: [H, W, 3] uint8 RGB.
        boxes: [N, 4] xyxy in pixels, of the leukocytes.
        severity: 1 to 5.
        crowd: [N] bool, the boxes around many cells, which move with the picture and are left alone otherwise.

    Raises:
        KeyError: there is no factor ``name``. ValueError: the severity is none.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is not from 1 to 5")
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    cells = np.arange(len(boxes)) if crowd is None else np.flatnonzero(~crowd)
    scale = red_cell_size(image, boxes[cells])
    if name in IMAGE_FACTORS:
        return FactorResult(IMAGE_FACTORS[name](rng, image, severity, scale), boxes)
    return CELL_FACTORS[name](rng, image, boxes, cells, severity, scale) if len(cells) else FactorResult(image, boxes)


def red_cell_size(image: np.ndarray, boxes: np.ndarray) -> float:
    """A red cell's diameter in pixels, by the leukocytes' boxes or, without any, by what is usual for the size."""
    if not len(boxes):
        return default_red_cell(image.shape[1], image.shape[0])
    return float(np.median(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)))) / SIZE_TO_RED_CELL


# ---------------------------------------------------------------- on the whole image


def overstained(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """An alkaline buffer: the basic dyes bind more, eosin less."""
    return stain.restain(image, np.diag(stain.uptake(OVERSTAINED_PH[severity - 1])))


def understained(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """An acid buffer, rinsed too long: pale nuclei, a reddish smear."""
    amounts = stain.uptake(UNDERSTAINED_PH[severity - 1])
    amounts[stain.EOSIN] = amounts[stain.EOSIN] ** 0.3  # what eosin gains is mostly washed out again
    return stain.restain(image, np.diag(amounts))


def dye_residue(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Precipitated dye: heaps of round violet-black grains, in focus, over cells and between them."""
    height, width = image.shape[:2]
    heaps = rng.uniform([0, 0], [width, height], (_number(rng, image, scale, 0.012 * severity), 2))
    centres = []
    for heap in heaps:
        n = int(rng.integers(3, 10 + 12 * severity))
        centres.append(heap + scale * rng.uniform(0.15, 0.2 + 0.12 * severity) * rng.normal(0, 1, (n, 2)))
    spots = np.concatenate(centres)
    radii = scale * 0.022 * np.exp(rng.normal(0.1 * severity, 0.35, len(spots)))
    grains = _discs(image, spots, np.maximum(radii, 0.6), rng.uniform(0.5, 1, len(spots)))
    return _darken(image, tinted(grains, VIOLET * rng.uniform(1.0, 1.5)))


def cell_debris(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Smudged nuclei without a border, and crumbs of nuclei, stained like nuclei but paler."""
    height, width = image.shape[:2]
    smudges = np.zeros((height, width), dtype=np.float32)
    for _ in range(_number(rng, image, scale, 0.006 * severity)):
        shape = outline(rng, scale * rng.uniform(0.35, 0.85), rng.uniform(0.25, 0.5), rng.uniform(1.0, 2.2))
        smudge = _polygon(image, shape + rng.uniform([0, 0], [width, height]))
        smudge = cv2.GaussianBlur(smudge, (0, 0), scale * rng.uniform(0.05, 0.12))
        smudges = np.maximum(smudges, smudge * rng.uniform(0.3, 0.75))
    smudges *= 1 + 0.35 * _noise(rng, image, 0.16 * scale)
    n = _number(rng, image, scale, 0.02 * severity)
    places = rng.uniform([0, 0], [width, height], (n, 2))
    crumbs = np.zeros_like(smudges)
    for place in places:
        crumb = outline(rng, scale * rng.uniform(0.05, 0.16), 0.25, rng.uniform(1, 1.8)) + place
        crumbs = np.maximum(crumbs, _polygon(image, crumb) * rng.uniform(0.4, 0.9))
    crumbs = cv2.GaussianBlur(crumbs, (0, 0), max(0.02 * scale, 0.5))
    return _darken(image, tinted(np.maximum(smudges, crumbs).clip(0), LACE))


def dust(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Specks and fibres on the glass, grey and out of focus."""
    height, width = image.shape[:2]
    grey = np.zeros((height, width), dtype=np.float32)
    for i in range(_number(rng, image, scale, 0.012 * severity)):
        place = rng.uniform([0, 0], [width, height])
        if i % 3 == 0:
            bend = arc(1, rng.uniform(0, 6.28), rng.uniform(0.6, 2.8)) * [1, rng.uniform(0.3, 1)]
            fibre = turn(bend - bend.mean(0), rng.uniform(0, 6.28)) * scale * rng.uniform(0.8, 0.9 + 0.45 * severity)
            shape = _line(image, fibre + place, scale * rng.uniform(0.03, 0.08))
        else:
            speck = outline(rng, scale * rng.uniform(0.05, 0.12 + 0.035 * severity), 0.3, rng.uniform(1, 1.8))
            shape = _polygon(image, speck + place)
        shape = cv2.GaussianBlur(shape, (0, 0), max(scale * rng.uniform(0.015, 0.06), 0.5))
        grey = np.maximum(grey, shape * rng.uniform(0.5, 1.3))
    return _through(image, grey[:, :, None] * np.float32([1.0, 1.05, 1.15]))


def defocus(rng: np.random.Generator, image: np.ndarray, severity: int, scale: float) -> np.ndarray:
    """Out of focus: every point becomes a disc."""
    return out_of_focus(image, BLUR[severity - 1] * scale)


def out_of_focus(image: np.ndarray, radius: float) -> np.ndarray:
    """A picture [H, W, 3] uint8 in which every point is a disc of ``radius`` pixels."""
    fine = 8  # the disc is drawn larger and shrunk, for a radius that is no whole number
    reach = int(np.ceil(radius))
    side = (2 * reach + 1) * fine
    disc = np.zeros((side, side), dtype=np.uint8)
    cv2.circle(disc, (side // 2, side // 2), round(radius * fine), 255, -1, cv2.LINE_AA)
    kernel = cv2.resize(disc.astype(np.float32), (2 * reach + 1,) * 2, interpolation=cv2.INTER_AREA)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


# ---------------------------------------------------------------- on a cell; ``cells`` [C]: which boxes hold one


def overlap(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, cells: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """Red cells lie over each leukocyte's edge, as many as the severity says."""
    slide = np.zeros(image.shape[:2], dtype=np.float32)
    for x0, y0, x1, y1 in boxes[cells]:
        angles = rng.uniform(0, 2 * np.pi) + (np.arange(severity) + rng.uniform(-0.2, 0.2, severity)) * 2 * np.pi / 5
        for angle in angles:
            reach = rng.uniform(0.75, 1.0)
            x = (x0 + x1) / 2 + reach * (x1 - x0) / 2 * np.cos(angle)
            y = (y0 + y1) / 2 + reach * (y1 - y0) / 2 * np.sin(angle)
            lay(slide, red_cell(rng, scale / 2 * rng.uniform(0.9, 1.1), rng.uniform(0.1, 0.5)), x, y, hide=0.3)
    depth = _red_density(image)
    marked = np.isin(np.arange(len(boxes)), cells)
    return FactorResult(_through(image, slide[:, :, None] * depth), boxes, marked=marked)


def incomplete(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, cells: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """The picture is cut through one cell, of which 50 (severity 1) to 25 % stay visible; the boxes are clipped.

    The cut is chosen that leaves the fewest slivers of other cells, and then most of the picture, among the four sides
    of one cell drawn at random.
    """
    height, width = image.shape[:2]
    target = cells[int(rng.integers(len(cells)))]
    lost = 1 - VISIBLE[severity - 1]
    x0, y0, x1, y1 = boxes[target]
    right, down = round(x0 + lost * (x1 - x0)), round(y0 + lost * (y1 - y0))
    left, up = round(x1 - lost * (x1 - x0)), round(y1 - lost * (y1 - y0))
    windows = [(right, 0, width, height), (0, 0, left, height), (0, down, width, height), (0, 0, width, up)]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)

    def visible(window: tuple[int, ...]) -> np.ndarray:
        side = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
        return side.clip(0).prod(1) / area

    def slivers(window: tuple[int, ...]) -> tuple[int, float]:
        share = visible(window)[cells]
        cut = (share > 0) & (share < VISIBLE[-1] - 0.05)
        return int(cut.sum()), -float((window[2] - window[0]) * (window[3] - window[1]))

    window = min(windows, key=slivers)
    share = visible(window)
    kept = np.flatnonzero(share >= LEAST_VISIBLE)
    corner = np.tile(window[:2], 2).astype(np.float32)
    there = np.clip(boxes[kept], corner, np.tile(window[2:], 2).astype(np.float32)) - corner
    picture = image[window[1] : window[3], window[0] : window[2]]
    return FactorResult(np.ascontiguousarray(picture), there, kept, (share[kept] < 0.99) & np.isin(kept, cells))


def small_cell(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, cells: np.ndarray, severity: int, scale: float
) -> FactorResult:
    """Each cell shrinks about its centre, and its surroundings are stretched to meet it."""
    boxes = boxes.copy()
    for i in cells:
        image, boxes = _shrink(image, boxes, i, SHRINK[severity - 1])
    return FactorResult(image, boxes, marked=np.isin(np.arange(len(boxes)), cells))


def _shrink(image: np.ndarray, boxes: np.ndarray, cell: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Shrink the ellipse around a box, of radius 1, by ``factor``; what lies between it and radius ``LENS`` follows."""
    centre = (boxes[cell, :2] + boxes[cell, 2:]) / 2
    axes = (boxes[cell, 2:] - boxes[cell, :2]) / 2 * np.float32(np.sqrt(2))
    height, width = image.shape[:2]
    low = np.maximum(np.floor(centre - LENS * axes), 0).astype(int)
    high = np.minimum(np.ceil(centre + LENS * axes), [width, height]).astype(int)
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5 - centre[0], np.arange(low[1], high[1]) + 0.5 - centre[1])
    radius = np.hypot(x / axes[0], y / axes[1])
    stretch = (LENS - 1) / (LENS - factor)
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = np.where(radius < LENS, (1 + (radius - factor) * stretch) / radius, 1)
    pull = np.where(radius <= factor, 1 / factor, pull)
    source = [(d * pull + c - 0.5).astype(np.float32) for d, c in zip((x, y), centre, strict=True)]
    image = image.copy()
    warped = cv2.remap(_shielded(image), *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    image[low[1] : high[1], low[0] : high[0]] = warped

    def moved(box: np.ndarray) -> np.ndarray:
        t = np.linspace(0, 1, 33)
        edge = np.concatenate([np.stack(s, 1) for s in ((t, 0 * t), (t, 0 * t + 1), (0 * t, t), (0 * t + 1, t))])
        points = (box[:2] + edge * (box[2:] - box[:2]) - centre) / axes
        r = np.hypot(*points.T)
        new = np.where(r <= 1, r * factor, np.where(r < LENS, factor + (r - 1) / stretch, r))
        points = points * (new / np.maximum(r, 1e-6))[:, None] * axes + centre
        return np.concatenate([points.min(0), points.max(0)]).clip(0, [width, height] * 2)

    return image, np.array([moved(box) for box in boxes], dtype=np.float32)


def _shielded(image: np.ndarray) -> np.ndarray:
    """The picture, slightly blurred as a camera would blur what it sees smaller."""
    return cv2.GaussianBlur(image, (0, 0), 0.5)


# ---------------------------------------------------------------- drawing on a picture


def _number(rng: np.random.Generator, image: np.ndarray, scale: float, density: float) -> int:
    """How many of something: ``density`` an area of a red cell's square on average, at least one."""
    return max(1, int(rng.poisson(density * image.shape[0] * image.shape[1] / scale**2)))


def _through(image: np.ndarray, density: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] uint8 whose light crosses a ``density`` [H, W, 3] more."""
    return (image * np.exp(-density) + 0.5).astype(np.uint8)


def _darken(image: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """A picture whose light crosses ``amounts`` [H, W, absorber] more."""
    return _through(image, stain.mix(amounts))


def _red_density(image: np.ndarray) -> np.ndarray:
    """The density [3] of this picture's own red cells: the middle of what is neither bare slide nor nucleus."""
    density = stain.to_density(image[::2, ::2], stain.bare_slide(image)).reshape(-1, 3)
    green = density[:, 1]
    some = density[(green > 0.12) & (green < 0.8)]
    return np.median(some, axis=0) if len(some) else stain.mix(RED_CELL * 2)


_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws with


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round((np.asarray(points) - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _polygon(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    board = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.fillPoly(board, [_fixed(points)], 255, cv2.LINE_AA, _SHIFT)
    return board.astype(np.float32) / 255


def _line(image: np.ndarray, points: np.ndarray, width: float) -> np.ndarray:
    board = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.polylines(board, [_fixed(points)], False, 255, max(1, round(width)), cv2.LINE_AA, _SHIFT)
    return board.astype(np.float32) / 255


def _discs(image: np.ndarray, centres: np.ndarray, radii: np.ndarray, levels: np.ndarray) -> np.ndarray:
    board = np.zeros(image.shape[:2], dtype=np.uint8)
    pens = np.round(radii * (1 << _SHIFT)).astype(int).tolist()
    for centre, pen, level in zip(_fixed(centres).tolist(), pens, (levels * 255).astype(int).tolist(), strict=True):
        cv2.circle(board, centre, pen, level, -1, cv2.LINE_AA, _SHIFT)
    return board.astype(np.float32) / 255


def _noise(rng: np.random.Generator, image: np.ndarray, grain: float) -> np.ndarray:
    """Smooth noise [H, W] of deviation about 1."""
    height, width = image.shape[:2]
    coarse = rng.standard_normal((int(height / grain) + 2, int(width / grain) + 2), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 1.3


IMAGE_FACTORS: dict[str, Callable[[np.random.Generator, np.ndarray, int, float], np.ndarray]] = {
    "overstained": overstained,
    "understained": understained,
    "dye_residue": dye_residue,
    "cell_debris": cell_debris,
    "dust": dust,
    "defocus": defocus,
}
CELL_FACTORS: dict[
    str, Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray, int, float], FactorResult]
] = {
    "overlap": overlap,
    "incomplete": incomplete,
    "small_cell": small_cell,
}
FACTORS = (*IMAGE_FACTORS, *CELL_FACTORS)
