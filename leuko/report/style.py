"""What all charts have in common: their style, their panels, and the colours of types."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..cells import colour
from ..io import write_bytes

INK, ACCENT = "#222222", "#4d4d4d"
# Models take these colours in their order, the reported one first (C0, C1, ...). They are Okabe and Ito's, which stay
# apart with a colour-vision deficiency.
COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a6d3b", "#9a9a9a")
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "grid.color": "#e3e3e3",
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "savefig.dpi": 120,
    "text.parse_math": False,  # a name with dollar signs is not a formula
}


@contextmanager
def panels(
    path: str | Path, width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any
) -> Iterator[list[Axes]]:
    """Give ``rows`` x ``columns`` axes of a new figure (``width`` x ``height`` inches), row by row; at the end of the
    block the figure is written. ``shared`` goes to ``Figure.subplots``."""
    data = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        # Without pyplot, which keeps every figure alive and is not safe in threads.
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
        figure.savefig(data, format=Path(path).suffix[1:])
    write_bytes(path, data.getvalue())


def type_colours(types: Sequence[str]) -> list[tuple[float, ...]]:
    """The colour of each type as matplotlib takes it, RGB in 0..1."""
    return [tuple(v / 255 for v in colour(name, i)) for i, name in enumerate(types)]
