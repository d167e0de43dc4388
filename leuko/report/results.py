"""What a validation writes: every number as CSV or JSON, each with its picture (Li et al. 2022, Results).

The last of the models is the one that is reported (the fusion, where there is one); the others stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..data.dataset import Dataset
from ..io import write_csv, write_json
from ..metrics import agreement, bootstrap, calibration, confusion, consensus, curves, factors, matching
from ..metrics.calibration import Scaling
from ..metrics.coco import Evaluation
from ..metrics.differential import wilson
from . import figures, pictures, plots, table

SCORE, IOU = 0.5, 0.5  # of a detection that counts, where nothing else is said
REFERRED = 50  # images on the list for a person


@dataclass(frozen=True)
class ModelResult:
    """One model on the data set: its name, its detections, COCO's measures, and what it costs."""

    name: str
    found: Sequence[dict]
    evaluation: Evaluation
    cost: dict = field(default_factory=dict)
    scaling: Scaling | None = None


def write(folder: Path, dataset: Dataset, models: Sequence[ModelResult], draws: int = bootstrap.DRAWS) -> list[str]:
    """Write all results of ``models`` on one data set; returns lines worth telling on the terminal."""
    reported, members = models[-1], models[:-1]
    first = [reported, *members[::-1]]  # the order of pictures: falling mAP, where the members come by rising mAP
    matches = {m.name: matching.match(dataset, m.found) for m in first}
    told = []
    best = _curves(folder, dataset, matches, reported.name)
    pairings = {m.name: confusion.pair_all(dataset, m.found, SCORE, IOU) for m in first}
    _confusion(folder, dataset, reported, pairings[reported.name])
    if worst := pictures.worst_first(pairings[reported.name], dataset, reported.found):
        sheet = pictures.truth_and_found(dataset, reported.found, worst, at_most=8)
        plots.write_image(folder / "worst.jpg", sheet)
    told += _factors(folder, dataset, first, pairings)
    if len(members) > 1:
        told += _consensus(folder, dataset, members)
    told += _agreement(folder, dataset, reported, members, best, pairings[reported.name])
    _calibration(folder, matches, reported)
    if draws:
        told += _intervals(folder, dataset, first, matches, draws)
    if costs := [{"model": m.name, **m.cost} for m in models if m.cost]:
        write_csv(folder / "cost.csv", costs)
    return told


def _curves(folder: Path, dataset: Dataset, matches: dict[str, list], reported: str) -> dict[str, float]:
    """Writes the curves; returns each model's score of the best F1."""
    rows = {name: curves.precision_curves(m, dataset.types) for name, m in matches.items()}
    write_csv(folder / "precision_recall.csv", [{"model": n, **row} for n, of in rows.items() for row in of])
    figures.precision_recall(rows, folder / "precision_recall.png")
    figures.precision_recall_of_types(rows[reported], dataset.types, reported, folder / "precision_recall_types.png")
    by_score = {name: curves.score_curve(m) for name, m in matches.items()}
    lines = [
        {"model": n, "score": s, "precision": p, "recall": r, "f1": f}
        for n, c in by_score.items()
        for s, p, r, f in zip(curves.SCORES.round(2), c.precision, c.recall, c.f1, strict=True)
    ]
    write_csv(folder / "scores.csv", lines)
    figures.scores(by_score, folder / "scores.png")
    return {name: c.best_score for name, c in by_score.items()}


