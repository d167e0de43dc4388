"""The differential count (cells of each type, and their share of all), and how well it agrees with the labels'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from ..cells import beside
from ..data.dataset import Dataset
from ..detections import Detections
from .binomial import percent_of
from .counting import second_types

NEAR = 0.2  # times the threshold: a score this close to it, or to that of another type, is doubtful
REFERENCE = 400  # cells of CLSI H20's reference differential: two examiners of 200 each
MAX_NAMED = 3  # types that a verdict names, those that are off the most
MIN_GROUPS, MIN_CELLS = 5, 100
"""Groups, and labelled cells of each, that Bland and Altman's limits take at least: in fewer than 100 cells, a share of
a half is off by 10 points by chance alone, and a standard deviation of fewer than five numbers says little."""


# ---------------------------------------------------------------- the count


@dataclass(frozen=True)
class Count:
    """A count against the labels'. ``rows``: of each type, and last of all, the type, the cells labelled and found and
    their difference; the labels' percent, the percent of those found with its exact limits (low95, high95); sensitivity
    and positive predictive value (ppv) in percent with theirs. ``verdict`` is what to make of it, in words; ``agrees``
    whether the shares do, within chance; ``kappa`` is Cohen's."""

    rows: list[dict]
    verdict: str
    agrees: bool
    kappa: float

    @property
    def difference(self) -> int:
        """The sum over the types of the difference, without its sign."""
        return sum(abs(row["difference"]) for row in self.rows[:-1])


def compare_counts(confusion: np.ndarray, types: Sequence[str]) -> Count:
    """The count behind a confusion matrix [types + 1, types + 1]. A cell that is found with another type lowers the
    sensitivity of its own type and the predictive value of the other."""
    cells = np.array([confusion[:-1].sum(1), confusion[:, :-1].sum(0), np.diag(confusion)[:-1]])  # [3, types]
    in_all = cells.sum(1)
    rows = []
    for name, of_type in zip([*beside(types, ["all"]), "all"], [*cells.T, in_all], strict=True):
        labelled, found, correct = of_type.tolist()
        row = {"type": name, "labelled": labelled, "found": found, "difference": found - labelled}
        row["labelled_percent"] = percent_of(labelled, int(in_all[0]))[0]
        row |= _limits("percent", "", found, int(in_all[1]))
        row |= _limits("sensitivity", "sensitivity_", correct, labelled) | _limits("ppv", "ppv_", correct, found)
        rows.append(row)
    rows[-1] |= dict.fromkeys(("labelled_percent", "percent", "low95", "high95"), nan)  # 100, and not by chance
    return Count(rows, *_verdict(*rows), kappa(confusion))


def _limits(name: str, prefix: str, n: int, total: int) -> dict[str, float]:
    return dict(zip((name, f"{prefix}low95", f"{prefix}high95"), percent_of(n, total), strict=True))


def _verdict(*rows: dict) -> tuple[str, bool]:
    """Whether the labels' percent of each type lies within the limits of the percent that was found; in words, too."""
    *of_types, in_all = rows
    n, labelled = in_all["found"], in_all["labelled"]
    if not n or not labelled:
        return f"{n:,} cells are found where {labelled:,} are labelled: there is no differential to compare.", False
    outside = [row for row in of_types if not row["low95"] <= row["labelled_percent"] <= row["high95"]]
    cells = f"{n:,} cells gives" if n > 1 else "one cell gives"
    limits = f"within the limits that counting {cells} anyway (Rümke; CLSI H20)"
    found = f"{n:,} cells are found where {labelled:,} are labelled."
    if not outside:
        return f"The differential is {limits}. {found}", True
    outside.sort(key=lambda row: -abs(row["percent"] - row["labelled_percent"]))
    about = "{type} is {percent:.1f} % where {labelled_percent:.1f} % is labelled, limits {low95:.1f} to {high95:.1f} %"
    verdict = f"The differential is not {limits}: {_named([about.format(**row) for row in outside], '; ')}."
    if n > REFERENCE:
        wider = {row["type"]: percent_of(round(row["percent"] * REFERENCE / 100), REFERENCE) for row in outside}
        beyond = [r["type"] for r in outside if not wider[r["type"]][1] <= r["labelled_percent"] <= wider[r["type"]][2]]
        reference = f"those of the {REFERENCE} cells that the reference counts (two examiners of 200 each)"
        verdict += (
            f" Nor is it within {reference}: {_named(beyond, ', ')}." if beyond else f" It is within {reference}."
        )
    return f"{verdict} {found}", False


def _named(texts: Sequence[str], comma: str) -> str:
    """The first few of what is said of types, and how many there are more."""
    more = len(texts) - MAX_NAMED
    return comma.join([*texts[:MAX_NAMED], *([f"and {more} more type{'s' * (more > 1)}"] if more > 0 else [])])


# ---------------------------------------------------------------- agreement of counts


def _cells(cells: Iterable[Detections], types: int) -> np.ndarray:
    """Cells per image and type, [images, types] int."""
    return np.array([np.bincount(found.labels, minlength=types) for found in cells], dtype=int).reshape(-1, types)


