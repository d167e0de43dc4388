"""On-line augmentation: a composition of transforms, each with its own probability.

It is given as a readable list, in the order in which the transforms are applied:

    augment:
      - horizontal_flip: 0.5                        # the probability alone
      - scale_crop: {p: 0.7, scale: [0.5, 1.5]}     # and options
      - stain_jitter: {p: 0.8, amount: 0.25}

A transform takes a field and a numpy generator and returns the field changed; all randomness comes from the generator,
so that a seed gives the same pictures on any number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import LeukoError, nearest
from ...io import read_yaml
from ...synth.factors import FACTORS
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
"""Lists by name."""

ENOUGH = 10_000  # images shown in a training, from which on "smear" costs nothing at home (docs/travel.md)


_MOST = {"side": 1, "visible": 1, "share": 1, "quality": 100, "scale": 20, "degrees": 180, "patches": 100, "cells": 20}
_MOST |= {"brightness": 1, "contrast": 1, "saturation": 1, "gain": 1, "deviation": 255, "sigma": 10, "radius": 10}
_MOST |= {"amount": 2, "strength": 2, "spectrum": 1, "light": 1, "power": 10}
_LEAST = {"patches": 1, "cells": 1, "quality": 1, "scale": 0.05, "power": 0.05}


class Step(NamedTuple):
    """A transform by its name in ``TRANSFORMS``, and its probability."""

    p: float
    name: str
    transform: object


def augment(
    field: AugmentedSample, steps: Sequence[Step], rng: np.random.Generator, others: mixing.Others
) -> AugmentedSample:
    """Apply each transform with its probability, in order; ``others`` draws another field (see ``mixing``)."""
    for p, _, transform in steps:
        if rng.random() < p:
            mixes = isinstance(transform, mixing.Mixing)
            field = transform(field, rng, others) if mixes else transform(field, rng)
    return field


def chosen(given: str | list, images: int) -> str | list:
    """``given`` itself, or for ``auto`` the preset that suits a training which shows ``images`` in all its epochs."""
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
                f'--augment "{given}": is no preset{nearest(given, PRESETS)} ({", ".join(PRESETS)}, auto)'
                " nor a YAML file"
            )
        where, given = given, read_yaml(path).get("augment")
    if not isinstance(given, list):
        raise LeukoError(f'{where}: augment: is no list; write "- TRANSFORM: PROBABILITY" a line')
    return [_step(entry, f"{where}: transform {i}") for i, entry in enumerate(given, 1)]


def _step(entry: object, where: str) -> Step:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise LeukoError(f'{where}: {entry!r:.60} is no "TRANSFORM: PROBABILITY" nor "TRANSFORM: {{p: PROBABILITY}}"')
    (name, about), *_ = entry.items()
    if name not in TRANSFORMS:
        raise LeukoError(f'{where}: "{name}" is unknown{nearest(str(name), TRANSFORMS)} ({", ".join(TRANSFORMS)})')
    options = dict(about) if isinstance(about, dict) else {"p": about}
    p = options.pop("p", None)
    if not _is_number(p) or not 0 <= p <= 1:
        raise LeukoError(f"{where}: {name}: p: {p!r} is no probability; give a number from 0 to 1")
    known = {f.name: f.default for f in dataclasses.fields(TRANSFORMS[name])}
    for key, value in options.items():
        if key not in known:
            has = ", ".join(("p", *known))
            raise LeukoError(f'{where}: {name}: unknown option "{key}"{nearest(str(key), known)} (it has {has})')
        options[key] = _value(value, known[key], f"{where}: {name}: {key}")
        for number in options[key] if isinstance(options[key], tuple) else [options[key]]:
            least, most = _LEAST.get(key, 0), _MOST.get(key, float("inf"))
            if not isinstance(number, str) and not least <= number <= most:
                raise LeukoError(f"{where}: {name}: {key}: {number:g} is not from {least:g} to {most:g}")
    try:
        return Step(float(p), name, TRANSFORMS[name](**options))
    except ValueError as error:
        raise LeukoError(f"{where}: {name}: {error}") from error


def _value(value: object, default: object, where: str) -> object:
    """An option's value, if it is of the kind of its default."""
    if isinstance(default, tuple):
        numbers = isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(v) for v in value)
        if not numbers or not 0 < value[0] <= value[1]:
            raise LeukoError(f"{where}: {value!r} are no two numbers above 0 in rising order, such as {list(default)}")
        return tuple(type(default[0])(v) for v in value)
    if isinstance(default, str):
        for name in str(value).split():
            if name not in FACTORS:
                raise LeukoError(f'{where}: "{name}" is no factor{nearest(name, FACTORS)} ({", ".join(FACTORS)})')
        return str(value)
    whole = isinstance(default, int)
    if not _is_number(value) or value < 0 or (whole and int(value) != value):
        raise LeukoError(f"{where}: {value!r} is no {'whole number' if whole else 'number'} of at least 0")
    return type(default)(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def listed(steps: Sequence[Step]) -> list[dict]:
    """The steps as the list that :func:`read_steps` reads, every option stated."""
    result = []
    for p, name, transform in steps:
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(transform).items()}
        result.append({name: {"p": p, **options} if options else p})
    return result
