"""``report.html``: what a run or a validation folder holds, on one page; and several of them side by side.

The page is made of the folder's files alone, so that it can be made again at any time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2

from ..config import ReportOptions
from ..errors import LeukoError
from ..io import make_folder, write_text
from .html import figure, page, table, text

PICTURES = (
    ("results.png", "Training", "Losses, measures on the validation split and learning rate of each epoch."),
    ("intervals.png", "How sure the headline is", "95 % bootstrap intervals over images, or over smears where known."),
    ("precision_recall.png", "Precision and recall", "The mean over the types, a panel an IoU threshold."),
    ("precision_recall_types.png", "Precision and recall of each type", ""),
    ("scores.png", "Choosing a threshold", "F1, recall and precision of detections above a score."),
    ("confusion.png", "Confusion", "Cells by their label (rows) and by what the model calls them (columns)."),
    ("factors.png", "Interference factors", "Rates with 95 % intervals, over the number of cells or images."),
    ("severity.png", "Severity", "mAP on these images with each factor put on them, by severity."),
    ("consensus.jpg", "Labels that the models doubt", "The surest first; all of them are in consensus.json."),
    (
        "agreement.png",
        "Differential count against the labels",
        "Shares in percent a smear (or an image), Bland-Altman.",
    ),
    ("calibration.png", "Scores", "How often a detection of a score is true; the number of detections on each bar."),
    ("worst.jpg", "The worst images", "Truth on the left, detections of score .3 and more on the right."),
    ("predictions.jpg", "Images from all over the data", "Truth on the left, detections on the right."),
    ("val_predictions.jpg", "Images from all over the data", "Truth on the left, detections on the right."),
    ("labels.png", "The labels", ""),
    ("train_batch0.jpg", "The first batch as the model sees it", ""),
)
TABLES = (
    ("differences.csv", "Is it better, or is it noise?", "Paired bootstrap of the mAP."),
    ("cost.csv", "Cost", ""),
    ("refer.csv", "Images for a person", "The most doubtful first."),
)
ROWS = 20  # of a table that are shown
WIDEST = 1600  # pixels of a picture
WIDE = 800  # pixels beyond which a picture is scrolled on a narrow screen instead of shrunk


def build(folder: str | Path) -> str:
    """The page of one run or validation folder; LeukoError where it holds no results."""
    folder = Path(folder)
    try:
        return _built(folder, _metrics(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LeukoError):
            raise
        raise LeukoError(f"{folder}: its results are broken ({error!r:.80}); validate anew") from error


def _built(folder: Path, metrics: dict) -> str:
    about = " · ".join(str(v) for v in (metrics.get("model"), metrics.get("data")) if v)
    parts = [
        f"<h1>{text(folder.name)}</h1><p>{text(about)}: {metrics['images']:,} images, {metrics['cells']:,} cells</p>"
    ]
    parts.append(_headline(folder, metrics))
    parts += _results(folder)
    for name, title in (("args.yaml", "Options"), ("environment.json", "Environment")):
        if (folder / name).is_file():
            content = text((folder / name).read_text(encoding="utf-8"))
            parts.append(f"<details><summary>{title}</summary><pre>{content}</pre></details>")
    return page(f"leuko: {folder.name}", parts)


def compare(folders: Sequence[str | Path]) -> str:
    """Several folders on one page: a table, then each one's pictures under one title."""
    folders = [Path(f) for f in folders]
    metrics = [_metrics(f) for f in folders]
    types = list(dict.fromkeys(t for m in metrics for t in m["per_class"]))
    lines = [["folder", "data", "mAP", "mAP50", "mAP75", "mAR", *types]]
    for folder, m in zip(folders, metrics, strict=True):
        ap = [_rate(m["per_class"].get(t, {}).get("AP")) for t in types]
        lines.append(
            [folder.name, str(m.get("data", "")), *(_rate(m.get(k)) for k in ("mAP", "mAP50", "mAP75", "mAR")), *ap]
        )
    parts = [f"<h1>{len(folders)} runs compared</h1>", table(lines)]
    for name, title, said in PICTURES:
        shown = [f for f in folders if (f / name).is_file()]
        if shown and name not in ("labels.png", "train_batch0.jpg"):
            parts.append(f"<h2>{title}</h2><p>{said}</p>")
            parts += [f"<h3>{text(f.name)}</h3>{_picture(f / name, title)}" for f in shown]
    return page("leuko: comparison", parts)


