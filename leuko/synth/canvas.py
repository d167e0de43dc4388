"""A drawing board for one cell: smooth outlines, lobes, granules and textures, antialiased."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLE = 2
"""A leukocyte is drawn this many times larger than it will be and shrunk by area, which antialiases all of it."""
_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws with
_THETA = np.linspace(0, 2 * np.pi, 96, endpoint=False)
_CIRCLE = np.stack([np.cos(_THETA), np.sin(_THETA)], axis=1)
_ORDERS = np.arange(2, 7)  # waves around an outline


@dataclass(frozen=True)
class Cell:
    """A drawn cell, cropped to what is visible of it.

    ``amounts`` [h, w, absorber] float32 (or [h, w], of one mixture), ``cover`` [h, w] float32 0..1 (how much of
    a pixel the cell fills), ``nucleus`` [h, w] float32 0..1. ``x``, ``y``: the crop's top left corner, in pixels from
    the cell's centre.
    """

    amounts: np.ndarray
    cover: np.ndarray
    nucleus: np.ndarray
    x: int
    y: int


class Canvas:
    """A square board around a cell. Coordinates are in units of the cell's mean radius, the origin its centre."""

    def __init__(
        self, rng: np.random.Generator, radius: float, shape: np.ndarray, supersample: int = SUPERSAMPLE
    ) -> None:
        """``radius`` in pixels of the final picture; the board holds the outline ``shape`` [n, 2] with some margin."""
        self.rng = rng
        self.half = int(np.ceil(radius * (np.abs(shape).max() + 0.09))) + 1
        self.size = 2 * self.half * supersample
        self.scale = radius * supersample

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        pixels = np.asarray(points, dtype=np.float64) * self.scale + (self.size - 1) / 2
        return np.round(pixels * (1 << _SHIFT)).astype(np.int32)

    def fill(self, outline: np.ndarray) -> np.ndarray:
        """The inside of a closed outline [n, 2], as [size, size] float32 0..1."""
        board = np.zeros((self.size, self.size), dtype=np.uint8)
        cv2.fillPoly(board, [self._fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
        return board.astype(np.float32) / 255

    def stroke(self, path: np.ndarray, width: float) -> np.ndarray:
        """An open path [n, 2] drawn with a round pen ``width`` wide, as [size, size] float32 0..1."""
        board = np.zeros((self.size, self.size), dtype=np.uint8)
        pen = max(1, round(width * self.scale))
        cv2.polylines(board, [self._fixed(path)], False, 255, pen, cv2.LINE_AA, _SHIFT)
        return board.astype(np.float32) / 255

    def discs(self, centres: np.ndarray, radii: np.ndarray, levels: np.ndarray | None = None) -> np.ndarray:
        """Discs with centres [n, 2], radii [n] and levels [n] 0..1; later ones lie on top. [size, size] float32."""
        board = np.zeros((self.size, self.size), dtype=np.uint8)
        pens = np.round(np.asarray(radii) * self.scale * (1 << _SHIFT)).astype(int).tolist()
        shades = np.full(len(pens), 255) if levels is None else np.round(np.asarray(levels) * 255).astype(int)
        for centre, pen, shade in zip(self._fixed(centres).tolist(), pens, shades.tolist(), strict=True):
            cv2.circle(board, centre, pen, shade, -1, cv2.LINE_AA, _SHIFT)
        return board.astype(np.float32) / 255

    def noise(self, grain: float) -> np.ndarray:
        """Smooth noise [size, size] float32, mean 0 and deviation about 1, with lumps about ``grain`` wide."""
        step = max(1.0, grain * self.scale / 3)
        coarse = int(self.size / step) + 4
        seeds = self.rng.standard_normal((coarse, coarse), dtype=np.float32)
        smooth = cv2.GaussianBlur(seeds, (0, 0), 1.0) * 3.5  # 2 sqrt(pi) sigma brings the deviation back to 1
        if step > 1:
            smooth = cv2.resize(smooth, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        return smooth[: self.size, : self.size]

    def blur(self, board: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur; ``sigma`` in units of the radius."""
        sigma = max(0.3, sigma * self.scale)
        reach = 2 * round(2.5 * sigma) + 1  # shorter than OpenCV's own choice, and faster
        return cv2.GaussianBlur(board, (reach, reach), sigma)

    def melt(self, board: np.ndarray, sigma: float) -> np.ndarray:
        """Round off a mask's corners and notches: blur it and cut it at one half again."""
        return smoothstep(self.blur(board, sigma), 0.4, 0.6)

    def rim(self, mask: np.ndarray, width: float) -> np.ndarray:
        """1 at the inner edge of a mask falling to 0 about ``width`` further in, 0 outside."""
        return mask * (1 - np.clip(2 * self.blur(mask, width) - 1, 0, 1))

    def finish(self, amounts: np.ndarray, cover: np.ndarray, nucleus: np.ndarray | None = None) -> Cell:
        """Shrink to the final size and crop to what is visible. ``amounts`` [size, size] or [size, size, absorber]."""
        side = 2 * self.half
        boards = [amounts, cover, np.zeros_like(cover) if nucleus is None else nucleus]
        if side < self.size:
            boards = [cv2.resize(board, (side, side), interpolation=cv2.INTER_AREA) for board in boards]
        x, y, w, h = cv2.boundingRect((boards[1] > 0.004).astype(np.uint8))
        amounts, cover, nucleus = (board[y : y + h, x : x + w] for board in boards)
        return Cell(amounts, cover, nucleus, x - self.half, y - self.half)


def lay(slide: np.ndarray, cell: Cell, x: float, y: float, hide: float) -> tuple[slice, slice, np.ndarray] | None:
    """Lay a cell on the slide [H, W(, absorber)], in place, its centre at (x, y).

    ``hide`` 0..1 of what lies below goes. Returns the rows, the columns and the cell's cover there, or None when none
    of the cell is in the field.
    """
    x0, y0 = round(x) + cell.x, round(y) + cell.y
    h, w = cell.cover.shape
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(h, slide.shape[0] - y0), min(w, slide.shape[1] - x0)
    if top >= bottom or left >= right:
        return None
    rows, columns = slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right)
    cover = cell.cover[top:bottom, left:right]
    under = slide[rows, columns]
    under *= 1 - hide * (cover if slide.ndim == 2 else cover[:, :, None])
    under += cell.amounts[top:bottom, left:right]
    return rows, columns, cover


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a smooth S between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def tinted(board: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A board [s, s] in a colour [3]: [s, s, 3] float32."""
    return cv2.merge([board * np.float32(c) for c in colour])


def over(amounts: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """``amounts`` [s, s, 3] with ``colour`` ([3] or [s, s, 3]) laid over them where ``mask`` [s, s] is 1."""
    return amounts + mask[:, :, None] * (colour - amounts)


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points [n, 2] turned about the origin by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points) @ np.array([[c, s], [-s, c]])


def outline(
    rng: np.random.Generator,
    radius: float = 1.0,
    wobble: float = 0.05,
    stretch: float = 1.0,
    angle: float | None = None,
) -> np.ndarray:
    """A closed, rounded outline [96, 2] about the origin: an ellipse with smooth bumps.

    ``wobble`` is the bumps' size relative to the radius, ``stretch`` the ellipse's ratio of axes (its area is kept),
    ``angle`` the long axis' direction in radians (random if not given).
    """
    sizes = wobble * 1.6 / _ORDERS * rng.normal(size=5)
    bumps = sizes @ np.cos(_ORDERS[:, None] * _THETA + rng.uniform(0, 2 * np.pi, (5, 1)))
    points = _CIRCLE * radius * np.maximum(1 + bumps, 0.3)[:, None] * [stretch**0.5, stretch**-0.5]
    return turn(points, rng.uniform(0, 2 * np.pi) if angle is None else angle)


def arc(radius: float, start: float, sweep: float, n: int = 24) -> np.ndarray:
    """Points [n, 2] along an arc about the origin; angles in radians."""
    theta = np.linspace(start, start + sweep, n)
    return radius * np.stack([np.cos(theta), np.sin(theta)], axis=1)


def scatter(rng: np.random.Generator, n: int, reach: float = 1.0) -> np.ndarray:
    """``n`` points [n, 2] spread evenly over a disc of radius ``reach``."""
    r, theta = reach * np.sqrt(rng.uniform(0, 1, n)), rng.uniform(0, 2 * np.pi, n)
    return np.stack([r * np.cos(theta), r * np.sin(theta)], axis=1)
