"""Photometric transforms: stain, light, focus, camera, interference factors.

Each takes an ``AugmentedSample``, a numpy generator and options, and returns the changed sample.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator

from ...cells import FACTORS
from ...synth import stain
from ...synth.factors import apply_factor, out_of_focus
from ..dataset import AugmentedSample

GREY = np.tile([0.299, 0.587, 0.114], (3, 1))  # from R, G, B to luminance in each channel


def stain_jitter(
    sample: AugmentedSample,
    rng: Generator,
    amount: float = 0.3,
    strength: float = 0.25,
    spectrum: float = 0.12,
    band: float = 0.25,
    light: float = 0.08,
    flare: float = 0.25,
) -> AugmentedSample:
    """Another batch of dye, another buffer, lamp and camera: it changes optical densities (see ``synth.stain``).

    Each factor is ``exp`` of a normal deviate of the given standard deviation: ``amount`` of each absorber,
    ``strength`` of all absorbers, ``band`` of the density in each channel (a camera with broad filters records less of
    it), ``light`` of the light's level and of each of its channels. The spectrum of each absorber changes by about
    ``spectrum`` of itself. Up to ``flare`` of the light reaches the camera past the cells, which lose contrast.
    """
    amounts = np.exp(rng.normal(0, amount, 3) + rng.normal(0, strength))
    spectra = stain.ABSORBERS * (1 + rng.normal(0, spectrum, (3, 3)))
    spectra = spectra * np.exp(rng.normal(0, band, 3))
    change = amounts[:, None] * (spectra @ np.linalg.inv(stain.ABSORBERS))
    lamp = np.exp(rng.normal(0, light) + rng.normal(0, light, 3))
    return replace(sample, image=stain.restain(sample.image, change, lamp, rng.uniform(0, flare)))


def colour_jitter(
    sample: AugmentedSample,
    rng: Generator,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    gain: float = 0.05,
) -> AugmentedSample:
    """Brightness, contrast and saturation by a factor of 1 +- the option, and each channel by 1 +- ``gain``."""
    amounts = np.array([brightness, contrast, saturation, gain, gain, gain])
    brightness, contrast, saturation, *gains = 1 + rng.uniform(-amounts, amounts)
    # All four are one linear map of the channels.
    mix = saturation * np.eye(3) + (1 - saturation) * GREY
    matrix = brightness * contrast * np.array(gains)[:, None] * mix
    shift = np.full((3, 1), brightness * 128 * (1 - contrast))
    return replace(sample, image=cv2.transform(sample.image, np.hstack([matrix, shift])))


def gamma(sample: AugmentedSample, rng: Generator, power: tuple[float, float] = (0.7, 1.4)) -> AugmentedSample:
    """Another tone curve: light to the power of an exponent from the range ``power``."""
    exponent = np.exp(rng.uniform(*np.log(power)))
    table = (255 * (np.arange(256) / 255) ** exponent).round().astype(np.uint8)
    return replace(sample, image=cv2.LUT(sample.image, table))


def defocus(sample: AugmentedSample, rng: Generator, radius: float = 1.0) -> AugmentedSample:
    """Out of focus: each point becomes a disc of a random radius from 0 to ``radius`` percent of the longer side."""
    pixels = rng.uniform(0, radius) / 100 * max(sample.image.shape)
    return replace(sample, image=out_of_focus(sample.image, max(pixels, 0.2)))


def noise(sample: AugmentedSample, rng: Generator, std: float = 8.0) -> AugmentedSample:
    """Sensor noise of up to ``std`` grey values; independent per channel in a third of the cases."""
    height, width = sample.image.shape[:2]
    channels = 3 if rng.random() < 1 / 3 else 1
    deviates = rng.standard_normal((height, width, channels), dtype=np.float32)
    deviates *= rng.uniform(0, std)
    return replace(sample, image=np.clip(sample.image + deviates + 0.5, 0, 255).astype(np.uint8))


def jpeg(sample: AugmentedSample, rng: Generator, quality: tuple[int, int] = (30, 90)) -> AugmentedSample:
    """JPEG artefacts, of a quality from the range ``quality``."""
    sampled = int(rng.integers(quality[0], quality[1] + 1))
    _, data = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, sampled])
    return replace(sample, image=cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


def factor(
    sample: AugmentedSample, rng: Generator, names: str = " ".join(FACTORS), severity: tuple[int, int] = (1, 3)
) -> AugmentedSample:
    """One of the interference factors ``names`` (separated by spaces), at a severity from the range ``severity``."""
    name = str(rng.choice(names.split()))
    sampled = int(rng.integers(severity[0], severity[1] + 1))
    result = apply_factor(name, rng, sample.image, sample.boxes, sampled)
    return AugmentedSample(result.image, result.boxes, sample.labels[result.kept])
