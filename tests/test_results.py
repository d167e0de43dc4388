"""The measures behind a validation's results: against the evaluator, brute force, the paper's counts, and textbooks."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TYPES, table
from test_metrics import assert_measures_are_pycocotools

from leuko.data import source
from leuko.data.dataset import Dataset, Sample
from leuko.data.tools import stats
from leuko.detections import Detections
from leuko.io import write_csv, write_json
from leuko.metrics import bootstrap, calibration, coco, confusion, consensus, curves, differential
from leuko.metrics.counting import one_type
from leuko.ops.pairs import box_iou
from leuko.report import comparison, pages, results, run, tables


def random_data(rng: np.random.Generator, images: int, types: int, most: int = 12) -> tuple[Dataset, list[Detections]]:
    """Random cells and detections near them, with crowds, empty images, tied scores, and types without cells."""
    samples, predictions = [], []
    for i in range(images):
        n, d = int(rng.integers(0, 5)), int(rng.integers(0, most))
        centre, side = rng.uniform(20, 80, (n, 2)), rng.uniform(5, 30, (n, 2))
        boxes = np.hstack([centre - side / 2, centre + side / 2])
        crowd = rng.random(n) < 0.15
        group = f"g{i // 3}" if rng.random() < 0.5 else ""
        labels = rng.integers(0, max(types - 1, 1), n)
        samples.append(Sample(Path(f"{i}.png"), 100, 100, boxes, labels, i + 1, crowd, group=group))
        near = boxes[rng.integers(0, n, d)] if n else np.tile([10.0, 10, 40, 40], (d, 1))
        near = near + rng.normal(0, 2, (d, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        score = np.sort(rng.choice(np.linspace(0.05, 1, 9), d))[::-1].astype(np.float32)
        predictions.append(Detections(near.astype(np.float32), score, rng.integers(0, types, d)))
    return Dataset([f"t{k}" for k in range(types)], samples), predictions


def test_measures_are_pycocotools_with_tied_scores_too():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        assert_measures_are_pycocotools(*random_data(rng, int(rng.integers(1, 8)), int(rng.integers(1, 4))))


def test_a_bootstrap_sample_counts_images_as_often_as_it_says():
    """Against the evaluator on a data set in which the images really are there as often."""
    rng = np.random.default_rng(2)
    for seed in range(25):
        dataset, predictions = random_data(rng, 7, 3)
        # No ties, whose order among copies would be another.
        predictions = [replace(f, scores=np.sort(rng.random(len(f)))[::-1]) for f in predictions]
        times = bootstrap.resample(dataset, 4, seed)
        measured = bootstrap.mean_measures(coco.match(dataset, predictions), times)
        for row, (mAP, mAR) in zip(times, measured, strict=True):
            again = [i for i, n in enumerate(row) for _ in range(n)]
            copied = Dataset(dataset.types, [dataset.samples[i] for i in again])
            evaluation = coco.evaluate(copied, [predictions[i] for i in again])
            np.testing.assert_allclose((mAP, mAR), (evaluation.mAP, evaluation.mAR), atol=2e-6)
        groups = {s.group: i for i, s in enumerate(dataset.samples) if s.group}
        for i, s in enumerate(dataset.samples):  # groups are drawn whole
            if s.group:
                assert (times[:, i] == times[:, groups[s.group]]).all()


def test_intervals_cover_and_differences_are_paired():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.5, 0.01, 1000), rng.normal(0.48, 0.01, 1000)
    span = bootstrap.interval(0.5, one)
    assert span["low"] < 0.5 < span["high"] and span["high"] - span["low"] == pytest.approx(4 * 0.01, rel=0.1)
    gap = bootstrap.difference(one, one - 0.02, 0.02)
    assert gap["low"] == pytest.approx(0.02) and gap["high"] == pytest.approx(0.02)
    assert gap["p"] == pytest.approx(2 / 1001), "a thousand samples cannot show that p is 0"
    assert bootstrap.difference(one[:1], one[:1] - 0.02, 0.02)["p"] == 1
    assert bootstrap.difference(one, other[::-1], 0.0)["p"] > 0 and bootstrap.difference(one, one, 0.0)["p"] == 1
    assert np.isnan(bootstrap.difference(one, one * np.nan, np.nan)["p"])


@pytest.mark.parametrize("draws", [39, 40, 79, 100, 199, 1000])
def test_the_interval_of_a_difference_and_its_p_agree(draws):
    """Whatever the share of samples below 0: the interval leaves out 0 just where p is at most .05."""
    verdicts = set()
    for below in range(min(draws, 60)):
        gaps = np.arange(draws) + 0.5 - below
        for sign in (1, -1):
            gap = bootstrap.difference(sign * gaps, np.zeros(draws), 0.0)
            assert (gap["p"] <= 0.05) == (gap["low"] > 0 or gap["high"] < 0)
            verdicts.add(gap["p"] <= 0.05)
    assert verdicts == {True, False}


def test_confusion_agrees_with_recall_and_counts_all():
    rng = np.random.default_rng(4)
    for _ in range(200):
        dataset, predictions = random_data(rng, 5, 4)
        pairings = confusion.pair_all(dataset, predictions, 0.5, 0.5)
        counts = confusion.matrix(pairings, 4)
        assert (counts[:-1].sum(1) == dataset.counts()).all()
        assert np.trace(counts[:-1, :-1]) == sum(int(p.correct[~p.sample.crowd].sum()) for p in pairings)
        for s, f, p in zip(dataset.samples, predictions, pairings, strict=True):
            pairs = [(c, d) for c, d in enumerate(p.of_cell) if d >= 0]
            assert len({d for _, d in pairs}) == len(pairs) and all(p.of_detection[d] == c for c, d in pairs)
            assert all(box_iou(f.boxes[d], s.boxes[c])[0, 0] >= 0.5 for c, d in pairs)


def test_another_type_is_a_confusion_and_not_a_miss():
    cells = Sample(Path("a.png"), 100, 100, [[10, 10, 40, 40], [50, 50, 90, 90]], [0, 1], 1)
    boxes = np.float32([[11, 10, 41, 40], [10, 11, 40, 41], [60, 5, 80, 25]])
    three = Detections(boxes, [0.9, 0.6, 0.7], [1, 0, 1])
    dataset = Dataset(["NG", "BG"], [cells])
    pairings = confusion.pair_all(dataset, [three])
    # The surer detection says BG, but the other one is right: correct, and one too many.
    assert confusion.matrix(pairings, 2).tolist() == [[1, 0, 0], [0, 0, 1], [0, 2, 0]]
    alone = three[:1]
    assert confusion.matrix(confusion.pair_all(dataset, [alone]), 2).tolist()[0] == [0, 1, 0]


def test_factors_with_the_papers_counts():
    """Li et al. 2022, Cascade R-CNN and the ensemble: overlapping, incomplete, over-stained, impurity."""
    for hits, total, percent in ((25, 38, 65.79), (36, 38, 94.74), (84, 86, 97.67), (85, 86, 98.84)):
        assert round(confusion.rate("overlap", "cell accuracy", np.arange(total) < hits)["percent"], 2) == percent
    box = [[10, 10, 40, 40]]
    for hits, percent in ((412, 92.17), (426, 95.30)):
        samples = [Sample(Path(f"{i}"), 90, 90, box, [0], i, factors=("overstained",)) for i in range(447)]
        predictions = [_hit(i < hits) for i in range(447)]
        rates = _rates(samples, predictions)
        assert round(rates["overstained", "image accuracy"]["percent"], 2) == percent
        assert rates["overstained", "cell accuracy"]["hits"] == hits
    for hits, percent in ((25, 65.79), (36, 94.74)):
        samples = [Sample(Path(f"{i}"), 90, 90, box, [0], i, cell_factors=[("overlap",)]) for i in range(38)]
        assert (
            round(_rates(samples, [_hit(i < hits) for i in range(38)])["overlap", "cell accuracy"]["percent"], 2)
            == percent
        )
    for hits, percent in ((14, 8.24), (6, 3.53)):
        kinds = ("dust", "dye_residue", "cell_debris")
        samples = [Sample(Path(f"{i}"), 90, 90, box, [0], i, factors=(kinds[i % 3],)) for i in range(170)]
        rates = _rates(samples, [_hit(True, extra=i < hits) for i in range(170)])
        assert round(rates["impurity", "impurity ratio"]["percent"], 2) == percent
        assert rates["impurity", "impurity ratio"]["total"] == 170 and rates["dust", "impurity ratio"]["total"] == 57


def _hit(right: bool, extra: bool = False) -> Detections:
    boxes = [[10, 10, 40, 40]] * right + [[60, 60, 80, 80]] * extra
    n = len(boxes)
    return Detections(boxes, np.full(n, 0.9), np.zeros(n))


def _rates(samples: list[Sample], predictions: list[Detections]) -> dict:
    dataset = Dataset(["NG"], samples)
    rates = confusion.by_factor(confusion.pair_all(dataset, predictions))
    return {(r["factor"], r["measure"]): r for r in rates}


def test_curves_end_in_the_evaluators_area():
    rng = np.random.default_rng(5)
    dataset, predictions = random_data(rng, 30, 3)
    matches = coco.match(dataset, predictions)
    evaluation = coco.evaluate(dataset, predictions)
    areas = curves.precision_curves(matches).mean(-1)  # [types + 1, IoUs]
    assert areas[-1, -1] == pytest.approx(evaluation.mAP) and areas[-1, 0] == pytest.approx(evaluation.mAP50)
    np.testing.assert_allclose(areas[:-1, 1], [t.AP75 for t in evaluation.per_class], atol=1e-12)
    curve = curves.score_curve(matches)
    at = int(np.argmin(np.abs(curves.SCORES - 0.5)))
    true = sum(int((m.tp[0] & (m.scores >= 0.5)).sum()) for m in matches)
    assert curve.recall[at] == pytest.approx(true / dataset.counts().sum())
    assert curve.best_f1 == pytest.approx(np.nanmax(curve.f1)) and 0 <= curve.best_score <= 1


def test_calibration_is_found_again():
    """Scores whose logits were stretched and moved are brought back, and the error goes."""
    rng = np.random.default_rng(6)
    honest = rng.uniform(0.02, 0.98, 20000)
    true = rng.random(20000) < honest
    bent = 1 / (1 + np.exp(-(2.0 * np.log(honest / (1 - honest)) - 0.7)))
    scaling = calibration.fit(bent, true)
    assert scaling.temperature == pytest.approx(2.0, rel=0.05) and scaling.shift == pytest.approx(0.35, abs=0.05)
    before, after = (calibration.reliability(scores, true)["error"] for scores in (bent, scaling(bent)))
    assert before > 0.08 and after < 0.015
    assert calibration.fit(bent[:3], true[:3]) is None
    np.testing.assert_allclose(calibration.Scaling()(honest), honest, atol=1e-6)


@pytest.mark.parametrize("score", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_curves_count_a_score_as_the_confusion_matrix_does(score):
    """The float32 nearest to .7 is below .7, and is a score of .7 all the same."""
    dataset = Dataset(["NG"], [Sample(Path("a.png"), 100, 100, [[10, 10, 40, 40]], [0], 1)])
    predictions = [Detections([[10, 10, 40, 40], [60, 60, 90, 90]], [score, score - 0.01], [0, 0])]
    counts = confusion.matrix(confusion.pair_all(dataset, predictions, score), 1)
    curve, at = curves.score_curve(coco.match(dataset, predictions)), round(100 * score)
    assert curves.SCORES[at] == score and counts.tolist() == [[1, 0], [0, 0]]
    assert (curve.recall[at], curve.precision[at], curve.precision[at - 1]) == (1, 1, 0.5)
    assert (curve.recall[at + 1], curve.best_score, curve.best_f1) == (0, score, 1)


def test_agreement_by_the_textbook():
    classic = np.array([[20, 5, 9], [10, 15, 9], [9, 9, 0]])
    assert differential.kappa(classic) == pytest.approx(0.4)
    labelled, predicted = np.array([[5, 5], [8, 2], [2, 8]]), np.array([[6, 4], [8, 2], [1, 9]])
    empty = [labelled[0], np.zeros(2, int)]
    counts = np.array([*zip(labelled, predicted, strict=True), empty])
    first = differential.bland_altman(counts, ["NG", "BG"])[0]
    difference = np.array([10.0, 0, -10])
    assert first["bias"] == pytest.approx(0) and first["high"] == pytest.approx(1.96 * difference.std(ddof=1))
    assert first["groups"] == 3 and first["correlation"] == pytest.approx(np.corrcoef([50, 80, 20], [60, 80, 10])[0, 1])


def test_the_count_says_whether_the_differential_holds():
    """Rümke's limits for 200 cells; a cell found with another type lowers sensitivity and predictive value."""
    matrix = np.array([[100, 10, 0], [0, 80, 10], [0, 10, 0]])  # NG, BG, extra; the last column is missed
    count = differential.compare_counts(matrix, ["NG", "all"])
    ng, bg, in_all = count.rows
    assert (ng["labelled"], ng["found"], ng["difference"]) == (110, 100, -10) and bg["type"] == "type all"
    assert (ng["percent"], ng["low95"], ng["high95"]) == pytest.approx((50, 42.87, 57.13), abs=0.01)
    assert (ng["sensitivity"], bg["ppv"]) == pytest.approx((100 * 100 / 110, 80))
    assert bg["sensitivity"] == pytest.approx(100 * 80 / 90) and ng["ppv"] == 100
    assert (in_all["labelled"], in_all["found"], in_all["sensitivity"]) == (200, 200, 90) and count.difference == 20
    assert np.isnan(in_all["percent"]) and count.agrees and " is within" in count.verdict
    matrix[0] = 100, 0, 80
    count = differential.compare_counts(matrix, ["NG", "BG"])
    assert not count.agrees and "NG is 52.6 % where 66.7 % is labelled, limits 45.3 to 59.9 %" in count.verdict
    assert "190 cells are found where 270 are labelled" in count.verdict
    many = differential.compare_counts(np.diag([2300, 2000, 0]) + np.eye(3, k=1, dtype=int) * 300, ["NG", "BG"])
    assert not many.agrees and "It is within those of the 400 cells" in many.verdict
    five = differential.compare_counts(
        np.diag([0] * 6) + np.eye(6, k=1, dtype=int) * [[9, 8, 7, 6, 5, 4]] * 20, list("abcde")
    )
    assert five.verdict.count(" % is labelled") == 3 and "; and 2 more types." in five.verdict
    for nothing in (np.zeros((3, 3), int), np.diag([0, 0, 0]) + np.eye(3, k=-2, dtype=int)):
        count = differential.compare_counts(nothing, ["NG", "BG"])
        assert not count.agrees and "no differential" in count.verdict and np.isnan(count.rows[0]["sensitivity"])


