"""Results by interference factor (Li et al. 2022, Figure 4 and Supplementary Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cells import CELL_FACTORS, FACTORS
from .binomial import percent_of
from .confusion import Pairing

IMPURITIES = ("dye_residue", "cell_debris", "dust")


def rate(factor: str, measure: str, hits: Sequence[bool] | np.ndarray) -> dict:
    """A row: how many of ``hits`` [total] bool are true, in percent, and its exact 95 % limits; nan without any."""
    n = int(np.sum(hits))
    percent, low, high = percent_of(n, len(hits))
    about = {"factor": factor, "measure": measure, "hits": n, "total": len(hits)}
    return {**about, "percent": percent, "low": low, "high": high}


def by_factor(pairings: Sequence[Pairing]) -> list[dict]:
    """The rates of each factor that the data set notes; [] if it notes none.

    Cell accuracy: correct cells of those with the factor (a factor of cells), or of those on images with it (a factor
    of images). Image accuracy: images with every cell correct and no extra detection, of the images with the factor (on
    the image or on a cell). Impurity ratio: images with an extra detection, of those with an impurity (``impurity`` is
    the three of them together); lower is better.
    """
    noted = [set(p.sample.factors).union(*p.sample.cell_factors) for p in pairings]
    found = set().union(*noted)
    rows = []
    for name in [f for f in FACTORS if f in found] + sorted(found - set(FACTORS)):
        images = [p for p, names in zip(pairings, noted, strict=True) if name in names]
        cells = [~p.sample.crowd for p in images]
        tagged = [~p.sample.crowd & np.array([name in f for f in p.sample.cell_factors], dtype=bool) for p in images]
        if name in CELL_FACTORS or (name not in FACTORS and np.concatenate(tagged).any()):
            cells = tagged
        correct = [p.correct[of_image] for p, of_image in zip(images, cells, strict=True)]
        right = [p.correct[~p.sample.crowd].all() and not p.extra.size for p in images]
        rows.append(rate(name, "cell accuracy", np.concatenate(correct)))
        rows.append(rate(name, "image accuracy", right))
        if name in IMPURITIES:
            rows.append(rate(name, "impurity ratio", [p.extra.size > 0 for p in images]))
    impure = [p.extra.size > 0 for p, names in zip(pairings, noted, strict=True) if names & set(IMPURITIES)]
    return rows + ([rate("impurity", "impurity ratio", impure)] if impure else [])
