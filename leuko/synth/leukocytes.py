"""The five leukocyte types, drawn by what a haematologist looks at: nucleus, chromatin, granules, cytoplasm.

Each drawing function takes a generator and the cell's mean radius in pixels and returns a ``DrawnCell`` with the
amounts of absorbers of a well stained smear. The amounts were measured by separating photographs of stained smears.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from .canvas import Canvas, DrawnCell, Range, arc, outline, over, rotated, scatter, smoothstep, tinted

# Amounts (eosin, azure, pigment).
NUCLEUS = np.array([1.39, 1.83, 0.00], dtype=np.float32)
LACE = np.array([1.37, 1.71, 0.00], dtype=np.float32)
PALE_PINK = np.array([0.15, 0.14, 0.09], dtype=np.float32)
PALE_BLUE = np.array([0.03, 0.15, 0.06], dtype=np.float32)
GREY_BLUE = np.array([0.09, 0.34, 0.06], dtype=np.float32)
DEEP_BLUE = np.array([0.14, 0.63, 0.09], dtype=np.float32)
SALMON = np.array([0.64, 0.02, 0.31], dtype=np.float32)
LILAC = np.array([0.21, 0.22, 0.05], dtype=np.float32)
VIOLET = np.array([1.35, 1.77, 0.00], dtype=np.float32)
FINE_GRANULE = np.array([0.48, 0.52, 0.07], dtype=np.float32)


def _segmented(canvas: Canvas, lobes: int, area: float, sweeps: Range, strand: float) -> tuple[np.ndarray, np.ndarray]:
    """A nucleus of lobes along an arc: its mask, and the grooves where one lobe overlaps another.

    ``area`` is the nucleus' share of the cell's area, ``sweeps`` the range of the arc's angle in radians, ``strand``
    the width of the threads between lobes.
    """
    rng = canvas.rng
    size = np.sqrt(area / lobes)
    sweep, start = rng.uniform(*sweeps), rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(0.40, 0.50) if lobes > 1 else 0.15
    path = arc(distance, start, sweep, lobes) * rng.uniform(0.72, 1.2, (lobes, 1)) + rng.normal(0, 0.05, 2)
    mask = canvas.stroke(path, strand)
    groove = np.zeros_like(mask)
    for i in rng.permutation(lobes):
        tangent = start + sweep * i / max(1, lobes - 1) + np.pi / 2 + rng.normal(0, 0.35)
        shape = outline(rng, size * rng.uniform(0.82, 1.18), 0.10, rng.uniform(1.05, 1.6), tangent)
        lobe = canvas.fill(shape + path[i])
        ring = np.clip(canvas.blur(lobe, 0.035) * 2, 0, 1) * (1 - lobe)
        groove = np.maximum(groove * (1 - lobe), ring)
        mask = np.maximum(mask, lobe)
    return canvas.smooth(mask, 0.022), groove


def _chromatin(canvas: Canvas, mask: np.ndarray, grain: float, contrast: float, threshold: float) -> np.ndarray:
    """Relative density of the nucleus, about 1: clumps, lighter spots, a dark membrane.

    The spots are about ``grain`` wide, lighter by ``contrast`` (0..1), and lie where noise (std 1) exceeds
    ``threshold``.
    """
    membrane = canvas.rim(mask, 0.035)
    spots = smoothstep(canvas.noise(grain), threshold, threshold + 1.0) * (1 - 0.8 * membrane)
    return (0.93 + 0.05 * canvas.noise(4 * grain)) * (1 - contrast * spots) + 0.20 * membrane


def _packed(canvas: Canvas, body: np.ndarray, number: Range, reach: float, grain: float, gaps: Range) -> np.ndarray:
    """Centres [n, 2] of granules that fill the cell, except for gaps about ``grain`` wide where noise (std 1) is below
    a threshold from the range ``gaps``."""
    centres = scatter(canvas.rng, int(canvas.rng.uniform(*number)), reach)
    dense = canvas.sample(canvas.noise(grain), centres) > canvas.rng.uniform(*gaps)
    return centres[dense & (canvas.sample(body, centres) > 0.5)]


def _vary(rng: Generator, colour: np.ndarray, spread: float = 0.12) -> np.ndarray:
    return colour * np.exp(rng.normal(0, spread, 3)).astype(np.float32)


def neutrophil(rng: Generator, radius: float) -> DrawnCell:
    """Two to five lobes joined by thin strands (sometimes one band); fine pinkish granules in pale cytoplasm."""
    shape = outline(rng, 1.0, rng.uniform(0.02, 0.07), rng.uniform(1.0, 1.2))
    canvas = Canvas(rng, radius, shape)
    body = canvas.fill(shape)
    lobes = int(rng.choice([1, 2, 3, 4, 5], p=[0.08, 0.20, 0.38, 0.24, 0.10]))
    if lobes == 1:
        band = arc(rng.uniform(0.40, 0.48), rng.uniform(0, 2 * np.pi), rng.uniform(3.0, 4.4))
        band = band * (1 + 0.12 * np.sin(np.linspace(0, rng.uniform(3, 9), len(band))))[:, None]
        nucleus, groove = canvas.smooth(canvas.stroke(band, rng.uniform(0.34, 0.44)), 0.05), np.zeros_like(body)
    else:
        sweep = 0.9 + 0.75 * lobes
        area, strand = rng.uniform(0.34, 0.44), rng.uniform(0.05, 0.13)
        nucleus, groove = _segmented(canvas, lobes, area, (sweep, sweep + 1.2), strand)
    nucleus = nucleus * body
    tint = _vary(rng, PALE_PINK) * rng.uniform(0.8, 1.25)
    cytoplasm = tinted(1 + 0.12 * canvas.noise(0.08) + 0.10 * canvas.noise(0.4), tint)
    cytoplasm = over(cytoplasm, 0.8 * canvas.rim(body, 0.10) * smoothstep(canvas.noise(0.7), -0.2, 1.2), PALE_BLUE)
    amounts = over(cytoplasm, canvas.granules((60, 260), (0.014, 0.030), (0.2, 0.8)), FINE_GRANULE)
    density = _chromatin(canvas, nucleus, 0.08, rng.uniform(0.35, 0.60), 0.5) - 0.4 * groove
    amounts = over(amounts * body[:, :, None], nucleus, tinted(density, _vary(rng, NUCLEUS, 0.06)))
    return canvas.finish(amounts, body, nucleus)


def basophil(rng: Generator, radius: float) -> DrawnCell:
    """Coarse blue-black granules all over the cell, over a pale nucleus with broad lobes."""
    shape = outline(rng, 0.96, rng.uniform(0.02, 0.06), rng.uniform(1.0, 1.25))
    canvas = Canvas(rng, radius, shape)
    body = canvas.fill(shape)
    nucleus, groove = _segmented(canvas, int(rng.choice([2, 3])), rng.uniform(0.50, 0.64), (2.0, 4.0), 0.3)
    nucleus = nucleus * canvas.smooth(canvas.fill(outline(rng, 0.86, 0.03)), 0.05) * body
    amounts = tinted(1 + 0.15 * canvas.noise(0.12), _vary(rng, LILAC)) * body[:, :, None]
    density = rng.uniform(0.55, 0.95) * (_chromatin(canvas, nucleus, 0.10, 0.4, 0.3) - 0.6 * groove)
    amounts = over(amounts, nucleus, tinted(density, NUCLEUS))

    centres = _packed(canvas, body, (240, 620), 0.97, 0.45, (-2.2, -0.9))
    radii = rng.uniform(0.026, rng.uniform(0.048, 0.066), len(centres))
    granules = canvas.discs(centres, radii, rng.uniform(0.65, 1.0, len(centres)))
    body = np.maximum(body, (granules > 0.3).astype(np.float32))
    halo = canvas.blur(granules, 0.03)
    amounts = over(amounts, 0.35 * halo * body, VIOLET * 0.55)
    deep = tinted(1 + 0.10 * canvas.noise(0.05), _vary(rng, VIOLET, 0.07))
    amounts = np.maximum(amounts, granules[:, :, None] * deep)
    return canvas.finish(amounts, body, nucleus)


def eosinophil(rng: Generator, radius: float) -> DrawnCell:
    """Two round lobes (sometimes three); the cytoplasm is packed with large orange-pink granules."""
    shape = outline(rng, 0.98, rng.uniform(0.02, 0.06), rng.uniform(1.0, 1.2))
    canvas = Canvas(rng, radius, shape)
    body = canvas.fill(shape)
    lobes = int(rng.choice([2, 3], p=[0.8, 0.2]))
    nucleus, groove = _segmented(canvas, lobes, rng.uniform(0.30, 0.40), (1.4 * lobes - 1.0, 1.4 * lobes), 0.10)
    shift = np.float32(rng.normal(0, 0.08 * canvas.scale, 2))
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], dtype=np.float32)
    nucleus, groove = (cv2.warpAffine(m, move, m.shape) for m in (nucleus, groove))
    nucleus = nucleus * body
    amounts = tinted(1 + 0.1 * canvas.noise(0.1), _vary(rng, PALE_BLUE) + PALE_PINK * 0.5) * body[:, :, None]

    centres = _packed(canvas, body, (600, 950), 0.98, 0.8, (-3.0, -1.3))
    radii = rng.uniform(0.034, 0.052, len(centres))
    granules = canvas.discs(centres, radii, rng.uniform(0.62, 1.0, len(centres)))
    packed = canvas.blur((granules > 0.3).astype(np.float32), 0.03)
    body = np.maximum(body, (granules > 0.3).astype(np.float32))
    tint = _vary(rng, SALMON, 0.10) * rng.uniform(0.85, 1.15)
    amounts = over(amounts, 0.55 * packed * body, tint * 0.75)
    amounts = over(amounts, granules, tinted(0.35 + 0.8 * granules, tint))
    density = _chromatin(canvas, nucleus, 0.08, rng.uniform(0.40, 0.65), 0.4) - 0.4 * groove
    amounts = over(amounts, nucleus, tinted(density, _vary(rng, NUCLEUS * 0.95, 0.06)))
    return canvas.finish(amounts, body, nucleus)


def lymphocyte(rng: Generator, radius: float) -> DrawnCell:
    """A small cell with a round, dense nucleus and a thin blue rim of cytoplasm, wider in large cells."""
    large = rng.uniform() < 0.25
    shape = outline(rng, 1.0, rng.uniform(0.03, 0.08), rng.uniform(1.0, 1.2))
    shape = shape * (1 + rng.normal(0, rng.uniform(0.003, 0.022), (len(shape), 1)))  # hairs and blebs at the margin
    canvas = Canvas(rng, radius, shape)
    body = canvas.smooth(canvas.fill(shape), 0.012)
    ratio = rng.uniform(0.70, 0.80) if large else rng.uniform(0.82, 0.93)
    core = outline(rng, ratio, rng.uniform(0.01, 0.05), rng.uniform(1.0, 1.15))
    shift = rotated([[rng.uniform(0, (1 - ratio) * 0.9), 0.0]], rng.uniform(0, 2 * np.pi))
    nucleus = canvas.fill(core + shift)
    if rng.uniform() < 0.35:
        notch = outline(rng, rng.uniform(0.10, 0.22), 0.05) + rotated([[ratio + 0.02, 0.0]], rng.uniform(0, 6.3))
        nucleus = nucleus * (1 - canvas.fill(notch))
    nucleus = canvas.smooth(nucleus, 0.04) * body
    blue = _vary(rng, PALE_BLUE + 0.5 * GREY_BLUE if large else DEEP_BLUE, 0.10)
    cytoplasm = tinted(1 + 0.15 * canvas.noise(0.08) + 0.14 * canvas.noise(0.3) + 0.35 * canvas.rim(body, 0.04), blue)
    if large:
        n = int(rng.uniform(0, 14))
        cytoplasm = over(cytoplasm, canvas.discs(scatter(rng, n), np.full(n, 0.03)), FINE_GRANULE)
    density = 0.98 * _chromatin(canvas, nucleus, 0.07, rng.uniform(0.22, 0.48), 0.4)
    amounts = over(cytoplasm * body[:, :, None], nucleus, tinted(density, _vary(rng, NUCLEUS, 0.06)))
    return canvas.finish(amounts, body, nucleus)


def _folded(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A monocyte's nucleus (kidney, horseshoe or folded lobes): its mask, and the groove of the fold."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    kind = rng.choice(["kidney", "horseshoe", "folded"], p=[0.45, 0.33, 0.22])
    if kind == "kidney":
        kidney = canvas.fill(outline(rng, rng.uniform(0.62, 0.70), 0.05, rng.uniform(1.2, 1.5), angle))
        hilum = outline(rng, rng.uniform(0.20, 0.30), 0.05, 1.5, angle + np.pi / 2)
        hilum = hilum + rotated([[rng.normal(0, 0.08), 0.56]], angle)
        return canvas.smooth(kidney * (1 - canvas.fill(hilum)), 0.07), np.zeros_like(kidney)
    if kind == "horseshoe":
        path = arc(rng.uniform(0.42, 0.50), angle, rng.uniform(2.6, 4.0)) * [1.0, rng.uniform(0.8, 1.0)]
        shoe = canvas.stroke(path, rng.uniform(0.46, 0.58))
        ends = [canvas.fill(outline(rng, rng.uniform(0.26, 0.34), 0.08) + path[i]) for i in (1, -2)]
        return canvas.smooth(np.maximum.reduce([shoe, *ends]), 0.06), np.zeros_like(shoe)
    return _segmented(canvas, int(rng.choice([2, 3])), rng.uniform(0.48, 0.58), (1.6, 3.2), 0.45)


def monocyte(rng: Generator, radius: float) -> DrawnCell:
    """The largest type: a folded nucleus of lacy chromatin; grey-blue cytoplasm like ground glass, with vacuoles."""
    shape = outline(rng, 1.0, rng.uniform(0.04, 0.10), rng.uniform(1.0, 1.15))
    canvas = Canvas(rng, radius, shape)
    body = canvas.smooth(canvas.fill(shape), 0.03)
    nucleus, groove = _folded(canvas)
    nucleus = nucleus * canvas.smooth(body, 0.1) * body
    tint = _vary(rng, GREY_BLUE) * rng.uniform(0.8, 1.2)
    dust = 1 + 0.14 * canvas.noise(0.06) + 0.14 * canvas.noise(0.35) + 0.25 * canvas.rim(body, 0.05)
    amounts = over(tinted(dust, tint), canvas.granules((20, 140), (0.012, 0.022), (0.2, 0.7)), FINE_GRANULE)
    lace = np.clip(1 - 1.2 * np.abs(canvas.noise(0.08)), -0.6, 1)  # a net: dense where the noise crosses 0
    density = 0.66 + 0.15 * lace - 0.10 * smoothstep(canvas.noise(0.06), 0.3, 1.2) + 0.05 * canvas.noise(0.4)
    density += 0.25 * canvas.rim(nucleus, 0.035)
    chromatin = tinted(density - 0.3 * groove, _vary(rng, LACE, 0.06))
    amounts = over(amounts * body[:, :, None], nucleus, chromatin)
    n = int(rng.choice([0, 2, 5, 10], p=[0.25, 0.3, 0.3, 0.15]))
    vacuoles = canvas.discs(scatter(rng, n, 0.9), rng.uniform(0.04, 0.10, n))
    amounts = amounts * (1 - 0.92 * canvas.blur(vacuoles, 0.012) * (1 - 0.5 * nucleus))[:, :, None]
    return canvas.finish(amounts, body, nucleus)


DRAW = {"NG": neutrophil, "BG": basophil, "EG": eosinophil, "L": lymphocyte, "M": monocyte}

SIZES = {"NG": (1.60, 2.00), "BG": (1.50, 1.90), "EG": (1.65, 2.10), "L": (1.40, 1.70), "M": (1.85, 2.15)}
"""Smallest and largest diameter of each type, in red cell diameters (7.5 micrometres)."""
