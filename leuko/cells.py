"""The five leukocyte types (code, name, order and colour), and the names of the nine interference factors.

Order and codes are the paper's (Li et al. 2022, Table 1). The colours are Okabe and Ito's, which stay apart under
the common colour-vision deficiencies, and mean the same type in every picture that leuko draws.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .errors import LeukoError, nearest


@dataclass(frozen=True)
class CellType:
    """One leukocyte type: the paper's code, its name, and its RGB colour (0..255)."""

    code: str
    name: str
    colour: tuple[int, int, int]


TYPES = (
    CellType("NG", "neutrophil", (0, 114, 178)),
    CellType("BG", "basophil", (204, 121, 167)),
    CellType("EG", "eosinophil", (213, 94, 0)),
    CellType("L", "lymphocyte", (0, 158, 115)),
    CellType("M", "monocyte", (230, 159, 0)),
)
BY_CODE = {t.code: t for t in TYPES}
UNCLASSIFIED = "unclassified"
"""What a cell is called to which no type is given."""
NONE = "none"
"""The typing network's class of what is no leukocyte: a platelet, an erythroblast, a red cell taken for one."""


def in_order(names: Iterable[str]) -> list[str]:
    """Sort class names without repeats: the five types in the paper's order, then all others by name."""
    rank = {t.code: i for i, t in enumerate(TYPES)}
    return sorted(set(names), key=lambda n: (rank.get(n, len(TYPES)), n))


def colour(name: str, index: int = 0) -> tuple[int, int, int]:
    """RGB colour (0..255) of a class; a class that is none of the five takes the ``index``-th of a wheel of hues."""
    if name in BY_CODE:
        return BY_CODE[name].colour
    if name == UNCLASSIFIED:
        return (96, 96, 96)
    r, g, b = colorsys.hsv_to_rgb((0.58 + 0.381966 * index) % 1.0, 0.75, 0.75)
    return round(r * 255), round(g * 255), round(b * 255)


IMAGE_FACTORS = ("overstained", "understained", "dye_residue", "cell_debris", "dust", "defocus")
CELL_FACTORS = ("overlap", "incomplete", "small_cell")
FACTORS = (*IMAGE_FACTORS, *CELL_FACTORS)
"""The nine interference factors (Li et al. 2022), those of a whole image and those of a single cell."""


def factor_names(text: str) -> list[str]:
    """The factors that ``all``, or names separated by commas, mean; LeukoError for an unknown one."""
    names = list(FACTORS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FACTORS:
            raise LeukoError(f'factor "{name}" is unknown{nearest(name, FACTORS)} (there are: {", ".join(FACTORS)})')
    return names


def beside(types: Sequence[str], fixed: Collection[str]) -> list[str]:
    """Names for types as columns or lines beside ``fixed`` ones, such as mAP or all: their own, or "type NAME" where
    that would be taken for a fixed one."""
    return [f"type {t}" if t in fixed or t.startswith("type ") else t for t in types]
