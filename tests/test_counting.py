"""Counting: one cell has one type, the score from which counts are best, and the limits of a percentage."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leuko.data.dataset import Dataset, Sample
from leuko.detections import Detections
from leuko.engine.fusion import Fusion
from leuko.metrics import doubles
from leuko.metrics.binomial import percent_of
from leuko.metrics.counting import Differential, best_threshold, classify, one_type
from leuko.ops.pairs import box_iou
from leuko.synth.render import render

TYPES = 4


def random_detections(rng: np.random.Generator, number: int) -> Detections:
    """Clusters of boxes around a few cells, as detectors give them, some without area."""
    centre = rng.uniform(10, 90, (6, 2))[rng.integers(0, 6, number)] + rng.normal(0, 3, (number, 2))
    half = np.maximum(rng.normal(10, 4, (number, 2)), 0)
    scores = rng.integers(0, 20, number) / 20  # some are equal
    return Detections(np.hstack([centre - half, centre + half]), scores, rng.integers(0, TYPES, number))


def most_overlap(detections: Detections) -> float:
    overlap = box_iou(detections.boxes, detections.boxes)
    np.fill_diagonal(overlap, 0)
    return float(overlap.max(initial=0))


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_no_cell_is_counted_twice_and_none_is_lost(seed, number):
    rng = np.random.default_rng(seed)
    members = [random_detections(rng, number) for _ in range(3)]
    for detections in (members[0], Fusion()([[m] for m in members], [(100, 100)])[0]):
        cells = one_type(detections, TYPES)
        assert most_overlap(cells) <= 0.5
        assert cells.type_scores.max(1, initial=0).tolist() == cells.scores.tolist()
        overlap = box_iou(detections.boxes, cells.boxes)
        has_area = (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(1)
        assert (overlap[has_area].max(1, initial=0) > 0.5).all(), "each detection is a cell, or of one"
        for k in range(TYPES):  # the best score of each type is kept with one of the cells
            of_type = detections.scores[detections.labels == k]
            assert of_type.max(initial=0) == cells.type_scores[:, k].max(initial=0)
        again = one_type(cells, TYPES)
        assert again.boxes.tolist() == cells.boxes.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_the_best_of_all(seed, images):
    rng = np.random.default_rng(seed)
    samples, predictions = [], []
    for i in range(images):
        labels = rng.integers(0, TYPES, rng.integers(0, 5))
        boxes = np.tile([0, 0, 9, 9], (len(labels), 1))
        samples.append(Sample(Path(f"{i}.png"), 100, 100, boxes, labels, id=i + 1))
        predictions.append(one_type(random_detections(rng, rng.integers(0, 12)), TYPES))
    dataset = Dataset([f"type {k}" for k in range(TYPES)], samples)

    def error(threshold: float) -> int:
        counts = [np.bincount(p.labels[p.scores >= threshold], minlength=TYPES) for p in predictions]
        gap = np.array(counts) - dataset.counts_per_image()
        return int(np.abs(gap).sum() + np.abs(gap.sum(0)).sum())

    every = sorted({float(s) for p in predictions for s in p.scores})
    best = min([error(2.0), *map(error, every)])
    threshold = best_threshold(dataset, predictions)
    assert error(2.0) == best if threshold is None else error(threshold) == best < error(2.0)


@pytest.mark.parametrize("total", [1, 7, 100, 200])
def test_limits_are_exact(total):
    """At each limit, so many cells or more (fewer) have a probability of 2.5 %, by the sum of all terms."""
    for n in range(total + 1):
        percent, low, high = percent_of(n, total)
        assert 0 <= low <= percent == 100 * n / total <= high <= 100
        for limit, counts in ((low, range(n, total + 1)), (high, range(n + 1))):
            if 0 < limit < 100:
                p = limit / 100
                assert sum(comb(total, k) * p**k * (1 - p) ** (total - k) for k in counts) == pytest.approx(0.025)
    assert percent_of(20, 200)[1:] == pytest.approx((6.216, 15.021), abs=0.001)


def test_a_cell_on_two_overlapping_fields_is_counted_once():
    """Fields cut from one rendered picture, the second darker and noisy, its boxes a little off; and other fields."""
    rng = np.random.default_rng(3)
    looks, images, cells = [], [], []
    for number in range(24):
        whole = render(rng, 360, 300, ["NG", "L", "M", "EG"])
        for part, (left, top) in enumerate([(0, 0), (40, 30)]):
            field = whole.image[top : top + 260, left : left + 310]
            boxes = np.array(whole.boxes) - [left, top] * 2
            if part:
                field = np.clip(field * 0.95 + rng.normal(0, 3, field.shape), 0, 255).astype(np.uint8)
                boxes = boxes + rng.normal(0, 1, boxes.shape)
            for k, box in enumerate(boxes):
                if (box[:2] > 4).all() and (box[2:] < [306, 256]).all():
                    looks.append(doubles.look(field, box))
                    images.append(2 * number + part)
                    cells.append((number, k))
    truth = np.array([cell in cells[:i] for i, cell in enumerate(cells)])
    found = doubles.doubles(np.array(looks), images)
    assert truth.sum() > 20 and not (found & ~truth).any() and (found & truth).sum() > 0.7 * truth.sum()


def test_what_the_border_cuts_or_is_doubtful_stays_unclassified():
    boxes = [[20, 20, 60, 60], [0.5, 70, 30, 99], [70, 20, 110, 60], [70, 70, 110, 100]]
    cells = one_type(Detections(boxes, [0.9, 0.8, 0.3, 0.1], [0, 1, 1, 0]), 2)
    counted = classify(cells, (200, 200), 0.5)
    assert counted.why.tolist() == ["", "at the border", "below the threshold"]
    slide = Differential.of([counted, classify(cells, (110, 200), 0.05)], ["A", "B"])
    assert slide.cells == (2, 0) and slide.unclassified == {"below the threshold": 1, "at the border": 4}
    assert slide.rows()[0]["percent"] == 100 and slide.rows()[-1]["type"] == "unclassified"
