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

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import LeukoError, nearest
from ...io import read_yaml
from . import geometric, mixing, photometric
from .sample import AugmentedSample

TRANSFORMS = {
    "horizontal_flip": geometric.HorizontalFlip,
    "vertical_flip": geometric.VerticalFlip,
    "right_angle": geometric.RightAngle,
    "rotate": geometric.Rotate,
    "scale_crop": geometric.ScaleCrop,
    "translate": geometric.Translate,
    "erase": geometric.Erase,
    "colour_jitter": photometric.ColourJitter,
    "stain_jitter": photometric.StainJitter,
    "gamma": photometric.Gamma,
    "blur": photometric.Blur,
    "defocus": photometric.Defocus,
    "noise": photometric.Noise,
    "jpeg": photometric.JPEG,
    "factor": photometric.Factor,
    "copy_paste": mixing.CopyPaste,
    "mosaic": mixing.Mosaic,
    "mixup": mixing.MixUp,
}

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
    """A transform, its name in ``TRANSFORMS``, and its probability."""

    p: float
    name: str
    transform: object


def augment(
    sample: AugmentedSample, steps: Sequence[Step], rng: np.random.Generator, others: mixing.Others
) -> AugmentedSample:
    """Apply each transform with its probability, in order; ``others`` draws another sample (see ``mixing``)."""
    for p, _, transform in steps:
        if rng.random() < p:
            mixes = isinstance(transform, mixing.Mixing)
            sample = transform(sample, rng, others) if mixes else transform(sample, rng)
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
        raise LeukoError(f'{where}: "{name}" is unknown{nearest(str(name), TRANSFORMS)} ({", ".join(TRANSFORMS)})')
    where = f"{where}: {name}"
    given = dict(value) if isinstance(value, dict) else {"p": value}
    p = given.pop("p", None)
    if not _is_number(p) or not 0 <= p <= 1:
        raise LeukoError(f"{where}: p: {p!r} is not a probability; give a number from 0 to 1")
    options = {option.name: option for option in dataclasses.fields(TRANSFORMS[name])}
    for key in given:
        if key not in options:
            has = ", ".join(("p", *options))
            raise LeukoError(f'{where}: unknown option "{key}"{nearest(str(key), options)} (it has {has})')
    try:
        return Step(float(p), name, TRANSFORMS[name](**{k: _checked(v, options[k]) for k, v in given.items()}))
    except ValueError as error:
        raise LeukoError(f"{where}: {error}") from error


def _checked(value: object, option: dataclasses.Field) -> float | str | tuple:
    """The value of an option in the type of its default; ValueError if it is of another type or out of range."""
    default, low, high = option.default, option.metadata["low"], option.metadata["high"]
    if isinstance(default, str):
        return str(value)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"{option.name}: {value!r}: give two numbers, such as {list(default)}")
        numbers, kind = tuple(value), type(default[0])
    else:
        numbers, kind = (value,), type(default)
    for number in numbers:
        if not _is_number(number) or kind(number) != number:
            raise ValueError(f"{option.name}: {number!r} is not {'an integer' if kind is int else 'a number'}")
        if not low <= number <= high:
            raise ValueError(f"{option.name}: {number:g} is not from {low:g} to {high:g}")
    if numbers[0] > numbers[-1]:
        raise ValueError(f"{option.name}: {value!r}: give the lower number first")
    return tuple(map(kind, numbers)) if isinstance(default, tuple) else kind(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def listed(steps: Sequence[Step]) -> list[dict]:
    """The steps as the list that :func:`read_steps` reads, with the value of every option."""
    result = []
    for p, name, transform in steps:
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(transform).items()}
        result.append({name: {"p": p, **options} if options else p})
    return result