def test_slides_are_compared_only_where_they_are_large_enough():
    large = np.tile([60, 60], (5, 2, 1))
    assert len(differential.large_groups(large)[0]) == 5 and not differential.large_groups(large)[1]
    small = np.concatenate([large[:4], [[[50, 49], [60, 60]], [[60, 60], [0, 0]]]])
    none, why = differential.large_groups(small)
    assert len(none) == 0 and why.startswith("4 of the 6 slides")
    dataset = Dataset(["NG"], [Sample(Path("a.png"), 9, 9, [], [], 1)])
    groups, cells = differential.group_counts(dataset, [Detections([], [], [])])
    assert not groups and cells.shape == (0, 2, 1) and "names no slides" in differential.large_groups(cells)[1]


def test_each_error_is_listed_with_what_comes_second():
    boxes = [[10, 10, 40, 40], [50, 50, 90, 90], [10, 60, 40, 90]]
    sample = Sample(Path("a.png"), 100, 100, boxes, [0, 1, 1], 1)
    found = Detections(
        [boxes[0], [11, 10, 40, 40], boxes[1], [60, 5, 80, 25], [61, 5, 80, 25]],
        [0.9, 0.6, 0.3, 0.8, 0.2],
        [1, 0, 0, 0, 1],
    )
    pairings = confusion.pair_all(Dataset(["NG", "BG"], [sample]), [one_type(found, 2)], 0.5)
    rows = confusion.errors(pairings, ["NG", "BG"])
    keys = ("error", "labelled", "found", "score", "second", "second_score", "x0")
    assert [tuple(row[key] for key in keys) for row in rows if row["found"]] == [
        ("extra", "", "NG", 0.8, "BG", 0.2, 60),
        ("confused", "NG", "BG", 0.9, "NG", 0.6, 10),
    ]
    missed = [(r["labelled"], r["second"], r["second_score"], r["x0"]) for r in rows if r["error"] == "missed"]
    assert missed == [("BG", "", 0, 10), ("BG", "NG", 0.3, 50)], "the one of which nothing was seen is first"


