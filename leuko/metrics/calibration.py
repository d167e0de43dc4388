"""Whether a score of .8 is right four times out of five: reliability, expected calibration error, temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .matching import Matches

BINS = 10
LEAST_SCORE = 0.05  # detections below it are not worth calibrating
EPS = 1e-6


@dataclass(frozen=True)
class Reliability:
    """Bins of the score: edges [11], detections [10], their mean score and the share of true ones (nan where none is),
    and the expected calibration error over all."""

    edges: np.ndarray
    number: np.ndarray
    score: np.ndarray
    accuracy: np.ndarray
    error: float


def outcomes(matches: Sequence[Matches], threshold: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Score and whether it is true (at this place of ``IOUS``) of every detection that counts, from ``LEAST_SCORE``."""
    score = np.concatenate([m.score for m in matches])
    true = np.concatenate([m.true[threshold] for m in matches])
    counted = np.concatenate([~m.ignored[threshold] for m in matches]) & (score >= LEAST_SCORE)
    return score[counted].astype(np.float64), true[counted]


def reliability(score: np.ndarray, true: np.ndarray) -> Reliability:
    """Ten even bins of the score; ECE is the mean of |score - accuracy| over the detections (Guo et al. 2017)."""
    edges = np.linspace(0, 1, BINS + 1)
    bin_of = np.clip(np.digitize(score, edges) - 1, 0, BINS - 1)
    number = np.bincount(bin_of, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_of, score, BINS) / number
        accuracy = np.bincount(bin_of, true, BINS) / number
    some = number > 0
    error = float((number[some] * np.abs(mean - accuracy)[some]).sum() / number.sum()) if len(score) else np.nan
    return Reliability(edges, number, mean, accuracy, error)


@dataclass(frozen=True)
class Scaling:
    """A score's logit divided by ``temperature`` and moved by ``shift`` (Platt); 1 and 0 leave it as it is."""

    temperature: float = 1.0
    shift: float = 0.0

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """Calibrated scores in 0..1; their order stays."""
        p = np.clip(np.asarray(score, dtype=np.float64), EPS, 1 - EPS)
        return 1 / (1 + np.exp(-(np.log(p / (1 - p)) / self.temperature + self.shift)))


def fit(score: np.ndarray, true: np.ndarray, steps: int = 50) -> Scaling | None:
    """The scaling of the largest likelihood, by Newton's method; None where there is too little to learn from.

    A detector's scores are off by a factor of the odds as often as by their spread, so that a shift is fitted, too.
    """
    if len(score) < 10 or true.all() or not true.any():
        return None
    p = np.clip(score, EPS, 1 - EPS)
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], axis=1)
    w = np.array([1.0, 0.0])
    for _ in range(steps):
        q = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (q - true) + 1e-3 * (w - [1, 0])
        hessian = (x * (q * (1 - q))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        w = w - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return Scaling(float(1 / max(w[0], 0.05)), float(w[1]))
