"""Transforms of how things look: stain, light, focus, camera, interference factors.

Each takes a ``AugmentedSample`` and a numpy generator and returns the field changed; the fields of the class are its options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ...synth import factors, stain
from .sample import AugmentedSample

GREY = np.tile([0.299, 0.587, 0.114], (3, 1))  # from R, G, B to luminance in each channel


@dataclass(frozen=True)
class StainJitter:
    """Another batch of dye, another buffer, lamp and camera: optical densities change, not hues (see ``smear.stain``).

    Each absorber's amount is multiplied by e to a normal deviate of deviation ``amount``, all of them by another of
    ``strength``, the density in each channel by one of ``band`` (a camera whose filters are broad sees less of it);
    each absorber's spectrum changes by about ``spectrum`` of itself; the light's level and each of its channels by
    about ``light``. Up to ``flare`` of the light reaches the camera past the cells, which lose contrast.
    """

    amount: float = 0.3
    strength: float = 0.25
    spectrum: float = 0.12
    band: float = 0.25
    light: float = 0.08
    flare: float = 0.25

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        amounts = np.exp(rng.normal(0, self.amount, 3) + rng.normal(0, self.strength))
        spectra = stain.ABSORBERS * (1 + rng.normal(0, self.spectrum, (3, 3)))
        spectra = spectra * np.exp(rng.normal(0, self.band, 3))
        change = amounts[:, None] * (spectra @ np.linalg.inv(stain.ABSORBERS))
        light = np.exp(rng.normal(0, self.light) + rng.normal(0, self.light, 3))
        flare = rng.uniform(0, self.flare)
        return replace(field, image=stain.restain(field.image, change, light, flare))


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation, each by a factor of 1 +- its amount, and each channel's gain by ``gain``."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    gain: float = 0.05

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        amounts = np.array([self.brightness, self.contrast, self.saturation] + [self.gain] * 3)
        brightness, contrast, saturation, *gain = 1 + rng.uniform(-amounts, amounts)
        # All four are one linear map of the channels.
        mix = saturation * np.eye(3) + (1 - saturation) * GREY
        matrix = brightness * contrast * np.array(gain)[:, None] * mix
        shift = np.full((3, 1), brightness * 128 * (1 - contrast))
        return replace(field, image=cv2.transform(field.image, np.hstack([matrix, shift])))


@dataclass(frozen=True)
class Gamma:
    """Another tone curve: light to a ``power`` drawn from this range."""

    power: tuple[float, float] = (0.7, 1.4)

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        power = np.exp(rng.uniform(*np.log(self.power)))
        table = (255 * (np.arange(256) / 255) ** power).round().astype(np.uint8)
        return replace(field, image=cv2.LUT(field.image, table))


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; ``sigma`` in percent of the field's longer side, drawn evenly from 0."""

    sigma: float = 0.4

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        sigma = rng.uniform(0, self.sigma) / 100 * max(field.image.shape)
        return replace(field, image=cv2.GaussianBlur(field.image, (0, 0), max(sigma, 0.1)))


@dataclass(frozen=True)
class Defocus:
    """Out of focus: each point a disc; ``radius`` in percent of the field's longer side, drawn evenly from 0."""

    radius: float = 1.0

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        radius = rng.uniform(0, self.radius) / 100 * max(field.image.shape)
        return replace(field, image=factors.out_of_focus(field.image, max(radius, 0.2)))


@dataclass(frozen=True)
class Noise:
    """A sensor's noise of a deviation of up to ``deviation`` grey values, of each channel's own in a third of cases."""

    deviation: float = 8.0

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = field.image.shape[:2]
        channels = 3 if rng.random() < 1 / 3 else 1
        noise = rng.standard_normal((height, width, channels), dtype=np.float32)
        noise *= rng.uniform(0, self.deviation)
        return replace(field, image=np.clip(field.image + noise + 0.5, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class JPEG:
    """A JPEG's artefacts, of a ``quality`` drawn from this range."""

    quality: tuple[int, int] = (30, 90)

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        _, data = cv2.imencode(".jpg", field.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return replace(field, image=cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


@dataclass(frozen=True)
class Factor:
    """One of the nine interference factors (see ``smear.factors``), drawn from ``names`` (separated by spaces), at a
    ``severity`` from this range."""

    names: str = " ".join(factors.FACTORS)
    severity: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        if not self.names.split() or not set(self.severity) <= set(factors.SEVERITIES):
            raise ValueError(f"severity {list(self.severity)}: give names of factors, and two numbers from 1 to 5")

    def __call__(self, field: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        name = str(rng.choice(self.names.split()))
        put = factors.put(
            name, rng, field.image, field.boxes, int(rng.integers(self.severity[0], self.severity[1] + 1))
        )
        return AugmentedSample(put.image, put.boxes, field.labels[put.kept])
