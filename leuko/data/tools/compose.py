"""Data sets of fields with several leukocytes, composed of crops with one each: ``leuko data compose``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ... import cells
from ...errors import LeukoError
from ...synth import compose as slide
from ...synth.compose import Donor, Piece
from ..dataset import Dataset
from ..images import list_images, read_image
from . import builder

ALIKE = 0.4  # share of the donors, those of the nearest stain, that a field's cells and red cells come from
LEAST_ALIKE = 6
LOOKALIKES = (0.65, 0.25, 0.1)  # share of the fields with none, one, two of them
CROWDING = (0.12, 0.6)
CUT = 0.95  # of a cell in the field, below which it is tagged as incomplete


@dataclass(frozen=True)
class Shelf:
    """The donors that a split's fields are made of: by class, and all that gave red cells."""

    types: dict[str, list[Donor]]
    lookalikes: list[Donor]
    others: list[Donor]


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
    """Compose fields with several leukocytes from crops of single ones, and write them as a data set.

    Every type comes equally often. A donor's cells are in the fields of one split only. In a field, donors of about the
    same stain are put together.

    Args:
        dst: the folder to make. It appears when all is done, or not at all.
        donors: a folder with a folder of crops a class. The five types' codes are labelled; the classes of all other
            folders (platelets, erythroblasts, ...) are laid among them without a label.
        images: how many fields, at least 1.
        size: their side in pixels.
        least, most: leukocytes a field; fewer where one finds no room.
        format: ``coco``, ``voc`` or ``yolo``.
        seed: image ``i`` of a seed and of the same donors is always the same.
        val, test: shares of the images, and of the donors.
        force: replace a data set that is in ``dst``.
        workers: threads, 0 for one a core.
        progress: show bars on the terminal.

    Returns:
        The data set of each split, and the donors whose cell was not used because its outline is uncertain.

    Raises:
        LeukoError: an argument is out of range, there are too few donors, ``dst`` exists, or it cannot be written.
    """
    builder.check(images, size, format, seed, val, test, workers)
    if not 1 <= least <= most <= 50:
        raise LeukoError(f"cells {least}-{most}: give the least and the most leukocytes a field, such as 1-6")
    splits = builder.shares(images, val, test)
    files = _files(Path(donors))
    jobs = [(kind, path) for kind, paths in files.items() for path in paths]
    with ThreadPoolExecutor(workers or None) as pool:
        taken = pool.map(lambda job: slide.take_apart(read_image(job[1])), jobs)
        apart = list(tqdm(taken, "cutting out", len(jobs), unit="crop", disable=not progress))
    uncertain = [path for (_, path), donor in zip(jobs, apart, strict=True) if donor.cell is None]
    by_kind: dict[str, list[Donor]] = {kind: [] for kind in files}
    for (kind, _), donor in zip(jobs, apart, strict=True):
        by_kind[kind].append(donor)
    shelves = _shelves(by_kind, {name: len(r) / images for name, r in splits.items()}, seed, donors)
    types = cells.in_order(kind for kind in files if kind in cells.BY_CODE)

    def draw(split: str, number: int) -> builder.Picture:
        return _field(np.random.default_rng([seed, number]), shelves[split], types, size, least, most)

    about = {"format": format, "force": force, "workers": workers, "progress": progress}
    return builder.produce(dst, types, splits, draw, title="composing", **about), uncertain


def _files(folder: Path) -> dict[str, list[Path]]:
    """The crops of each class; LeukoError where none of them is one of the five types."""
    if not folder.is_dir():
        raise LeukoError(f"{folder}: no such folder; --donors names a folder with a folder of crops a class")
    found = {p.name: list_images(p) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    found = {name: paths for name, paths in found.items() if paths}
    if not cells.BY_CODE.keys() & found:
        raise LeukoError(f"{folder}: no folder of crops is called {', '.join(cells.BY_CODE)}; name them so")
    return found


def _shelves(
    by_kind: dict[str, list[Donor]], parts: dict[str, float], seed: int, folder: str | Path
) -> dict[str, Shelf]:
    """Deal the donors of each class out to the splits."""
    rng = np.random.default_rng(seed)
    shelves = {name: Shelf({}, [], []) for name in parts}
    ends = np.cumsum(list(parts.values()))
    for kind, donors in by_kind.items():
        order = rng.permutation(len(donors))
        bounds = [0, *np.round(ends * len(donors)).astype(int)]
        for shelf, start, stop in zip(shelves.values(), bounds, bounds[1:], strict=False):
            mine = [donors[i] for i in order[start:stop]]
            with_cell = [d for d in mine if d.cell is not None]
            shelf.others.extend(d for d in mine if d.others)
            if kind in cells.BY_CODE:
                shelf.types[kind] = with_cell
            else:
                shelf.lookalikes.extend(with_cell)
    for name, shelf in shelves.items():
        poor = [kind for kind, donors in shelf.types.items() if not donors]
        if poor or not shelf.others:
            what = f"no {poor[0]}" if poor else "no red cells"
            raise LeukoError(
                f"{folder}: too few crops: {what} is left for the split {name}; give more, or fewer splits"
            )
    return shelves


def _alike(donors: Sequence[Donor], tint: np.ndarray) -> list[Donor]:
    """The donors of the nearest stain."""
    if not donors:
        return []
    distance = [float(np.abs(np.log((d.tint + 0.05) / (tint + 0.05))).sum()) for d in donors]
    return [donors[i] for i in np.argsort(distance)[: max(LEAST_ALIKE, round(ALIKE * len(donors)))]]


def _field(
    rng: np.random.Generator, shelf: Shelf, types: Sequence[str], size: int, least: int, most: int
) -> builder.Picture:
    reference = shelf.others[int(rng.integers(len(shelf.others)))]

    def draw(donors: Sequence[Donor]) -> Piece:
        alike = _alike(donors, reference.tint)
        return alike[int(rng.integers(len(alike)))].cell

    labels = rng.integers(0, len(types), int(rng.integers(least, most + 1)))
    wanted = [draw(shelf.types[types[k]]) for k in labels]
    number = rng.choice(len(LOOKALIKES), p=LOOKALIKES) if shelf.lookalikes else 0
    lookalikes = [draw(shelf.lookalikes) for _ in range(number)]
    others = [piece for donor in _alike(shelf.others, reference.tint) for piece in donor.others]
    field = slide.compose(rng, size, wanted, lookalikes, others, reference.white, rng.uniform(*CROWDING))
    tags: list[tuple[str, ...]] = [("incomplete",) if share < CUT else () for share in field.visible]
    return builder.Picture(field.image, field.boxes, labels[field.laid], tags)
