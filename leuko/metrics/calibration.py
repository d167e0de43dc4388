"""What scores are worth: whether a detection of score .8 is right four times out of five (reliability, calibration
error, Platt scaling), and how frequent types are by the probabilities of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco import Matches, pooled

BINS = 10
LEAST_SCORE = 0.05  # detections below it are not calibrated
EPS = 1e-6
SMOOTHING = 0.05  # of all cells, added to each type: none is taken for absent
ROUNDS = 60


def outcomes(matches: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [D] float64 of all detections that count at IoU .50, from ``LEAST_SCORE`` on, and whether each is a true
    positive [D] bool."""
    scores, tp, counted = pooled(matches)
    counted &= scores >= LEAST_SCORE
    return scores[counted].astype(np.float64), tp[counted]


def reliability(scores: np.ndarray, tp: np.ndarray) -> dict[str, Any]:
    """Sort detections into ten equal bins of the score: edges [11], number of detections [10], their mean score [10]
    and accuracy, the share of true positives [10] (both nan in an empty bin); and error, the expected calibration
    error: the mean of |score - accuracy| over the detections (Guo et al. 2017), nan without any."""
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
    number = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, scores, BINS) / number
        accuracy = np.bincount(bins, tp, BINS) / number
    error = float(np.nansum(number * np.abs(mean - accuracy)) / len(scores)) if len(scores) else np.nan
    return {"edges": edges, "number": number, "score": mean, "accuracy": accuracy, "error": error}


@dataclass(frozen=True)
class Scaling:
    """Platt scaling: a score's logit is divided by ``temperature``, ``shift`` is added; 1 and 0 change nothing."""

    temperature: float = 1.0
    shift: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores in 0..1, in the same order."""
        return _sigmoid(_logit(np.asarray(scores, dtype=np.float64)) / self.temperature + self.shift)


def fit(scores: np.ndarray, tp: np.ndarray) -> Scaling | None:
    """The scaling of maximum likelihood, by Newton's method; None where there are too few outcomes to fit.

    The scores of a dense detector are wrong by a factor of their odds as often as by their spread, which is why a shift
    is fitted, too.
    """
    if len(scores) < 10 or tp.all() or not tp.any():
        return None
    x = np.stack([_logit(scores), np.ones(len(scores))], axis=1)
    w = np.array([1.0, 0.0])
    for _ in range(50):
        q = _sigmoid(x @ w)
        gradient = x.T @ (q - tp) + 1e-3 * (w - [1, 0])
        hessian = (x * (q * (1 - q))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        w = w - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return Scaling(float(1 / max(w[0], 0.05)), float(w[1]))


def type_shares(probabilities: np.ndarray) -> np.ndarray:
    """The share of each type [K], summing to 1, from probabilities [N, K] of a classifier that learned all types
    equally often: by expectation maximisation (Saerens, Latinne and Decaestecker 2002)."""
    number, types = probabilities.shape
    shares = np.full(types, 1 / types)
    for _ in range(ROUNDS if number else 0):
        joint = probabilities * shares
        expected = (joint / joint.sum(1, keepdims=True)).sum(0)
        shares = (expected + SMOOTHING * number) / (number * (1 + SMOOTHING * types))
    return shares


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, EPS, 1 - EPS)
    return np.log(p / (1 - p))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
