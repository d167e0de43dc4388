"""What the pictures of a data set show: random fields, the paper's data set, fields composed of donors' cells.

A picture depends only on the seed, its number and its size, not on the other pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from ..cells import BY_CODE, IMAGE_FACTORS, TYPES, in_order
from ..errors import LeukoError
from .compose import Cutout, Donor, compose
from .factors import VISIBLE, apply_factor
from .render import Look, Picture, default_red_cell, render

# ---------------------------------------------------------------- random fields

_CELLS_PER_FIELD = (0.24, 0.30, 0.24, 0.14, 0.08)  # share of the fields with 1, 2, ... 5 leukocytes


def random_picture(seed: int, number: int, size: int) -> Picture:
    """Picture ``number`` of a seed: a field with a random stain and light, and 1 to 5 leukocytes of random types."""
    rng = np.random.default_rng([seed, number])
    n = 1 + rng.choice(len(_CELLS_PER_FIELD), p=_CELLS_PER_FIELD)
    labels = rng.integers(0, len(TYPES), n)
    labels[0] = number % len(TYPES)  # any five consecutive pictures show every type
    return render(rng, size, size, [TYPES[label].code for label in labels])


# ---------------------------------------------------------------- the paper's data set

PAPER: dict[str, dict[str, tuple[int, int]]] = {
    "train": {"NG": (1214, 2812), "BG": (282, 286), "EG": (1006, 1018), "L": (1232, 1440), "M": (965, 1031)},
    "test": {"NG": (1015, 1323), "BG": (12, 14), "EG": (71, 82), "L": (355, 439), "M": (121, 150)},
}
"""Images and cells per split and type (Li et al. 2022, Table 1). The images of a split add up to its total: no image of
the paper shows two types."""
PAPER_IMAGES = sum(images for types in PAPER.values() for images, _ in types.values())

PAPER_FACTORS = {
    "overstained": 447,
    "understained": 120,
    "dye_residue": 57,
    "cell_debris": 57,
    "dust": 56,
    "overlap": 38,
    "incomplete": 86,
    "small_cell": 60,
    "defocus": 60,
}
"""Test images per factor, at most one factor per image; an image with a factor of the cell shows one cell. The numbers
of ``overstained``, ``overlap``, ``incomplete`` and the three impurities together (170) are the paper's; it does not
report the others."""

MAX_CELLS = 6  # per image
FIELDS_PER_SMEAR = 25
CENTRES = 3


@dataclass(frozen=True)
class PlannedPicture:
    """What a picture of the paper's data set shows: leukocytes of one type, from a smear, with a factor ("": none)."""

    types: tuple[str, ...]
    smear: int
    factor: str


