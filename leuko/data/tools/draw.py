"""Data sets that leuko draws: rendered, composed of crops, or with interference factors applied to their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...cells import BY_CODE, IMAGE_FACTORS, TYPES, factor_names
from ...errors import LeukoError
from ...synth.compose import take_apart
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
from ..config import ComposeOptions, FactorOptions, SynthOptions
from ..dataset import Dataset, Sample
from ..formats import FORMATS
from ..images import read_image
from ..typed import crop_folders
from . import builder
from .rewrite import remake

CODES = [t.code for t in TYPES]


def synth(dst: str | Path, *, progress: bool = False, **options: object) -> dict[str, Dataset]:
    """Render a data set of Wright-stained fields with the five leukocyte types into the folder ``dst``.

    ``options`` are those of ``SynthOptions``; ``progress`` shows a progress bar. The image of a number depends on
    nothing but ``seed`` and ``size``. With the preset ``paper`` the images form smears (groups) of three centres, and
    ``val`` and ``test`` are ignored.

    Returns the splits by name. Raises LeukoError if an option is out of range, or if ``dst`` exists or cannot
    be written; ``dst`` appears only when it is complete.
    """
    o = SynthOptions(dst=str(dst), **options)
    o.images = o.images or (PAPER_IMAGES if o.preset == "paper" else 200)
    splits = _shares(o)
    if o.preset != "paper":
        return _produce(o, CODES, splits, lambda _, number: random_picture(o.seed, number, o.size), progress)
    plan = paper_plan(o.images, o.seed)
    planned = [picture for split in plan.values() for picture in split]
    splits = {}
    for name, pictures in plan.items():
        start = sum(map(len, splits.values()))
        splits[name] = range(start, start + len(pictures))
    return _produce(o, CODES, splits, lambda _, n: paper_picture(planned[n], o.seed, n, o.size), progress)


def compose(
    dst: str | Path, donors: str | Path, *, progress: bool = False, **options: object
) -> tuple[dict[str, Dataset], list[Path]]:
    """Compose a data set of fields with several leukocytes from crops of single ones.

    ``options`` are those of ``ComposeOptions``. A field has fewer leukocytes than asked for if one finds no room.
    ``donors`` holds one folder of crops per class: the five types' codes are labelled, the cells of all other classes
    (platelets, erythroblasts, ...) are laid among them without a label. All types are equally frequent. The cells of a
    donor appear in one split only, and a field is composed of donors of a similar stain.

    Returns the splits by name, and the donors whose cell was not used because its outline is uncertain. Raises
    LeukoError as :func:`synth`, or if there are too few donors.
    """
    o = ComposeOptions(dst=str(dst), donors=str(donors), **options)
    splits = _shares(o)
    first, _, last = o.cells.partition("-")
    numbers = [int(text) for text in (first, last or first) if text.isdecimal()]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= 50:
        raise LeukoError(f"--cells {o.cells}: give the least and the most leukocytes per field, such as 1-6")
    crops = crop_folders(Path(donors))
    if not BY_CODE.keys() & crops:
        raise LeukoError(f"{donors}: no folder of crops is called {', '.join(BY_CODE)}; name them so")
    apart = {}
    for name, paths in crops.items():
        title = f"cutting out {name}"
        apart[name] = builder.in_threads(lambda path: take_apart(read_image(path)), paths, title, progress, o.workers)
    uncertain = [p for name in crops for p, donor in zip(crops[name], apart[name], strict=True) if donor.cell is None]
    shelves = fill_shelves(apart, {split: len(r) / o.images for split, r in splits.items()}, o.seed, o.donors)

    def draw(split: str, number: int) -> Picture:
        return composed_picture(np.random.default_rng([o.seed, number]), shelves[split], o.size, *numbers)

    return _produce(o, [code for code in CODES if code in crops], splits, draw, progress), uncertain


def _shares(o: SynthOptions | ComposeOptions) -> dict[str, range]:
    """The numbers of the images in each split; training comes first and is never empty.

    Raises LeukoError naming the option whose value cannot be used.
    """
    if not o.val + o.test < 1:
        raise LeukoError(f"--val {o.val} --test {o.test}: give shares that leave some images for training")
    n_val = min(round(o.images * o.val), o.images - 1)
    n_test = min(round(o.images * o.test), o.images - 1 - n_val)
    ends = (0, o.images - n_val - n_test, o.images - n_test, o.images)
    parts = zip(("train", "val", "test"), pairwise(ends), strict=True)
    return {split: range(*bounds) for split, bounds in parts if bounds[0] < bounds[1]}


def _produce(
    o: SynthOptions | ComposeOptions,
    types: Sequence[str],
    splits: dict[str, range],
    draw: Callable[[str, int], Picture],
    progress: bool,
) -> dict[str, Dataset]:
    """Draw the numbered pictures of each split into ``o.dst``, which appears when all is done; return the splits."""
    dst = Path(o.dst).resolve()
    with builder.building(dst, o.force) as folder:

        def job(place: tuple[str, int]) -> Sample:
            split, number = place
            picture = draw(split, number)
            path = folder / FORMATS[o.format].IMAGES.format(split=split) / f"{number:06d}.jpg"
            builder.save_image(path, picture.image)
            about = {"factors": picture.factors, "group": picture.group, "cell_factors": picture.cell_factors}
            height, width = picture.image.shape[:2]
            return Sample(path, width, height, picture.boxes, picture.labels, number + 1, **about)

        places = [(split, number) for split, numbers in splits.items() for number in numbers]
        samples = builder.in_threads(job, places, "drawing", progress, o.workers)
        datasets = {split: Dataset(list(types), samples[r.start : r.stop]) for split, r in splits.items()}
        builder.write_splits(folder, o.format, datasets)
    for sample in samples:
        sample.image = dst / sample.image.relative_to(folder)
    return datasets


def put_factor(src: str | Path, dst: str | Path, *, progress: bool = False, **options: object) -> dict[str, Dataset]:
    """Write a data set with an interference factor applied to every image and tagged, in its own format.

    ``options`` are those of ``FactorOptions``. A factor of the cell is tagged on the cells that it concerns, a factor
    of the image on the image. A cell of which ``incomplete`` leaves less than a tenth is dropped.

    Returns the splits as they are read back. Raises LeukoError if an argument is out of range, the data set cannot be
    read, or ``dst`` exists or cannot be written.
    """
    o = FactorOptions(src=str(src), dst=str(dst), **options)
    names = factor_names(o.factor)
    if o.severity not in SEVERITIES:
        raise LeukoError(f"--severity {o.severity}: give 1 to 5")
    if o.seed < 0:
        raise LeukoError(f"--seed {o.seed}: give 0 or more")

    def change(sample: Sample, number: int) -> tuple[np.ndarray, Sample]:
        rng = np.random.default_rng([o.seed, number])
        return with_factor(sample, read_image(sample.image), names[number % len(names)], o.severity, rng)

    return remake(src, dst, change, force=o.force, progress=progress, title="applying factors")


def with_factor(
    sample: Sample, image: np.ndarray, name: str, severity: int, rng: np.random.Generator
) -> tuple[np.ndarray, Sample]:
    """Apply a factor to a sample's image [H, W, 3] uint8 RGB: the new image, and its sample with boxes and tags."""
    result = apply_factor(name, rng, image, sample.boxes, severity, sample.crowd)
    kept = builder.with_cells(sample, result.kept)
    return result.image, replace(
        kept,
        width=result.image.shape[1],
        height=result.image.shape[0],
        boxes=result.boxes,
        cell_factors=[_with(f, name) if on else f for f, on in zip(kept.cell_factors, result.marked, strict=True)],
        factors=_with(kept.factors, name) if name in IMAGE_FACTORS else kept.factors,
    )


def _with(factors: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*factors, name)))
