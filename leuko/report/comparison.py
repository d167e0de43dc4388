"""Several runs or validations on one page: their counts and measures in one table, their curves on one axis each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data import source
from ..data.dataset import Dataset
from ..detections import Detections
from ..errors import LeukoError
from ..io import read_json
from ..metrics import bootstrap, coco
from ..metrics.coco import Evaluation
from ..metrics.curves import PANELS
from . import plots
from .html import link
from .run import read_count, read_evaluation, read_rows, results_of
from .tables import MEASURES, ap_columns, rate, record, signed

ENDS = ("low", "high")  # of an interval


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

    @property
    def data(self) -> tuple:
        """What tells whether two were measured on the same data."""
        return self.about.get("data"), self.evaluation.images, *((t.type, t.cells) for t in self.evaluation.per_class)

    def rows(self, file: str) -> list[dict[str, str]]:
        """The rows of a CSV file that are of the reported model, which is the first in it; [] where it is missing."""
        rows = read_rows(self.folder / file)
        return [row for row in rows if row.get("model") == rows[0].get("model")]

    @property
    def intervals(self) -> dict[str, dict[str, float]]:
        """mAP and mAR with their intervals, nan where there are none."""
        ends = {row["measure"]: {end: float(row[end] or nan) for end in ENDS} for row in self.rows("intervals.csv")}
        missing = dict.fromkeys(ENDS, nan)
        return {m: {"value": getattr(self.evaluation, m), **ends.get(m, missing)} for m in ("mAP", "mAR")}

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
        counted = [r for r in results if r.count]
        return {
            "folders": folders,
            "names": names,
            "data": str(results[0].about.get("data", "")) if same_data else "",
            "same_data": same_data,
            "counts": _counts(counted) if counted else [],
            "verdicts": [(r.name, f"{r.count['verdict']} Counted: {r.count['rule']}.") for r in counted],
            "table": _measures(results, differences),
            "charts": list(_charts(results, differences)),
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
        measures = record(r.name, r.evaluation)
        texts = {key: rate(measures.get(key)) for key in (*MEASURES, *ap_columns(types))}
        for measure, span in r.intervals.items():
            texts[measure] += "" if isnan(span["low"]) else f" ({rate(span['low'])} to {rate(span['high'])})"
        lines.append([r.name, gaps.get(r.name, "") if differences else str(r.about.get("data", "")), *texts.values()])
    return lines


def _span(row: dict) -> str:
    return " ({low:+.3f} to {high:+.3f}, p {p:.3f})".format(**row) if row["low"] == row["low"] else ""


def _charts(results: Sequence[Results], differences: Sequence[dict]) -> Iterator[tuple[str, str, str]]:
    """Title, text and picture of each chart for which two folders at least have the numbers."""
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "chart.png")

        def picture(draw: Callable[..., None], *numbers: object) -> str:
            draw(*numbers, path)
            return link(path.read_bytes(), "png")

        text = "95 % bootstrap intervals; those of differences are over the same images, where the data is still there."
        drawn = picture(plots.intervals, {r.name: r.intervals for r in results}, differences)
        yield "How certain the measures are", text, drawn
        training = {r.name: rows for r in results if (rows := r.rows("results.csv"))}
        if len(training) > 1:
            yield "Training", "mAP on the validation split per epoch.", picture(plots.trainings, training)
        recalls = {r.name: _precision(rows) for r in results if (rows := r.rows("precision_recall.csv"))}
        if len(recalls) > 1:
            text = "The mean over the types, a panel per IoU threshold."
            yield "Precision and recall", text, picture(plots.precision_recall, recalls)


def _precision(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """The precision of all types, [panels, recalls]."""
    of_all = [row for row in rows if row["type"] == "all"]
    return np.array([[float(row["precision"] or nan) for row in of_all if row["iou"] == panel] for panel in PANELS])
