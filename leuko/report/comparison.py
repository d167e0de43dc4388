"""Several runs or validations on one page: their counts and measures in one table, their curves on one axis each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data import source
from ..data.dataset import Dataset
from ..data.images import read_image
from ..detections import Detections
from ..errors import LeukoError
from ..io import read_json, read_text
from ..metrics import bootstrap, coco
from ..metrics.coco import Evaluation
from ..metrics.curves import PANELS, ScoreCurve
from . import figures
from .html import data_uri
from .run import RESULTS_LIMIT, read_count, read_evaluation, results_of
from .tables import MEASURES, Row, ap_columns, rate, record, signed


@dataclass(frozen=True)
class Results:
    """What a folder holds of its reported model: its name on the page, COCO's measures, what else is in
    ``metrics.json``, and the count, None where the folder has none."""

    folder: Path
    name: str
    evaluation: Evaluation
    about: dict[str, Any]
    count: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path, name: str) -> Results:
        """The results of a folder; LeukoError where it has none, or broken ones."""
        return cls(folder, name, *read_evaluation(folder), read_count(folder))

    def rows(self, file: str) -> list[dict[str, str]]:
        """The rows of a CSV file that are of the reported model, which is the first in it; [] where it is missing."""
        path = self.folder / file
        rows = list(csv.DictReader(io.StringIO(read_text(path, RESULTS_LIMIT)))) if path.is_file() else []
        return [row for row in rows if row.get("model") == rows[0].get("model")]

    @property
    def data(self) -> tuple:
        """What tells whether two were measured on the same data."""
        return self.about.get("data"), self.evaluation.images, *((t.type, t.cells) for t in self.evaluation.per_class)

    @property
    def intervals(self) -> dict[str, dict[str, float]]:
        """mAP and mAR with their intervals, nan where there are none."""
        known = {
            row["measure"]: {key: _number(row[key]) for key in ("low", "high")} for row in self.rows("intervals.csv")
        }
        missing = {"low": nan, "high": nan}
        return {m: {"value": getattr(self.evaluation, m), **known.get(m, missing)} for m in ("mAP", "mAR")}

    def predictions(self, dataset: Dataset) -> list[Detections]:
        """The detections of ``predictions.json`` on each image. Raises LeukoError."""
        path = self.folder / "predictions.json"
        of_image: dict[int, list[dict]] = {sample.id: [] for sample in dataset.samples}
        label = {category: i for i, category in enumerate(dataset.category_ids)}
        with results_of(path):
            for row in read_json(path):
                of_image[row["image_id"]].append(row)
            return [
                Detections(
                    [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)],
                    [row["score"] for row in rows],
                    [label[row["category_id"]] for row in rows],
                )
                for rows in of_image.values()
            ]


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """What the page of several folders shows: the values of ``comparison.html.j2``. Raises LeukoError."""
    names = _names(folders)
    results = [Results.read(folder, names[folder]) for folder in folders]
    same_data = len({r.data for r in results}) == 1
    with results_of(folders[0].parent):
        differences = _differences(results) if same_data else []
        charts = list(_charts(results, differences))
        counted = [r for r in results if r.count]
        return {
            "folders": folders,
            "names": names,
            "data": str(results[0].about.get("data", "")) if same_data else "",
            "same_data": same_data,
            "counts": _counts(counted) if counted else [],
            "verdicts": [(r.name, f"{r.count['verdict']} Counted: {r.count['rule']}.") for r in counted],
            "table": _measures(results, differences),
            "charts": charts,
        }


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """What each folder is called: its own name, or, where several have that, its path."""
    names = [folder.resolve().name for folder in folders]
    return {f: name if names.count(name) == 1 else str(f) for f, name in zip(folders, names, strict=True)}


def _counts(results: Sequence[Results]) -> list[list[str]]:
    types = list(dict.fromkeys(row["type"] for r in results for row in r.count["rows"][:-1]))
    lines = [["folder", "labelled", "found", "sum of differences", *types, "kappa"]]
    for r in results:
        *of_types, in_all = r.count["rows"]
        by_type = {row["type"]: f"{row['found']:,} ({signed(row['difference'])})" for row in of_types}
        numbers = [
            f"{in_all['labelled']:,}",
            f"{in_all['found']:,}",
            f"{sum(abs(t['difference']) for t in of_types):,}",
        ]
        lines.append([r.name, *numbers, *(by_type.get(name, "-") for name in types), rate(r.count["kappa"])])
    return lines


def _differences(results: Sequence[Results]) -> list[dict]:
    """Rows of the first folder's mAP minus that of each other: against, mAP_difference, and, by bootstrap samples of
    the same images for all, low, high and p; these are nan where the data is no longer there as it was."""
    first, *others = results
    gaps = [{"against": r.name, "mAP_difference": first.evaluation.mAP - r.evaluation.mAP} for r in others]
    missing = dict.fromkeys(("low", "high", "p"), nan)
    try:
        dataset = source.load(first.about["data"], read_json(first.folder / "table.json")["split"])
        if dataset.counts().tolist() != [t.cells for t in first.evaluation.per_class]:
            raise LeukoError(f"{first.about['data']}: has changed since")
        matches = [coco.match(dataset, r.predictions(dataset), r.evaluation.max_detections) for r in results]
    except (LeukoError, KeyError):
        return [gap | missing for gap in gaps]
    times = bootstrap.resample(dataset, bootstrap.DRAWS)
    samples = [bootstrap.mean_measures(of_model, times)[:, 0] for of_model in matches]
    spans = [bootstrap.difference(samples[0], other, 0.0) for other in samples[1:]]
    return [gap | {key: span[key] for key in missing} for gap, span in zip(gaps, spans, strict=True)]


def _measures(results: Sequence[Results], differences: Sequence[dict]) -> list[list[str]]:
    """COCO's measures, mAP and mAR with their intervals; and the first folder's mAP minus that of each other, or, where
    the data differs, its name."""
    types = list(dict.fromkeys(t.type for r in results for t in r.evaluation.per_class))
    about = f"mAP of {results[0].name} minus this" if differences else "data"
    lines = [["folder", about, *MEASURES, *types]]
    gaps = {row["against"]: f"{row['mAP_difference']:+.3f}{_span(row)}" for row in differences}
    for r in results:
        measures = record(Row(r.name, r.evaluation))
        texts = {key: rate(measures.get(key)) for key in (*MEASURES, *ap_columns(types))}
        for key, span in r.intervals.items():
            texts[key] += f" ({rate(span['low'])} to {rate(span['high'])})" if span["low"] == span["low"] else ""
        lines.append([r.name, gaps.get(r.name, "") if differences else str(r.about.get("data", "")), *texts.values()])
    return lines


def _span(row: dict) -> str:
    return " ({low:+.3f} to {high:+.3f}, p {p:.3f})".format(**row) if row["low"] == row["low"] else ""


def _charts(results: Sequence[Results], differences: Sequence[dict]) -> Iterator[tuple[str, str, str]]:
    """Title, text and picture of each chart for which two folders at least have the numbers."""
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "chart.png")

        def picture() -> str:
            return data_uri(np.ascontiguousarray(read_image(path)[:, :, ::-1]), "png")

        figures.intervals({r.name: r.intervals for r in results}, differences, path)
        text = "95 % bootstrap intervals; those of differences are over the same images, where the data is still there."
        yield "How certain the measures are", text, picture()
        training = {r.name: epochs for r in results if (epochs := r.rows("results.csv"))}
        if len(training) > 1:
            figures.training({name: _columns(rows, "epoch", "val/mAP") for name, rows in training.items()}, path)
            yield "Training", "mAP on the validation split per epoch.", picture()
        recalls = {r.name: _precision(rows) for r in results if (rows := r.rows("precision_recall.csv"))}
        if len(recalls) > 1:
            figures.precision_recall(recalls, path)
            yield "Precision and recall", "The mean over the types, a panel per IoU threshold.", picture()
        scores = {r.name: _score_curve(rows) for r in results if (rows := r.rows("scores.csv"))}
        if len(scores) > 1:
            figures.scores(scores, path)
            yield "Measures by score", "F1, recall and precision of the detections above a score.", picture()
        factors = {r.name: _rates(rows) for r in results if (rows := r.rows("factors.csv"))}
        shown = set.intersection(*(set(of) for of in factors.values())) if len(factors) > 1 else set()
        if shown:
            order = [key for key in next(iter(factors.values())) if key in shown]
            figures.factors({name: [of[key] for key in order] for name, of in factors.items()}, path)
            yield "Interference factors", "Rates with exact 95 % limits, of the factors that all note.", picture()


def _columns(rows: Sequence[dict[str, str]], *keys: str) -> np.ndarray:
    """Columns as numbers, [keys, rows]; nan where a value is missing."""
    return np.array([[_number(row[key]) for row in rows] for key in keys])


def _number(text: str) -> float:
    return float(text or nan)


def _precision(rows: Sequence[dict[str, str]]) -> np.ndarray:
    of_all = [[row for row in rows if row["type"] == "all" and row["iou"] == panel] for panel in PANELS]
    return np.array([_columns(of_panel, "precision")[0] for of_panel in of_all])


def _score_curve(rows: Sequence[dict[str, str]]) -> ScoreCurve:
    scores, *curves = _columns(rows, "score", "precision", "recall", "f1")
    f1 = curves[-1]
    best = int(np.nanargmax(f1)) if np.isfinite(f1).any() else None
    return ScoreCurve(*curves, *((nan, nan) if best is None else (float(scores[best]), float(f1[best]))))


def _rates(rows: Sequence[dict[str, str]]) -> dict[tuple[str, str], dict]:
    numbers = ("total", "percent", "low", "high")
    return {
        (row["factor"], row["measure"]): {**row, **{k: _number(row[k]) for k in numbers}, "total": int(row["total"])}
        for row in rows
    }
