"""Weighted Boxes Fusion against its formulas."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leuko.detections import Detections
from leuko.engine.fusion import Fusion
from leuko.errors import LeukoError

SIZE = (300, 200)
CELLS = np.array([[10, 10, 70, 60], [40, 30, 110, 95], [150, 20, 230, 110], [120, 100, 215, 190]])


def prediction(boxes, scores, labels) -> Detections:
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    return Detections(boxes, scores, labels)[order]


NOTHING = prediction([], [], [])


@st.composite
def ensembles(draw) -> list[Detections]:
    """One to four models that see some of four cells, each up to twice, a little displaced; no score twice."""
    members = draw(st.integers(1, 4))
    seen = draw(st.lists(st.tuples(*[st.integers(0, members - 1), st.integers(0, 3), st.integers(0, 1)]), max_size=12))
    scores = draw(st.lists(st.integers(1, 1000), min_size=len(seen), max_size=len(seen), unique=True))
    shifts = draw(st.lists(st.tuples(*[st.integers(-9, 9)] * 4), min_size=len(seen), max_size=len(seen)))
    models = []
    for m in range(members):
        mine = [i for i, (model, _, _) in enumerate(seen) if model == m]
        boxes = [CELLS[seen[i][1]] + shifts[i] for i in mine]
        models.append(prediction(boxes, [scores[i] / 1000 for i in mine], [seen[i][2] for i in mine]))
    return models


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


def by_the_formulas(models: list[Detections], threshold: float) -> list[tuple]:
    """Return (label, score, *box) sorted; undecidable cases (an IoU at the threshold, ties) are left to hypothesis."""
    votes = []  # (score, label, box)
    for model in models:
        mine: list[tuple] = []
        for box, score, label in zip(model.boxes, model.scores, model.labels, strict=True):
            box = np.clip(box.astype(float), 0, [*SIZE, *SIZE])
            if not any(label == other[1] and iou(box, other[2]) > threshold for other in mine):
                mine.append((float(score), label, box))
        votes += mine
    votes.sort(key=lambda vote: -vote[0])
    assume(all(a[0] - b[0] > 1e-6 for a, b in pairwise(votes)))

    clusters: list[list[tuple]] = []
    for vote in votes:
        overlaps = [(iou(fused_box(c), vote[2]), c) for c in clusters if c[0][1] == vote[1]]
        overlaps.sort(key=lambda pair: -pair[0])
        assume(all(abs(overlap - threshold) > 1e-4 for overlap, _ in overlaps))
        assume(len(overlaps) < 2 or overlaps[0][0] < threshold or overlaps[0][0] - overlaps[1][0] > 1e-4)
        if overlaps and overlaps[0][0] > threshold:
            overlaps[0][1].append(vote)
        else:
            clusters.append([vote])
    fused = sorted((c[0][1], min(1, sum(v[0] for v in c) / len(models)), *fused_box(c)) for c in clusters)
    assume(all(a[0] != b[0] or b[1] - a[1] > 1e-5 for a, b in pairwise(fused)))
    return fused


def fused_box(cluster: list[tuple]) -> np.ndarray:
    return sum(score * box for score, _, box in cluster) / sum(score for score, _, _ in cluster)


def rows(fused: Detections) -> np.ndarray:
    return np.array(sorted(zip(fused.labels, fused.scores, *fused.boxes.T, strict=True))).reshape(-1, 6)


@settings(max_examples=300, deadline=None)
@given(ensembles(), st.sampled_from([0.4, 0.55, 0.7]), st.randoms(use_true_random=False))
def test_fusion_is_the_formulas(models, threshold, random):
    expected = np.array(by_the_formulas(models, threshold)).reshape(-1, 6)
    [fused] = Fusion(threshold)([[m] for m in models], [SIZE])
    np.testing.assert_allclose(rows(fused), expected, rtol=1e-5, atol=1e-3)
    assert (fused.scores <= 1).all() and (np.diff(fused.scores) <= 0).all()
    assert (fused.boxes.dtype, fused.scores.dtype, fused.labels.dtype) == (np.float32, np.float32, np.int64)

    order = random.sample(range(len(models)), len(models))
    [shuffled] = Fusion(threshold)([[models[m]] for m in order], [SIZE])
    np.testing.assert_allclose(rows(shuffled), rows(fused), rtol=1e-5, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(ensembles())
def test_scores_never_exceed_one(models):
    certain = [replace(m, scores=np.ones_like(m.scores)) for m in models]
    for threshold in (0.05, 0.3, 0.55):
        [fused] = Fusion(threshold)([[m] for m in certain], [SIZE])
        assert (fused.scores <= 1).all() and np.isfinite(fused.boxes).all()


def test_one_member_is_left_as_it_is():
    big = (3264, 1000)
    alone = prediction(
        [[0, 0, 3264, 333.3], [10.1, 500.2, 90.9, 700.4], [2000, 600, 2100, 1000]], [0.2, 0.9, 0.5], [1, 0, 1]
    )
    fused, empty = Fusion()([[alone, NOTHING]], [big, SIZE])
    for key in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(getattr(fused, key), getattr(alone, key), rtol=1e-6)
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)


def test_a_silent_model_lowers_the_score():
    one, other = prediction([CELLS[0]], [0.9], [0]), prediction([CELLS[0] + 2], [0.6], [0])
    fuse = Fusion()
    scores = [fuse(members, [SIZE])[0].scores.tolist() for members in ([[one], [other]], [[one], [other], [NOTHING]])]
    assert scores == [[pytest.approx(0.75)], [pytest.approx(0.5)]]
    twice = prediction([CELLS[0], CELLS[0] + 3], [0.9, 0.8], [0, 0])  # no stand-in for the silent one
    assert fuse([[twice], [NOTHING]], [SIZE])[0].scores.tolist() == [pytest.approx(0.45)]
    another_type = prediction([CELLS[0]], [0.6], [1])
    assert fuse([[one], [another_type]], [SIZE])[0].scores.tolist() == [pytest.approx(0.45), pytest.approx(0.3)]


def test_limits_and_boxes_without_a_vote(recwarn):
    odd = prediction(
        [[-9, -9, 50, 50], [5, 5, 5, 60], [400, 10, 450, 60], [150, 20, 230, 110]], [0.9, 0.8, 0.7, 0], [0] * 4
    )
    fuse = Fusion()
    [fused] = fuse([[odd]], [SIZE])
    assert fused.boxes.tolist() == [[0, 0, 50, 50]]
    many = prediction(CELLS, [0.9, 0.6, 0.3, 0.1], [0, 1, 2, 3])
    assert len(fuse([[many]], [SIZE], max_detections=3)[0].scores) == 3
    grid = [[x, y, x + 9, y + 9] for x in range(0, 300, 20) for y in range(0, 200, 20)]
    field = prediction(grid, np.linspace(1, 0.5, 150), [0] * 150)
    assert len(fuse([[field]] * 2, [SIZE])[0]) == 100 and len(fuse([[field]] * 2, [SIZE], 150)[0]) == 150
    assert Fusion(score=0.3)([[many]], [SIZE])[0].labels.tolist() == [0, 1, 2]
    assert not recwarn.list


def test_a_diverged_member_is_refused():
    with pytest.raises(LeukoError, match="a score that is not a number; leave out the diverged one"):
        Fusion()([[prediction([CELLS[0]], [np.nan], [0])]], [SIZE])


def test_two_boxes_of_a_model_in_one_cluster():
    """They overlap too little to be one cell to their model, yet both join what lies between: the plain sum, capped."""
    left, middle, right = ([x, 0, x + 100, 100] for x in (0, 22, 45))
    for scores, expected in (((0.3, 0.5, 0.4), 0.6), ((0.8, 1.0, 0.9), 1)):
        one, other = prediction([left, right], [scores[0], scores[2]], [0, 0]), prediction([middle], [scores[1]], [0])
        [fused] = Fusion(0.4)([[one], [other]], [SIZE])
        x = (scores[1] * 22 + scores[2] * 45) / sum(scores)
        np.testing.assert_allclose(fused.boxes, [[x, 0, x + 100, 100]], rtol=1e-5)
        assert fused.scores.tolist() == [pytest.approx(expected)]
