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
    channels = (np.bincount(image[:, :, c].ravel(), minlength=256) for c in range(3))
    return np.array([np.searchsorted(np.cumsum(n), 0.98 * n.sum()) for n in channels], dtype=np.float32).clip(1)


def restain(image: np.ndarray, change: np.ndarray, light: np.ndarray | float = 1.0, flare: float = 0.0) -> np.ndarray:
    """The image [H, W, 3] uint8 RGB as it would look with other amounts of the absorbers.

    ``change`` [absorber, absorber'] is the linear map from old to new amounts (a diagonal matrix scales them),
    ``light`` (a number or [3]) a factor of the empty slide's colour, ``flare`` the share (0..1) of the light at the
    camera that has not passed the cells.
    """
    white = bare_slide(image)
    density_map = (np.linalg.inv(ABSORBERS) @ change @ ABSORBERS).astype(np.float32)
    density = cv2.LUT(image, np.stack([to_density(np.arange(256), w) for w in white], axis=-1)[None])
    new_white = white * light
    changed = from_density(cv2.transform(density, density_map.T), new_white * (1 - flare))
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
        table = np.stack([to_density(np.arange(256), w) for w in white], axis=-1)[None]
        density = cv2.LUT(cv2.GaussianBlur(image, (0, 0), 1.0), table)
        outside = np.ones(image.shape[:2], dtype=bool)
        nuclei = []
        for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).round().astype(int).tolist():
            margin = (x1 - x0) // 10
            outside[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = False
            cell = density[max(y0, 0) : y1, max(x0, 0) : x1].reshape(-1, 3)
            nucleus = cell[cell[:, 0] > _otsu(cell[:, 0], 1.5)] if len(cell) else cell
            if len(nucleus) >= MIN_PIXELS:
                nuclei.append(np.median(nucleus, axis=0))
        nucleus = np.median(nuclei, axis=0) if nuclei else REFERENCE.nuclei
        rest = density[outside]
        red_cells = rest[rest[:, 1] > _otsu(rest[:, 1], 0.64)] if len(rest) else rest
        return cls(white, np.median(red_cells, axis=0) if len(red_cells) >= 5 * MIN_PIXELS else None, nucleus)

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


def _otsu(values: np.ndarray, most: float) -> float:
    """Otsu's threshold between values [N] from 0 to ``most``."""
    levels = np.clip(values * (255 / most), 0, 255).astype(np.uint8).reshape(-1, 1)
    return cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] / 255 * most


MIN_PIXELS = 20  # of a nucleus
RED_CELLS_WEIGHT = 1.5  # they are pale beside nuclei
PULL = 0.02
REFERENCE = Stain(np.float32([240] * 3), np.float32([0.22, 0.33, 0.20]), np.float32([1.0, 1.65, 0.35]))
"""The stain that all fields are brought to: about that of a CellaVision DM96 with May-Gruenwald-Giemsa (PBC)."""