def group_counts(dataset: Dataset, cells: Sequence[Detections]) -> tuple[dict[str, int], np.ndarray]:
    """The groups of images (slides, patients), in the order of their first image, with their numbers of images; and
    their cells of each type by label and as found, [groups, 2, types] int. Images without a group are left out."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(dataset.samples):
        if sample.group:
            groups.setdefault(sample.group, []).append(i)
    counts = np.stack([dataset.counts_per_image(), _cells(cells, len(dataset.types))], axis=1)
    of_groups = np.array([counts[at].sum(0) for at in groups.values()], dtype=int)
    return {name: len(at) for name, at in groups.items()}, of_groups.reshape(-1, *counts.shape[1:])


def large_groups(cells: np.ndarray) -> tuple[np.ndarray, str]:
    """The groups [groups, 2, types] whose shares can be compared (see ``MIN_CELLS``); or none, and a sentence why."""
    large = cells[(cells[:, 0].sum(1) >= MIN_CELLS) & (cells[:, 1].sum(1) > 0)]
    if len(large) >= MIN_GROUPS:
        return large, ""
    needed = f"agreement by slide or patient takes {MIN_GROUPS} of at least {MIN_CELLS} labelled cells each"
    if not len(cells):
        return cells, f"The data names no slides or patients (groups); {needed}."
    return cells[:0], f"{len(large)} of the {len(cells)} slides or patients are large enough; {needed}."


def shares(cells: np.ndarray) -> np.ndarray:
    """Each type's share of the cells [..., types] in percent; nan if there is no cell."""
    total = cells.sum(-1, keepdims=True)
    return 100 * cells / np.where(total, total, nan)


def bland_altman(cells: np.ndarray, types: Sequence[str]) -> list[dict]:
    """How the shares of each type agree over the groups that have cells by label and by prediction, ``cells`` [groups,
    2, types]: a row per type of type, bias (mean difference, prediction minus label, in percentage points), low and
    high (the limits of agreement, bias -+ 1.96 standard deviations), Pearson's correlation, and the number of groups;
    nan where there are too few."""
    percent = shares(cells)
    percent = percent[np.isfinite(percent).all((1, 2))]
    n = len(percent)
    rows = []
    for name, (labelled, predicted) in zip(types, percent.transpose(2, 1, 0), strict=True):
        gap = predicted - labelled
        bias, limit = gap.mean() if n else nan, 1.96 * gap.std(ddof=1) if n > 1 else nan
        varies = n > 2 and labelled.std() > 0 and predicted.std() > 0
        correlation = np.corrcoef(labelled, predicted)[0, 1] if varies else nan
        limits = {"bias": bias, "low": bias - limit, "high": bias + limit}
        rows.append({"type": name, **limits, "correlation": correlation, "groups": n})
    return rows


def kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa of the types of the cells that were found, from a confusion matrix [types + 1, types + 1]; nan if
    there is none."""
    table = confusion[:-1, :-1].astype(float)
    n = table.sum()
    if not n:
        return nan
    agreed, chance = np.trace(table) / n, (table.sum(0) @ table.sum(1)) / n**2
    return float((agreed - chance) / (1 - chance)) if chance < 1 else nan


def review_queue(
    dataset: Dataset,
    predictions: Sequence[Detections],
    members: Sequence[Sequence[Detections]],
    thresholds: Sequence[float],
    score: float = 0.5,
) -> list[dict]:
    """Images that a person should look at, the most doubtful first: image, group, doubt (0..1), why.

    Doubtful is a cell whose score is near ``score``, or near that of another type, and a number of cells of a type on
    which the members of an ensemble disagree. A member's cells count above a threshold of its own, since members'
    scores differ in scale. All are of ``counting.one_type``.
    """
    above = [[cells.above(t) for cells in m] for m, t in zip(members, thresholds, strict=True)]
    counts = [_cells(m, len(dataset.types)) for m in above]
    spreads = np.ptp(counts, axis=0).sum(1) if counts else np.zeros(len(dataset), int)
    rows = []
    for sample, cells, spread in zip(dataset.samples, predictions, spreads.tolist(), strict=True):
        second, others = second_types(cells)
        near = NEAR * max(score, 0.01)
        reasons = [(near, "")]
        for best, of_best, of_other, other in zip(cells.scores, cells.labels, others, second, strict=True):
            reasons.append((abs(best - score), f"a score of {best:.2f}"))
            if best >= score and other >= 0:
                both = f"{dataset.types[of_best]} {best:.2f} or {dataset.types[other]} {of_other:.2f}"
                reasons.append((best - of_other, both))
        gap, reason = min(reasons)
        by_score = round(float(1 - gap / near), 3)
        why = [reason] if by_score > 0 else []
        why += [f"members differ by {spread} cell{'s' * (spread > 1)}"] if spread else []
        if why:
            doubt = max(by_score, round(spread / (spread + 1), 3))
            rows.append({"image": str(sample.image), "group": sample.group, "doubt": doubt, "why": "; ".join(why)})
    return sorted(rows, key=lambda row: -row["doubt"])
