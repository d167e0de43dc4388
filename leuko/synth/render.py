"""Rendered fields of a Wright-stained blood smear, with the exact box of each leukocyte.

Everything lies on the slide as amounts of absorbers (see ``stain``); light crosses it once, then comes the camera:
uneven light, focus, noise. Every pixel comes from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..cells import TYPES
from . import stain
from .canvas import Canvas, Cell, lay, outline, scatter, tinted
from .leukocytes import DRAW, PALE_BLUE, SIZES, VIOLET

INDEX = {t.code: i for i, t in enumerate(TYPES)}
RED_CELL = np.array([0.17, 0.11, 0.18], dtype=np.float32)
_CREAM = np.array([254.0, 230.0, 204.0])
_NEUTRAL = np.array([234.0, 230.0, 226.0])


@dataclass(frozen=True)
class Field:
    """A rendered field: ``image`` [H, W, 3] uint8 RGB, ``boxes`` [N, 4] float32 xyxy, ``labels`` [N] int64 into
    ``leuko.cells.TYPES``, ``masks`` [N, H, W] bool: the pixels that each leukocyte covers at least by half."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Look:
    """What all cells of a field share: the smear's stain and thickness, the light, and the camera."""

    uptake: np.ndarray  # [absorber]
    crowding: float  # red cells' area / field's area
    pallor: float  # 0..1, how pale red cells' centres are
    white: np.ndarray  # [3] RGB of the bare slide
    glare: float  # share of the light that reaches the camera without having crossed the slide
    blur: float  # sigma of the focus, pixels
    noise: float  # deviation of the sensor's noise at full light, grey values

    @classmethod
    def draw(cls, rng: np.random.Generator, red_cell: float) -> Look:
        """A look within the range of good practice; ``red_cell`` is their diameter in pixels."""
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


def red_cell(rng: np.random.Generator, radius: float, pallor: float) -> Cell:
    """An erythrocyte: a disc, thinner in the middle, pressed or stretched now and then. ``pallor`` 0..1.

    Its amounts [h, w] are multiples of ``RED_CELL``.
    """
    odd = rng.uniform()
    stretch = rng.uniform(1.4, 1.9) if odd < 0.05 else 1 + abs(rng.normal(0, 0.12))
    shape = outline(rng, 1.0, rng.uniform(0.015, 0.065), min(stretch, 1.9))
    if odd > 0.99:
        shape = shape * (1 + 0.05 * np.sin(np.arange(len(shape)) * np.pi / 4))[:, None]  # crenated
    canvas = Canvas(rng, radius, shape, supersample=1)  # soft shading needs no finer drawing
    body = canvas.fill(shape)
    hollow = canvas.blur(canvas.fill(shape * rng.uniform(0.30, 0.55) + rng.normal(0, 0.05, 2)), rng.uniform(0.07, 0.20))
    depth = np.clip(pallor + rng.normal(0, 0.15), 0, 0.92)
    thickness = body * (1 - depth * hollow) * (1 + 0.18 * canvas.rim(body, 0.09))
    return canvas.finish(thickness * np.float32(rng.uniform(0.88, 1.12)), body)


def platelet(rng: np.random.Generator, radius: float) -> Cell:
    """A thrombocyte: a shred of pale blue with purple granules in its middle."""
    shape = outline(rng, 1.0, 0.18, rng.uniform(1.0, 1.5))
    canvas = Canvas(rng, radius, shape)
    body = canvas.melt(canvas.fill(shape), 0.05)
    n = int(rng.uniform(12, 40))
    granules = canvas.discs(scatter(rng, n, 0.75), rng.uniform(0.12, 0.26, n), rng.uniform(0.4, 1.0, n)) * body
    amounts = tinted(body, PALE_BLUE * 1.5) + tinted(granules, VIOLET * rng.uniform(0.45, 0.95))
    return canvas.finish(amounts, body)


def _place(
    rng: np.random.Generator, width: int, height: int, radius: float, taken: np.ndarray
) -> tuple[float, float] | None:
    """A place for a leukocyte that touches its neighbours ([n, 3]: x, y, radius) at most slightly, or None."""
    margin = radius * (rng.uniform(-0.35, 0.6) if rng.uniform() < 0.15 else 1.1)
    margin = min(margin, 0.45 * min(width, height))
    for _ in range(60):
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if (np.hypot(taken[:, 0] - x, taken[:, 1] - y) > 0.96 * (taken[:, 2] + radius)).all():
            return x, y
    return None


