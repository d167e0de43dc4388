"""Rendered fields of a Wright-stained blood smear, with the exact box of each leukocyte.

The slide is a map of absorber amounts (see ``stain``). Light passes it once and reaches the camera, which adds uneven
light, focus and noise. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator

from ..cells import TYPES
from . import stain
from .canvas import Canvas, DrawnCell, lay, outline, tinted
from .cutout import box_of
from .leukocytes import DRAW, PALE_BLUE, SIZES, VIOLET

INDEX = {t.code: i for i, t in enumerate(TYPES)}
RED_CELL = np.array([0.17, 0.11, 0.18], dtype=np.float32)  # amounts (eosin, azure, pigment)
_CREAM = np.array([254.0, 230.0, 204.0])
_NEUTRAL = np.array([234.0, 230.0, 226.0])


@dataclass(frozen=True)
class Picture:
    """A picture and its annotation.

    ``image`` [H, W, 3] uint8 RGB; ``boxes`` [N, 4] float32 xyxy in pixels, tight around the leukocytes and clipped to
    the picture; ``labels`` [N] int64; ``cell_factors``, one tuple of interference factors per cell (or empty);
    ``factors`` of the image; ``group``: the smear; ``masks`` [N, H, W] bool, the pixels that each rendered leukocyte
    covers by at least half.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    cell_factors: list[tuple[str, ...]] = field(default_factory=list)
    factors: tuple[str, ...] = ()
    group: str = ""
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Look:
    """What all cells of a field have in common: stain and thickness of the smear, light, and camera."""

    uptake: np.ndarray  # [absorber], factors of the amounts
    crowding: float  # area of the red cells / area of the field
    pallor: float  # 0..1, how pale the centres of red cells are
    white: np.ndarray  # [3] RGB of the empty slide
    glare: float  # share of the light at the camera that has not passed the slide
    blur: float  # sigma of the focus, pixels
    noise: float  # std of the sensor noise at full light, grey values

    @classmethod
    def draw(cls, rng: Generator, red_cell: float) -> Look:
        """A random look within good practice; ``red_cell`` is the diameter of red cells in pixels."""
        ph = float(np.clip(rng.normal(stain.NEUTRAL_PH, 0.09), 6.4, 6.8))
        warmth = rng.uniform(0, 1)
        return cls(
            uptake=stain.uptake(ph) * rng.uniform(0.82, 1.12) * np.float32([1, 1, rng.uniform(0.8, 1.3)]),
            crowding=rng.uniform(0.2, 0.75),
            pallor=rng.uniform(0.15, 0.9),
            white=(warmth * _CREAM + (1 - warmth) * _NEUTRAL) * rng.uniform(0.93, 1.0),
            glare=rng.uniform(0.01, 0.06),
            blur=rng.uniform(0.008, 0.022) * red_cell,
            noise=rng.uniform(0.8, 2.5),
        )


def red_cell(rng: Generator, radius: float, pallor: float) -> DrawnCell:
    """An erythrocyte: a disc, thinner in the middle, sometimes stretched. ``pallor`` 0..1.

    Its amounts [h, w] are multiples of ``RED_CELL``.
    """
    odd = rng.uniform()
    stretch = rng.uniform(1.4, 1.9) if odd < 0.05 else 1 + abs(rng.normal(0, 0.12))
    shape = outline(rng, 1.0, rng.uniform(0.015, 0.065), min(stretch, 1.9))
    if odd > 0.99:
        shape = shape * (1 + 0.05 * np.sin(np.arange(len(shape)) * np.pi / 4))[:, None]  # crenated
    canvas = Canvas(rng, radius, shape, supersample=1)  # soft shading needs no supersampling
    body = canvas.fill(shape)
    hollow = canvas.blur(canvas.fill(shape * rng.uniform(0.30, 0.55) + rng.normal(0, 0.05, 2)), rng.uniform(0.07, 0.20))
    depth = np.clip(pallor + rng.normal(0, 0.15), 0, 0.92)
    thickness = body * (1 - depth * hollow) * (1 + 0.18 * canvas.rim(body, 0.09))
    return canvas.finish(thickness * np.float32(rng.uniform(0.88, 1.12)), body)


def platelet(rng: Generator, radius: float) -> DrawnCell:
    """A thrombocyte: a pale blue fragment with purple granules in the middle."""
    shape = outline(rng, 1.0, 0.18, rng.uniform(1.0, 1.5))
    canvas = Canvas(rng, radius, shape)
    body = canvas.smooth(canvas.fill(shape), 0.05)
    granules = canvas.granules((12, 40), (0.12, 0.26), (0.4, 1.0), reach=0.75) * body
    amounts = tinted(body, PALE_BLUE * 1.5) + tinted(granules, VIOLET * rng.uniform(0.45, 0.95))
    return canvas.finish(amounts, body)


def _place(rng: Generator, width: int, height: int, radius: float, others: np.ndarray) -> tuple[float, float] | None:
    """A random centre (x, y) at which a leukocyte hardly overlaps ``others`` [n, 3] (x, y, radius), or None."""
    margin = radius * (rng.uniform(-0.35, 0.6) if rng.uniform() < 0.15 else 1.1)
    margin = min(margin, 0.45 * min(width, height))
    for _ in range(60):
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if (np.hypot(others[:, 0] - x, others[:, 1] - y) > 0.96 * (others[:, 2] + radius)).all():
            return x, y
    return None


