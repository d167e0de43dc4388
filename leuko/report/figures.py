"""The pictures of a validation: curves, confusion, factors, consensus, agreement, calibration, intervals.

A type has the same place and colour in every picture; a model the same colour in all pictures of a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..data.dataset import Dataset
from ..data.images import read_image
from ..metrics.agreement import BlandAltman, GroupCount
from ..metrics.bootstrap import Interval
from ..metrics.calibration import Reliability
from ..metrics.consensus import Suspect
from ..metrics.curves import SCORES, ScoreCurve
from ..metrics.factors import Rate
from . import plots
from .plots import ACCENT, INK, inks, label_axes, new_figure, save
from .table import rate

MODELS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a6d3b")
"""Colours of models, the one that is reported first; Okabe and Ito's, told apart with a colour-vision deficiency."""


def precision_recall(curves: dict[str, Sequence[dict]], path: str | Path) -> None:
    """Precision against recall, a panel an IoU, all models in each; rows are those of ``curves.precision_curves``."""
    ious = list(dict.fromkeys(row["iou"] for row in next(iter(curves.values()))))
    figure = new_figure(15, 7.2)
    panels = figure.subplots(2, -(-len(ious) // 2), sharex=True, sharey=True).ravel()
    for panel, iou in zip(panels, ious, strict=False):
        for i, (model, rows) in enumerate(curves.items()):
            mine = [r for r in rows if r["iou"] == iou and r["type"] == "all"]
            area = np.mean([r["precision"] for r in mine])
            label = f"{model} {rate(area)}"
            panel.plot([r["recall"] for r in mine], [r["precision"] for r in mine], color=_model(i), label=label)
        label_axes(panel, "mean of IoU .50 to .95" if iou == "mean" else f"IoU {iou}", "recall", "precision")
        panel.set(xlim=(0, 1.01), ylim=(0, 1.02))
        panel.legend(framealpha=0.85, edgecolor="none", fontsize=7, loc="lower left", title="area", title_fontsize=7)
    for panel in panels[len(ious) :]:
        panel.set_visible(False)
    save(figure, path)


def precision_recall_of_types(rows: Sequence[dict], types: Sequence[str], model: str, path: str | Path) -> None:
    """Precision against recall of each type, at IoU .50, .75 and the mean."""
    figure = new_figure(13, 4.2)
    panels = figure.subplots(1, 3, sharey=True)
    for panel, iou in zip(panels, ("0.50", "0.75", "mean"), strict=True):
        for name, ink in zip(types, inks(types), strict=True):
            mine = [r for r in rows if r["iou"] == iou and r["type"] == name]
            precision = np.array([r["precision"] for r in mine], dtype=float)
            if np.isfinite(precision).all():
                label = f"{name} {rate(precision.mean())}"
                panel.plot([r["recall"] for r in mine], precision, color=ink, label=label)
        label_axes(
            panel, f"{model}, {'mean of IoU .50 to .95' if iou == 'mean' else f'IoU {iou}'}", "recall", "precision"
        )
        panel.set(xlim=(0, 1.01), ylim=(0, 1.02))
        if panel.lines:
            panel.legend(
                framealpha=0.85, edgecolor="none", fontsize=8, loc="lower left", title="type, AP", title_fontsize=8
            )
    save(figure, path)


def scores(curves: dict[str, ScoreCurve], path: str | Path) -> None:
    """Precision, recall and F1 against the score at IoU .5, the best F1 marked."""
    figure = new_figure(14, 4.4)
    panels = figure.subplots(1, 3, sharey=True)
    for panel, name in zip(panels, ("f1", "recall", "precision"), strict=True):
        for i, (model, curve) in enumerate(curves.items()):
            panel.plot(SCORES, getattr(curve, name), color=_model(i), label=model)
            if name == "f1" and np.isfinite(curve.best_f1):
                panel.plot(curve.best_score, curve.best_f1, "o", color=_model(i), markersize=8, fillstyle="none")
                panel.lines[-2].set_label(f"{model}: best {curve.best_f1:.3f} at {curve.best_score:.2f}")
        label_axes(panel, f"{'F1' if name == 'f1' else name}, IoU .50, all types", "score threshold", "")
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
        panel.legend(framealpha=0.85, edgecolor="none", fontsize=8, loc="lower center")
    save(figure, path)


def confusion(counts: np.ndarray, types: Sequence[str], title: str, path: str | Path) -> None:
    """A confusion matrix [types + 1, types + 1]: counts, and percent of the row; rows truth, columns prediction."""
    figure = new_figure(1.15 * len(types) + 3.2, 0.85 * len(types) + 2.4)
    axes = figure.subplots()
    total = counts.sum(1, keepdims=True)
    percent = 100 * counts / np.maximum(total, 1)
    shown = percent.copy()
    shown[-1] = np.nan  # extra detections have no row of truth to be a percentage of
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, j in np.ndindex(*counts.shape):
        if i == j == len(types):
            continue
        text = f"{counts[i, j]:,}" if i == len(types) else f"{counts[i, j]:,}\n{percent[i, j]:.1f} %"
        ink = "white" if i < len(types) and percent[i, j] > 55 else (INK if counts[i, j] else "#9a9a9a")
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9, fontweight="bold" if i == j else None)
    axes.set_xticks(range(len(types) + 1), [*types, "missed"])
    rows = [f"{name} ({n:,})" for name, n in zip(types, total[:-1, 0], strict=True)]
    axes.set_yticks(range(len(types) + 1), [*rows, "extra"])
    axes.axhline(len(types) - 0.5, color=INK, linewidth=1)
    axes.axvline(len(types) - 0.5, color=INK, linewidth=1)
    axes.set(xlabel="prediction", ylabel="truth (cells)")
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    save(figure, path)


def factors(rates: dict[str, Sequence[Rate]], path: str | Path) -> None:
    """Rates by interference factor with 95 % intervals, a panel a measure, all models side by side."""
    first = next(iter(rates.values()))
    measures = list(dict.fromkeys(r.measure for r in first))
    height = max(sum(r.measure == m for r in first) for m in measures)
    figure = new_figure(5.2 * len(measures), 0.28 * height * (len(rates) + 1) + 1.8)
    for panel, measure in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True):
        names = [f"{r.factor} ({r.total:,})" for r in first if r.measure == measure]
        width = 0.8 / len(rates)
        for i, (model, all_rates) in enumerate(rates.items()):
            mine = [r for r in all_rates if r.measure == measure]
            place = np.arange(len(mine)) + (i - (len(rates) - 1) / 2) * width
            value = np.nan_to_num([r.percent for r in mine])
            error = np.nan_to_num([[r.percent - r.low for r in mine], [r.high - r.percent for r in mine]]).clip(0)
            panel.barh(place, value, width * 0.92, color=_model(i), label=model)
            panel.errorbar(value, place, xerr=error, fmt="none", ecolor="#888888", elinewidth=1, capsize=2)
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.set_xlim(0, 105)
        better = "lower is better" if measure == "impurity ratio" else "higher is better"
        label_axes(panel, f"{measure} ({better})", "percent, 95 % Wilson interval", "")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def severity(rows: Sequence[dict], model: str, path: str | Path) -> None:
    """mAP against the severity of each factor; rows hold factor, severity (0: without) and mAP."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    names = list(dict.fromkeys(row["factor"] for row in rows if row["severity"]))
    plain = [row["mAP"] for row in rows if not row["severity"]]
    marks = "osD^vP*Xh"
    for i, name in enumerate(names):
        mine = sorted((row["severity"], row["mAP"]) for row in rows if row["factor"] == name)
        x, y = zip(*[(0, plain[0]), *mine], strict=True)
        ink = MODELS[i % len(MODELS)]
        style = {"marker": marks[i % len(marks)], "markersize": 5, "linestyle": "-" if i < len(MODELS) else "--"}
        axes.plot(x, y, color=ink, label=name, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, f"{model}: which factor breaks it first", "severity (0: the images as they are)", "mAP")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    save(figure, path)


def consensus(dataset: Dataset, suspects: Sequence[Suspect], path: str | Path, at_most: int = 24) -> None:
    """A gallery of the surest consensus errors of each kind: the place, the label, and each model's vote."""
    of_kind: dict[str, int] = {}
    shown = []
    for s in suspects:  # so many of each kind, lest one drives the others out
        of_kind[s.kind] = of_kind.get(s.kind, 0) + 1
        if of_kind[s.kind] <= at_most // 3:
            shown.append(s)
    tiles = [_suspect(dataset, s) for s in shown]
    height = max(t.shape[0] for t in tiles)
    tiles = [np.pad(t, ((0, height - t.shape[0]), (0, 0), (0, 0)), constant_values=255) for t in tiles]
    columns = min(6, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    plots.write_image(path, np.vstack(rows))


def _suspect(dataset: Dataset, suspect: Suspect) -> np.ndarray:
    sample = dataset.samples[suspect.image]
    image = read_image(sample.image)
    x0, y0, x1, y1 = suspect.box
    half = max(x1 - x0, y1 - y0) * 0.9
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = max(int(cx - half), 0), max(int(cy - half), 0)
    crop = image[top : int(cy + half) + 1, left : int(cx + half) + 1]
    name, number = (suspect.label or suspect.says), dataset.types.index(suspect.label or suspect.says)
    drawn = plots.draw_cells(
        crop, np.array([[x0 - left, y0 - top, x1 - left, y1 - top]]), np.array([number]), dataset.types
    )
    side = plots.contact_sheet([drawn], 1)
    said = {"type": f"label {name}, models say {suspect.says}", "unlabelled": f"no label, models say {suspect.says}"}
    lines = [said.get(suspect.kind, f"label {name}, no model finds it"), f"{sample.image.name[:34]}"]
    lines += [f"{v.model}: {f'{v.type} {v.score:.2f}' if v.type else 'nothing'}" for v in suspect.votes]
    return plots.captioned(side, lines)


def agreement(counts: Sequence[GroupCount], rows: Sequence[BlandAltman], path: str | Path) -> None:
    """Bland and Altman's picture of each type: difference of the shares against their mean, over the groups."""
    both = [c for c in counts if c.truth.sum() and c.found.sum()]
    figure = new_figure(3.1 * len(rows), 3.4)
    truth = np.array([100 * c.truth / c.truth.sum() for c in both]).reshape(-1, len(rows))
    found = np.array([100 * c.found / c.found.sum() for c in both]).reshape(-1, len(rows))
    types = [r.type for r in rows]
    panels = np.atleast_1d(figure.subplots(1, len(rows), sharey=True))
    for k, (panel, row, ink) in enumerate(zip(panels, rows, inks(types), strict=True)):
        panel.scatter((truth[:, k] + found[:, k]) / 2, found[:, k] - truth[:, k], s=16, color=ink, alpha=0.6)
        for value, style in ((row.bias, "-"), (row.low, "--"), (row.high, "--")):
            if np.isfinite(value):
                panel.axhline(value, color=ACCENT, linestyle=style, linewidth=1)
        limits = f"bias {row.bias:+.1f}, limits {row.low:.1f} to {row.high:.1f}" if row.groups > 1 else "too few groups"
        label_axes(panel, f"{row.type}\n{limits}", "mean of both, percent", "prediction - truth" if k == 0 else "")
    save(figure, path)


def reliability(before: Reliability, after: Reliability | None, model: str, path: str | Path) -> None:
    """The share of true detections against their score; the diagonal is a perfect score."""
    shown = [("as detected", before)] + ([("calibrated on the validation split", after)] if after else [])
    figure = new_figure(5.2 * len(shown), 4.6)
    for panel, (title, bins) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        middle = (bins.edges[:-1] + bins.edges[1:]) / 2
        panel.bar(middle, np.nan_to_num(bins.accuracy), 0.094, color=MODELS[1], label="share of true detections")
        panel.plot([0, 1], [0, 1], color=ACCENT, linestyle="--", linewidth=1, label="a score that says what it is")
        for x, y, n in zip(middle, np.nan_to_num(bins.accuracy), bins.number, strict=True):
            panel.text(x, y + 0.01, f"{n:,}", ha="center", fontsize=7, color=INK)
        label_axes(panel, f"{model}, {title}: error {bins.error:.3f}", "score", "share that is true, IoU .50")
        panel.set(xlim=(0, 1), ylim=(0, 1.06))
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)


def intervals(rows: dict[str, dict[str, Interval]], path: str | Path) -> None:
    """mAP and mAR of each model with 95 % bootstrap intervals."""
    figure = new_figure(11, 0.42 * len(rows) + 1.6)
    for panel, measure in zip(figure.subplots(1, 2, sharey=True), ("mAP", "mAR"), strict=True):
        for i, of in enumerate(rows.values()):
            x = of[measure]
            error = np.nan_to_num([[x.value - x.low], [x.high - x.value]]).clip(0)
            panel.errorbar(x.value, i, xerr=error, fmt="o", color=_model(i), elinewidth=2, capsize=4)
            panel.annotate(rate(x.value), (x.value, i), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        panel.set_yticks(range(len(rows)), list(rows))
        panel.set_ylim(len(rows) - 0.4, -0.6)
        label_axes(panel, measure, f"{measure}, 95 % bootstrap interval over images", "")
    save(figure, path)


def _model(i: int) -> str:
    return MODELS[i % len(MODELS)]
