"""Pictures: cells drawn on their image, sheets of images, training curves, statistics of labels.

Images are RGB uint8 arrays [H, W, 3]. A type has the same place and colour in every picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from ..cells import colour
from ..data.dataset import Dataset
from ..data.tools.stats import Colour
from ..io import write_bytes
from ..metrics.differential import Share

INK, GRID, ACCENT = "#222222", "#e3e3e3", "#4d4d4d"
MEASURES = {"mAP": "#222222", "mAP50": "#0072B2", "mAP75": "#009E73", "mAR": "#D55E00"}
SHEET_CELL = 400  # pixels: the longer side of an image on a contact sheet
HEAT_BINS = 48
LEAST_SPAN = 40  # levels of colour that an axis shows at least, so that small differences look small
MAX_NAMED = 12  # groups of images whose names still find room in a picture


def draw_cells(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    types: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of the image with each box in its type's colour and a tag, "NG" or "NG 0.93".

    Lines and letters grow with the image. A tag stands above its box where there is room and inside it otherwise, and
    never leaves the image; where the image is smaller than the tag, the box's colour alone tells the type.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    line = max(1, round(math.sqrt(side) / 9))  # 2 pixels at 320, 3 at 600, 6 at 3264
    font = ImageFont.load_default(size=max(12.0, side / 32))
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(picture)
    for i in reversed(range(len(boxes))):  # the best score last, on top
        rgb = colour(types[labels[i]], int(labels[i]))
        x0, y0, x1, y1 = np.clip(boxes[i], 0, [width, height, width, height]).round().astype(int).tolist()
        right, bottom = min(max(x1 - 1, x0), width - 1), min(max(y1 - 1, y0), height - 1)
        x0, y0 = min(x0, right), min(y0, bottom)
        draw.rectangle((x0, y0, right, bottom), outline=rgb, width=line)
        _draw_tag(
            draw, types[labels[i]] if scores is None else f"{types[labels[i]]} {scores[i]:.2f}", (x0, y0), rgb, font
        )
    return np.asarray(picture)


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return one image with all ``images`` in rows of ``columns``, each fitted into a square, on white."""
    gap = SHEET_CELL // 50
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    step = SHEET_CELL + gap
    sheet = np.full((max(rows, 1) * step + gap, columns * step + gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        scale = SHEET_CELL / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        x = gap + i % columns * step + (SHEET_CELL - size[0]) // 2
        y = gap + i // columns * step + (SHEET_CELL - size[1]) // 2
        sheet[y : y + size[1], x : x + size[0]] = small
    return sheet


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """An image [H, W, 3] uint8 with a white band below it that holds a title."""
    width = image.shape[1]
    band = Image.new("RGB", (width, max(14, width // 12)), "white")
    font = ImageFont.load_default(0.75 * band.height)
    ImageDraw.Draw(band).text((width / 2, band.height / 2), title, (30, 30, 30), font, "mm")
    return np.vstack([image, np.asarray(band)])


def captioned(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """An image [H, W, 3] uint8 with lines of text below it, on white."""
    width = image.shape[1]
    step = max(13, width // 18)
    band = Image.new("RGB", (width, step * len(lines) + step // 2), "white")
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(0.8 * step)
    for i, line in enumerate(lines):
        draw.text((width // 40, step * i), line, (30, 30, 30), font)
    return np.vstack([image, np.asarray(band)])


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an RGB uint8 image in the format its suffix names (.jpg, .png ...), whole or not at all."""
    _, data = cv2.imencode(Path(path).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_bytes(path, data.tobytes())


def training_curves(rows: Sequence[dict], path: str | Path) -> None:
    """Draw the rows of ``results.csv`` (numbers or their text): losses, validation measures and learning rate.

    The columns are ``epoch``, ``lr``, the loss terms ``loss/...`` and ``val/mAP``, ``val/mAP50``, ``val/mAP75``,
    ``val/mAR``; what is missing or empty leaves a gap.
    """
    figure = new_figure(12, 4)
    losses, measures, rate = figure.subplots(1, 3, width_ratios=(1.3, 1.3, 1))
    epochs = _column(rows, "epoch")
    title = "validation"
    terms = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")))
    for i, term in enumerate(terms):
        rgb = np.array(colour("", i)) / 255
        losses.plot(epochs, _column(rows, term), color=rgb, marker="o", markersize=3, label=term.removeprefix("loss/"))
    for name, ink in MEASURES.items():
        values = _column(rows, f"val/{name}")
        measures.plot(epochs, values, color=ink, marker="o", markersize=3, label=name)
        if name == "mAP" and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            measures.plot(epochs[best], values[best], "o", color=ink, markersize=9, fillstyle="none")
            title = f"validation: best mAP {values[best]:.3f} at epoch {epochs[best]:.0f}"
    rate.plot(epochs, _column(rows, "lr"), color=ACCENT, marker="o", markersize=3)
    label_axes(losses, "training loss", "epoch", "loss (mean of the epoch)")
    label_axes(measures, title, "epoch", "measure (0 to 1)")
    label_axes(rate, "learning rate", "epoch", "learning rate")
    losses.set_ylim(bottom=0)
    measures.set_ylim(0, 1)
    rate.set_ylim(bottom=0)
    for axes in (losses, measures, rate):
        axes.set_xlim(0.5, max([2.0, *epochs]) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, measures):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def label_statistics(dataset: Dataset, path: str | Path) -> None:
    """Draw what the labels are like: cells and box sizes a type, where boxes lie, cells an image (crowds left out)."""
    figure = new_figure(11, 8)
    (cells, sizes), (places, images) = figure.subplots(2, 2)
    _draw_labels(figure, (cells, sizes, places, images), dataset)
    save(figure, path)


def data_statistics(dataset: Dataset, colours: Sequence[Colour], factors: Sequence[dict], path: str | Path) -> None:
    """Draw what a data set is like: the four panels of :func:`label_statistics`, the colours of its groups of images,
    and its interference factors (see ``leuko.data.tools.stats``)."""
    figure = new_figure(16, 8)
    (cells, sizes, tint), (places, images, noted) = figure.subplots(2, 3)
    _draw_labels(figure, (cells, sizes, places, images), dataset)
    _draw_colours(tint, colours)
    _draw_factors(noted, factors)
    save(figure, path)


def differential_chart(shares: Sequence[Share], path: str | Path) -> None:
    """Draw a differential count: percent a type with 95 % Wilson intervals."""
    figure = new_figure(7, 0.5 * len(shares) + 1.4)
    axes = figure.subplots()
    types = [s.type for s in shares]
    percent = np.nan_to_num([s.percent for s in shares])
    error = np.nan_to_num([[s.percent - s.low for s in shares], [s.high - s.percent for s in shares]])
    axes.barh(types, percent, color=inks(types), height=0.7)
    axes.errorbar(percent, types, xerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for i, (share, top) in enumerate(zip(shares, percent + error[1], strict=True)):
        axes.annotate(
            f"{percent[i]:.1f} % ({share.cells:,})", (top, i), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_xlim(0, 120)  # room for the text beside a bar of 100 %
    axes.set_xticks(range(0, 101, 20))
    axes.invert_yaxis()
    label_axes(
        axes,
        f"differential count of {sum(s.cells for s in shares):,} cells",
        "percent of cells (line: 95 % Wilson interval)",
        "type",
    )
    save(figure, path)


def _draw_tag(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], rgb: tuple, font) -> None:
    width, height = draw.im.size
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, round(font.size / 6))
    tag_width, tag_height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    if tag_width > width or tag_height > height:
        return
    x = min(corner[0], width - tag_width)
    y = corner[1] - tag_height if corner[1] >= tag_height else min(corner[1], height - tag_height)
    draw.rectangle((x, y, x + tag_width - 1, y + tag_height - 1), fill=rgb)
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    draw.text((x + pad - left, y + pad - top), text, fill="black" if luminance > 140 else "white", font=font)


def _draw_labels(figure: Figure, panels: Sequence[Axes], dataset: Dataset) -> None:
    """Cells a type, box sizes, where boxes lie, and cells an image."""
    cells, sizes, places, images = panels
    kept = [(s, s.boxes[~s.crowd], s.labels[~s.crowd]) for s in dataset.samples]
    _draw_type_counts(cells, dataset)
    _draw_box_sizes(sizes, dataset, kept)
    _draw_heat(places, figure, kept)
    _draw_cells_per_image(images, [len(boxes) for _, boxes, _ in kept])


def _draw_type_counts(axes: Axes, dataset: Dataset) -> None:
    counts = dataset.counts()
    axes.bar(dataset.types, counts, color=inks(dataset.types), width=0.7)
    total = max(int(counts.sum()), 1)
    for i, n in enumerate(counts):
        axes.annotate(f"{n:,}\n{100 * n / total:.1f} %", (i, n), (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 1.18 * max([4, *counts]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, f"cells a type ({int(counts.sum()):,} in all)", "type", "cells")


def _draw_cells_per_image(axes: Axes, cells: list[int]) -> None:
    values, counts = np.unique(np.array(cells, dtype=int), return_counts=True)
    axes.bar(values, counts, color=ACCENT, width=0.8)
    axes.set_xlim(-0.6, max([4, *cells]) + 0.6)
    axes.set_ylim(0, 1.05 * max([4, *counts]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, f"cells an image ({len(cells):,} images)", "cells in the image", "images")


def _draw_box_sizes(axes: Axes, dataset: Dataset, kept: list) -> None:
    """One box plot a type: side of the square of equal area, in percent of the image's shorter side."""
    sides: list[list[float]] = [[] for _ in dataset.types]
    for sample, boxes, labels in kept:
        side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) / min(sample.width, sample.height)
        for label, value in zip(labels, 100 * side, strict=True):
            sides[label].append(float(value))
    parts = axes.boxplot(sides, tick_labels=dataset.types, widths=0.6, patch_artist=True, flierprops={"markersize": 2})
    for box, ink in zip(parts["boxes"], inks(dataset.types), strict=True):
        box.set(facecolor=ink, edgecolor=INK)
    for median in parts["medians"]:
        median.set(color="white", linewidth=2)
    axes.set_ylim(0, 1.05 * max([1.0, *(value for values in sides for value in values)]))
    label_axes(axes, "box size", "type", "side, sqrt(width x height)\n(% of the image's shorter side)")


def _draw_heat(axes: Axes, figure: Figure, kept: list) -> None:
    """How many boxes cover each part of the image, all images laid over each other."""
    heat = np.zeros((HEAT_BINS, HEAT_BINS))
    for sample, boxes, _ in kept:
        scale = HEAT_BINS / np.array([sample.width, sample.height, sample.width, sample.height])
        for x0, y0, x1, y1 in np.clip((boxes * scale).round().astype(int), 0, HEAT_BINS):
            heat[y0:y1, x0:x1] += 1
    shown = axes.imshow(heat, cmap="viridis", extent=(0, 100, 100, 0), vmin=0, vmax=max(heat.max(), 1))
    figure.colorbar(shown, ax=axes, label="boxes that cover the place")
    label_axes(axes, "where boxes lie", "% of the image's width", "% of the image's height")
    axes.grid(False)


def _draw_colours(axes: Axes, colours: Sequence[Colour]) -> None:
    """A dot a group, in its colour: how bright, and how far from grey towards red or blue."""
    mean = np.array([c.mean for c in colours])
    x, y = mean.mean(1), mean[:, 0] - mean[:, 2]
    axes.scatter(x, y, s=90, c=mean / 255, edgecolors=INK, linewidths=0.6)
    if len(colours) <= MAX_NAMED:
        for c, at in zip(colours, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{c.group} ({c.images:,})", at, (8, 0), textcoords="offset points", va="center")
    for low, high, limit in ((x.min(), x.max(), axes.set_xlim), (y.min(), y.max(), axes.set_ylim)):
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) * 0.75
        limit(middle - half, middle + half)
    label_axes(axes, f"mean colour of {len(colours):,} groups of images", "brightness, 0 to 255", "red minus blue")


def _draw_factors(axes: Axes, factors: Sequence[dict]) -> None:
    """Images and cells of each interference factor."""
    if not factors:
        axes.axis("off")
        axes.text(0.5, 0.5, "no interference factors are noted", ha="center", va="center", transform=axes.transAxes)
        return
    names = [row["factor"] for row in factors]
    for shift, key, shade in ((-0.2, "images", "#56789a"), (0.2, "cells", "#c9a227")):
        noted = [row[key] for row in factors]
        bars = axes.barh(np.arange(len(names)) + shift, noted, 0.38, color=shade, label=key)
        axes.bar_label(bars, [f"{n:,}" for n in noted], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    label_axes(axes, "interference factors", "images or cells", "")


def inks(types: Sequence[str]) -> list[tuple[float, ...]]:
    return [tuple(v / 255 for v in colour(name, i)) for i, name in enumerate(types)]


def _column(rows: Sequence[dict], key: str) -> np.ndarray:
    """One column as floats; nan where a row has no value."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value in (None, "") else float(value) for value in values])


def new_figure(width: float, height: float) -> Figure:
    """Make a figure (inches) without pyplot, which keeps every figure alive and is not safe in threads."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, in which a type's or a model's name with dollar signs is no formula."""
    data = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):  # for texts that drawing adds
        figure.savefig(data, format=Path(path).suffix[1:], dpi=120)
    write_bytes(path, data.getvalue())