def planted() -> tuple[Dataset, list[list[Detections]]]:
    """Three models that agree with each other and not with three labels: a wrong type, a missing one, an empty one."""
    boxes = [[10, 10, 40, 40], [50, 10, 80, 40]]
    samples = [Sample(Path(f"{i}.png"), 100, 100, boxes, [0, 1], i + 1) for i in range(3)]
    good = Detections(boxes, [0.9, 0.8], [0, 1])
    wrong_type = replace(good, labels=[1, 1])
    extra = Detections([*boxes, [60, 60, 95, 95]], [0.9, 0.8, 0.9], [0, 1, 0])
    missed = good[:1]
    members = [[wrong_type, extra, missed], [wrong_type, extra, missed], [good, extra, missed]]
    return Dataset(["NG", "BG"], samples), members


def test_images_are_queued_for_review_by_score_and_by_members():
    """A member's detection counts above its own threshold: .4 is a vote of one, and none of the other."""
    samples = [Sample(Path(f"{i}.png"), 100, 100, [[10, 10, 40, 40]], [0], i + 1) for i in range(3)]
    dataset = Dataset(["NG", "BG"], samples)

    def detect(*cells: tuple[float, int]) -> Detections:
        return Detections(np.tile([10.0, 10, 40, 40], (len(cells), 1)), *zip(*cells, strict=True))

    fused = [detect((0.9, 0)), detect((0.55, 0)), detect((0.8, 1))]
    shy, bold = [detect((0.4, 0)), detect((0.4, 0)), detect((0.4, 0))], [detect((0.9, 0), (0.4, 1))] * 3
    rows = differential.review_queue(dataset, fused, [shy, bold], [0.3, 0.6])
    assert [(r["image"], r["why"]) for r in rows] == [("1.png", "a score of 0.55")] and rows[0]["doubt"] == 0.5
    rows = differential.review_queue(dataset, fused, [shy, bold], [0.3, 0.3])
    assert [r["image"] for r in rows] == ["0.png", "1.png", "2.png"]
    assert "members differ by 1 cell" in rows[1]["why"] and rows[0]["why"] == "members differ by 1 cell"


