"""What a validation writes: every number as CSV or JSON, each with its picture (Li et al. 2022, Results).

The last of the models is the reported one (the fusion, if there is one); the others are shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..cells import beside
from ..data.dataset import Dataset
from ..detections import Detections
from ..io import write_csv, write_json
from ..metrics import bootstrap, calibration, confusion, consensus, curves, differential, factors, matching
from ..metrics.calibration import Scaling
from ..metrics.coco import Evaluation
from ..metrics.confusion import Pairing
from ..metrics.matching import Matches
from . import figures, pictures, plots, review
from .style import type_colours
from .tables import rate

SCORE, IOU = 0.5, 0.5  # of a detection that counts, where nothing else is stated


@dataclass(frozen=True)
class ModelResult:
    """One model on the data set: its name, a prediction per image, COCO's measures, its cost as the columns of
    ``cost.csv``, and the scaling of its scores, if it has been calibrated and they are not scaled yet."""

    name: str
    predictions: Sequence[Detections]
    evaluation: Evaluation
    cost: dict = field(default_factory=dict)
    scaling: Scaling | None = None


def write_results(
    folder: Path, dataset: Dataset, models: Sequence[ModelResult], draws: int = bootstrap.DRAWS
) -> list[str]:
    """Write all results of ``models`` on one data set; returns a summary in lines for the terminal.

    Models before the last one come in ascending order of mAP; pictures show them in descending order, after the last.
    """
    reported, members, shown = models[-1], models[:-1], models[::-1]
    matches = {m.name: matching.match(dataset, m.predictions, m.evaluation.max_detections) for m in shown}
    pairings = {m.name: confusion.pair_all(dataset, m.predictions, SCORE, IOU) for m in shown}
    best_scores = _write_curves(folder, dataset.types, matches)
    kappa = _write_confusion(folder, dataset, reported, pairings[reported.name])
    if worst := pictures.worst_first(pairings[reported.name]):
        sheet = pictures.gt_and_predictions(dataset, reported.predictions, worst, max_images=8)
        plots.write_image(folder / "worst.jpg", sheet)
    summary = _write_factors(folder, pairings)
    if len(members) > 1:
        summary += _write_consensus(folder, dataset, members)
    thresholds = [best_scores[m.name] for m in members]
    queue = differential.review_queue(
        dataset, reported.predictions, [m.predictions for m in members], thresholds, SCORE
    )
    write_csv(folder / "review_queue.csv", queue, columns=("image", "group", "doubt", "why"))
    summary.append(
        f"Cohen's kappa of the types of found cells {rate(kappa)}; {len(queue)} images for a person to review: "
        "review_queue.csv"
    )
    _write_calibration(folder, matches[reported.name], reported)
    if draws:
        summary += _write_intervals(folder, dataset, shown, matches, draws)
    write_csv(folder / "cost.csv", [{"model": m.name, **m.cost} for m in models])
    return summary


def _write_curves(folder: Path, types: Sequence[str], matches: dict[str, list[Matches]]) -> dict[str, float]:
    """Write precision against recall and measures against the score; returns each model's score of the best F1."""
    by_recall = {name: curves.precision_curves(m) for name, m in matches.items()}
    rows = [
        {"model": model, "type": name, "iou": iou, "recall": round(recall, 2), "precision": precision}
        for model, of_model in by_recall.items()
        for name, of_type in zip([*beside(types, ["all"]), "all"], of_model, strict=True)
        for iou, curve in zip(curves.PANELS, of_type, strict=True)
        for recall, precision in zip(matching.RECALLS.tolist(), curve.tolist(), strict=True)
    ]
    write_csv(folder / "precision_recall.csv", rows)
    figures.precision_recall({name: c[-1] for name, c in by_recall.items()}, folder / "precision_recall.png")
    reported, of_reported = next(iter(by_recall.items()))
    about = {"title": f"{reported}, ", "shown": (0, 1, -1), "colours": type_colours(types)}
    of_types = dict(zip(types, of_reported, strict=False))
    figures.precision_recall(of_types, folder / "precision_recall_types.png", **about)
    by_score = {name: curves.score_curve(m) for name, m in matches.items()}
    rows = [
        {"model": name, "score": score, "precision": p, "recall": r, "f1": f1}
        for name, c in by_score.items()
        for score, p, r, f1 in zip(curves.SCORES, c.precision, c.recall, c.f1, strict=True)
    ]
    write_csv(folder / "scores.csv", rows)
    figures.scores(by_score, folder / "scores.png")
    return {name: c.best_score for name, c in by_score.items()}


