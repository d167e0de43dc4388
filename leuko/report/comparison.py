"""Several runs or validations on one page: their counts and their measures, each in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from ..data import source
from ..data.dataset import Dataset
from ..detections import Detections
from ..errors import LeukoError
from ..io import read_json
from ..metrics import bootstrap, coco
from ..metrics.coco import Evaluation
from .run import read_count, read_evaluation, read_rows, results_of
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

    @property
    def data(self) -> tuple:
        """What tells whether two were measured on the same data."""
        return self.about.get("data"), self.evaluation.images, *((t.type, t.cells) for t in self.evaluation.per_class)

    @property
    def intervals(self) -> dict[str, str]:
        """The intervals of mAP and mAR as text, without one where there is none."""
        rows = read_rows(self.folder / "intervals.csv")
        of_reported = (row for row in rows if row["model"] == rows[0]["model"] and row["low"])
        return {r["measure"]: f" ({rate(float(r['low']))} to {rate(float(r['high']))})" for r in of_reported}

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
        for measure, interval in r.intervals.items():
            texts[measure] += interval
        lines.append([r.name, gaps.get(r.name, "") if differences else str(r.about.get("data", "")), *texts.values()])
    return lines


def _span(row: dict) -> str:
    return " ({low:+.3f} to {high:+.3f}, p {p:.3f})".format(**row) if row["low"] == row["low"] else ""
