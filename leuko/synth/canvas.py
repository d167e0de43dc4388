"""Drawing primitives: antialiased shapes, smooth outlines and noise, a canvas per cell, and cells laid on a slide.

Points are [n, 2] (x, y), masks [H, W] float32 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

Range = tuple[float, float]
_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws with
_THETA = np.linspace(0, 2 * np.pi, 96, endpoint=False)
_CIRCLE = np.stack([np.cos(_THETA), np.sin(_THETA)], axis=1)
_ORDERS = np.arange(2, 7)  # waves per outline


class Plane:
    """Draws masks [H, W]; points and sizes are in pixels, the origin is the corner of the image."""

    def __init__(self, shape: tuple[int, int], scale: float = 1.0, origin: float = -0.5) -> None:
        """A point lies at ``scale * point + origin`` in pixels whose centres are integers."""
        self.shape, self.scale, self.origin = shape, scale, origin

    def fill(self, outline: np.ndarray) -> np.ndarray:
        """The inside of a closed outline."""
        mask = np.zeros(self.shape, dtype=np.uint8)
        cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
        return mask.astype(np.float32) / 255

    def stroke(self, path: np.ndarray, width: float) -> np.ndarray:
        """An open path with round ends."""
        mask = np.zeros(self.shape, dtype=np.uint8)
        cv2.polylines(mask, [self._fixed(path)], False, 255, max(1, round(width * self.scale)), cv2.LINE_AA, _SHIFT)
        return mask.astype(np.float32) / 255

    def discs(self, centres: np.ndarray, radii: np.ndarray, levels: np.ndarray | float = 1.0) -> np.ndarray:
        """Discs with radii [n] and levels [n] 0..1; later ones lie on top."""
        mask = np.zeros(self.shape, dtype=np.uint8)
        levels = np.broadcast_to(np.round(np.asarray(levels) * 255).astype(int), len(centres))
        radii = np.round(radii * self.scale * (1 << _SHIFT)).astype(int)
        for centre, radius, level in zip(self._fixed(centres).tolist(), radii.tolist(), levels.tolist(), strict=True):
            cv2.circle(mask, centre, radius, level, -1, cv2.LINE_AA, _SHIFT)
        return mask.astype(np.float32) / 255

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.round((points * self.scale + self.origin) * (1 << _SHIFT)).astype(np.int32)


@dataclass(frozen=True)
class DrawnCell:
    """A drawn cell, cropped to its visible part.

    ``amounts`` [h, w, absorber] float32 (or [h, w] of one mixture of them), ``cover`` [h, w] float32 0..1 (share of a
    pixel that the cell covers), ``nucleus`` [h, w] float32 0..1. ``x``, ``y``: the crop's top left corner relative to
    the cell's centre, in pixels.
    """

    amounts: np.ndarray
    cover: np.ndarray
    nucleus: np.ndarray
    x: int
    y: int


class Canvas(Plane):
    """A square around one cell. Points and sizes are in units of the cell's mean radius, the origin is its centre."""

    def __init__(self, rng: Generator, radius: float, outline: np.ndarray, supersample: int = 2) -> None:
        """``radius`` in pixels of the final image, which a drawing ``supersample`` times as large is averaged to; the
        canvas holds ``outline`` with a margin."""
        self.rng = rng
        self.half = int(np.ceil(radius * (np.abs(outline).max() + 0.09))) + 1
        self.size = 2 * self.half * supersample
        super().__init__((self.size, self.size), radius * supersample, (self.size - 1) / 2)

    def granules(self, number: Range, radii: Range, levels: Range, reach: float = 1.0) -> np.ndarray:
        """Discs at random within ``reach``; number, radii and levels are drawn from the ranges."""
        n = int(self.rng.uniform(*number))
        return self.discs(scatter(self.rng, n, reach), self.rng.uniform(*radii, n), self.rng.uniform(*levels, n))

    def sample(self, mask: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Values [n] of a mask at points."""
        x, y = np.clip((points * self.scale + self.size / 2).astype(int), 0, self.size - 1).T
        return mask[y, x]

    def noise(self, grain: float) -> np.ndarray:
        """Smooth noise of mean 0 and a standard deviation of about 1, with lumps about ``grain`` wide."""
        step = max(1.0, grain * self.scale / 3)
        coarse = int(self.size / step) + 4
        values = self.rng.standard_normal((coarse, coarse), dtype=np.float32)
        smooth = cv2.GaussianBlur(values, (0, 0), 1.0) * 3.5  # 2 sqrt(pi) sigma restores the standard deviation of 1
        return cv2.resize(smooth, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)[: self.size, : self.size]

    def blur(self, mask: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur."""
        sigma = max(0.3, sigma * self.scale)
        kernel = 2 * round(2.5 * sigma) + 1  # smaller than OpenCV's default, and faster
        return cv2.GaussianBlur(mask, (kernel, kernel), sigma)

    def smooth(self, mask: np.ndarray, sigma: float) -> np.ndarray:
        """Round off the corners and notches of a mask: blur it and threshold it at one half."""
        return smoothstep(self.blur(mask, sigma), 0.4, 0.6)

    def rim(self, mask: np.ndarray, width: float) -> np.ndarray:
        """1 at the inner edge of a mask, decreasing to 0 about ``width`` further inside; 0 outside."""
        return mask * (1 - np.clip(2 * self.blur(mask, width) - 1, 0, 1))

    def finish(self, amounts: np.ndarray, cover: np.ndarray, nucleus: np.ndarray | None = None) -> DrawnCell:
        """Reduce to the final size and crop to the visible part. ``amounts`` [size, size] or [size, size, absorber]."""
        side = 2 * self.half
        maps = [amounts, cover, np.zeros_like(cover) if nucleus is None else nucleus]
        maps = [cv2.resize(each, (side, side), interpolation=cv2.INTER_AREA) for each in maps]
        x, y, w, h = cv2.boundingRect((maps[1] > 0.004).astype(np.uint8))
        return DrawnCell(*(each[y : y + h, x : x + w] for each in maps), x - self.half, y - self.half)


def crossing(slide: np.ndarray, patch: np.ndarray, x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch [h, w, ...] with its corner at (x, y) lies on a slide [H, W, ...]: slices of the slide, and of the
    patch; empty if it lies outside."""
    h, w = patch.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + h, slide.shape[0]), top), max(min(x + w, slide.shape[1]), left)
    return (slice(top, bottom), slice(left, right)), (slice(top - y, bottom - y), slice(left - x, right - x))


def lay(slide: np.ndarray, cell: DrawnCell, x: float, y: float, hide: float) -> tuple[tuple[slice, slice], np.ndarray]:
    """Add a cell with its centre at (x, y) to the slide [H, W] or [H, W, absorber], in place.

    ``hide`` is the share (0..1) of what lies below the cell that it hides. Returns where on the slide the cell lies, as
    slices, and its cover there.
    """
    view, part = crossing(slide, cell.cover, round(x) + cell.x, round(y) + cell.y)
    cover, below = cell.cover[part], slide[view]
    below *= 1 - hide * (cover if slide.ndim == 2 else cover[:, :, None])
    below += cell.amounts[part]
    return view, cover


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a smooth S in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def tinted(mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A mask in a colour [3]: [H, W, 3] float32."""
    return cv2.merge([mask * np.float32(c) for c in colour])


def over(amounts: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """``amounts`` [H, W, 3], replaced by ``colour`` ([3] or [H, W, 3]) where the mask is 1."""
    return amounts + mask[:, :, None] * (colour - amounts)


def rotated(points: np.ndarray | Sequence, angle: float) -> np.ndarray:
    """Points rotated about the origin by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points) @ np.array([[c, s], [-s, c]])


def outline(
    rng: Generator, radius: float = 1.0, wobble: float = 0.05, stretch: float = 1.0, angle: float | None = None
) -> np.ndarray:
    """A closed, rounded outline [96, 2]: an ellipse with smooth bumps.

    ``wobble`` is the size of the bumps relative to the radius, ``stretch`` the ratio of the ellipse's axes (its area
    does not change), ``angle`` the direction of its long axis in radians (random if None).
    """
    sizes = wobble * 1.6 / _ORDERS * rng.normal(size=5)
    bumps = sizes @ np.cos(_ORDERS[:, None] * _THETA + rng.uniform(0, 2 * np.pi, (5, 1)))
    points = _CIRCLE * radius * np.maximum(1 + bumps, 0.3)[:, None] * [stretch**0.5, stretch**-0.5]
    return rotated(points, rng.uniform(0, 2 * np.pi) if angle is None else angle)


def arc(radius: float, start: float, sweep: float, n: int = 24) -> np.ndarray:
    """``n`` points along an arc; angles in radians."""
    theta = np.linspace(start, start + sweep, n)
    return radius * np.stack([np.cos(theta), np.sin(theta)], axis=1)


def scatter(rng: Generator, n: int, radius: float = 1.0) -> np.ndarray:
    """``n`` points, uniform over a disc of ``radius``."""
    r, theta = radius * np.sqrt(rng.uniform(0, 1, n)), rng.uniform(0, 2 * np.pi, n)
    return np.stack([r * np.cos(theta), r * np.sin(theta)], axis=1)
