"""The charts: of a training, of labels, and of a validation (curves, confusion, factors, agreement, calibration,
intervals).

A type has the same place and colour in every chart; a model has the same colour in all charts of a folder.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..cells import colour
from ..data.dataset import Dataset
from ..io import write_bytes
from ..metrics.coco import RECALLS
from ..metrics.curves import PANELS, SCORES, ScoreCurve
from .tables import MEASURES, rate

HEAT_BINS = 48
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


# ---------------------------------------------------------------- a training


def training_curves(rows: Sequence[dict], path: str | Path) -> None:
    """Draw the rows of ``results.csv`` (numbers or their text): losses, validation measures and learning rate.

    The columns are ``epoch``, ``lr``, the loss terms ``loss/...`` and ``val/mAP``, ``val/mAP50``, ``val/mAP75``,
    ``val/mAR``; a value that is missing or empty leaves a gap.
    """
    epochs, mAP = _column(rows, "epoch"), _column(rows, "val/mAP")
    terms = dict.fromkeys(key for row in rows for key in row if key.startswith("loss/"))
    with panels(path, 12, 4, 1, 3, width_ratios=(1.3, 1.3, 1)) as axes:
        losses, measures, rate = axes
        for panel, keys in zip(axes, (terms, [f"val/{name}" for name in MEASURES], ["lr"]), strict=True):
            for key in keys:
                panel.plot(epochs, _column(rows, key), "o-", markersize=3, label=key.rpartition("/")[2])
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


def trainings(runs: dict[str, Sequence[dict]], path: str | Path) -> None:
    """mAP on the validation split per epoch of several trainings, by the rows of their ``results.csv``."""
    with panels(path, 9, 4.4) as (axes,):
        for name, rows in runs.items():
            axes.plot(*(_column(rows, key) for key in ("epoch", "val/mAP")), "o-", markersize=3, label=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="mAP on the validation split", ylim=(0, 1))
        axes.legend()


def _column(rows: Sequence[dict], key: str) -> np.ndarray:
    """Numbers, or their text; nan where one is missing or empty."""
    return np.array([np.nan if row.get(key) in (None, "") else float(row[key]) for row in rows])


# ---------------------------------------------------------------- labels


def label_statistics(dataset: Dataset, path: str | Path) -> None:
    """Draw what the labels are like: cells per type, box sizes, where boxes are, cells per image (without crowds)."""
    with panels(path, 11, 8, 2, 2) as axes:
        for panel, draw in zip(axes, (_draw_types, _draw_sizes, _draw_heat, _draw_cells_per_image), strict=True):
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


# ---------------------------------------------------------------- a validation


def precision_recall(
    curves: dict[str, np.ndarray],
    path: str | Path,
    title: str = "",
    shown: Sequence[int] = range(len(PANELS)),
    colours: Sequence = (),
) -> None:
    """Precision against recall of each model or type: ``curves[name]`` is [7, 101], a row per entry of
    ``curves.PANELS``; those whose indices are ``shown`` get a panel. No line where a curve is nan."""
    colours = colours or [f"C{i}" for i in range(len(curves))]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    with panels(path, 3.75 * columns, 3.6 * rows, rows, columns, sharey=True) as axes:
        for panel, i in zip(axes, shown, strict=False):
            for (name, of_panels), ink in zip(curves.items(), colours, strict=True):
                if np.isfinite(of_panels[i]).all():
                    panel.plot(RECALLS, of_panels[i], color=ink, label=f"{name} {rate(of_panels[i].mean())}")
            panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
            panel.set_title(title + ("mean of IoU .50 to .95" if PANELS[i] == "mean" else f"IoU {PANELS[i]}"))
            if panel.lines:
                panel.legend(title="AP", loc="best")
        for panel in axes[len(shown) :]:
            panel.set_visible(False)


def scores(curves: dict[str, ScoreCurve], path: str | Path) -> None:
    """Precision, recall and F1 of each model against the score at IoU .5, the best F1 marked."""
    with panels(path, 14, 4.4, 1, 3, sharey=True) as axes:
        for panel, name in zip(axes, ("f1", "recall", "precision"), strict=True):
            for i, (model, curve) in enumerate(curves.items()):
                label = model
                if name == "f1" and np.isfinite(curve.best_f1):
                    panel.plot(curve.best_score, curve.best_f1, "o", color=f"C{i}", markersize=8, fillstyle="none")
                    label = f"{model}: best {curve.best_f1:.3f} at {curve.best_score:.2f}"
                panel.plot(SCORES, getattr(curve, name), color=f"C{i}", label=label)
            panel.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
            panel.set_title(f"{'F1' if name == 'f1' else name}, IoU .50, all types")
            panel.legend(loc="lower center")


def confusion(counts: np.ndarray, types: Sequence[str], title: str, path: str | Path) -> None:
    """A confusion matrix [types + 1, types + 1]: counts, and percent of the row; rows labels, columns predictions."""
    k = len(types)
    cells = counts.sum(1, keepdims=True)
    percent = 100 * counts / np.maximum(cells, 1)
    percent[k] = np.nan  # extra detections are a part of no cells
    with panels(path, 1.15 * k + 3.2, 0.85 * k + 2.4) as (axes,):
        axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for i, j in np.ndindex(k + 1, k + 1):
            text = f"{counts[i, j]:,}\n{percent[i, j]:.1f} %" if i < k else f"{counts[i, j]:,}" if j < k else ""
            ink = "white" if percent[i, j] > 55 else INK if counts[i, j] else "#9a9a9a"
            axes.text(j, i, text, ha="center", va="center", color=ink, fontweight="bold" if i == j else None)
        axes.set_xticks(range(k + 1), [*types, "missed"])
        axes.set_yticks(range(k + 1), [*(f"{t} ({n:,})" for t, n in zip(types, cells[:k, 0], strict=True)), "extra"])
        axes.axhline(k - 0.5, color=INK, linewidth=1)
        axes.axvline(k - 0.5, color=INK, linewidth=1)
        axes.set(xlabel="prediction", ylabel="label (cells)")
        axes.set_title(title, fontsize=10)
        axes.grid(False)


def factors(rates: dict[str, Sequence[dict]], path: str | Path) -> None:
    """Rates by interference factor with exact 95 % limits: a panel per measure, the models side by side."""
    first = next(iter(rates.values()))
    measures = Counter(row["measure"] for row in first)
    width = 0.8 / len(rates)
    size = 5.2 * len(measures), 0.28 * max(measures.values()) * (len(rates) + 1) + 1.8
    with panels(path, *size, 1, len(measures)) as axes:
        for panel, measure in zip(axes, measures, strict=True):
            for i, (model, of_model) in enumerate(rates.items()):
                shown = [row for row in of_model if row["measure"] == measure]
                places = np.arange(len(shown)) + (i - (len(rates) - 1) / 2) * width
                percent, low, high = np.nan_to_num([[row[k] for row in shown] for k in ("percent", "low", "high")])
                limits = np.clip([percent - low, high - percent], 0, None)
                style = {"color": f"C{i}", "ecolor": "#888888", "capsize": 2}
                panel.barh(places, percent, 0.92 * width, xerr=limits, label=model, **style)
            panel.invert_yaxis()
            panel.set_yticks(range(len(shown)), [f"{row['factor']} ({row['total']:,})" for row in shown])
            better = "lower is better" if measure == "impurity ratio" else "higher is better"
            panel.set(title=f"{measure} ({better})", xlabel="percent, exact 95 % limits", xlim=(0, 105))
        handles = panel.get_legend_handles_labels()
        columns = max(1, min(4, 55 * len(measures) // (6 + max(map(len, rates)))))  # as the letters fit in
        panel.figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def severity(rows: Sequence[dict], model: str, path: str | Path) -> None:
    """mAP against the severity of each factor; rows hold factor, severity (0: without) and mAP."""
    without = next(row["mAP"] for row in rows if not row["severity"])
    with panels(path, 9, 5) as (axes,):
        for name in dict.fromkeys(row["factor"] for row in rows if row["severity"]):
            points = [(0, without), *sorted((row["severity"], row["mAP"]) for row in rows if row["factor"] == name)]
            axes.plot(*zip(*points, strict=True), "o-", label=name, markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="severity (0: the images as they are)", ylabel="mAP", ylim=(0, 1))
        axes.set_title(f"{model}: mAP with each factor added to the images")
        axes.legend(ncols=2)


def agreement(shares: np.ndarray, rows: Sequence[dict], note: str, path: str | Path) -> None:
    """Bland and Altman's chart of each type: difference of the ``shares`` [groups, 2, types] against their mean.
    ``note`` is a line below."""
    means, differences = shares.mean(1), shares[:, 1] - shares[:, 0]
    with panels(path, 3.1 * len(rows), 3.4, 1, len(rows), sharey=True) as axes:
        for k, (panel, row, ink) in enumerate(zip(axes, rows, type_colours([r["type"] for r in rows]), strict=True)):
            panel.scatter(means[:, k], differences[:, k], s=16, color=ink, alpha=0.6)
            for key, style in (("bias", "-"), ("low", "--"), ("high", "--")):
                if np.isfinite(row[key]):
                    panel.axhline(row[key], color=ACCENT, linestyle=style, linewidth=1)
            limits = "bias {bias:+.1f}, limits {low:.1f} to {high:.1f}".format(**row)
            panel.set(title=f"{row['type']}\n{limits}", xlabel="mean of both, percent")
        axes[0].set_ylabel("found - labelled, points")
        axes[0].figure.supxlabel(note, fontsize=9)


def reliability(before: dict, after: dict | None, model: str, path: str | Path) -> None:
    """The share of true positives against the score; a perfect score follows the diagonal."""
    shown = {"as detected": before} | ({"calibrated on the validation split": after} if after else {})
    with panels(path, 5.2 * len(shown), 4.6, 1, len(shown)) as axes:
        for panel, (title, bins) in zip(axes, shown.items(), strict=True):
            middle = (bins["edges"][:-1] + bins["edges"][1:]) / 2
            accuracy = np.nan_to_num(bins["accuracy"])
            parts = panel.bar(middle, accuracy, 0.094, color="C1", label="share of true positives")
            panel.bar_label(parts, [f"{n:,}" for n in bins["number"]], padding=2, fontsize=7)
            panel.plot([0, 1], [0, 1], color=ACCENT, linestyle="--", linewidth=1, label="a perfect score")
            panel.set(xlabel="score", ylabel="share of true positives, IoU .50", xlim=(0, 1), ylim=(0, 1.06))
            panel.set_title(f"{model}, {title}: error {bins['error']:.3f}")
            panel.legend(loc="upper left")


def intervals(rows: dict[str, dict[str, dict]], differences: Sequence[dict], path: str | Path) -> None:
    """mAP and mAR of each model on one axis, ``rows[model][measure]``, with 95 % bootstrap intervals; and, where there
    are any, the ``differences`` of mAP of the first to the others (rows with against, mAP_difference, low, high)."""
    shift = {"mAP": -0.16, "mAR": 0.16}
    with panels(path, 11 if differences else 7, 0.55 * len(rows) + 1.6, 1, 1 + bool(differences), sharey=True) as axes:
        for i, of_model in enumerate(rows.values()):
            for measure, marker in (("mAP", "o"), ("mAR", "s")):
                value, low, high = (of_model[measure][key] for key in ("value", "low", "high"))
                _interval(axes[0], i + shift[measure], value, low, high, rate(value), fmt=marker, color=f"C{i}")
        for measure, marker in (("mAP", "o"), ("mAR", "s")):
            axes[0].plot([], [], marker, color=ACCENT, label=measure)
        axes[0].legend(loc="best")
        axes[0].set(xlabel="mAP and mAR, 95 % bootstrap intervals", ylim=(len(rows) - 0.4, -0.6))
        axes[0].set_yticks(range(len(rows)), list(rows))
        names = list(rows)
        for row in differences:
            i, value = names.index(row["against"]), row["mAP_difference"]
            _interval(axes[1], i, value, row["low"], row["high"], f"{value:+.3f}", fmt="o", color=f"C{i}")
        if differences:
            axes[1].axvline(0, color=ACCENT, linestyle="--", linewidth=1)
            axes[1].set_xlabel(f"mAP of {names[0]} minus that of the model")


def _interval(axes: Axes, y: float, value: float, low: float, high: float, text: str, **style: str) -> None:
    error = np.nan_to_num([[value - low], [high - value]]).clip(0)
    axes.errorbar(value, y, xerr=error, elinewidth=2, capsize=4, **style)
    axes.annotate(text, (value, y), (0, 5), textcoords="offset points", ha="center", fontsize=8)
