"""Wright's stain as optical density: what two dyes and the cells' own pigment take out of the light.

Beer and Lambert: light of colour ``white`` that crosses amounts ``c`` of three absorbers leaves as
``white * exp(-c @ ABSORBERS)``. Amounts add up where cells lie on each other; colours do not. The absorbers are the
acid dye eosin (pink), the basic dyes methylene blue and azure (blue; with eosin they make the nuclei's purple), and
what red cells and eosinophil granules bring along without any dye: haemoglobin and refraction (a brownish grey).
Three absorbers against three colour channels, so a picture's density separates into amounts without a remainder.

All functions work on the encoded (sRGB) values that cameras store, as colour deconvolution usually does.
"""

from __future__ import annotations

import cv2
import numpy as np

EOSIN, AZURE, PIGMENT = 0, 1, 2
ABSORBERS = np.array(
    [
        [0.16, 0.95, 0.27],  # eosin: absorbs green
        [0.74, 0.66, 0.13],  # methylene blue and azure B: absorb red and green
        [0.57, 0.42, 0.706],  # haemoglobin and refraction: most in the blue (Soret band)
    ],
    dtype=np.float32,
)
"""[absorber, RGB] float32, rows of unit length: density a unit amount causes in red, green and blue."""

NEUTRAL_PH = 6.6
"""The buffer's pH at which Wright's stain is balanced; 6.4 to 6.8 is good practice."""


def to_density(image: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Optical density of a picture.

    Args:
        image: [..., 3] RGB, 0..255.
        white: [3] or [..., 3] RGB of the light where nothing lies in its way, above 0.

    Returns:
        [..., 3] float32 natural-log density a channel, at least 0 where the picture is not brighter than ``white``.
        Values below 1 count as 1, so that black has a finite density.
    """
    light = np.maximum(np.asarray(image, dtype=np.float32), 1.0)
    return np.log(np.asarray(white, dtype=np.float32)) - np.log(light)


def from_density(density: np.ndarray, white: np.ndarray) -> np.ndarray:
    """The picture, [..., 3] float32 RGB not rounded, that ``to_density`` would turn into ``density``."""
    light = np.negative(density, dtype=np.float32)
    np.exp(light, out=light)
    light *= np.asarray(white, dtype=np.float32)
    return light


def mix(amounts: np.ndarray) -> np.ndarray:
    """Density [..., RGB] float32 of amounts [..., absorber]."""
    return np.asarray(amounts, dtype=np.float32) @ ABSORBERS


def separate(density: np.ndarray) -> np.ndarray:
    """Amounts [..., absorber] float32 in a density [..., RGB]; the inverse of ``mix``, so amounts may be negative."""
    return np.asarray(density, dtype=np.float32) @ np.linalg.inv(ABSORBERS)


def bare_slide(image: np.ndarray) -> np.ndarray:
    """The light where nothing lies in its way, [3] float32 RGB, as a picture [H, W, 3] uint8 shows it: the level that
    2 % of its pixels reach in each channel."""
    channels = (np.bincount(image[:, :, c].ravel(), minlength=256) for c in range(3))
    return np.array([np.searchsorted(np.cumsum(n), 0.98 * n.sum()) for n in channels], dtype=np.float32).clip(1)


def restain(image: np.ndarray, change: np.ndarray, light: np.ndarray | float = 1.0, flare: float = 0.0) -> np.ndarray:
    """A picture as it would be with other amounts of the absorbers, [H, W, 3] uint8 RGB.

    ``change`` [absorber, absorber'] maps amounts (see ``separate``) to new ones, a diagonal matrix scales them; the
    bare slide's colour is multiplied by ``light`` (a number or [3]); of the light that reaches the camera, a share
    ``flare`` has not crossed the cells.
    """
    white = bare_slide(image)
    through = (np.linalg.inv(ABSORBERS) @ change @ ABSORBERS).astype(np.float32)
    density = cv2.LUT(image, np.stack([to_density(np.arange(256), w) for w in white], axis=-1)[None])
    shown = white * light
    changed = from_density(cv2.transform(density, through.T), shown * (1 - flare))
    changed += (shown * flare).astype(np.float32)
    return cv2.convertScaleAbs(np.minimum(changed, 255, out=changed))


def uptake(ph: float) -> np.ndarray:
    """How much of each absorber a smear takes up when stained at ``ph``, [absorber] float32, 1 at ``NEUTRAL_PH``.

    An acid buffer charges the proteins so that they bind eosin (a red, pale-nucleus smear); an alkaline one lets the
    basic dyes bind more (a blue, over-stained smear). The cells' own pigment does not depend on it.
    """
    shift = ph - NEUTRAL_PH
    return np.array([np.exp(-1.2 * shift), np.exp(1.2 * shift), 1.0], dtype=np.float32)