def _metrics(folder: Path) -> dict:
    path = folder / "metrics.json"
    if not path.is_file():
        raise LeukoError(f"{path}: no such file; name the folder of a run or of a validation")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            isinstance(metrics[key], kind) for key, kind in (("images", int), ("cells", int), ("per_class", dict))
        ):
            raise TypeError("images, cells or per_class is of the wrong kind")
        return metrics
    except (ValueError, KeyError, TypeError) as error:
        raise LeukoError(f"{path}: broken ({error}); validate anew") from error


def _headline(folder: Path, metrics: dict) -> str:
    """The paper's Table 2 where the folder has it, else the measures of the one model."""
    if (folder / "table.json").is_file():
        content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        names = list(content["cells"])
        keys = ["mAP", "mAP50", "mAP75", "mAR", *names]
        lines = [
            [
                "model",
                *(f"{k} ({content['cells'][k]:,})" if k in names else k for k in keys),
                "parameters (M)",
                "images/s",
            ]
        ]
        for row in content["rows"]:
            size, fps = row.get("parameters"), row.get("fps")
            cost = [f"{size / 1e6:.1f}" if size else "-", f"{fps:.1f}" if fps else "-"]
            lines.append([str(row["model"]), *(_rate(row.get(k)) for k in keys), *cost])
        return f"<p>COCO's measures; types over their number of cells.</p>{table(lines)}"
    lines = [["type", "AP", "AP50", "AP75", "AR", "cells"]]
    for name, of in metrics["per_class"].items():
        lines.append([name, *(_rate(of.get(k)) for k in ("AP", "AP50", "AP75", "AR")), f"{of.get('cells', 0):,}"])
    lines.append(["all", *(_rate(metrics.get(k)) for k in ("mAP", "mAP50", "mAP75", "mAR")), f"{metrics['cells']:,}"])
    return table(lines)


def _results(folder: Path) -> list[str]:
    parts = []
    for name, title, said in PICTURES:
        if (folder / name).is_file():
            parts.append(f"<h2>{title}</h2><p>{said}</p>{_picture(folder / name, title)}")
    for name, title, said in TABLES:
        rows = _rows(folder / name)
        if rows:
            lines = [list(rows[0]), *([_short(v) for v in row.values()] for row in rows[:ROWS])]
            more = f"<p>and {len(rows) - ROWS} more in {name}</p>" if len(rows) > ROWS else ""
            parts.append(f"<h2>{title}</h2><p>{said}</p>{table(lines)}{more}")
    return parts


def _picture(path: Path, title: str) -> str:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        return f"<p>{text(path.name)} cannot be read</p>"
    if image.shape[1] > WIDEST:
        height = round(image.shape[0] * WIDEST / image.shape[1])
        image = cv2.resize(image, (WIDEST, height), interpolation=cv2.INTER_AREA)
    shown = figure(image[:, :, ::-1], alt=title, lossless=path.suffix == ".png")
    return f'<div class="wide plot">{shown}</div>' if image.shape[1] > WIDE else shown


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _short(value: str) -> str:
    try:
        number = float(value)
        return value.removesuffix(".0") if number == int(number) else f"{number:.3f}".rstrip("0").rstrip(".")
    except (ValueError, OverflowError):  # text, nan, inf
        return Path(value).name if "/" in value else value


def _rate(value: object) -> str:
    return f"{value:.3f}".removeprefix("0") if isinstance(value, int | float) else "-"


def run(options: ReportOptions) -> None:
    """The command; raises LeukoError for what the user can fix."""
    if not options.runs:
        raise LeukoError("name the folder of a run or of a validation, or several")
    folders = [Path(folder) for folder in options.runs]
    out = Path(options.out) if options.out else None
    if len(folders) == 1:
        content, out = build(folders[0]), out or folders[0] / "report.html"
    else:
        content, out = compare(folders), out or Path("runs/report/comparison.html")
    make_folder(out.parent)
    write_text(out, content)
    print(f"report: {out}")
