"""What a validation writes: every number as CSV or JSON, each with its picture (Li et al. 2022, Results).

The last of the models is the reported one (the fusion, if there is one); the others are shown beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from ..cells import beside, colour
from ..data.dataset import Dataset
from ..detections import Detections
from ..io import make_folder, write_csv, write_json
from ..metrics import bootstrap, calibration, coco, confusion, consensus, counting, curves, differential
from ..metrics.binomial import percent_of
from ..metrics.calibration import Scaling
from ..metrics.coco import Evaluation, Matches
from ..metrics.confusion import Pairing
from . import pictures, plots, review, tables
from .tables import rate

MAX_CROPS = 48  # of each kind of error; all errors are listed
CROP = 160  # pixels


@dataclass(frozen=True)
class ModelResult:
    """One model on the data set: its name, a prediction per image, COCO's measures, the score of a cell that counts and
    where it comes from, its cost as the columns of ``cost.csv``, and the scaling of its scores, if it has been
    calibrated and they are not scaled yet."""

    name: str
    predictions: Sequence[Detections]
    evaluation: Evaluation
    threshold: float
    threshold_from: str
    cost: dict = field(default_factory=dict)
    scaling: Scaling | None = None

    @cached_property
    def cells(self) -> list[Detections]:
        """The predictions with one type for each cell, of all scores."""
        return [counting.one_type(p, len(self.evaluation.per_class)) for p in self.predictions]

    @cached_property
    def counted(self) -> list[Detections]:
        """The cells that count."""
        return [cells.above(self.threshold) for cells in self.cells]

    @property
    def score(self) -> str:
        """The score from which cells count, and where it comes from."""
        return f"{self.threshold:.2f} ({self.threshold_from})"

    @property
    def rule(self) -> str:
        """Which cells count, in words."""
        return f"one type per cell, score from {self.score}"


def write_results(
    folder: Path, dataset: Dataset, models: Sequence[ModelResult], draws: int = bootstrap.DRAWS
) -> tuple[str, list[str]]:
    """Write all results of ``models`` on one data set; returns the count, and a summary in lines, for the terminal.

    Models before the last one come in ascending order of mAP; pictures show them in descending order, after the last.
    """
    reported, members, shown = models[-1], models[:-1], models[::-1]
    pairings = {m.name: confusion.pair_all(dataset, m.cells, m.threshold, counting.SAME_CELL) for m in shown}
    answer = _write_count(folder, dataset, shown, pairings)
    _write_errors(folder, pairings[reported.name], dataset.types)
    if worst := pictures.worst_first(pairings[reported.name]):
        sheet = pictures.gt_and_predictions(dataset, reported.counted, reported.rule, worst, max_images=8)
        pictures.write_image(folder / "worst.jpg", sheet)
    summary = _write_factors(folder, shown, pairings)
    if len(members) > 1:
        summary += _write_consensus(folder, dataset, members)
    about_members = [m.cells for m in members], [m.threshold for m in members]
    queue = differential.review_queue(dataset, reported.cells, *about_members, reported.threshold)
    write_csv(folder / "review_queue.csv", queue, columns=("image", "group", "doubt", "why"))
    summary.append(f"{len(queue)} images for a person to review: review_queue.csv")
    matches = {m.name: coco.match(dataset, m.predictions, m.evaluation.max_detections) for m in shown}
    _write_curves(folder, dataset.types, matches)
    _write_calibration(folder, matches[reported.name], reported)
    if draws:
        summary += _write_intervals(folder, dataset, shown, matches, draws)
    write_csv(folder / "cost.csv", [{"model": m.name, **m.cost} for m in models])
    return answer, summary


# ---------------------------------------------------------------- the count, and cell by cell


def _write_count(
    folder: Path, dataset: Dataset, models: Sequence[ModelResult], pairings: dict[str, list[Pairing]]
) -> str:
    """Write the confusion matrix of the first, reported model and the count of each, and how the count agrees with the
    labels' by slide or patient; returns the reported count as text."""
    types, columns, reported = dataset.types, beside(dataset.types, ("label", "missed", "extra")), models[0]
    matrices = {name: confusion.matrix(of_model, len(types)) for name, of_model in pairings.items()}
    counts = {name: differential.compare_counts(matrix, types) for name, matrix in matrices.items()}
    matrix, count = matrices[reported.name], counts[reported.name]
    rows = [
        {"label": label, **dict(zip([*columns, "missed"], row, strict=True))}
        for label, row in zip([*columns, "extra"], matrix, strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    title = f"{reported.name}: {len(dataset):,} images, {matrix[:-1].sum():,} cells; IoU >= {counting.SAME_CELL}\n"
    plots.confusion(matrix, types, title + reported.rule, folder / "confusion.png")
    write_csv(folder / "count.csv", [{"model": name, **row} for name, c in counts.items() for row in c.rows])
    agreement, left_out = _write_groups(folder, dataset, reported)
    about = {"model": reported.name, "threshold": reported.threshold, "threshold_from": reported.threshold_from}
    about |= {"rule": reported.rule, "iou": counting.SAME_CELL, **asdict(count)}
    about["models"] = [
        {"model": m.name, "rule": m.rule, "difference": counts[m.name].difference, "kappa": counts[m.name].kappa}
        | {"labelled": int(matrices[m.name][:-1].sum()), "found": int(matrices[m.name][:, :-1].sum())}
        for m in models
    ]
    write_json(folder / "count.json", about | {"bland_altman": agreement, "left_out": left_out})
    return f"{tables.count(count)}\n{reported.rule}"


def _write_groups(folder: Path, dataset: Dataset, reported: ModelResult) -> tuple[list[dict], str]:
    """Write the counts of each slide or patient; returns how they agree with the labels', or why that is left out."""
    groups, cells = differential.group_counts(dataset, reported.counted)
    shares = differential.shares(cells)
    rows = []
    for (group, images), counts, share in zip(groups.items(), cells.tolist(), shares.tolist(), strict=True):
        for k, name in enumerate(dataset.types):
            percent, low, high = percent_of(counts[1][k], sum(counts[1]))
            row = {"group": group, "images": images, "type": name, "labelled": counts[0][k], "found": counts[1][k]}
            row |= {"labelled_percent": share[0][k], "percent": percent, "low95": low, "high95": high}
            rows.append(row)
    if rows:
        write_csv(folder / "differential.csv", rows)
    large, left_out = differential.large_groups(cells)
    if left_out:
        return [], left_out
    agreement = differential.bland_altman(large, dataset.types)
    plots.agreement(differential.shares(large), agreement, reported.rule, folder / "agreement.png")
    return agreement, ""


def _write_errors(folder: Path, pairings: Sequence[Pairing], types: Sequence[str]) -> None:
    """List every error, and write the crops of the worst of each kind, image by image."""
    rows = confusion.errors(pairings, types)
    of_kind: Counter[str] = Counter()
    of_image: dict[str, list[dict]] = {}
    for number, row in enumerate(rows, 1):
        of_kind[row["error"]] += 1
        if of_kind[row["error"]] <= MAX_CROPS:
            row["crop"] = f"errors/{number}.jpg"
            of_image.setdefault(row["image"], []).append(row)
    if of_image:
        make_folder(folder / "errors")
    for image, shown in of_image.items():
        boxes = [[row[key] for key in confusion.BOX] for row in shown]
        names = [row["labelled"] or row["found"] for row in shown]
        shades = [colour(name, types.index(name)) for name in names]
        for row, crop in zip(shown, pictures.crops(Path(image), boxes, shades, CROP), strict=True):
            pictures.write_image(folder / row["crop"], crop)
    columns = ("error", "image", "labelled", "found", "score", "second", "second_score", *confusion.BOX, "crop")
    write_csv(folder / "errors.csv", rows, columns)


def _write_factors(folder: Path, models: Sequence[ModelResult], pairings: dict[str, list[Pairing]]) -> list[str]:
    rates = {m.name: confusion.by_factor(pairings[m.name]) for m in models}
    rows = [{"model": m.name, **row, "threshold": m.threshold} for m in models for row in rates[m.name]]
    if not rows:
        return ["the data notes no interference factors: no results by factor"]
    write_csv(folder / "factors.csv", rows)
    plots.factors({f"{m.name}: {m.rule}": rates[m.name] for m in models}, folder / "factors.png")
    return []


def _write_consensus(folder: Path, dataset: Dataset, members: Sequence[ModelResult]) -> list[str]:
    about = [m.cells for m in members], [m.name for m in members], [m.threshold for m in members]
    suspects = consensus.suspects(dataset, *about)
    entries = []
    for s in suspects:
        sample = dataset.samples[s.image]
        entries.append({**asdict(s), "image": str(sample.image.resolve()), "image_id": sample.id})
    write_json(folder / "consensus.json", {"types": dataset.types, "suspects": entries})
    if suspects:
        review.write_suspects(folder, dataset, suspects)
    shown = "them" if len(suspects) <= review.MOST_SUSPECTS else f"the surest {review.MOST_SUSPECTS:,}"
    return [f"{len(suspects):,} labels that the models doubt" + (f": review.html shows {shown}" if suspects else "")]


# ---------------------------------------------------------------- COCO's measures, curves, calibration


def _write_curves(folder: Path, types: Sequence[str], matches: dict[str, list[Matches]]) -> None:
    """Write precision against recall, and measures against the score."""
    by_recall = {name: curves.precision_curves(m) for name, m in matches.items()}
    rows = [
        {"model": model, "type": name, "iou": iou, "recall": round(recall, 2), "precision": precision}
        for model, of_model in by_recall.items()
        for name, of_type in zip([*beside(types, ["all"]), "all"], of_model, strict=True)
        for iou, curve in zip(curves.PANELS, of_type, strict=True)
        for recall, precision in zip(coco.RECALLS.tolist(), curve.tolist(), strict=True)
    ]
    write_csv(folder / "precision_recall.csv", rows)
    plots.precision_recall({name: c[-1] for name, c in by_recall.items()}, folder / "precision_recall.png")
    reported, of_reported = next(iter(by_recall.items()))
    about = {"title": f"{reported}, ", "shown": (0, 1, -1), "colours": plots.type_colours(types)}
    of_types = dict(zip(types, of_reported, strict=False))
    plots.precision_recall(of_types, folder / "precision_recall_types.png", **about)
    by_score = {name: curves.score_curve(m) for name, m in matches.items()}
    rows = [
        {"model": name, "score": score, "precision": p, "recall": r, "f1": f1}
        for name, c in by_score.items()
        for score, p, r, f1 in zip(curves.SCORES, c.precision, c.recall, c.f1, strict=True)
    ]
    write_csv(folder / "scores.csv", rows)
    plots.scores(by_score, folder / "scores.png")


def _write_calibration(folder: Path, matches: list[Matches], reported: ModelResult) -> None:
    scores, tp = calibration.outcomes(matches)
    before = calibration.reliability(scores, tp)
    after = calibration.reliability(reported.scaling(scores), tp) if reported.scaling else None
    about = {"before": before, "after": after, "scaling": reported.scaling}
    write_json(
        folder / "calibration.json", {"iou": counting.SAME_CELL, "least_score": calibration.LEAST_SCORE, **about}
    )
    if len(scores):
        plots.reliability(before, after, reported.name, folder / "calibration.png")


def _write_intervals(
    folder: Path, dataset: Dataset, models: Sequence[ModelResult], matches: dict[str, list[Matches]], draws: int
) -> list[str]:
    """Write the intervals of each model, and the differences of the first, reported one to the others."""
    times = bootstrap.resample(dataset, draws)
    samples = {name: bootstrap.mean_measures(of_model, times) for name, of_model in matches.items()}
    intervals = {
        m.name: {
            measure: bootstrap.interval(getattr(m.evaluation, measure), samples[m.name][:, i])
            for i, measure in enumerate(("mAP", "mAR"))
        }
        for m in models
    }
    rows = [{"model": name, "measure": k, **v} for name, of_model in intervals.items() for k, v in of_model.items()]
    write_csv(folder / "intervals.csv", rows)
    reported, *members = models
    own = intervals[reported.name]["mAP"]
    rows = []
    for m in members:
        value = own["value"] - m.evaluation.mAP
        gap = bootstrap.difference(samples[reported.name][:, 0], samples[m.name][:, 0], value)
        rows.append({"model": reported.name, "against": m.name, "mAP_difference": gap.pop("value"), **gap})
    plots.intervals(intervals, rows, folder / "intervals.png")
    if math.isnan(own["value"]):
        return ["no cell is labelled: there is no mAP, and nothing to compare"]
    span = f"{rate(own['low'])} to {rate(own['high'])} ({draws} draws)"
    if not len(times):
        span = "- (all images are of one group, such as a smear: draws need two)"
    summary = [f"mAP {rate(own['value'])}, 95 % interval {span}"]
    if not members:
        return summary
    write_csv(folder / "differences.csv", rows)
    best = min(rows, key=lambda row: row["mAP_difference"])  # the member of the highest mAP
    certainty = "95 % interval -, p -"
    if not math.isnan(best["low"]):
        verdict = "a difference" if best["p"] <= 0.05 else "no more than noise"
        certainty = "95 % interval {low:+.3f} to {high:+.3f}, p {p:.3f}: ".format(**best) + verdict
    return [*summary, f"{reported.name} minus {best['against']}: mAP {best['mAP_difference']:+.3f}, {certainty}"]
