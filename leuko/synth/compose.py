"""Real cells in new fields: crops of single leukocytes are taken apart into cells, and laid anew on a slide.

A piece is what a thing on the slide lets through of the light, 1 where it is not there: light multiplies where cells
lie on each other (Beer and Lambert), so that a red cell, whose edge fades into the bare slide, leaves no seam anywhere.
A leukocyte hides what it lies on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from . import stain
from .cutout import box_of, cell_mask

HIDES = 0.9  # of what lies below a leukocyte
EDGE = 1.2  # sigma in pixels of the blend at a leukocyte's edge
RIM = 25  # cover (of 255) at which a cell ends: a person's box takes in the soft rim beyond the outline at half of it
NUCLEAR = 0.4  # density in red above which a pixel is a nucleus', or a platelet's
TRIES = 60  # places that are tried for a cell before it is left out


@dataclass(frozen=True)
class Piece:
    """Something to lay on a slide: ``through`` [h, w, 3] uint8, the light it lets through (255: all), ``cover``
    [h, w] uint8, how much of a pixel it fills (255: all)."""

    through: np.ndarray
    cover: np.ndarray

    def turned(self, quarter: int, mirrored: bool) -> Piece:
        """The piece turned by so many right angles, and mirrored."""
        through, cover = np.rot90(self.through, quarter), np.rot90(self.cover, quarter)
        return Piece(through[:, ::-1], cover[:, ::-1]) if mirrored else Piece(through, cover)


@dataclass(frozen=True)
class Donor:
    """A crop taken apart: its leukocyte (None where its outline is uncertain), the red cells and platelets that are
    whole in it, their ``tint`` [3] (median density), and the bare slide's colour ``white`` [3]."""

    cell: Piece | None
    others: tuple[Piece, ...]
    tint: np.ndarray
    white: np.ndarray


@dataclass(frozen=True)
class Composed:
    """A composed field: ``image`` [S, S, 3] uint8 RGB, ``boxes`` [N, 4] float32 xyxy, tight around the cells, ``laid``
    [N] which of the cells asked for they are (one without room is left out), ``visible`` [N] 0..1 how much of each
    lies in the field."""

    image: np.ndarray
    boxes: np.ndarray
    laid: np.ndarray
    visible: np.ndarray