def _red_places(
    rng: np.random.Generator, width: int, height: int, radius: float, crowding: float, leukocytes: np.ndarray
) -> np.ndarray:
    """Centres [n, 2] of red cells: in places piled up, in places apart, and pushed aside by leukocytes."""
    wanted = int(crowding * (width + 2 * radius) * (height + 2 * radius) / (np.pi * radius**2))
    tries = rng.uniform([-radius, -radius], [width + radius, height + radius], (wanted * 5, 2))
    apart = radius * np.where(rng.uniform(size=len(tries)) < 0.2, rng.uniform(0.7, 1.6, len(tries)), 2.02)
    reach = radius * rng.uniform(0.75, 1.2, len(tries))
    tries = tries @ [1, 1j]  # complex numbers, whose abs is the distance
    others = leukocytes[:, :2] @ [1, 1j]
    free = (np.abs(tries[:, None] - others) > leukocytes[:, 2] + reach[:, None]).all(axis=1)
    places = np.zeros(wanted, dtype=complex)
    n = 0
    for place, gap in zip(tries[free], apart[free], strict=True):
        if n == wanted:
            break
        if (np.abs(places[:n] - place) > gap).all():
            places[n] = place
            n += 1
    return np.stack([places[:n].real, places[:n].imag], axis=1)


def _photograph(rng: np.random.Generator, slide: np.ndarray, look: Look) -> np.ndarray:
    """The camera's picture [H, W, 3] uint8 of a slide [H, W, absorber]."""
    height, width = slide.shape[:2]
    light = cv2.resize(rng.normal(0, 0.02, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    slope = rng.normal(0, 0.025, 2)
    light += 1 + slope[0] * np.linspace(-1, 1, width, dtype=np.float32)
    light += slope[1] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    picture = stain.from_density(stain.mix(slide * look.uptake), look.white * (1 - look.glare))
    picture += np.float32(look.white * look.glare)
    picture *= light[:, :, None]
    picture = cv2.GaussianBlur(picture, (0, 0), max(look.blur, 0.3))
    # Photons' noise: its variance grows with the light. Evenly spread values of the same deviation are drawn, which
    # at one or two grey values nobody can tell from a bell curve, in a quarter of its time.
    noise = rng.random(picture.shape, dtype=np.float32)
    noise -= 0.5
    noise *= cv2.sqrt(picture)
    noise *= look.noise * np.sqrt(12) / 16
    picture += noise
    picture += 0.5
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def default_red_cell(width: int, height: int) -> float:
    """Diameter of a red cell in pixels that suits a field of this size: 37 at 320 pixels, 51 at 600."""
    return 2.07 * min(width, height) ** 0.5


def render(
    rng: np.random.Generator,
    width: int,
    height: int,
    types: Sequence[str],
    red_cell_px: float | None = None,
    look: Look | None = None,
) -> Field:
    """Render a field with its masks; arguments as for ``render_field``, and the ``look``, drawn if not given."""
    scale = red_cell_px or default_red_cell(width, height) * rng.uniform(0.9, 1.1)
    look = look or Look.draw(rng, scale)
    placed: list[tuple[float, float, float]] = []
    codes: list[str] = []
    for code in types:
        radius = scale / 2 * rng.uniform(*SIZES[code])
        spot = _place(rng, width, height, radius, np.reshape(placed, (-1, 3)))
        if spot is not None:
            placed.append((*spot, radius))
            codes.append(code)

    neighbours = np.reshape(placed, (-1, 3))
    reds = np.zeros((height, width), dtype=np.float32)
    for x, y in _red_places(rng, width, height, scale / 2, look.crowding, neighbours):
        lay(reds, red_cell(rng, scale / 2 * np.exp(rng.normal(0, 0.06)), look.pallor), x, y, hide=0.6)
    slide = tinted(reds, RED_CELL)
    for _ in range(rng.poisson(0.025 * width * height / scale**2)):
        lay(slide, platelet(rng, scale * rng.uniform(0.12, 0.24)), *rng.uniform([0, 0], [width, height]), hide=0.5)

    boxes, labels, masks = [], [], []
    for code, (x, y, radius) in zip(codes, placed, strict=True):
        laid = lay(slide, DRAW[code](rng, radius), x, y, hide=0.85)
        if laid is None or not (laid[2] >= 0.5).any():
            continue
        rows, columns, cover = laid
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = cover >= 0.5
        bx, by, bw, bh = cv2.boundingRect(mask.view(np.uint8))
        boxes.append((bx, by, bx + bw, by + bh))
        labels.append(INDEX[code])
        masks.append(mask)
    return Field(
        _photograph(rng, slide, look),
        np.reshape(boxes, (-1, 4)).astype(np.float32),
        np.array(labels, dtype=np.int64),
        np.reshape(masks, (-1, height, width)).astype(bool),
    )


def render_field(
    rng: np.random.Generator, width: int, height: int, types: Sequence[str], red_cell_px: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render a field of a Wright-stained smear with one leukocyte of each of ``types``.

    Args:
        rng: where every choice and every pixel comes from.
        width, height: of the picture, pixels.
        types: codes from ``leuko.cells.TYPES``, repeats allowed. A cell for which no free room is found in the field
            is not drawn, and has no box.
        red_cell_px: a red cell's diameter in pixels; leukocytes are 1.4 to 2.5 times as wide. Follows the field's
            size if not given.

    Returns:
        The picture [height, width, 3] uint8 RGB; boxes [N, 4] float32 xyxy, tight around the drawn cells and clipped
        to the field; labels [N] int64, indices into ``leuko.cells.TYPES``.
    """
    field = render(rng, width, height, types, red_cell_px)
    return field.image, field.boxes, field.labels
