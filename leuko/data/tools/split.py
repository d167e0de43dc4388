"""Splits that are stratified by type and keep whole groups (smears, patients) together: ``leuko data split``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError
from ...io import write_yaml
from ..config import SplitOptions
from ..dataset import Dataset, Sample
from ..formats import FORMATS
from ..per_image import read_column, value_of
from .builder import building, read_source, write_splits

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def split(src: str | Path, dst: str | Path, **options: object) -> dict[str, Dataset]:
    """Divide a data set anew and write it in its own format, images linked; returns the splits.

    ``options`` are those of ``SplitOptions``. All splits of the source are taken together, an image that is in several
    of them once. ``group_by`` is added to the data set's own groups: what belongs together by either stays together.
    With ``folds`` there are so many equal parts, and data YAMLs ``fold1.yaml`` ... that validate on one part each and
    train on the others. What reading fixes is written fixed, and listed in ``warnings.txt``. Raises LeukoError.
    """
    o = SplitOptions(src=str(src), dst=str(dst), **options)
    ratios, names = _parts(o)
    form, datasets = read_source(src, dst, names=names)
    merged = merge(datasets)
    if o.group_by:
        groups = join([s.group for s in merged.samples], _groups(merged.samples, o.group_by))
        for sample, group in zip(merged.samples, groups, strict=True):
            sample.group = group
    division = divide(merged, ratios, o.seed)
    parts = {
        name: replace(merged, samples=[s for s, part in zip(merged.samples, division, strict=True) if part == i])
        for i, name in enumerate(names)
    }
    with building(dst, o.force) as folder:
        write_splits(folder, form, parts, read=datasets)
        places = [FORMATS[form].PART.format(split=name) for name in names]
        for i in range(o.folds):
            content = {"path": ".", "train": places[:i] + places[i + 1 :], "val": places[i]}
            write_yaml(folder / f"fold{i + 1}.yaml", content | {"names": merged.types, "format": form})
    return parts


def _parts(o: SplitOptions) -> tuple[list[float], list[str]]:
    """The wanted shares and the names of the splits; raises LeukoError naming the option that cannot be used."""
    if o.folds == 1 or o.folds < 0:
        raise LeukoError(f"--folds {o.folds}: give at least 2")
    try:
        ratios = [1.0] * o.folds or [float(text) for text in o.ratios.split(":")]
    except ValueError as error:
        raise LeukoError(f"--ratios {o.ratios}: give numbers with colons between, such as 4:1") from error
    if len(ratios) < 2 or not all(0 < r < float("inf") for r in ratios):
        raise LeukoError(f"--ratios {o.ratios}: give two or more numbers above 0, such as 4:1")
    folds = [f"part{i}" for i in range(1, o.folds + 1)]
    given = [name.strip() for name in o.names.split(",") if name.strip()]
    names = folds or given or list(NAMES.get(len(ratios), ()))
    if len(names) != len(ratios) or len(set(names)) != len(names):
        raise LeukoError(f"--names: give {len(ratios)} different names for {len(ratios)} splits, separated by commas")
    return ratios, names


def merge(datasets: dict[str, Dataset]) -> Dataset:
    """All splits as one data set, each image once; ids are given anew where they are not unique.

    Raises LeukoError for an image that two splits label differently.
    """

    def cells(sample: Sample) -> list[tuple]:
        return sorted(zip(sample.labels.tolist(), sample.crowd.tolist(), sample.boxes.tolist(), strict=True))

    unique: dict[Path, tuple[str, Sample]] = {}
    for name, dataset in datasets.items():
        for sample in dataset.samples:
            other, before = unique.setdefault(sample.image.resolve(), (name, sample))
            if cells(sample) != cells(before):
                remedy = "write a data YAML that names the splits to take"
                raise LeukoError(f"{sample.image}: is labelled differently in {other} and in {name}; {remedy}")
    samples = [sample for _, sample in unique.values()]
    if len({s.id for s in samples}) < len(samples):
        samples = [replace(s, id=number) for number, s in enumerate(samples, 1)]
    first = next(iter(datasets.values()))
    return Dataset(first.types, samples, first.category_ids)


# ---------------------------------------------------------------- groups


def _groups(samples: Sequence[Sample], group_by: str) -> list[str]:
    """Each image's group by a CSV file or a regular expression."""
    where = f"--group-by {group_by}"
    if group_by.lower().endswith(".csv"):
        by_path = read_column(Path(group_by), "group")
        groups = [value_of(by_path, sample.image) for sample in samples]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise LeukoError(f"{where}: not a regular expression ({error}), nor a .csv file") from error
        hits = [pattern.search(s.image.as_posix()) for s in samples]
        groups = [(hit[min(pattern.groups, 1)] or "") if hit else "" for hit in hits]
    if "" in groups:
        missing, number = samples[groups.index("")].image, groups.count("")
        raise LeukoError(f"{where}: gives no group to {missing} ({number} of {len(samples)} images); correct it")
    return groups