def test_consensus_errors_are_listed():
    dataset, members = planted()
    suspects = consensus.suspects(dataset, members, ["a", "b", "c"], [0.3] * 3)
    assert {(s.image, s.kind, s.cell, s.label, s.says) for s in suspects} == {
        (0, "type", 0, "NG", "BG"),
        (1, "unlabelled", -1, "", "NG"),
        (2, "missed", 1, "BG", ""),
    }
    assert [s.sure for s in suspects] == sorted((s.sure for s in suspects), reverse=True)
    more = consensus.suspects(dataset, [*members, members[2]], ["a", "b", "c", "d"], [0.3] * 4)
    assert not consensus.suspects(dataset, members[:2], ["a", "b"], [0.95] * 2)[0].says, (
        "each votes above its threshold"
    )
    assert {s.kind for s in more} == {"unlabelled", "missed"}, "two of four are not all but one"


# ---------------------------------------------------------------------- as files


def predictions_of(dataset: Dataset, rng: np.random.Generator, miss: float = 0.1) -> list[Detections]:
    predictions = []
    for s in dataset.samples:
        kept = rng.random(len(s.boxes)) > miss
        n = int(kept.sum())
        boxes = (s.boxes[kept] + rng.normal(0, 1, (n, 4))).astype(np.float32)
        scores = np.sort(rng.uniform(0.3, 1, n))[::-1].astype(np.float32)
        predictions.append(Detections(boxes, scores, s.labels[kept]))
    return predictions