def paper_plan(images: int, seed: int) -> dict[str, list[PlannedPicture]]:
    """The pictures of each split; all numbers are scaled if ``images`` is not the paper's 6,273."""
    rng = np.random.default_rng([seed, 1])
    scale = images / PAPER_IMAGES
    plan: dict[str, list[PlannedPicture]] = {}
    smear = 0
    for split, types in PAPER.items():
        fields = []
        for code, (paper_images, paper_cells) in types.items():
            counts = np.ones(max(1, round(paper_images * scale)), dtype=int)  # cells per image
            for _ in range(min(round(paper_cells * scale), MAX_CELLS * len(counts)) - len(counts)):
                counts[rng.choice(np.flatnonzero(counts < MAX_CELLS))] += 1
            fields += [(code,) * k for k in counts]
        fields = [fields[i] for i in rng.permutation(len(fields))]
        factors = [""] * len(fields)
        share = len(fields) / sum(n for n, _ in PAPER["test"].values())
        for name in sorted(PAPER_FACTORS, key=lambda name: name in IMAGE_FACTORS):  # the more constrained ones first
            free = [i for i, f in enumerate(factors) if not f and (len(fields[i]) == 1 or name in IMAGE_FACTORS)]
            for i in rng.permutation(free)[: round(PAPER_FACTORS[name] * share)]:
                factors[i] = name
        smears = [smear + i // FIELDS_PER_SMEAR for i in range(len(fields))]
        plan[split] = [PlannedPicture(*planned) for planned in zip(fields, smears, factors, strict=True)]
        smear = smears[-1] + 1
    return plan


def paper_picture(planned: PlannedPicture, seed: int, number: int, size: int) -> Picture:
    """Draw a planned picture, again until every cell has found room."""
    rng = np.random.default_rng([seed, number])
    red_cell_px = default_red_cell(size, size)
    look = _look(seed, planned.smear, red_cell_px)
    severity = int(rng.integers(1, 5))
    is_cut = planned.factor == "incomplete"
    side = round(1.4 * size) if is_cut else size
    corner = None
    while corner is None:
        field = render(rng, side, side, planned.types, red_cell_px, look)
        if len(field.boxes) == len(planned.types):
            corner = _cutting_window(rng, field.boxes[0], side, size, VISIBLE[severity - 1]) if is_cut else (0, 0)
    x, y = corner
    image = np.ascontiguousarray(field.image[y : y + size, x : x + size])
    boxes = np.clip(field.boxes - np.float32([x, y, x, y]), 0, size)
    marked = np.full(len(boxes), is_cut)
    if planned.factor and not is_cut:
        result = apply_factor(planned.factor, rng, image, boxes, severity)
        image, boxes, marked = result.image, result.boxes, result.marked
    tags = [(planned.factor,) if on else () for on in marked]
    of_image = (planned.factor,) if planned.factor in IMAGE_FACTORS else ()
    group = f"centre {planned.smear % CENTRES + 1}, smear {planned.smear + 1}"
    return Picture(image, boxes, field.labels, tags, of_image, group)


def _look(seed: int, smear: int, red_cell_px: float) -> Look:
    """The look of a smear: its own stain, and the light and camera of its centre."""
    centre = Look.draw(np.random.default_rng([seed, 2, smear % CENTRES]), red_cell_px)
    own = Look.draw(np.random.default_rng([seed, 3, smear]), red_cell_px)
    return replace(own, white=centre.white, glare=centre.glare, noise=centre.noise)


def _cutting_window(rng: Generator, box: np.ndarray, side: int, size: int, visible: float) -> tuple[int, int] | None:
    """The corner (x, y) of a window of ``size`` in a field of ``side`` pixels, whose border cuts a cell so that a share
    ``visible`` of its box is inside; None if there is no such window."""
    start, stop = box.astype(float).reshape(2, 2)
    hidden = (1 - visible) * (stop - start)
    for i in rng.permutation(4):
        axis = i // 2
        low, high = np.maximum(stop - size, 0), np.minimum(start, side - size)
        low[axis] = high[axis] = (stop - hidden - size if i % 2 else start + hidden)[axis]
        if (low >= 0).all() and (low <= high).all() and (high <= side - size).all():
            x, y = rng.uniform(low, high)
            return round(x), round(y)
    return None


# ---------------------------------------------------------------- fields composed of donors' cells


def fill_shelves(
    donors: dict[str, list[Donor]], shares: dict[str, float], seed: int, folder: str
) -> dict[str, dict[str, list[Donor]]]:
    """Distribute the donors of each class over the splits, by the splits' shares: {split: {class: donors}}.

    Raises LeukoError, which names the ``folder`` of the donors, if a split is left without red cells or without a type.
    """
    rng = np.random.default_rng(seed)
    shelves: dict[str, dict[str, list[Donor]]] = {split: {} for split in shares}
    ends = np.cumsum(list(shares.values()))
    for name, all_of_class in donors.items():
        order = rng.permutation(len(all_of_class))
        parts = np.split(order, np.round(ends * len(order)).astype(int))
        for shelf, part in zip(shelves.values(), parts, strict=False):
            shelf[name] = [all_of_class[i] for i in part]
    for split, shelf in shelves.items():
        missing = [name for name in shelf if name in BY_CODE and not _with_cell(shelf[name])]
        if missing or not any(donor.others for own in shelf.values() for donor in own):
            what = (*missing, "red cells")[0]
            raise LeukoError(
                f"{folder}: too few crops: no {what} left for the split {split}; add crops, or make fewer splits"
            )
    return shelves


def composed_picture(rng: Generator, shelf: dict[str, list[Donor]], size: int, least: int, most: int) -> Picture:
    """A field of ``size`` pixels with ``least`` to ``most`` cells of donors from the shelf, all of a similar stain."""
    with_others = [donor for own in shelf.values() for donor in own if donor.others]
    with_lookalike = _with_cell(donor for name, own in shelf.items() if name not in BY_CODE for donor in own)
    reference = with_others[int(rng.integers(len(with_others)))]

    def similar(donors: list[Donor]) -> list[Donor]:
        """The 40 %, at least six, whose stain is most similar to the reference's."""
        distance = [float(np.abs(np.log((d.tint + 0.05) / (reference.tint + 0.05))).sum()) for d in donors]
        return [donors[i] for i in np.argsort(distance)[: max(6, round(0.4 * len(donors)))]]

    def draw(donors: list[Donor]) -> Cutout:
        nearest = similar(donors)
        return nearest[int(rng.integers(len(nearest)))].cell

    types = [name for name in in_order(shelf) if name in BY_CODE]
    labels = rng.integers(0, len(types), int(rng.integers(least, most + 1)))
    cells = [draw(_with_cell(shelf[types[label]])) for label in labels]
    number = rng.choice(3, p=(0.65, 0.25, 0.1)) if with_lookalike else 0
    lookalikes = [draw(with_lookalike) for _ in range(number)]
    others = [cutout for donor in similar(with_others) for cutout in donor.others]
    return compose(rng, size, cells, labels, lookalikes, others, reference.white, rng.uniform(0.12, 0.6))


def _with_cell(donors: Iterable[Donor]) -> list[Donor]:
    return [donor for donor in donors if donor.cell is not None]
