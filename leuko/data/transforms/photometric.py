"""Photometric transforms: stain, light, focus, camera, interference factors.

Each takes an ``AugmentedSample`` and a numpy generator and returns the changed sample; the fields of a class are its
options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ...cells import FACTORS
from ...errors import nearest
from ...synth import stain
from ...synth.factors import apply_factor, out_of_focus
from .sample import AugmentedSample, option

GREY = np.tile([0.299, 0.587, 0.114], (3, 1))  # from R, G, B to luminance in each channel


@dataclass(frozen=True)
class StainJitter:
    """Another batch of dye, another buffer, lamp and camera: it changes optical densities (see ``synth.stain``).

    Each factor is ``exp`` of a normal deviate of the given standard deviation: ``amount`` of each absorber,
    ``strength`` of all absorbers, ``band`` of the density in each channel (a camera with broad filters records less of
    it), ``light`` of the light's level and of each of its channels. The spectrum of each absorber changes by about
    ``spectrum`` of itself. Up to ``flare`` of the light reaches the camera past the cells, which lose contrast.
    """

    amount: float = option(0.3, high=2)
    strength: float = option(0.25, high=2)
    spectrum: float = option(0.12, high=1)
    band: float = option(0.25, high=2)
    light: float = option(0.08, high=1)
    flare: float = option(0.25, high=1)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        amounts = np.exp(rng.normal(0, self.amount, 3) + rng.normal(0, self.strength))
        spectra = stain.ABSORBERS * (1 + rng.normal(0, self.spectrum, (3, 3)))
        spectra = spectra * np.exp(rng.normal(0, self.band, 3))
        change = amounts[:, None] * (spectra @ np.linalg.inv(stain.ABSORBERS))
        light = np.exp(rng.normal(0, self.light) + rng.normal(0, self.light, 3))
        flare = rng.uniform(0, self.flare)
        return replace(sample, image=stain.restain(sample.image, change, light, flare))


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast and saturation by a factor of 1 +- the option, and each channel by 1 +- ``gain``."""

    brightness: float = option(0.2, high=1)
    contrast: float = option(0.2, high=1)
    saturation: float = option(0.2, high=1)
    gain: float = option(0.05, high=1)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        amounts = np.array([self.brightness, self.contrast, self.saturation] + [self.gain] * 3)
        brightness, contrast, saturation, *gain = 1 + rng.uniform(-amounts, amounts)
        # All four are one linear map of the channels.
        mix = saturation * np.eye(3) + (1 - saturation) * GREY
        matrix = brightness * contrast * np.array(gain)[:, None] * mix
        shift = np.full((3, 1), brightness * 128 * (1 - contrast))
        return replace(sample, image=cv2.transform(sample.image, np.hstack([matrix, shift])))


@dataclass(frozen=True)
class Gamma:
    """Another tone curve: light to the power of an exponent from the range ``power``."""

    power: tuple[float, float] = option((0.7, 1.4), 0.05, 10)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        power = np.exp(rng.uniform(*np.log(self.power)))
        table = (255 * (np.arange(256) / 255) ** power).round().astype(np.uint8)
        return replace(sample, image=cv2.LUT(sample.image, table))


@dataclass(frozen=True)
class Blur:
    """Gaussian blur of a random sigma from 0 to ``sigma`` percent of the longer side."""

    sigma: float = option(0.4, high=10)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        sigma = rng.uniform(0, self.sigma) / 100 * max(sample.image.shape)
        return replace(sample, image=cv2.GaussianBlur(sample.image, (0, 0), max(sigma, 0.1)))


@dataclass(frozen=True)
class Defocus:
    """Out of focus: each point becomes a disc of a random radius from 0 to ``radius`` percent of the longer side."""

    radius: float = option(1.0, high=10)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        radius = rng.uniform(0, self.radius) / 100 * max(sample.image.shape)
        return replace(sample, image=out_of_focus(sample.image, max(radius, 0.2)))


@dataclass(frozen=True)
class Noise:
    """Sensor noise of up to ``std`` grey values; independent per channel in a third of the cases."""

    std: float = option(8.0, high=255)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        height, width = sample.image.shape[:2]
        channels = 3 if rng.random() < 1 / 3 else 1
        noise = rng.standard_normal((height, width, channels), dtype=np.float32)
        noise *= rng.uniform(0, self.std)
        return replace(sample, image=np.clip(sample.image + noise + 0.5, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class JPEG:
    """JPEG artefacts, of a quality from the range ``quality``."""

    quality: tuple[int, int] = option((30, 90), 1, 100)

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        _, data = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return replace(sample, image=cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


@dataclass(frozen=True)
class Factor:
    """One of the interference factors ``names`` (separated by spaces), at a severity from the range ``severity``."""

    names: str = option(" ".join(FACTORS))
    severity: tuple[int, int] = option((1, 3), 1, 5)

    def __post_init__(self) -> None:
        for name in self.names.split() or [""]:
            if name not in FACTORS:
                raise ValueError(
                    f'names: "{name}" is unknown{nearest(name, FACTORS)} (there are: {", ".join(FACTORS)})'
                )

    def __call__(self, sample: AugmentedSample, rng: np.random.Generator) -> AugmentedSample:
        name = str(rng.choice(self.names.split()))
        severity = int(rng.integers(self.severity[0], self.severity[1] + 1))
        result = apply_factor(name, rng, sample.image, sample.boxes, severity)
        return AugmentedSample(result.image, result.boxes, sample.labels[result.kept])
