"""Wright's stain as optical density: how much light two dyes and the cells' own pigment absorb.

Beer-Lambert law: light of colour ``white`` that passes amounts ``c`` of three absorbers leaves as
``white * exp(-c @ ABSORBERS)``. Where cells overlap, their amounts add up; their colours do not. The absorbers are the
acid dye eosin (pink), the basic dyes methylene blue and azure (blue; with eosin they give the purple of nuclei), and
what red cells and eosinophil granules absorb without any dye: haemoglobin and refraction (a brownish grey). Three
absorbers and three colour channels: the density of an image separates into amounts without a residual.

All functions work on the encoded (sRGB) values that cameras store, as is usual in colour deconvolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

ABSORBERS = np.array(
    [
        [0.16, 0.95, 0.27],  # eosin: absorbs green
        [0.74, 0.66, 0.13],  # methylene blue and azure B: absorb red and green
        [0.57, 0.42, 0.706],  # haemoglobin and refraction: mostly blue (Soret band)
    ],
    dtype=np.float32,
)
"""[absorber, RGB] float32, rows of unit length: density that a unit amount causes in red, green and blue."""

NEUTRAL_PH = 6.6
"""pH of the buffer at which Wright's stain is balanced; 6.4 to 6.8 is good practice."""


def to_density(image: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Optical density [..., 3] float32 (natural logarithm) of an image [..., 3] RGB, 0..255.

    ``white`` ([3] or [..., 3] RGB, above 0) is the light where the slide is empty. Values below 1 count as 1, so that
    the density of black is finite.
    """
    light = np.maximum(np.asarray(image, dtype=np.float32), 1.0)
    return np.log(np.asarray(white, dtype=np.float32)) - np.log(light)


def mapped_density(image: np.ndarray, white: np.ndarray, density_map: np.ndarray) -> np.ndarray:
    """Optical density [H, W, 3] float32 of an image [H, W, 3] uint8 RGB, of which each pixel's (a column vector) is
    mapped linearly, by [RGB', RGB]."""
    return cv2.transform(cv2.LUT(image, _density_table(white)[None]), density_map)


def _density_table(white: np.ndarray) -> np.ndarray:
    """The density of each value in each channel, [256, 3]."""
    return to_density(np.arange(256)[:, None], white)


def from_density(density: np.ndarray, white: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_density`: an image [..., 3] float32 RGB, not rounded."""
    light = np.negative(density, dtype=np.float32)
    np.exp(light, out=light)  # in place: this runs on every image of a training
    light *= np.asarray(white, dtype=np.float32)
    return light


def mix(amounts: np.ndarray) -> np.ndarray:
    """Density [..., RGB] float32 of amounts [..., absorber]."""
    return np.asarray(amounts, dtype=np.float32) @ ABSORBERS


def bare_slide(image: np.ndarray) -> np.ndarray:
    """Colour [3] float32 RGB of the empty slide in an image [H, W, 3] uint8: the 98th percentile of each channel."""
    reached = np.cumsum(_counts(image), axis=0)
    return np.array([np.searchsorted(n, 0.98 * n[-1]) for n in reached.T], dtype=np.float32).clip(1)


def _counts(image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """How many pixels of an image [H, W, 3] uint8, of those whose ``mask`` [H, W] uint8 is not 0, have each value in
    each channel: [256, 3] int64."""
    channels = [cv2.calcHist([image], [c], mask, [256], [0, 256]).ravel() for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.int64)


def restain(image: np.ndarray, change: np.ndarray, light: np.ndarray | float = 1.0, flare: float = 0.0) -> np.ndarray:
    """The image [H, W, 3] uint8 RGB as it would look with other amounts of the absorbers.

    ``change`` [absorber, absorber'] is the linear map from old to new amounts (a diagonal matrix scales them),
    ``light`` (a number or [3]) a factor of the empty slide's colour, ``flare`` the share (0..1) of the light at the
    camera that has not passed the cells.
    """
    white = bare_slide(image)
    density_map = (np.linalg.inv(ABSORBERS) @ change @ ABSORBERS).astype(np.float32)
    new_white = white * light
    changed = from_density(mapped_density(image, white, density_map.T), new_white * (1 - flare))
    changed += (new_white * flare).astype(np.float32)
    return cv2.convertScaleAbs(np.minimum(changed, 255, out=changed))


def uptake(ph: float) -> np.ndarray:
    """Amount of each absorber in a smear stained at ``ph``, relative to ``NEUTRAL_PH``: [absorber] float32.

    An acid buffer charges the proteins so that they bind eosin (a red smear with pale nuclei); an alkaline one lets the
    basic dyes bind more (a blue, over-stained smear). The cells' own pigment does not depend on the pH.
    """
    shift = ph - NEUTRAL_PH
    return np.array([np.exp(-1.2 * shift), np.exp(1.2 * shift), 1.0], dtype=np.float32)


# ---------------------------------------------------------------- the stain of a field, and one stain for all


@dataclass(frozen=True)
class Stain:
    """How a field is stained and recorded: the colour ``white`` [3] of the empty slide, and the median densities [3] of
    its red cells (None where it shows too few) and of its leukocytes' nuclei."""

    white: np.ndarray
    red_cells: np.ndarray | None
    nuclei: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, boxes: np.ndarray) -> Stain:
        """Of a field [H, W, 3] uint8 RGB with leukocytes in ``boxes`` [N, 4] xyxy; a size of about 500 pixels is
        enough. Nuclei are what absorbs most red light in the boxes, red cells what absorbs green light outside."""
        white = bare_slide(image)
        table = _density_table(white)
        image = cv2.GaussianBlur(image, (0, 0), 1.0)
        outside = np.full(image.shape[:2], 255, dtype=np.uint8)
        nuclei = []
        for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).round().astype(int).tolist():
            margin = (x1 - x0) // 10
            outside[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = 0
            cell = image[max(y0, 0) : y1, max(x0, 0) : x1].reshape(-1, 3)
            nucleus = cell[_absorbing(cell[:, 0], table[:, 0], 1.5)[cell[:, 0]]] if len(cell) else cell
            if len(nucleus) >= MIN_PIXELS:
                nuclei.append(_median(_counts(nucleus[None]), table))
        nucleus = np.median(nuclei, axis=0) if nuclei else REFERENCE.nuclei
        green = image[:, :, 1][outside > 0]
        if len(green):
            absorbing = _absorbing(green, table[:, 1], 0.64).astype(np.uint8)
            outside &= cv2.LUT(np.ascontiguousarray(image[:, :, 1]), 255 * absorbing)
        counts = _counts(image, outside)
        is_shown = counts[:, 0].sum() >= 5 * MIN_PIXELS
        return cls(white, _median(counts, table) if is_shown else None, nucleus)

    def to_reference(self) -> np.ndarray:
        """The linear map of densities [RGB, RGB'] that brings red cells and nuclei to those of ``REFERENCE``: for
        column vectors, by least squares, with a weak pull to a change of each channel's density alone, which settles
        what two colours leave open."""
        pairs = [(self.nuclei, REFERENCE.nuclei, 1.0)]
        if self.red_cells is not None:
            pairs.append((self.red_cells, REFERENCE.red_cells, RED_CELLS_WEIGHT))
        own = np.stack([w * a for a, _, w in pairs], axis=1)
        wanted = np.stack([w * b for _, b, w in pairs], axis=1)
        gains = np.diag((REFERENCE.nuclei / np.maximum(self.nuclei, 0.1)).clip(0.4, 3.0))
        pull = PULL * np.eye(3)
        return ((wanted @ own.T + PULL * gains) @ np.linalg.inv(own @ own.T + pull)).astype(np.float32)


def _absorbing(values: np.ndarray, table: np.ndarray, most: float) -> np.ndarray:
    """Which of the 256 values of a channel, whose densities are ``table`` [256], absorb more than Otsu's threshold of
    the densities from 0 to ``most`` of values [N] uint8: [256] bool."""
    levels = np.clip(table * (255 / most), 0, 255).astype(np.uint8)
    otsu = cv2.threshold(levels[values].reshape(-1, 1), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]
    return table > otsu / 255 * most


def _median(counts: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The median densities [3] of pixels, by how many have each value, [256, 3], and its density, [256, 3]."""
    reached = np.cumsum(counts, axis=0)
    number = reached[-1, 0]
    middle = [[np.searchsorted(reached[:, c], k) for c in range(3)] for k in ((number + 1) // 2, number // 2 + 1)]
    return (table[middle[0], range(3)] + table[middle[1], range(3)]) / 2


MIN_PIXELS = 20  # of a nucleus
RED_CELLS_WEIGHT = 1.5  # they are pale beside nuclei
PULL = 0.02
REFERENCE = Stain(np.float32([240] * 3), np.float32([0.22, 0.33, 0.20]), np.float32([1.0, 1.65, 0.35]))
"""The stain that all fields are brought to: about that of a CellaVision DM96 with May-Gruenwald-Giemsa (PBC)."""
