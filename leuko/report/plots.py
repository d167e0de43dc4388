"""Pictures: cells drawn on their image, sheets of images, training curves, statistics of labels.

Images are RGB uint8 arrays [H, W, 3]. A type has the same place and colour in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from ..cells import UNCLASSIFIED, colour
from ..data.dataset import Dataset
from ..data.fit import fit
from ..data.slides import Slide
from ..data.tools.stats import Colour
from ..detections import Detections
from ..io import write_bytes
from ..metrics.counting import Differential
from .style import ACCENT, INK, bars, panels, type_colours
from .tables import MEASURES

SHEET_CELL = 400  # pixels: the longer side of an image on a contact sheet
MOST_SIDE = 8192  # pixels of a predicted field's picture
HEAT_BINS = 48
LEAST_SPAN = 40  # levels of colour that an axis shows at least, so that small differences look small
MAX_NAMED = 12  # groups of images up to which each is named in a picture


# ---------------------------------------------------------------- images


def draw_cells(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    types: Sequence[str],
    scores: np.ndarray | None = None,
    tags: Sequence[str] = (),
) -> np.ndarray:
    """Return a copy of the image with each box in its type's colour and a tag, "NG" or "NG 0.93", or the given one.

    Lines and letters grow with the image. A tag is above its box if there is room and inside it otherwise, and never
    leaves the image; in an image smaller than the tag, only the box's colour tells the type.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    line = max(1, round(math.sqrt(shorter) / 9))  # 2 pixels at 320, 3 at 600, 6 at 3264
    font = ImageFont.load_default(size=max(12.0, shorter / 32))
    picture = np.array(image)
    for i in reversed(range(len(boxes))):  # the highest score last, on top
        name = types[labels[i]]
        rgb = colour(name, int(labels[i]))
        x0, y0, x1, y1 = np.clip(boxes[i], 0, [width, height, width, height]).round().astype(int).tolist()
        right, bottom = min(max(x1 - 1, x0), width - 1), min(max(y1 - 1, y0), height - 1)
        x0, y0 = min(x0, right), min(y0, bottom)
        inside = picture[y0 : bottom + 1, x0 : right + 1]
        for edge in (inside[:line], inside[-line:], inside[:, :line], inside[:, -line:]):
            edge[:] = rgb
        tag = tags[i] if tags else name if scores is None else f"{name} {scores[i]:.2f}"
        _draw_tag(picture, tag, (x0, y0), rgb, font)
    return picture


def draw_classified(image: np.ndarray | Slide, cells: Detections, threshold: float) -> np.ndarray:
    """Like :func:`draw_cells`, with unclassified cells in grey with a question mark, and the threshold in a corner. Of
    a slide, or an image of more than ``MOST_SIDE`` pixels, the picture is smaller."""
    if (longer := max(image.shape[:2])) > MOST_SIDE or isinstance(image, Slide):
        image = fit(image, min(longer, MOST_SIDE))
        cells = replace(cells, boxes=cells.boxes * np.float32(max(image.shape[:2]) / longer))
    types = [*cells.types, UNCLASSIFIED]
    labels = np.where(cells.why == "", cells.labels, len(cells.types))
    names = [f"{cells.types[k]}{'?' * bool(why)}" for k, why in zip(cells.labels, cells.why, strict=True)]
    tags = [f"{name} {score:.2f}" for name, score in zip(names, cells.scores, strict=True)]
    picture = draw_cells(image, cells.boxes, labels, types, tags=tags)
    font = ImageFont.load_default(size=max(10.0, min(image.shape[:2]) / 40))
    _draw_tag(picture, f"score from {threshold:.2f}", (0, image.shape[0]), (255, 255, 255), font)
    return picture


def _draw_tag(picture: np.ndarray, text: str, corner: tuple[int, int], rgb: tuple, font: Any) -> None:
    height, width = picture.shape[:2]
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, round(font.size / 6))
    tag_width, tag_height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    if tag_width > width or tag_height > height:
        return
    x = min(corner[0], width - tag_width)
    y = corner[1] - tag_height if corner[1] >= tag_height else min(corner[1], height - tag_height)
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    tag = Image.new("RGB", (tag_width, tag_height), rgb)
    ImageDraw.Draw(tag).text((pad - left, pad - top), text, fill="black" if luminance > 140 else "white", font=font)
    picture[y : y + tag_height, x : x + tag_width] = np.asarray(tag)