def test_all_results_are_written_and_reported(data, tmp_path, leuko, monkeypatch):
    dataset = source.load(data, "train")
    for i, s in enumerate(dataset.samples):
        s.factors, s.group = (("dust",) if i % 2 else ()), f"smear {i % 3}"
    rng = np.random.default_rng(7)
    models = []
    for name in ("a", "b <i>", "ensemble"):
        predictions = predictions_of(dataset, rng)
        predictions[0] = predictions[0][:0]  # labels that no model finds
        evaluation = coco.evaluate(dataset, predictions)
        models.append(results.ModelResult(name, predictions, evaluation, 0.5, "found on <val>", {"parameters": 5e6}))
    answer, summary = results.write_results(tmp_path, dataset, models, draws=50)
    assert any("95 %" in line for line in summary) and answer.startswith("The differential") and "kappa" in answer
    assert "score from 0.50 (found on <val>)" in answer
    counts = [row for row in table(tmp_path / "count.csv") if row["model"] == "ensemble"]
    assert [int(row["labelled"]) for row in counts[:-1]] == dataset.counts().tolist()
    found = [sum(int((p.labels == k).sum()) for p in models[-1].counted) for k in range(len(TYPES))]
    assert [int(row["found"]) for row in counts[:-1]] == found
    with open(tmp_path / "confusion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [*TYPES, "extra"]
    assert [sum(int(row[k]) for k in [*TYPES, "missed"]) for row in rows[:-1]] == dataset.counts().tolist()
    errors = table(tmp_path / "errors.csv")
    missed, extra = (sum(row["error"] == kind for row in errors) for kind in ("missed", "extra"))
    assert missed == sum(int(row["missed"]) for row in rows[:-1]) > 0
    assert extra == sum(int(rows[-1][name]) for name in TYPES)
    assert all((tmp_path / row["crop"]).is_file() for row in errors)
    names = {"precision_recall", "scores", "confusion", "factors", "differential", "review_queue", "intervals"}
    assert names | {"differences", "cost", "count", "errors"} == {p.stem for p in tmp_path.glob("*.csv")}
    assert {"calibration.json", "count.json", "consensus.json", "review.html"} <= {p.name for p in tmp_path.iterdir()}
    run.write_evaluation(tmp_path, models[-1].evaluation, [], model="ensemble", data=str(data))
    assert leuko("report", tmp_path).code == 0
    text = (tmp_path / "report.html").read_text()
    assert "Is it better" in text and "<script" not in text and 'href="review.html"' in text
    assert not re.search(r'(src|href)="(?!data:|review.html)', text)
    order = (
        "The differential",
        "Missed cells",
        "<h2>Confusion<",
        "<h2>Interference",
        "COCO's measures",
        "<h2>Cost",
        ">5.0<",
    )
    places = [text.index(words) for words in order]
    assert places == sorted(places) and "found on &lt;val&gt;" in text and "slides or patients" in text
    assert text.count('<svg height="24"') == len(TYPES)
    (tmp_path / "other").mkdir()
    run.write_evaluation(tmp_path / "other", models[0].evaluation, [], model="<b>", data=str(data))
    assert leuko("report", tmp_path, tmp_path / "other", "--out", tmp_path / "both.html").code == 0
    both = (tmp_path / "both.html").read_text()
    assert "2 runs compared" in both and "All on the same data" in both and both.count("data:image") == 2
    monkeypatch.chdir(tmp_path)
    assert leuko("report", tmp_path, "other").code == 0 and (tmp_path / "runs/report/comparison.html").is_file()
    leuko("report", tmp_path / "none").refused("metrics.json", "no such file")
    (tmp_path / "other/review_queue.csv").write_text("image,group\na/b.png,nan\n")
    assert leuko("report", tmp_path / "other").code == 0
    whole = json.loads((tmp_path / "metrics.json").read_text())
    odd_table = {"rows": [{"model": "a"}], "cells": {"NG": 1}}
    for file, content in (
        ("metrics.json", {"images": "x", "cells": 1, "per_class": []}),
        ("metrics.json", whole | {"mAP": "-"}),
        ("metrics.json", whole | {"cells": 10**30}),
        ("metrics.json", whole | {"per_class": whole["per_class"] | {"NG": "-"}}),
        ("metrics.json", whole | {"per_class": whole["per_class"] | {"NG": whole["per_class"]["NG"] | {"AP": "x"}}}),
        ("metrics.json", [whole]),
        ("table.json", odd_table),
        ("table.json", {"rows": 3, "cells": 3}),
        ("differences.csv", {"a": "x" * 200_000}),
        ("count.json", {}),
        ("count.json", json.loads((tmp_path / "count.json").read_text()) | {"rows": [{"type": "NG"}]}),
        ("errors.csv", {"a": "x" * 200_000}),
    ):
        before = (tmp_path / "other" / file).read_bytes() if (tmp_path / "other" / file).exists() else None
        (tmp_path / "other" / file).write_text(json.dumps(content).replace('"', "" if file.endswith("csv") else '"'))
        leuko("report", tmp_path / "other").refused("other", "broken", "validate again")
        if file == "metrics.json":
            both = leuko("report", tmp_path, tmp_path / "other", "--out", tmp_path / "no.html")
            both.refused("other", "broken", "validate again")
        (tmp_path / "other" / file).write_bytes(before) if before else (tmp_path / "other" / file).unlink()
    assert leuko("report", tmp_path / "other").code == 0 and not (tmp_path / "no.html").exists()


def test_types_are_never_taken_for_columns(data, tmp_path, leuko):
    """A type may be called as a column is called, hold commas and quotes, or a formula's first character."""
    types = ["mAP", "all", "label", "missed", 'a, "b"', "type mAP", "=1+1", "extra", "model", "$x_$"]
    first = source.load(data, "train")
    dataset = Dataset(types, [replace(s, labels=(s.labels + i) % 10) for i, s in enumerate(first.samples)])
    predictions = predictions_of(dataset, np.random.default_rng(1))
    evaluation = coco.evaluate(dataset, predictions)
    models = [results.ModelResult(n, predictions, evaluation, 0.5, "a default") for n in ("a", "b", "ensemble")]
    results.write_results(tmp_path, dataset, models, draws=20)
    rows = table(tmp_path / "confusion.csv")
    assert len(rows) == len(types) + 1 and len({row["label"] for row in rows}) == len(rows)
    assert [sum(int(v) for k, v in row.items() if k != "label") for row in rows[:-1]] == dataset.counts().tolist()
    of_all = [row for row in table(tmp_path / "precision_recall.csv") if row["type"] == "all" and row["model"] == "a"]
    assert len(of_all) == 101 * len(curves.PANELS)
    measured = [tables.record(m.name, m.evaluation) for m in models]
    assert measured[0]["mAP"] == models[0].evaluation.mAP and len(measured[0]) == 7 + len(types)
    cells = dict(zip(types, dataset.counts().tolist(), strict=True))
    lines = tables.table2(measured, cells)
    assert {len(line) for line in lines} == {7 + len(types)} and lines[0][5:-2] == types
    run.write_evaluation(tmp_path, models[0].evaluation, [], model="ensemble", data=str(data))
    write_json(tmp_path / "table.json", {"cells": cells, "rows": measured})
    assert leuko("report", tmp_path).code == 0
    assert leuko("report", tmp_path, tmp_path, "--out", tmp_path / "both.html").code == 0
    counted = [row for row in stats.counts({"train": dataset}) if row["type"] == "all"]
    assert len(counted) == 1 and counted[0]["cells"] == dataset.counts().sum()


def test_results_of_nothing(data, tmp_path):
    """No detections at all, no label at all, a hundred thousand detections on one image: numbers or nan, no error."""
    dataset = source.load(data, "test")
    none = [Detections([], [], [])] * len(dataset)
    nothing = results.ModelResult("none", none, coco.evaluate(dataset, none), 0.5, "a default")
    answer, _ = results.write_results(tmp_path, dataset, [nothing], draws=20)
    assert answer.startswith(f"0 cells are found where {dataset.counts().sum()} are labelled")
    rng = np.random.default_rng(8)
    corner = rng.uniform(0, 60, (100_000, 2))
    boxes = np.hstack([corner, corner + rng.uniform(2, 20, (100_000, 2))]).astype(np.float32)
    many = Detections(boxes, rng.random(100_000), rng.integers(0, 5, 100_000))
    predictions = [many, *none[1:]]
    pairings = confusion.pair_all(dataset, predictions, score=0.99)
    assert (confusion.matrix(pairings, len(dataset.types))[:-1].sum(1) == dataset.counts()).all()
    assert len(coco.match(dataset, predictions)[0].scores) == 100
    empty = Dataset(dataset.types, [Sample(s.image, s.width, s.height, [], [], s.id) for s in dataset.samples])
    evaluation = coco.evaluate(empty, none)
    models = [results.ModelResult(name, none, evaluation, 0.5, "a default") for name in ("none", "nought")]
    _, summary = results.write_results(tmp_path, empty, models, draws=20)
    run.write_evaluation(tmp_path, evaluation, [])
    assert "no differential to compare" in pages.build(tmp_path)
    assert "nan" not in (tmp_path / "intervals.csv").read_text() and "nothing to compare" in summary[-1]
    assert not [line for line in summary if "difference" in line or "interval" in line]


def test_a_flood_of_detections_on_one_image():
    """A model gone wild may put tens of thousands of boxes on an image; their IoUs with each other fill no memory."""
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 90, (30000, 2))
    boxes = np.hstack([corner, corner + rng.uniform(3, 10, (30000, 2))])
    flood = Detections(boxes, np.linspace(1, 0.3, 30000), rng.integers(0, 2, 30000))
    dataset = Dataset(["NG", "BG"], [Sample(Path("a.png"), 100, 100, [[10, 10, 40, 40]], [0], 1)])
    suspects = consensus.suspects(dataset, [[flood], [flood]], ["a", "b"], [0.3, 0.3])
    assert {"unlabelled"} <= {s.kind for s in suspects} and len(suspects) <= 2 * consensus.MOST_VOTES
    assert len(confusion.pair_all(dataset, [flood], 0.5, 0.5)) == 1 and len(coco.match(dataset, [flood])) == 2


