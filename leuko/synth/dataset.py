"""What the pictures of a data set show: random fields, the paper's data set, fields composed of donors' cells.

A picture depends only on the seed, its number and its size, not on the other pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..cells import BY_CODE, IMAGE_FACTORS, TYPES, in_order
from ..errors import LeukoError
from .compose import Cutout, Donor, compose
from .factors import VISIBLE, apply_factor
from .render import INDEX, Look, Picture, default_red_cell, render

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
            n = max(1, round(paper_images * scale))
            fields += [(code,) * k for k in _cells_per_image(rng, n, max(n, round(paper_cells * scale)))]
        fields = [fields[i] for i in rng.permutation(len(fields))]
        share = len(fields) / sum(n for n, _ in PAPER["test"].values())
        factors = _factor_per_image(rng, [len(cells) for cells in fields], share)
        plan[split] = [
            PlannedPicture(cells, smear + i // FIELDS_PER_SMEAR, factor)
            for i, (cells, factor) in enumerate(zip(fields, factors, strict=True))
        ]
        smear += -(-len(fields) // FIELDS_PER_SMEAR)
    return plan


def _cells_per_image(rng: np.random.Generator, images: int, cells: int) -> list[int]:
    """Distribute cells over images at random, 1 to ``MAX_CELLS`` each."""
    counts = np.ones(images, dtype=int)
    for _ in range(min(cells, MAX_CELLS * images) - images):
        counts[rng.choice(np.flatnonzero(counts < MAX_CELLS))] += 1
    return counts.tolist()


def _factor_per_image(rng: np.random.Generator, cells: list[int], share: float) -> list[str]:
    """The factor of each image ("": none), given its number of cells; ``share`` scales ``PAPER_FACTORS``."""
    factors = [""] * len(cells)
    for name in sorted(PAPER_FACTORS, key=lambda name: name in IMAGE_FACTORS):  # the more constrained ones first
        free = [i for i, f in enumerate(factors) if not f and (cells[i] == 1 or name in IMAGE_FACTORS)]
        for i in rng.permutation(free)[: round(PAPER_FACTORS[name] * share)]:
            factors[i] = name
    return factors


def paper_picture(planned: PlannedPicture, seed: int, number: int, size: int) -> Picture:
    """Draw a planned picture, again until every cell has found room."""
    rng = np.random.default_rng([seed, number])
    red_cell_px = default_red_cell(size, size)
    look = _look(seed, planned.smear, red_cell_px)
    severity = int(rng.integers(1, 5))
    is_cut = planned.factor == "incomplete"
    side = round(1.4 * size) if is_cut else size
    corner = None
    while True:
        rendered = render(rng, side, side, planned.types, red_cell_px, look)
        if len(rendered.boxes) == len(planned.types):
            corner = _cutting_window(rng, rendered.boxes[0], side, size, VISIBLE[severity - 1]) if is_cut else (0, 0)
            if corner is not None:
                break
    x, y = corner
    image = np.ascontiguousarray(rendered.image[y : y + size, x : x + size])
    boxes = np.clip(rendered.boxes - np.float32([x, y, x, y]), 0, size)
    marked = np.full(len(boxes), is_cut)
    if planned.factor and not is_cut:
        result = apply_factor(planned.factor, rng, image, boxes, severity)
        image, boxes, marked = result.image, result.boxes, result.marked
    return Picture(
        image,
        boxes,
        np.array([INDEX[code] for code in planned.types]),
        [(planned.factor,) if on else () for on in marked],
        (planned.factor,) if planned.factor in IMAGE_FACTORS else (),
        f"centre {planned.smear % CENTRES + 1}, smear {planned.smear + 1}",
    )


def _look(seed: int, smear: int, red_cell_px: float) -> Look:
    """The look of a smear: its own stain, and the light and camera of its centre."""
    centre = Look.draw(np.random.default_rng([seed, 2, smear % CENTRES]), red_cell_px)
    own = Look.draw(np.random.default_rng([seed, 3, smear]), red_cell_px)
    return replace(own, white=centre.white, glare=centre.glare, noise=centre.noise)


def _cutting_window(
    rng: np.random.Generator, box: np.ndarray, side: int, size: int, visible: float
) -> tuple[int, int] | None:
    """The corner (x, y) of a window of ``size`` in a field of ``side`` pixels, whose border cuts a cell so that a share
    ``visible`` of its box is inside; None if there is no such window."""
    x0, y0, x1, y1 = (float(v) for v in box)
    hidden_w, hidden_h = (1 - visible) * (x1 - x0), (1 - visible) * (y1 - y0)
    cuts = [(x0 + hidden_w, None), (x1 - hidden_w - size, None), (None, y0 + hidden_h), (None, y1 - hidden_h - size)]
    for i in rng.permutation(4):
        x, y = cuts[i]
        x_range = (x, x) if x is not None else (max(0, x1 - size), min(x0, side - size))
        y_range = (y, y) if y is not None else (max(0, y1 - size), min(y0, side - size))
        if 0 <= x_range[0] <= x_range[1] <= side - size and 0 <= y_range[0] <= y_range[1] <= side - size:
            return round(rng.uniform(*x_range)), round(rng.uniform(*y_range))
    return None


# ---------------------------------------------------------------- fields composed of donors' cells

SIMILAR = 0.4  # share of the donors, those with the most similar stain, that a field is composed of
MIN_SIMILAR = 6
LOOKALIKES = (0.65, 0.25, 0.1)  # share of the fields with none, one, two of them
CROWDING = (0.12, 0.6)
COMPLETE = 0.95  # visible share of a cell, below which it is tagged as incomplete


@dataclass(frozen=True)
class Shelf:
    """The donors for the fields of one split: by type, of look-alikes, and all with red cells."""

    types: dict[str, list[Donor]]
    lookalikes: list[Donor]
    others: list[Donor]


def fill_shelves(donors: dict[str, list[Donor]], shares: dict[str, float], seed: int, folder: str) -> dict[str, Shelf]:
    """Distribute the donors of each class over the splits, by the splits' shares.

    Raises LeukoError, which names the ``folder`` of the donors, if a split is left without red cells or without a type.
    """
    rng = np.random.default_rng(seed)
    shelves = {split: Shelf({}, [], []) for split in shares}
    ends = np.cumsum(list(shares.values()))
    for name, all_of_class in donors.items():
        order = rng.permutation(len(all_of_class))
        bounds = [0, *np.round(ends * len(order)).astype(int)]
        for shelf, start, stop in zip(shelves.values(), bounds, bounds[1:], strict=False):
            own = [all_of_class[i] for i in order[start:stop]]
            with_cell = [donor for donor in own if donor.cell is not None]
            shelf.others.extend(donor for donor in own if donor.others)
            if name in BY_CODE:
                shelf.types[name] = with_cell
            else:
                shelf.lookalikes.extend(with_cell)
    for split, shelf in shelves.items():
        missing = [name for name, own in shelf.types.items() if not own] + ["red cells"] * (not shelf.others)
        if missing:
            raise LeukoError(
                f"{folder}: too few crops: no {missing[0]} left for the split {split}; add crops, or make fewer splits"
            )
    return shelves


def composed_picture(rng: np.random.Generator, shelf: Shelf, size: int, least: int, most: int) -> Picture:
    """A field of ``size`` pixels with ``least`` to ``most`` cells of donors from the shelf, all of a similar stain."""
    reference = shelf.others[int(rng.integers(len(shelf.others)))]

    def draw(donors: Sequence[Donor]) -> Cutout:
        similar = _similar(donors, reference.tint)
        return similar[int(rng.integers(len(similar)))].cell

    types = in_order(shelf.types)
    labels = rng.integers(0, len(types), int(rng.integers(least, most + 1)))
    cells = [draw(shelf.types[types[label]]) for label in labels]
    number = rng.choice(len(LOOKALIKES), p=LOOKALIKES) if shelf.lookalikes else 0
    lookalikes = [draw(shelf.lookalikes) for _ in range(number)]
    others = [cutout for donor in _similar(shelf.others, reference.tint) for cutout in donor.others]
    composed = compose(rng, size, cells, lookalikes, others, reference.white, rng.uniform(*CROWDING))
    tags: list[tuple[str, ...]] = [("incomplete",) if share < COMPLETE else () for share in composed.visible]
    return Picture(composed.image, composed.boxes, labels[composed.kept], tags)


def _similar(donors: Sequence[Donor], tint: np.ndarray) -> list[Donor]:
    """The donors whose stain is most similar to ``tint`` [3]."""
    distance = [float(np.abs(np.log((donor.tint + 0.05) / (tint + 0.05))).sum()) for donor in donors]
    return [donors[i] for i in np.argsort(distance)[: max(MIN_SIMILAR, round(SIMILAR * len(donors)))]]


# ---------------------------------------------------------------- the five types side by side


def types_sheet(seed: int = 0, side: int = 190) -> Image.Image:
    """The five types in the paper's order with the same look, each ``side`` pixels wide, with code and name below."""
    rng = np.random.default_rng(seed)
    look = replace(Look.draw(rng, 0.32 * side), crowding=0.5, pallor=0.6, glare=0.02, blur=0.6, noise=0.0)
    gap, caption = 8, 34
    sheet = Image.new("RGB", (len(TYPES) * (side + gap) - gap, side + caption), "white")
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(TYPES):
        x = i * (side + gap)
        sheet.paste(Image.fromarray(_portrait(rng, cell.code, side, look)), (x, 0))
        centre = (x + side / 2, side + caption / 2)
        draw.text(centre, f"{cell.code}  {cell.name}", (40, 40, 40), ImageFont.load_default(side / 11), "mm")
    return sheet


def _portrait(rng: np.random.Generator, code: str, side: int, look: Look) -> np.ndarray:
    """One leukocyte in the middle of red cells, [side, side, 3] uint8 RGB."""
    while True:  # until the cell is far enough from the border
        rendered = render(rng, 3 * side, 3 * side, [code], 0.32 * side, look)
        x, y = ((rendered.boxes[0, :2] + rendered.boxes[0, 2:] - side) / 2).astype(int)
        if min(x, y) >= 0 and max(x, y) <= 2 * side:
            return rendered.image[y : y + side, x : x + side]