def take_apart(image: np.ndarray) -> Donor:
    """Take a crop [H, W, 3] uint8 RGB with one leukocyte in its middle apart."""
    white = stain.bare_slide(image)
    through = np.clip(image / white * 255, 0, 255).astype(np.uint8)
    density = stain.to_density(cv2.GaussianBlur(through, (0, 0), 1.0), np.float32([255] * 3))
    level = np.clip(density[:, :, 1] * 400, 0, 255).astype(np.uint8)
    cut, _ = cv2.threshold(level, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    there = level > min(cut, 0.1 * 400) * 0.6
    tint = np.median(density[(level > cut) & (density[:, :, 0] < NUCLEAR)], axis=0, keepdims=True)
    mask = cell_mask(image)
    others = tuple(_whole_pieces(through, there, density[:, :, 0], mask))
    tint = np.nan_to_num(tint).reshape(3).astype(np.float32)
    return Donor(None if mask is None else _leukocyte(through, mask), others, tint, white)


def _leukocyte(through: np.ndarray, mask: np.ndarray) -> Piece:
    cover = cv2.GaussianBlur(mask.astype(np.float32) * 255, (0, 0), EDGE)
    x, y, w, h = cv2.boundingRect((cover > 2).astype(np.uint8))
    return Piece(through[y : y + h, x : x + w].copy(), cover[y : y + h, x : x + w].astype(np.uint8))


def _whole_pieces(through: np.ndarray, there: np.ndarray, red: np.ndarray, mask: np.ndarray | None) -> Iterator[Piece]:
    """Red cells, single or in heaps, and platelets: parts of what is there that neither the border nor the leukocyte
    cuts, and that hold no nucleus."""
    outlines, _ = cv2.findContours(there.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    height, width = there.shape
    taken = np.zeros((height, width), dtype=bool)
    if mask is not None:
        taken = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    else:
        taken[height // 4 : -height // 4, width // 4 : -width // 4] = True
    for line in outlines:
        x, y, w, h = cv2.boundingRect(line)
        x0, y0, x1, y1 = x - 4, y - 4, x + w + 4, y + h + 4
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height or w * h < 60:
            continue
        inside = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        cv2.drawContours(inside, [line], -1, 1, cv2.FILLED, offset=(-x0, -y0))
        nuclear = ((red[y0:y1, x0:x1] > NUCLEAR) & (inside > 0)).sum()
        if (taken[y0:y1, x0:x1] & (inside > 0)).any() or nuclear > 0.004 * width * height:
            continue
        cover = cv2.GaussianBlur(cv2.dilate(inside, np.ones((5, 5), np.uint8)).astype(np.float32) * 255, (0, 0), 1)
        yield Piece(through[y0:y1, x0:x1].copy(), cover.astype(np.uint8))


def compose(
    rng: np.random.Generator,
    side: int,
    cells: Sequence[Piece],
    lookalikes: Sequence[Piece],
    others: Sequence[Piece],
    white: np.ndarray,
    crowding: float,
) -> Composed:
    """Lay cells, then what looks like them, and red cells around them until ``crowding`` of the field is covered.

    Args:
        rng: where every choice comes from.
        side: of the field, pixels.
        cells: the leukocytes that get a box; lookalikes: those that get none.
        others: red cells and platelets, each used as often as it takes.
        white: [3] RGB of the bare slide.
        crowding: 0..1, share of the field that red cells cover.
    """
    light = np.ones((side, side, 3), dtype=np.float32)
    taken = np.zeros((side, side), dtype=bool)
    nuclei: list[tuple[Piece, int, int]] = []
    boxes, laid, visible = [], [], []
    for number, piece in enumerate([*cells, *lookalikes]):
        piece = piece.turned(int(rng.integers(4)), bool(rng.integers(2)))
        spot = _free_spot(rng, taken, piece, margin=0 if rng.random() < 0.9 else -0.35)
        if spot is None:
            continue
        nuclei.append((piece, *spot))
        here = _occupy(taken, piece, *spot)
        if number < len(cells) and here.any():
            boxes.append(box_of(here))
            laid.append(number)
            visible.append(here.sum() / (piece.cover > RIM).sum())
    near = cv2.dilate(taken.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    _lay_red_cells(rng, light, near, others, crowding)
    for piece, x, y in nuclei:
        _lay(light, piece, x, y, HIDES)
    picture = light * white * _uneven(rng, side)[:, :, None]
    picture += rng.normal(0, 1.1, picture.shape[:2])[:, :, None]
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    there = np.reshape(boxes, (-1, 4)).astype(np.float32)
    return Composed(image, there, np.array(laid, dtype=int), np.array(visible))


def _lay_red_cells(
    rng: np.random.Generator, light: np.ndarray, taken: np.ndarray, others: Sequence[Piece], crowding: float
) -> None:
    """Lay red cells where no leukocyte lies, few of them on each other."""
    side = len(light)
    covered, wanted = taken.copy(), crowding * (~taken).sum()
    area = np.array([piece.cover.size for piece in others])
    weight = area / area.sum() if len(area) else area  # small ones, which are seldom cut by a crop's border, are many
    for _ in range(40 * side * side // 3000):
        if (covered & ~taken).sum() >= wanted or not others:
            break
        piece = others[rng.choice(len(others), p=weight)].turned(int(rng.integers(4)), bool(rng.integers(2)))
        h, w = piece.cover.shape
        x, y = (int(v) for v in rng.integers([-w // 2, -h // 2], [side - w // 2, side - h // 2]))
        view, mine = _overlap(covered, piece, x, y)
        inside = mine > 127
        hit = (covered[view] & inside).sum() / max(inside.sum(), 1)
        if hit > (0.3 if rng.random() < 0.05 else 0.02) or (taken[view] & inside).any():
            continue
        covered[view] |= inside
        _lay(light, piece, x, y, 0.0)


def _free_spot(rng: np.random.Generator, taken: np.ndarray, piece: Piece, margin: float) -> tuple[int, int] | None:
    """A place where the piece lies on no other; a ``margin`` below 0 lets so much of it lie outside the field."""
    side = len(taken)
    h, w = piece.cover.shape
    low, high = np.array([w, h]) * margin, np.array([side - w * (1 + margin), side - h * (1 + margin)])
    for _ in range(TRIES):
        x, y = (int(v) for v in rng.uniform(np.minimum(low, high), np.maximum(low, high)))
        view, mine = _overlap(taken, piece, x, y)
        if not (taken[view] & (mine > RIM)).any():
            return x, y
    return None


def _overlap(board: np.ndarray, piece: Piece, x: int, y: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a piece at (x, y) lies on a board, and its cover there."""
    h, w = piece.cover.shape
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, board.shape[0]), min(x + w, board.shape[1])
    return (slice(top, bottom), slice(left, right)), piece.cover[top - y : bottom - y, left - x : right - x]


def _occupy(taken: np.ndarray, piece: Piece, x: int, y: int) -> np.ndarray:
    """Mark a piece's place; returns the pixels [S, S] bool that it shows in."""
    here = np.zeros_like(taken)
    view, mine = _overlap(taken, piece, x, y)
    here[view] = mine > RIM
    taken |= here
    return here


def _lay(light: np.ndarray, piece: Piece, x: int, y: int, hides: float) -> None:
    """Lay a piece on the slide: its light takes the place of what it ``hides``, and crosses the rest."""
    view, mine = _overlap(light, piece, x, y)
    cover = mine[:, :, None].astype(np.float32) / 255
    through = piece.through[view[0].start - y : view[0].stop - y, view[1].start - x : view[1].stop - x] / 255
    below = light[view]
    light[view] = below * (1 - cover) + cover * through * (hides + (1 - hides) * below)


def _uneven(rng: np.random.Generator, side: int) -> np.ndarray:
    """Uneven light [S, S] float32 about 1."""
    light = cv2.resize(rng.normal(0, 0.012, (3, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    slope = rng.normal(0, 0.015, 2)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return 1 + light + slope[0] * axis + slope[1] * axis[:, None]
