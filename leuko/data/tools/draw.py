"""Data sets that leuko draws: rendered, composed of crops, or with interference factors applied to their images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...cells import BY_CODE, IMAGE_FACTORS, TYPES, factor_names
from ...errors import LeukoError, nearest
from ...synth.compose import Donor, take_apart
from ...synth.dataset import (
    PAPER_IMAGES,
    Picture,
    composed_picture,
    fill_shelves,
    paper_picture,
    paper_plan,
    random_picture,
)
from ...synth.factors import SEVERITIES, apply_factor
from ..dataset import Dataset, Sample
from ..images import list_images, read_image
from . import builder

CODES = [t.code for t in TYPES]


def synth(
    dst: str | Path,
    images: int = 0,
    size: int = 320,
    format: str = "coco",
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    force: bool = False,
    workers: int = 0,
    progress: bool = False,
    preset: str = "demo",
) -> dict[str, Dataset]:
    """Render a data set of Wright-stained fields with the five leukocyte types into the folder ``dst``.

    The arguments are the options of ``leuko data synth`` (see ``SynthOptions``); ``progress`` shows a progress bar. The
    image of a number depends on nothing but ``seed`` and ``size``. With the preset ``paper`` the images form smears
    (groups) of three centres, and ``val`` and ``test`` are ignored.

    Returns the splits by name. Raises LeukoError if an argument is out of range, or if ``dst`` exists or cannot
    be written; ``dst`` appears only when it is complete.
    """
    if preset not in ("demo", "paper"):
        raise LeukoError(f'preset "{preset}" is unknown{nearest(preset, ("demo", "paper"))}; use demo or paper')
    images = images or (200 if preset == "demo" else PAPER_IMAGES)
    builder.check(images, size, format, seed, val, test, workers)
    plan = paper_plan(images, seed) if preset == "paper" else {}
    planned = [picture for split in plan.values() for picture in split]
    ends = np.cumsum([len(split) for split in plan.values()]).tolist()
    splits = {name: range(end - len(plan[name]), end) for name, end in zip(plan, ends, strict=True)}
    splits = splits or builder.shares(images, val, test)

    def draw(split: str, number: int) -> Picture:
        return paper_picture(planned[number], seed, number, size) if plan else random_picture(seed, number, size)

    return builder.produce(dst, CODES, splits, draw, format=format, force=force, workers=workers, progress=progress)


def compose(
    dst: str | Path,
    donors: str | Path,
    images: int = 200,
    size: int = 600,
    least: int = 1,
    most: int = 6,
    format: str = "coco",
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    force: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> tuple[dict[str, Dataset], list[Path]]:
    """Compose a data set of fields with several leukocytes from crops of single ones.

    The arguments are the options of ``leuko data compose`` (see ``ComposeOptions``), with ``least`` to ``most``
    leukocytes per field; fewer if one finds no room. ``donors`` holds one folder of crops per class: the five types'
    codes are labelled, the cells of all other classes (platelets, erythroblasts, ...) are laid among them without a
    label. All types are equally frequent. The cells of a donor appear in one split only, and a field is composed of
    donors of a similar stain.

    Returns the splits by name, and the donors whose cell was not used because its outline is uncertain. Raises
    LeukoError as :func:`synth`, or if there are too few donors.
    """
    builder.check(images, size, format, seed, val, test, workers)
    if not 1 <= least <= most <= 50:
        raise LeukoError(f"cells {least}-{most}: give the least and the most leukocytes per field, such as 1-6")
    splits = builder.shares(images, val, test)
    crops = [(path.parent.name, path) for path in _crops(Path(donors))]
    with ThreadPoolExecutor(workers or None) as pool:
        parts = pool.map(lambda crop: take_apart(read_image(crop[1])), crops)
        parts = list(tqdm(parts, "cutting out", len(crops), unit="crop", disable=not progress))
    by_class: dict[str, list[Donor]] = {}
    for (name, _), donor in zip(crops, parts, strict=True):
        by_class.setdefault(name, []).append(donor)
    uncertain = [path for (_, path), donor in zip(crops, parts, strict=True) if donor.cell is None]
    shelves = fill_shelves(by_class, {split: len(r) / images for split, r in splits.items()}, seed, str(donors))

    def draw(split: str, number: int) -> Picture:
        return composed_picture(np.random.default_rng([seed, number]), shelves[split], size, least, most)

    types = [code for code in CODES if code in by_class]
    options = {"format": format, "force": force, "workers": workers, "progress": progress}
    return builder.produce(dst, types, splits, draw, title="composing", **options), uncertain


def _crops(folder: Path) -> list[Path]:
    """The crops of all classes; LeukoError if none of the classes is one of the five types."""
    if not folder.is_dir():
        raise LeukoError(f"{folder}: no such folder; --donors names a folder with one folder of crops per class")
    classes = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    crops = [path for each in classes for path in list_images(each)]
    if not any(path.parent.name in BY_CODE for path in crops):
        raise LeukoError(f"{folder}: no folder of crops is called {', '.join(BY_CODE)}; name them so")
    return crops


def put_factor(
    src: str | Path,
    dst: str | Path,
    factor: str,
    severity: int = 3,
    *,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Write a data set with an interference factor applied to every image and tagged, in its own format.

    The arguments are the options of ``leuko data factors`` (see ``FactorOptions``). A factor of the cell is tagged on
    the cells that it concerns, a factor of the image on the image. A cell of which ``incomplete`` leaves less than a
    tenth is dropped.

    Returns the splits as they are read back. Raises LeukoError if an argument is out of range, the data set cannot be
    read, or ``dst`` exists or cannot be written.
    """
    names = factor_names(factor)
    if severity not in SEVERITIES:
        raise LeukoError(f"--severity {severity}: give 1 to 5")
    if seed < 0:
        raise LeukoError(f"--seed {seed}: give 0 or more")

    def change(sample: Sample, number: int) -> tuple[np.ndarray, Sample]:
        rng = np.random.default_rng([seed, number])
        return with_factor(sample, read_image(sample.image), names[number % len(names)], severity, rng)

    return builder.remake(src, dst, change, force=force, progress=progress, title="applying factors")


def with_factor(
    sample: Sample, image: np.ndarray, name: str, severity: int, rng: np.random.Generator
) -> tuple[np.ndarray, Sample]:
    """Apply a factor to a sample's image [H, W, 3] uint8 RGB: the new image, and its sample with boxes and tags."""
    result = apply_factor(name, rng, image, sample.boxes, severity, sample.crowd)
    cell_factors = [sample.cell_factors[i] for i in result.kept]
    return result.image, replace(
        sample,
        width=result.image.shape[1],
        height=result.image.shape[0],
        boxes=result.boxes,
        labels=sample.labels[result.kept],
        crowd=sample.crowd[result.kept],
        cell_factors=[_with_tag(f, name) if on else f for f, on in zip(cell_factors, result.marked, strict=True)],
        attributes=[sample.attributes[i] for i in result.kept],
        factors=_with_tag(sample.factors, name) if name in IMAGE_FACTORS else sample.factors,
    )


def _with_tag(factors: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*factors, name)))