def _red_cell_centres(
    rng: Generator, width: int, height: int, radius: float, crowding: float, leukocytes: np.ndarray
) -> np.ndarray:
    """Centres [n, 2] of red cells: some overlap, most do not, and leukocytes [m, 3] (x, y, radius) push them aside."""
    number = int(crowding * (width + 2 * radius) * (height + 2 * radius) / (np.pi * radius**2))
    candidates = rng.uniform([-radius, -radius], [width + radius, height + radius], (number * 5, 2))
    overlapping = rng.uniform(size=len(candidates)) < 0.2
    gap = radius * np.where(overlapping, rng.uniform(0.7, 1.6, len(candidates)), 2.02)
    reach = radius * rng.uniform(0.75, 1.2, len(candidates))
    candidates = candidates @ [1, 1j]  # complex numbers, whose absolute value is the distance
    distance = np.abs(candidates[:, None] - leukocytes[:, :2] @ [1, 1j])
    free = (distance > leukocytes[:, 2] + reach[:, None]).all(axis=1)
    centres = np.zeros(number, dtype=complex)
    n = 0
    for candidate, least in zip(candidates[free], gap[free], strict=True):
        if n == number:
            break
        if (np.abs(centres[:n] - candidate) > least).all():
            centres[n] = candidate
            n += 1
    return np.stack([centres[:n].real, centres[:n].imag], axis=1)


def _photograph(rng: Generator, slide: np.ndarray, look: Look) -> np.ndarray:
    """The camera's image [H, W, 3] uint8 of a slide [H, W, absorber]."""
    height, width = slide.shape[:2]
    light = cv2.resize(rng.normal(0, 0.02, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    slope = rng.normal(0, 0.025, 2)
    light += 1 + slope[0] * np.linspace(-1, 1, width, dtype=np.float32)
    light += slope[1] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    image = stain.from_density(stain.mix(slide * look.uptake), look.white * (1 - look.glare))
    image += np.float32(look.white * look.glare)
    image *= light[:, :, None]
    image = cv2.GaussianBlur(image, (0, 0), max(look.blur, 0.3))
    # Photon noise: its variance is proportional to the light. Uniform noise of the same std looks the same at one or
    # two grey values and takes a quarter of the time.
    noise = (rng.random(image.shape, dtype=np.float32) - 0.5) * cv2.sqrt(image)
    noise *= look.noise * np.sqrt(12) / 16
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)


def default_red_cell(width: int, height: int) -> float:
    """Usual diameter of a red cell in a field of this size, pixels: 37 at 320, 51 at 600."""
    return 2.07 * min(width, height) ** 0.5


def render(
    rng: Generator,
    width: int,
    height: int,
    types: Sequence[str],
    red_cell_px: float | None = None,
    look: Look | None = None,
) -> Picture:
    """Render a field of a Wright-stained smear with one leukocyte of each of ``types`` (codes, duplicates allowed).

    Labels are indices into ``leuko.cells.TYPES``. A leukocyte that finds no room is left out. ``red_cell_px`` is the
    diameter of a red cell in pixels, by default about ``default_red_cell``; leukocytes are 1.4 to 2.15 times as wide.
    The ``look`` is random by default.
    """
    red_cell_px = red_cell_px or default_red_cell(width, height) * rng.uniform(0.9, 1.1)
    look = look or Look.draw(rng, red_cell_px)
    leukocytes: list[str] = []
    circles = np.zeros((0, 3))  # of the leukocytes: x, y, radius
    for code in types:
        radius = red_cell_px / 2 * rng.uniform(*SIZES[code])
        centre = _place(rng, width, height, radius, circles)
        if centre is not None:
            leukocytes.append(code)
            circles = np.vstack([circles, [*centre, radius]])

    reds = np.zeros((height, width), dtype=np.float32)
    for x, y in _red_cell_centres(rng, width, height, red_cell_px / 2, look.crowding, circles):
        lay(reds, red_cell(rng, red_cell_px / 2 * np.exp(rng.normal(0, 0.06)), look.pallor), x, y, hide=0.6)
    slide = tinted(reds, RED_CELL)
    for _ in range(rng.poisson(0.025 * width * height / red_cell_px**2)):
        cell = platelet(rng, red_cell_px * rng.uniform(0.12, 0.24))
        lay(slide, cell, *rng.uniform([0, 0], [width, height]), hide=0.5)

    boxes, labels, masks = [], [], []
    for code, (x, y, radius) in zip(leukocytes, circles, strict=True):
        view, cover = lay(slide, DRAW[code](rng, radius), x, y, hide=0.85)
        mask = np.zeros((height, width), dtype=bool)
        mask[view] = cover >= 0.5
        if mask.any():
            boxes.append(box_of(mask))
            labels.append(INDEX[code])
            masks.append(mask)
    return Picture(
        _photograph(rng, slide, look),
        np.reshape(boxes, (-1, 4)).astype(np.float32),
        np.array(labels, dtype=np.int64),
        masks=np.reshape(masks, (-1, height, width)).astype(bool),
    )
