"""Data sets that leuko renders itself: every pixel and box follow from a seed, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...cells import TYPES
from ...errors import LeukoError, nearest
from ...synth import factors
from ...synth.render import Look, default_red_cell, render, render_field
from ..dataset import Dataset
from . import builder

PAPER: dict[str, dict[str, tuple[int, int]]] = {
    "train": {"NG": (1214, 2812), "BG": (282, 286), "EG": (1006, 1018), "L": (1232, 1440), "M": (965, 1031)},
    "test": {"NG": (1015, 1323), "BG": (12, 14), "EG": (71, 82), "L": (355, 439), "M": (121, 150)},
}
"""Images and cells of each type and split (Li et al. 2022, Table 1). The images of a split add up to its number: no
image of the paper's holds two types."""

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
"""Test images (for the cell-level factors: with one cell each, so cells) that a factor is on, at most one an image.
Over-stained, overlapping, incomplete and the three impurities together (170) are the paper's numbers; it does not tell
the others."""

CODES = [t.code for t in TYPES]
MOST_CELLS = 6
FIELDS_A_SMEAR = 25
CENTRES = 3
_CELLS_A_FIELD = (0.24, 0.30, 0.24, 0.14, 0.08)  # share of the fields with 1, 2, ... 5 leukocytes


def synth(
    dst: str | Path,
    images: int | None = None,
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
    """Render a data set of Wright-stained fields with the five leukocyte types, and write it.

    Args:
        dst: the folder to make. It appears when all is done, or not at all.
        images: how many; by default 200, or the paper's 6,273. With the preset ``paper`` another number scales its
            table.
        size: their side in pixels, 64 to 8192.
        format: ``coco``, ``voc`` or ``yolo``.
        seed: image ``i`` of a seed is always the same, whatever the other arguments but ``size`` and the workers.
        val, test: shares of the images; the rest, at least one image, is for training. A share of 0 makes no split.
        force: replace a data set that is in ``dst``.
        workers: threads, 0 for one a core.
        progress: show a bar on the terminal.
        preset: ``demo``: every field of its own stain and light, with 1 to 5 cells of any types (fewer where one found
            no room). ``paper``: the images and cells of each type and split of Li et al. 2022, in smears (groups) of
            three centres, with every interference factor tagged; ``val`` and ``test`` do not matter then.

    Returns:
        The data set of each split by name.

    Raises:
        LeukoError: an argument is out of range, ``dst`` exists, or it cannot be written.
    """
    if preset not in ("demo", "paper"):
        raise LeukoError(f'preset "{preset}" is unknown{nearest(preset, ("demo", "paper"))}; use demo or paper')
    if images is None:
        images = 200 if preset == "demo" else sum(n for types in PAPER.values() for n, _ in types.values())
    builder.check(images, size, format, seed, val, test, workers)
    if preset == "paper":
        plan = _plan(images, seed)
        numbers = np.cumsum([0, *(len(fields) for fields in plan.values())])
        splits = {name: range(a, b) for name, a, b in zip(plan, numbers, numbers[1:], strict=False)}
        fields = [field for split in plan.values() for field in split]

        def draw_planned(split: str, number: int) -> builder.Picture:
            return _render_planned(fields[number], size, seed, number)

        about = {"format": format, "force": force, "workers": workers, "progress": progress}
        return builder.produce(dst, CODES, splits, draw_planned, **about)

    def draw(split: str, number: int) -> builder.Picture:
        return _render(size, seed, number)

    about = {"format": format, "force": force, "workers": workers, "progress": progress}
    return builder.produce(dst, CODES, builder.shares(images, val, test), draw, **about)


def _render(size: int, seed: int, number: int) -> builder.Picture:
    """Render image ``number`` of a seed."""
    rng = np.random.default_rng([seed, number])
    n = 1 + rng.choice(len(_CELLS_A_FIELD), p=_CELLS_A_FIELD)
    kinds = rng.integers(0, len(TYPES), n)
    kinds[0] = number % len(TYPES)  # so that any five images in a row show every type
    types = [TYPES[k].code for k in kinds]
    return builder.Picture(*render_field(rng, size, size, types))


@dataclass(frozen=True)
class Planned:
    """A field of the paper's data set: its cells, all of one type, its smear, and the factor on it, if any."""

    types: tuple[str, ...]
    smear: int
    factor: str = ""


def _plan(images: int, seed: int) -> dict[str, list[Planned]]:
    """What each image of each split shows; with another number of images than the paper's, in proportion."""
    rng = np.random.default_rng([seed, 1])
    share = images / sum(n for types in PAPER.values() for n, _ in types.values())
    plan: dict[str, list[Planned]] = {}
    smear = 0
    for split, types in PAPER.items():
        fields = []
        for code, (of_images, of_cells) in types.items():
            n = max(1, round(of_images * share))
            fields += [(code,) * k for k in _dealt(rng, n, max(n, round(of_cells * share)))]
        order = rng.permutation(len(fields))
        factor = _factors(rng, [len(fields[i]) for i in order], len(fields) / sum(n for n, _ in PAPER["test"].values()))
        plan[split] = [
            Planned(fields[i], smear + at // FIELDS_A_SMEAR, factor[at]) for at, i in enumerate(order.tolist())
        ]
        smear += -(-len(fields) // FIELDS_A_SMEAR)
    return plan


def _dealt(rng: np.random.Generator, images: int, cells: int) -> list[int]:
    """So many cells dealt out to images, at least one each and at most ``MOST_CELLS``."""
    counts = np.ones(images, dtype=int)
    for _ in range(min(cells, MOST_CELLS * images) - images):
        counts[rng.choice(np.flatnonzero(counts < MOST_CELLS))] += 1
    return counts.tolist()


def _factors(rng: np.random.Generator, cells: list[int], share: float) -> list[str]:
    """The factor on each image ("" for none): cell-level ones on images with one cell."""
    factor = [""] * len(cells)
    for name, number in sorted(PAPER_FACTORS.items(), key=lambda item: item[0] in factors.IMAGE_FACTORS):
        free = [i for i, f in enumerate(factor) if not f and (cells[i] == 1 or name in factors.IMAGE_FACTORS)]
        for i in rng.permutation(free)[: round(number * share)]:
            factor[i] = name
    return factor


def _look(seed: int, smear: int, red_cell: float) -> Look:
    """The look of a smear: its stain is its own, light and camera are its centre's."""
    centre = Look.draw(np.random.default_rng([seed, 2, smear % CENTRES]), red_cell)
    own = Look.draw(np.random.default_rng([seed, 3, smear]), red_cell)
    return replace(own, white=centre.white, glare=centre.glare, noise=centre.noise)


def _render_planned(field: Planned, size: int, seed: int, number: int) -> builder.Picture:
    """Render image ``number`` of a seed; drawn anew until every cell has found room."""
    rng = np.random.default_rng([seed, number])
    red_cell = default_red_cell(size, size)
    look = _look(seed, field.smear, red_cell)
    severity = int(rng.integers(1, 5))
    room = size if field.factor != "incomplete" else round(1.4 * size)
    while True:
        drawn = render(rng, room, room, field.types, red_cell, look)
        image, boxes, tags = drawn.image, drawn.boxes, [()] * len(drawn.boxes)
        if len(boxes) < len(field.types):
            continue
        if field.factor == "incomplete":
            window = _cut(rng, boxes[0], room, size, severity)
            if window is None:
                continue
            x, y = window
            image = np.ascontiguousarray(image[y : y + size, x : x + size])
            boxes = np.clip(boxes - np.float32([x, y, x, y]), 0, size)
            tags = [("incomplete",)]
        elif field.factor:
            put = factors.put(field.factor, rng, image, boxes, severity)
            image, boxes = put.image, put.boxes
            tags = [(field.factor,) if on else () for on in put.marked]
        on_image = (field.factor,) if field.factor in factors.IMAGE_FACTORS else ()
        group = f"centre {field.smear % CENTRES + 1}, smear {field.smear + 1}"
        labels = np.array([CODES.index(code) for code in field.types])
        return builder.Picture(image, boxes, labels, tags, on_image, group)


def _cut(rng: np.random.Generator, box: np.ndarray, room: int, size: int, severity: int) -> tuple[int, int] | None:
    """The corner of a window of ``size`` at whose border the share of a cell is visible that ``factors`` says; None
    where the cell lies so that no window does."""
    share = factors.VISIBLE[severity - 1]
    x0, y0, x1, y1 = (float(v) for v in box)
    w, h = x1 - x0, y1 - y0
    ways = [(x0 + (1 - share) * w, None), (x1 - (1 - share) * w - size, None)]
    ways += [(None, y0 + (1 - share) * h), (None, y1 - (1 - share) * h - size)]
    for i in rng.permutation(4):
        x, y = ways[i]
        x_range = (x, x) if x is not None else (max(0, x1 - size), min(x0, room - size))
        y_range = (y, y) if y is not None else (max(0, y1 - size), min(y0, room - size))
        if 0 <= x_range[0] <= x_range[1] <= room - size and 0 <= y_range[0] <= y_range[1] <= room - size:
            return round(rng.uniform(*x_range)), round(rng.uniform(*y_range))
    return None
