"""Real cells in new fields: crops of single leukocytes are taken apart, and their cells laid on an empty slide.

A cutout stores the share of the light that it transmits, which is 1 where the slide is empty. Where cutouts overlap,
transmissions multiply (Beer-Lambert law); a red cell, whose edge fades into the empty slide, therefore leaves no seam.
A leukocyte hides what it lies on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from . import stain
from .canvas import crossing
from .cutout import box_of, cell_mask
from .render import Picture

MIN_COVER = 25  # of 255, where a cell ends: a person's box includes the soft rim outside of half cover
NUCLEUS = 0.4  # density in red above which a pixel belongs to a nucleus or a platelet
COMPLETE = 0.95  # visible share of a cell, below which it is tagged as incomplete


@dataclass(frozen=True)
class Cutout:
    """A part of a slide: ``transmission`` [h, w, 3] uint8 (255: all light passes) and ``cover`` [h, w] uint8, the share
    of each pixel that it covers (255: all)."""

    transmission: np.ndarray
    cover: np.ndarray

    def at_random(self, rng: Generator) -> Cutout:
        """The cutout, rotated by a multiple of 90 degrees and mirrored at random."""
        quarters, step = rng.integers(4), 1 - 2 * rng.integers(2)
        return Cutout(*(np.rot90(each, quarters)[:, ::step] for each in (self.transmission, self.cover)))


@dataclass(frozen=True)
class Donor:
    """A crop taken apart: its leukocyte (None if the outline is uncertain), the red cells and platelets that lie in it
    completely, their median density ``tint`` [3], and the colour ``white`` [3] of the empty slide."""

    cell: Cutout | None
    others: tuple[Cutout, ...]
    tint: np.ndarray
    white: np.ndarray


def take_apart(image: np.ndarray) -> Donor:
    """Take a crop [H, W, 3] uint8 RGB with one leukocyte in its middle apart."""
    white = stain.bare_slide(image)
    transmission = np.clip(image / white * 255, 0, 255).astype(np.uint8)
    density = stain.to_density(cv2.GaussianBlur(transmission, (0, 0), 1.0), np.float32([255] * 3))
    level = np.clip(density[:, :, 1] * 400, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(level, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    stained = level > min(threshold, 0.1 * 400) * 0.6
    pale = density[(level > threshold) & (density[:, :, 0] < NUCLEUS)]
    tint = np.median(pale, axis=0) if len(pale) else np.zeros(3, dtype=np.float32)
    mask = cell_mask(image)
    others = tuple(_whole_parts(transmission, stained, density[:, :, 0], mask))
    if mask is None:
        return Donor(None, others, tint, white)
    cover = cv2.GaussianBlur(mask.astype(np.float32) * 255, (0, 0), 1.2)
    x, y, w, h = cv2.boundingRect((cover > 2).astype(np.uint8))
    cell = Cutout(transmission[y : y + h, x : x + w].copy(), cover[y : y + h, x : x + w].astype(np.uint8))
    return Donor(cell, others, tint, white)


def _whole_parts(
    transmission: np.ndarray, stained: np.ndarray, red: np.ndarray, mask: np.ndarray | None
) -> Iterator[Cutout]:
    """Red cells, single or in groups, and platelets: stained parts without a nucleus that are cut neither by the border
    nor by the leukocyte."""
    contours, _ = cv2.findContours(stained.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    height, width = stained.shape
    leukocyte = np.zeros((height, width), dtype=bool) if mask is None else _dilated(mask, 5)
    if mask is None:
        leukocyte[height // 4 : -height // 4, width // 4 : -width // 4] = True
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        x0, y0, x1, y1 = x - 4, y - 4, x + w + 4, y + h + 4
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height or w * h < 60:
            continue
        filled = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        inside = cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED, offset=(-x0, -y0)) > 0
        nuclear = ((red[y0:y1, x0:x1] > NUCLEUS) & inside).sum()
        if not (leukocyte[y0:y1, x0:x1] & inside).any() and nuclear <= 0.004 * width * height:
            cover = cv2.GaussianBlur(_dilated(inside, 5).astype(np.float32) * 255, (0, 0), 1)
            yield Cutout(transmission[y0:y1, x0:x1].copy(), cover.astype(np.uint8))


def _dilated(mask: np.ndarray, size: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def compose(
    rng: Generator,
    side: int,
    cells: Sequence[Cutout],
    labels: Sequence[int],
    lookalikes: Sequence[Cutout],
    others: Sequence[Cutout],
    white: np.ndarray,
    crowding: float,
) -> Picture:
    """Lay cells, then look-alikes, and red cells around them until they cover the share ``crowding`` of the field.

    The field is ``side`` pixels wide and high, its empty slide of the colour ``white`` [3] RGB. Cells have labels and
    get a box, look-alikes (other nucleated cells) get none; a cell that finds no room is left out. Red cells and
    platelets (``others``) are used as often as needed.
    """
    light = np.ones((side, side, 3), dtype=np.float32)
    occupied = np.zeros((side, side), dtype=bool)
    placed: list[tuple[Cutout, int, int]] = []
    boxes, kept, tags = [], [], []
    for i, cutout in enumerate([*cells, *lookalikes]):
        cutout = cutout.at_random(rng)
        corner = _free_corner(rng, occupied, cutout, margin=0 if rng.random() < 0.9 else -0.35)
        if corner is None:
            continue
        placed.append((cutout, *corner))
        view, part = crossing(occupied, cutout.cover, *corner)
        shown = np.zeros_like(occupied)
        shown[view] = cutout.cover[part] > MIN_COVER
        occupied |= shown
        if i < len(cells) and shown.any():
            boxes.append(box_of(shown))
            kept.append(labels[i])
            visible = shown.sum() / (cutout.cover > MIN_COVER).sum()
            tags.append(("incomplete",) if visible < COMPLETE else ())
    _lay_red_cells(rng, light, _dilated(occupied, 7), others, crowding)
    for cutout, x, y in placed:
        _lay(light, cutout, x, y, 0.9)
    image = light * white * _uneven_light(rng, side)[:, :, None]
    image += rng.normal(0, 1.1, image.shape[:2])[:, :, None]
    image = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return Picture(image, np.reshape(boxes, (-1, 4)).astype(np.float32), np.array(kept, dtype=np.int64), tags)


def _lay_red_cells(
    rng: Generator, light: np.ndarray, occupied: np.ndarray, others: Sequence[Cutout], crowding: float
) -> None:
    """Lay red cells outside of ``occupied`` [S, S] bool; few of them overlap."""
    side = len(light)
    covered, target = occupied.copy(), crowding * (~occupied).sum()
    area = np.array([cutout.cover.size for cutout in others])
    weight = area / area.sum()  # small ones are over-represented in crops: the border cuts fewer of them
    for _ in range(40 * side * side // 3000 if others else 0):
        if (covered & ~occupied).sum() >= target:
            break
        cutout = others[rng.choice(len(others), p=weight)].at_random(rng)
        h, w = cutout.cover.shape
        x, y = (int(v) for v in rng.integers([-w // 2, -h // 2], [side - w // 2, side - h // 2]))
        view, part = crossing(covered, cutout.cover, x, y)
        inside = cutout.cover[part] > 127
        overlapping = (covered[view] & inside).sum() / max(inside.sum(), 1)
        if overlapping <= (0.3 if rng.random() < 0.05 else 0.02) and not (occupied[view] & inside).any():
            covered[view] |= inside
            _lay(light, cutout, x, y, 0.0)


def _free_corner(rng: Generator, occupied: np.ndarray, cutout: Cutout, margin: float) -> tuple[int, int] | None:
    """A random corner (x, y) at which the cutout overlaps nothing, or None.

    ``margin`` is the least distance from the border as a share of the cutout's size; below 0, it may lie outside.
    """
    size = np.array(cutout.cover.shape[::-1])
    low, high = size * margin, len(occupied) - size * (1 + margin)
    for _ in range(60):
        x, y = (int(v) for v in rng.uniform(np.minimum(low, high), np.maximum(low, high)))
        view, part = crossing(occupied, cutout.cover, x, y)
        if not (occupied[view] & (cutout.cover[part] > MIN_COVER)).any():
            return x, y
    return None


def _lay(light: np.ndarray, cutout: Cutout, x: int, y: int, hide: float) -> None:
    """Lay a cutout, which hides the share ``hide`` (0..1) of what lies below it, with its corner at (x, y) on the
    slide's ``light`` [S, S, 3], in place."""
    view, part = crossing(light, cutout.cover, x, y)
    cover = cutout.cover[part][:, :, None].astype(np.float32) / 255
    transmission = cutout.transmission[part] / 255
    below = light[view]
    light[view] = below * (1 - cover) + cover * transmission * (hide + (1 - hide) * below)


def _uneven_light(rng: Generator, side: int) -> np.ndarray:
    """Uneven light [S, S], about 1."""
    light = cv2.resize(rng.normal(0, 0.012, (3, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    slope = rng.normal(0, 0.015, 2)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return 1 + light + slope[0] * axis + slope[1] * axis[:, None]