def _write_confusion(folder: Path, dataset: Dataset, reported: ModelResult, pairings: list[Pairing]) -> float:
    """Write the confusion matrix, the counts per group, and how they agree with the labels'; returns Cohen's kappa."""
    types, columns = dataset.types, beside(dataset.types, ("label", "missed", "extra"))
    matrix = confusion.matrix(pairings, len(types))
    rows = [
        {"label": label, **dict(zip([*columns, "missed"], row, strict=True))}
        for label, row in zip([*columns, "extra"], matrix, strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    title = f"{reported.name}: score >= {SCORE}, IoU >= {IOU}; {len(dataset):,} images, {matrix[:-1].sum():,} cells"
    figures.confusion(matrix, types, title, folder / "confusion.png")
    groups, cells = differential.group_counts(dataset, reported.predictions, SCORE)
    shares = differential.shares(cells)
    rows = []
    for (group, images), counts, share in zip(groups.items(), cells.tolist(), shares.tolist(), strict=True):
        for k, name in enumerate(types):
            percent, low, high = differential.percent_of(counts[1][k], sum(counts[1]))
            row = {"group": group, "images": images, "type": name, "label": counts[0][k], "prediction": counts[1][k]}
            row |= {"label_percent": share[0][k], "prediction_percent": percent, "low95": low, "high95": high}
            rows.append(row)
    write_csv(folder / "differential.csv", rows)
    kappa, agreement = differential.kappa(matrix), differential.bland_altman(cells, types)
    write_json(folder / "agreement.json", {"score": SCORE, "iou": IOU, "kappa": kappa, "bland_altman": agreement})
    if agreement[0]["groups"]:
        figures.agreement(shares, agreement, folder / "agreement.png")
    return kappa


def _write_factors(folder: Path, pairings: dict[str, list[Pairing]]) -> list[str]:
    rates = {name: factors.by_factor(of_model) for name, of_model in pairings.items()}
    rows = [{"model": name, **row} for name, of_model in rates.items() for row in of_model]
    if not rows:
        return ["the data notes no interference factors: no results by factor"]
    write_csv(folder / "factors.csv", rows)
    figures.factors(rates, folder / "factors.png")
    return []


def _write_consensus(folder: Path, dataset: Dataset, members: Sequence[ModelResult]) -> list[str]:
    suspects = consensus.suspects(dataset, [m.predictions for m in members], [m.name for m in members])
    entries = []
    for s in suspects:
        sample = dataset.samples[s.image]
        entries.append({**asdict(s), "image": str(sample.image.resolve()), "image_id": sample.id})
    write_json(folder / "consensus.json", {"types": dataset.types, "suspects": entries})
    if suspects:
        plots.write_image(folder / "consensus.jpg", pictures.consensus(dataset, suspects))
        review.write_suspects(folder, dataset, suspects)
    shown = "them" if len(suspects) <= review.MOST_SUSPECTS else f"the surest {review.MOST_SUSPECTS:,}"
    return [f"{len(suspects):,} labels that the models doubt" + (f": review.html shows {shown}" if suspects else "")]


def _write_calibration(folder: Path, matches: list[Matches], reported: ModelResult) -> None:
    scores, tp = calibration.outcomes(matches)
    before = calibration.reliability(scores, tp)
    after = calibration.reliability(reported.scaling(scores), tp) if reported.scaling else None
    about = {"before": before, "after": after, "scaling": reported.scaling}
    write_json(folder / "calibration.json", {"iou": IOU, "least_score": calibration.LEAST_SCORE, **about})
    if len(scores):
        figures.reliability(before, after, reported.name, folder / "calibration.png")


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
    figures.intervals(intervals, folder / "intervals.png")
    reported, *members = models
    own = intervals[reported.name]["mAP"]
    if math.isnan(own["value"]):
        return ["no cell is labelled: there is no mAP, and nothing to compare"]
    span = f"{rate(own['low'])} to {rate(own['high'])} ({draws} draws)"
    if not len(times):
        span = "- (all images are of one group, such as a smear: draws need two)"
    summary = [f"mAP {rate(own['value'])}, 95 % interval {span}"]
    if not members:
        return summary
    rows = []
    for m in members:
        value = own["value"] - m.evaluation.mAP
        gap = bootstrap.difference(samples[reported.name][:, 0], samples[m.name][:, 0], value)
        rows.append({"model": reported.name, "against": m.name, "mAP_difference": gap.pop("value"), **gap})
    write_csv(folder / "differences.csv", rows)
    best = min(rows, key=lambda row: row["mAP_difference"])  # the member of the highest mAP
    certainty = "95 % interval -, p -"
    if not math.isnan(best["low"]):
        verdict = "a difference" if best["p"] <= 0.05 else "no more than noise"
        certainty = "95 % interval {low:+.3f} to {high:+.3f}, p {p:.3f}: ".format(**best) + verdict
    return [*summary, f"{reported.name} minus {best['against']}: mAP {best['mAP_difference']:+.3f}, {certainty}"]
