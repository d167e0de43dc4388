"""Exact limits of a share (Clopper and Pearson 1934), which Rümke's tables (1985) and CLSI H20 give for the
differential: how far a percentage can be off because only so many cells were counted."""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, nan

LEVEL = 0.95
_STEPS, _TERMS = 60, 300  # of the bisection, and of the continued fraction


@lru_cache(maxsize=4096)
def percent_of(n: int, total: int) -> tuple[float, float, float]:
    """``n`` of ``total`` in percent, and the limits of its 95 % interval; nan if ``total`` is 0."""
    if total == 0:
        return nan, nan, nan
    tail = (1 - LEVEL) / 2
    low = 0.0 if n == 0 else _beta_quantile(tail, n, total - n + 1)
    high = 1.0 if n == total else _beta_quantile(1 - tail, n + 1, total - n)
    return 100 * n / total, 100 * low, 100 * high


def _beta_quantile(p: float, a: int, b: int) -> float:
    """The x at which the beta distribution's cumulative probability is ``p``."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < p else (low, middle)
    return (low + high) / 2


def _beta_cdf(x: float, a: int, b: int) -> float:
    """The regularised incomplete beta function, by Lentz's continued fraction (Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, _TERMS):
        for term in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), None):
            if term is None:
                term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
            d, c = 1 / (1 + term * d), 1 + term / c
            result *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return front * result
