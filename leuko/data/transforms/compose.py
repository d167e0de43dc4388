"""On-line augmentation: a composition of transforms, each with its own probability.

It is written as a list, in the order in which the transforms are applied:

    augment:
      - horizontal_flip: 0.5                        # the probability alone
      - scale_crop: {p: 0.7, scale: [0.5, 1.5]}     # and options
      - stain_jitter: {p: 0.8, amount: 0.25}

A transform takes a sample and a numpy generator and returns the changed sample. All randomness comes from the
generator, so that a seed gives the same images with any number of workers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...cells import FACTORS
from ...errors import LeukoError, nearest
from ...io import read_yaml
from ..dataset import AugmentedSample
from . import geometric as geo
from . import mixing
from . import photometric as photo

GEOMETRIC = (geo.horizontal_flip, geo.vertical_flip, geo.right_angle, geo.rotate, geo.scale_crop)
PHOTOMETRIC = (photo.colour_jitter, photo.stain_jitter, photo.gamma, photo.defocus, photo.noise, photo.jpeg)
MIXING = (mixing.copy_paste, mixing.mosaic)
TRANSFORMS = {f.__name__: f for f in (*GEOMETRIC, *PHOTOMETRIC, photo.factor, *MIXING)}

LIMITS = {
    "amount": (0, 2),
    "band": (0, 2),
    "cells": (1, 20),
    "degrees": (0, 180),
    "power": (0.05, 10),
    "quality": (1, 100),
    "radius": (0, 10),
    "scale": (0.05, 20),
    "severity": (1, 5),
    "std": (0, 255),
    "strength": (0, 2),
}
"""Lowest and highest value of an option; 0 and 1 for all others."""

_FLIPS: list[dict] = [{"horizontal_flip": 0.5}, {"vertical_flip": 0.5}]
PRESETS: dict[str, list[dict]] = {
    "none": [],
    "flips": _FLIPS,
    "standard": [*_FLIPS, {"scale_crop": 0.7}, {"colour_jitter": 0.7}],
    "smear": [
        *_FLIPS,
        {"right_angle": 0.5},
        {"stain_jitter": 0.9},
        {"gamma": 0.3},
        {"factor": {"p": 0.15, "names": "overstained understained dye_residue cell_debris dust defocus overlap"}},
        {"scale_crop": {"p": 0.8, "scale": [0.5, 1.5]}},
        {"defocus": {"p": 0.3, "radius": 1.2}},
        {"noise": 0.3},
        {"jpeg": 0.3},
    ],
}

ENOUGH = 10_000  # images shown in a training, from which on "smear" does not reduce the home mAP (docs/travel.md)


class Step(NamedTuple):
    """A transform's name in ``TRANSFORMS``, its probability, and the value of each of its options."""

    p: float
    name: str
    options: dict[str, float | str | list]


def augment(
    sample: AugmentedSample, steps: Sequence[Step], rng: np.random.Generator, others: mixing.Others
) -> AugmentedSample:
    """Apply each transform with its probability, in order; ``others`` draws another sample (see ``mixing``)."""
    for p, name, options in steps:
        if rng.random() < p:
            transform = TRANSFORMS[name]
            sources = (others,) if transform in MIXING else ()
            sample = transform(sample, rng, *sources, **options)
    return sample


def chosen(given: str | list, images: int) -> str | list:
    """``given``; for ``auto``, the preset that suits a training that shows ``images`` images in all its epochs."""
    if given != "auto":
        return given
    return "smear" if images >= ENOUGH else "standard"


def read_steps(given: str | list) -> list[Step]:
    """The steps of a list, of a preset's name, or of a YAML file with the key ``augment``. Raises LeukoError."""
    where = "--augment"
    if isinstance(given, str) and given in PRESETS:
        given = PRESETS[given]
    elif isinstance(given, str):
        path = Path(given)
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise LeukoError(
                f'--augment "{given}": is neither a preset{nearest(given, PRESETS)} ({", ".join(PRESETS)}, auto) '
                "nor a YAML file"
            )
        where, given = given, read_yaml(path).get("augment")
    if not isinstance(given, list):
        raise LeukoError(f'{where}: augment: is not a list; write "- TRANSFORM: PROBABILITY" lines')
    return [_step(entry, f"{where}: transform {i}") for i, entry in enumerate(given, 1)]


def _step(entry: object, where: str) -> Step:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise LeukoError(f'{where}: {entry!r:.60}: write "TRANSFORM: PROBABILITY" or "TRANSFORM: {{p: PROBABILITY}}"')
    (name, value), *_ = entry.items()
    if name not in TRANSFORMS:
        raise LeukoError(
            f'{where}: "{name!s:.60}" is unknown{nearest(str(name), TRANSFORMS)} ({", ".join(TRANSFORMS)})'
        )
    where = f"{where}: {name}"
    parameters = inspect.signature(TRANSFORMS[name]).parameters.values()
    options = {"p": 0.0} | {o.name: o.default for o in parameters if o.default is not o.empty}
    given = {"p": None} | (value if isinstance(value, dict) else {"p": value})
    for key in given:
        if key not in options:
            has = ", ".join(options)
            raise LeukoError(f'{where}: unknown option "{key!s:.60}"{nearest(str(key), options)} (it has {has})')
    for key, default in options.items():
        low, high = LIMITS.get(key, (0, 1))
        options[key] = _checked(given.get(key, default), default, low, high, f"{where}: {key}")
    return Step(options.pop("p"), name, options)


def _checked(value: object, default: float | str | tuple, low: float, high: float, where: str) -> float | str | list:
    """The value of an option in the type of its default; LeukoError if it is of another type or out of range."""
    if isinstance(default, str):
        for name in str(value).split() or [""]:
            if name not in FACTORS:
                known = ", ".join(FACTORS)
                raise LeukoError(f'{where}: "{name:.60}" is unknown{nearest(name, FACTORS)} (there are: {known})')
        return str(value)
    is_range = isinstance(default, tuple)
    if is_range and not (isinstance(value, list | tuple) and len(value) == 2):
        raise LeukoError(f"{where}: {value!r:.60}: give two numbers, such as {list(default)}")
    numbers, kind = (value, type(default[0])) if is_range else ([value], type(default))
    for number in numbers:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not low <= number <= high or kind(number) != number:
            what = "an integer" if kind is int else "a number"
            raise LeukoError(f"{where}: {number!r:.60} is not {what} from {low:g} to {high:g}")
    if numbers[0] > numbers[-1]:
        raise LeukoError(f"{where}: {value!r}: give the lower number first")
    return [kind(number) for number in numbers] if is_range else kind(value)


def listed(steps: Sequence[Step]) -> list[dict]:
    """The steps as the list that :func:`read_steps` reads, with the value of every option."""
    return [{name: {"p": p, **options} if options else p} for p, name, options in steps]