def test_runs_on_the_same_data_are_compared_image_by_image(data, tmp_path):
    """The intervals of their difference are those of one validation of both; without the data there are none."""
    dataset, rng = source.load(data, "train"), np.random.default_rng(9)
    predictions = [predictions_of(dataset, rng, miss) for miss in (0.1, 0.5)]
    for name, found in zip("ab", predictions, strict=True):
        (tmp_path / name).mkdir()
        written = coco.to_coco_results(dataset, found)
        run.write_evaluation(tmp_path / name, coco.evaluate(dataset, found), written, data=str(data))
        write_json(tmp_path / name / "table.json", {"split": "train"})
    recalls = [{"model": "m", "type": "all", "iou": p, "precision": 0.5} for p in curves.PANELS for _ in coco.RECALLS]
    for name in "ab":
        write_csv(tmp_path / name / "precision_recall.csv", recalls)
        write_csv(tmp_path / name / "results.csv", [{"epoch": 1, "val/mAP": 0.5}, {"epoch": 2, "val/mAP": ""}])
    compared = comparison.compare([tmp_path / "a", tmp_path / "b"])
    titles = ["How certain the measures are", "Training", "Precision and recall"]
    assert [title for title, _, picture in compared["charts"] if picture.startswith("data:image/png")] == titles
    table = compared["table"]
    times = bootstrap.resample(dataset, bootstrap.DRAWS)
    one, other = (bootstrap.mean_measures(coco.match(dataset, found), times)[:, 0] for found in predictions)
    gap = bootstrap.difference(one, other, 0.0)
    assert table[0][1] == "mAP of a minus this" and table[1][1] == ""
    assert table[2][1].endswith(" ({low:+.3f} to {high:+.3f}, p {p:.3f})".format(**gap))
    write_json(tmp_path / "a" / "table.json", {"split": "val"})  # whose cells are others
    table = comparison.compare([tmp_path / "a", tmp_path / "b"])["table"]
    assert table[0][1] == "mAP of a minus this" and table[2][1] and "(" not in table[2][1]