def join(own: Sequence[str], given: Sequence[str]) -> list[str]:
    """Groups that keep together what belongs together by the data set's own groups ("" is none) or by the given ones.

    Each is named by the given groups in it, with + between.
    """
    members: dict[str, set[str]] = {name: {name} for name in given}
    first: dict[str, str] = {}  # the given group in which an own group was met first
    for mine, name in zip(own, given, strict=True):
        other = first.setdefault(mine, name) if mine else name
        if members[name] is not members[other]:
            members[name] |= members[other]
            for each in members[name]:
                members[each] = members[name]
    return ["+".join(sorted(members[name])) for name in given]


# ---------------------------------------------------------------- the division


def divide(dataset: Dataset, ratios: Sequence[float], seed: int = 0) -> np.ndarray:
    """Which split each image goes to: [images] int, whole groups together, an image without group alone.

    The cells of each type, the images and the groups come as near to the wanted shares as was found, by iterated local
    search: groups are moved one by one while that lowers the :func:`cost`; then a few are moved at random, and again.
    """
    keys = [s.group or f"\0{i}" for i, s in enumerate(dataset.samples)]
    _, group = np.unique(keys, return_inverse=True)
    groups, splits = int(group.max()) + 1, len(ratios)
    if groups < splits:
        raise LeukoError(f"{groups} groups cannot be divided into {splits} splits; give fewer")
    counts = np.zeros((groups, len(dataset.types) + 2))  # of each group: cells of each type, images, and itself
    np.add.at(counts[:, :-1], group, np.column_stack([dataset.counts_per_image(), np.ones(len(dataset))]))
    counts[:, -1] = 1
    targets = np.outer(ratios, counts.sum(0)) / sum(ratios)  # [splits, columns]
    rng = np.random.default_rng(seed)
    best = _descend(rng.permutation(groups) % splits, counts, targets)
    for _ in range(min(40 * groups, 200_000 // groups)):  # few groups need few tries; with many, chance hardly matters
        part, moved = best.copy(), rng.integers(2, 7)
        part[rng.integers(0, groups, moved)] = rng.integers(0, splits, moved)
        if len(np.unique(part)) == splits:
            best = min(best, _descend(part, counts, targets), key=lambda part: cost(part, counts, targets))
    return best[group]


def cost(part: np.ndarray, counts: np.ndarray, targets: np.ndarray) -> float:
    """How far a division is from the targets: the squared differences over the targets, summed (as in a chi-square).

    part [G] is the split of each group, counts [G, columns] what a group holds, targets [splits, columns].
    """
    sums = np.eye(len(targets))[part].T @ counts
    return float(((sums - targets) ** 2 / np.maximum(targets, 1e-9)).sum())


def _descend(part: np.ndarray, counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Move groups, always the one that lowers the :func:`cost` most, as long as one does; no split becomes empty."""
    weight = 1 / np.maximum(targets, 1e-9)
    excess = np.eye(len(targets))[part].T @ counts - targets
    while True:
        # Changes of the cost: [groups, splits] where a group joins a split, [groups] where it leaves its own.
        join = (counts[:, None] * (counts[:, None] + 2 * excess) * weight).sum(2)
        leave = (counts * (counts - 2 * excess[part]) * weight[part]).sum(1)
        change = join + leave[:, None]
        change[np.arange(len(part)), part] = 0
        change[np.bincount(part)[part] == 1] = 0
        moved, there = np.unravel_index(change.argmin(), change.shape)
        if change[moved, there] > -1e-9:
            return part
        excess[part[moved]] -= counts[moved]
        excess[there] += counts[moved]
        part[moved] = there
