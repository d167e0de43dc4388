"""How frequent each type is at a centre, by the probabilities that a classifier gives to cells without labels."""

from __future__ import annotations

import numpy as np

SMOOTHING = 0.05  # of all cells, added to each type: none is taken for absent
ROUNDS = 60


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