def captioned(image: np.ndarray, *lines: str, step: int = 0) -> np.ndarray:
    """An image [H, W, 3] uint8 with lines of text below it, on white, each ``step`` pixels high (0: as the image is
    wide)."""
    width = image.shape[1]
    step = step or max(13, width // 15)
    band = Image.new("RGB", (width, step * len(lines) + step // 2), "white")
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(0.8 * step)
    for i, line in enumerate(lines):
        draw.text((step // 2, step * i), line, (30, 30, 30), font)
    return np.vstack([image, np.asarray(band)])


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return one image with all ``images`` in rows of ``columns``, each fitted into a square, on white."""
    gap = SHEET_CELL // 50
    tiles = []
    for image in images:
        small = fit(image, SHEET_CELL)
        height, width = small.shape[:2]
        x, y = gap + (SHEET_CELL - width) // 2, gap + (SHEET_CELL - height) // 2
        tiles.append(np.full((SHEET_CELL + gap, SHEET_CELL + gap, 3), 255, dtype=np.uint8))
        tiles[-1][y : y + height, x : x + width] = small
    return np.pad(grid(tiles, columns), ((0, gap), (0, gap), (0, 0)), constant_values=255)


def grid(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size [H, W, 3] uint8 in rows of at most ``columns``, the last row filled up with white."""
    columns = min(columns, len(tiles))
    tiles = [*tiles, *[np.full_like(tiles[0], 255)] * (-len(tiles) % columns)]
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an RGB uint8 image in the format of its suffix (.jpg, .png ...), completely or not at all."""
    write_bytes(path, encoded(image.copy(), Path(path).suffix))


def encoded(image: np.ndarray, suffix: str) -> memoryview:
    """The bytes of a file with this suffix that holds an RGB uint8 image, whose memory is used for it."""
    _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR, image))
    return data.data


# ---------------------------------------------------------------- charts


def training_curves(rows: Sequence[dict], path: str | Path) -> None:
    """Draw the rows of ``results.csv`` (numbers or their text): losses, validation measures and learning rate.

    The columns are ``epoch``, ``lr``, the loss terms ``loss/...`` and ``val/mAP``, ``val/mAP50``, ``val/mAP75``,
    ``val/mAR``; a value that is missing or empty leaves a gap.
    """

    def column(key: str) -> np.ndarray:
        return np.array([np.nan if row.get(key) in (None, "") else float(row[key]) for row in rows])

    epochs, mAP = column("epoch"), column("val/mAP")
    terms = dict.fromkeys(key for row in rows for key in row if key.startswith("loss/"))
    with panels(path, 12, 4, 1, 3, width_ratios=(1.3, 1.3, 1)) as axes:
        losses, measures, rate = axes
        for panel, keys in zip(axes, (terms, [f"val/{name}" for name in MEASURES], ["lr"]), strict=True):
            for key in keys:
                panel.plot(epochs, column(key), "o-", markersize=3, label=key.rpartition("/")[2])
            panel.set(xlabel="epoch", xlim=(0.5, max([2.0, *epochs]) + 0.5))
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(panel.lines) > 1:
                panel.legend()
        title = "validation"
        if np.isfinite(mAP).any():
            best = int(np.nanargmax(mAP))
            measures.plot(epochs[best], mAP[best], "o", color="C0", markersize=9, fillstyle="none")
            title = f"validation: best mAP {mAP[best]:.3f} at epoch {epochs[best]:.0f}"
        losses.set(title="training loss", ylabel="loss (mean of the epoch)")
        measures.set(title=title, ylabel="measure (0 to 1)", ylim=(0, 1))
        rate.set(title="learning rate", ylabel="learning rate")


def label_statistics(dataset: Dataset, path: str | Path) -> None:
    """Draw what the labels are like: cells per type, box sizes, where boxes are, cells per image (without crowds)."""
    with panels(path, 11, 8, 2, 2) as axes:
        _draw_labels(axes, dataset)


def data_statistics(dataset: Dataset, colours: Sequence[Colour], factors: Sequence[dict], path: str | Path) -> None:
    """Draw what a data set is like: the four panels of :func:`label_statistics`, the colours of its groups of images,
    and its interference factors (see ``leuko.data.tools.stats``)."""
    with panels(path, 16, 8, 2, 3) as (cells, sizes, tints, places, images, noted):
        _draw_labels((cells, sizes, places, images), dataset)
        _draw_colours(tints, colours)
        _draw_factors(noted, factors)


def differential_chart(
    differential: Differential, path: str | Path, threshold: str, labelled: Sequence[float] = ()
) -> None:
    """Draw a differential count: percent of the classified cells per type, with exact 95 % limits; and the ``labelled``
    percent, where it is known."""
    rows = [row for row in differential.rows() if not row["why"]]
    with panels(path, 7, 0.5 * len(rows) + 1.6) as (axes,):
        spans = [(row["percent"], row["low95"], row["high95"]) for row in rows]
        bars(axes, list(differential.types), spans, 0.7, color=type_colours(differential.types))
        for i, row in enumerate(rows):
            percent, high = np.nan_to_num([row["percent"], row["high95"]])
            text = f"{percent:.1f} % ({row['cells']:,})"
            axes.annotate(text, (high, i), (6, 0), textcoords="offset points", va="center")
        if len(labelled):
            style = {"color": INK, "markeredgecolor": "white", "markersize": 8, "label": "labelled"}
            axes.plot(labelled, range(len(labelled)), "D", **style)
            axes.legend(loc="lower right")
        axes.set(xlim=(0, 120), xticks=range(0, 101, 20))  # room for the text beside a bar of 100 %
        without = sum(differential.unclassified.values())
        left = f", {without:,} unclassified" if without else ""
        axes.set(title=f"{differential.classified:,} classified cells{left}", ylabel="type")
        axes.set_xlabel(f"percent of the classified (line: exact 95 % limits)\nscore from {threshold}")


def _draw_labels(panels: Sequence[Axes], dataset: Dataset) -> None:
    """Cells per type, box sizes, where boxes are, and cells per image, crowds left out."""
    for panel, draw in zip(panels, (_draw_types, _draw_sizes, _draw_heat, _draw_cells_per_image), strict=True):
        draw(panel, dataset)


def _draw_types(axes: Axes, dataset: Dataset) -> None:
    counts = dataset.counts()
    total = int(counts.sum())
    columns = axes.bar(dataset.types, counts, color=type_colours(dataset.types), width=0.7)
    axes.bar_label(columns, [f"{n:,}\n{100 * n / max(total, 1):.1f} %" for n in counts], padding=3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"cells per type ({total:,} in all)", xlabel="type", ylabel="cells")
    axes.set_ylim(0, 1.18 * max([4, *counts]))


def _draw_cells_per_image(axes: Axes, dataset: Dataset) -> None:
    cells = dataset.counts_per_image().sum(1)
    values, counts = np.unique(cells, return_counts=True)
    axes.bar(values, counts, color=ACCENT, width=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"cells per image ({len(cells):,} images)", xlabel="cells in the image", ylabel="images")
    axes.set_xlim(-0.6, max([4, *cells]) + 0.6)


def _draw_sizes(axes: Axes, dataset: Dataset) -> None:
    """One box plot per type: side of the square of equal area, in percent of the image's shorter side."""
    sides: list[list[float]] = [[] for _ in dataset.types]
    for s in dataset.samples:
        side = 100 * np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(axis=1)) / min(s.width, s.height)
        for label, value in zip(s.labels[~s.crowd], side[~s.crowd], strict=True):
            sides[label].append(float(value))
    style = {"flierprops": {"markersize": 2}, "medianprops": {"color": "white", "linewidth": 2}}
    parts = axes.boxplot(sides, tick_labels=dataset.types, widths=0.6, patch_artist=True, **style)
    for box, ink in zip(parts["boxes"], type_colours(dataset.types), strict=True):
        box.set(facecolor=ink, edgecolor=INK)
    axes.set(title="box size", xlabel="type", ylabel="side, sqrt(width x height)\n(% of the image's shorter side)")
    axes.set_ylim(bottom=0)


def _draw_heat(axes: Axes, dataset: Dataset) -> None:
    """How many boxes cover each part of the image, all images laid over each other."""
    heat = np.zeros((HEAT_BINS, HEAT_BINS))
    for sample in dataset.samples:
        scale = HEAT_BINS / np.array([sample.width, sample.height] * 2)
        for x0, y0, x1, y1 in np.clip((sample.boxes[~sample.crowd] * scale).round().astype(int), 0, HEAT_BINS):
            heat[y0:y1, x0:x1] += 1
    shown = axes.imshow(heat, cmap="viridis", extent=(0, 100, 100, 0), vmin=0, vmax=max(heat.max(), 1))
    axes.figure.colorbar(shown, ax=axes, label="boxes that cover the place")
    axes.set(title="where boxes are", xlabel="% of the image's width", ylabel="% of the image's height")
    axes.grid(False)


def _draw_colours(axes: Axes, colours: Sequence[Colour]) -> None:
    """A dot per group in its colour: how bright, and how far from grey towards red or blue."""
    mean = np.array([c.mean for c in colours])
    at = np.stack([mean.mean(1), mean[:, 0] - mean[:, 2]], axis=1)
    axes.scatter(*at.T, s=90, c=mean / 255, edgecolors=INK, linewidths=0.6)
    if len(colours) <= MAX_NAMED:
        for c, place in zip(colours, at, strict=True):
            axes.annotate(f"{c.group} ({c.images:,})", place, (8, 0), textcoords="offset points", va="center")
    middle, half = (at.min(0) + at.max(0)) / 2, np.maximum(np.ptp(at, axis=0), LEAST_SPAN) * 0.75
    (x0, y0), (x1, y1) = middle - half, middle + half
    axes.set(xlim=(x0, x1), ylim=(y0, y1), xlabel="brightness, 0 to 255", ylabel="red minus blue")
    axes.set_title(f"mean colour of {len(colours):,} groups of images")


def _draw_factors(axes: Axes, factors: Sequence[dict]) -> None:
    """Images and cells of each interference factor."""
    axes.set(title="interference factors" if factors else "no interference factors are noted", xlabel="images or cells")
    for shift, key, ink in ((-0.2, "images", "C1"), (0.2, "cells", "C5")):
        noted = [row[key] for row in factors]
        parts = axes.barh(np.arange(len(noted)) + shift, noted, 0.38, color=ink, label=key)
        axes.bar_label(parts, [f"{n:,}" for n in noted], padding=3)
    axes.set_yticks(range(len(factors)), [row["factor"] for row in factors])
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.legend()