def _confusion(folder: Path, dataset: Dataset, reported: ModelResult, pairings: list) -> None:
    counts = confusion.matrix(dataset, reported.found, pairings)
    names = [*dataset.types, "missed"]
    rows = [
        {"truth": t, **dict(zip(names, line.tolist(), strict=True))}
        for t, line in zip([*dataset.types, "extra"], counts, strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    title = f"{reported.name}: score >= {SCORE}, IoU >= {IOU}; {len(dataset):,} images, {counts[:-1].sum():,} cells"
    figures.confusion(counts, dataset.types, title, folder / "confusion.png")


def _factors(folder: Path, dataset: Dataset, models: Sequence[ModelResult], pairings: dict[str, list]) -> list[str]:
    rates = {m.name: factors.by_factor(dataset, m.found, pairings[m.name]) for m in models}
    if not rates[models[0].name]:
        return ["the data notes no interference factors: no results by factor"]
    write_csv(folder / "factors.csv", [{"model": name, **asdict(r)} for name, of in rates.items() for r in of])
    figures.factors(rates, folder / "factors.png")
    return []


def _consensus(folder: Path, dataset: Dataset, members: Sequence[ModelResult]) -> list[str]:
    found = consensus.suspects(dataset, [m.found for m in members], [m.name for m in members])
    entries = [
        {
            "image": str(dataset.samples[s.image].image.resolve()),
            "image_id": dataset.samples[s.image].id,
            **{key: value for key, value in asdict(s).items() if key != "image"},
            "verdict": "",
        }
        for s in found
    ]
    write_json(folder / "consensus.json", {"types": dataset.types, "suspects": entries})
    if found:
        figures.consensus(dataset, found, folder / "consensus.jpg")
    return [f"{len(found)} labels that the models doubt together: consensus.json (see leuko data apply-review --help)"]


def _agreement(
    folder: Path,
    dataset: Dataset,
    reported: ModelResult,
    members: Sequence[ModelResult],
    best: dict[str, float],
    pairings: list,
) -> list[str]:
    keys = agreement.group_keys(dataset)
    counts = agreement.group_counts(dataset, reported.found, keys, SCORE)
    rows = agreement.bland_altman(counts, dataset.types)
    kappa = agreement.kappa(confusion.matrix(dataset, reported.found, pairings))
    lines = []
    for c in counts:
        for k, name in enumerate(dataset.types):
            share = [100 * v[k] / v.sum() if v.sum() else float("nan") for v in (c.truth, c.found)]
            low, high = (100 * v for v in wilson(int(c.found[k]), int(c.found.sum())))
            about = {"group": c.group, "images": c.images, "type": name, "truth": c.truth[k], "prediction": c.found[k]}
            lines.append(
                {**about, "truth_percent": share[0], "prediction_percent": share[1], "low95": low, "high95": high}
            )
    write_csv(folder / "differential.csv", lines)
    write_json(folder / "agreement.json", {"score": SCORE, "iou": IOU, "kappa": kappa, "bland_altman": rows})
    if any(r.groups for r in rows):
        figures.agreement(counts, rows, folder / "agreement.png")
    thresholds = [best[m.name] for m in members]
    referred = agreement.review_queue(dataset, reported.found, [m.found for m in members], thresholds, SCORE)
    write_csv(folder / "refer.csv", referred, columns=("image", "group", "doubt", "why"))
    return [
        f"Cohen's kappa of the types of found cells {table.rate(kappa)}; {len(referred)} images to refer to a person: "
        "refer.csv"
    ]


def _calibration(folder: Path, matches: dict[str, list], reported: ModelResult) -> None:
    score, true = calibration.outcomes(matches[reported.name])
    before = calibration.reliability(score, true)
    after = calibration.reliability(reported.scaling(score), true) if reported.scaling else None
    about = {"before": before, "after": after, "scaling": reported.scaling}
    write_json(folder / "calibration.json", {"iou": IOU, "least_score": calibration.LEAST_SCORE, **about})
    if len(score):
        figures.reliability(before, after, reported.name, folder / "calibration.png")


def _intervals(
    folder: Path, dataset: Dataset, models: Sequence[ModelResult], matches: dict[str, list], draws: int
) -> list[str]:
    times = bootstrap.draws(dataset, draws)
    drawn = {m.name: bootstrap.measured(matches[m.name], times) for m in models}
    rows, whole = [], {}
    for m in models:
        e = m.evaluation
        values = {"mAP": e.mAP, "mAR": e.mAR}
        whole[m.name] = {k: bootstrap.interval(v, drawn[m.name][:, i]) for i, (k, v) in enumerate(values.items())}
        rows += [{"model": m.name, "measure": k, **asdict(v)} for k, v in whole[m.name].items()]
    write_csv(folder / "intervals.csv", rows)
    figures.intervals(whole, folder / "intervals.png")
    reported, *members = models
    own = whole[reported.name]["mAP"]
    if math.isnan(own.value):
        return ["no cell is labelled: there is no mAP, and nothing to compare"]
    span = f"{table.rate(own.low)} to {table.rate(own.high)} ({draws} draws)"
    if not len(times):
        span = "- (all images are of one group, such as a smear: draws need two)"
    told = [f"mAP {table.rate(own.value)}, 95 % interval {span}"]
    if members:
        compared = []
        for m in members:
            value = reported.evaluation.mAP - m.evaluation.mAP
            gap, p = bootstrap.difference(drawn[reported.name][:, 0], drawn[m.name][:, 0], value)
            compared.append(
                {
                    "model": reported.name,
                    "against": m.name,
                    "mAP_difference": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "p": p,
                }
            )
        write_csv(folder / "differences.csv", compared)
        best = max(members, key=lambda m: m.evaluation.mAP)
        gap = next(row for row in compared if row["against"] == best.name)
        sure = "95 % interval -, p -"
        if not math.isnan(gap["low"]):
            verdict = "no more than noise" if gap["low"] <= 0 <= gap["high"] else "a difference"
            sure = f"95 % interval {gap['low']:+.3f} to {gap['high']:+.3f}, p {gap['p']:.3f}: {verdict}"
        told.append(f"{reported.name} less {best.name}: mAP {gap['mAP_difference']:+.3f}, {sure}")
    return told
