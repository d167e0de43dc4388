"""Splits that are stratified by type and keep whole groups (smears, patients) together: ``leuko data split``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import LeukoError
from ...io import read_text, write_yaml
from ..dataset import Dataset, Sample
from ..formats import FORMATS
from .folder import building, read_source, write_warnings

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}
FEW = 1 << 15  # up to so many divisions all are tried
RESTARTS = 4  # random divisions that are improved; the best is kept
TRIES = 20_000  # moves and exchanges of groups that are tried on each


def split(
    src: str | Path,
    dst: str | Path,
    ratios: Sequence[float] = (4, 1),
    *,
    names: Sequence[str] = (),
    folds: int = 0,
    group_by: str = "",
    seed: int = 0,
    force: bool = False,
) -> dict[str, Dataset]:
    """Divide a data set anew and write it in its own format, images linked; returns the splits. What reading fixes is
    written fixed, and listed in ``warnings.txt``.

    Args:
        src: the data set; all its splits are taken together, an image that is in several of them once.
        dst: the folder to make. It appears when all is done, or not at all.
        ratios: the wanted share of each split, in any unit.
        names: the splits' names; by default train and test, or train, val and test.
        folds: instead of ``ratios``, make so many equal parts, and data YAMLs ``fold1.yaml`` ... that validate on one
            part each and train on the others.
        group_by: which images belong together, in addition to the data set's own groups: a CSV file with the columns
            ``image`` and ``group``, or a regular expression that is searched in each image's path, whose first bracket
            (or all of it) is the group.
        seed: which of equally good divisions is taken.
        force: replace a data set that is in ``dst``.

    Raises:
        LeukoError: an argument is out of range, an image has no group, there are fewer groups than splits, or the
            data set cannot be read or written.
    """
    if folds:
        ratios, names = [1.0] * folds, [f"part{i}" for i in range(1, folds + 1)]
    names = list(names) or list(NAMES.get(len(ratios), ()))
    _check(ratios, names, folds)
    form, datasets = read_source(src, dst, names=names)
    merged = merge(datasets)
    if group_by:
        groups = join([s.group for s in merged.samples], _groups(merged.samples, group_by))
        for sample, group in zip(merged.samples, groups, strict=True):
            sample.group = group
    part = divide(merged, ratios, seed)
    parts = {
        name: replace(merged, samples=[merged.samples[k] for k in np.flatnonzero(part == i)])
        for i, name in enumerate(names)
    }
    with building(dst, force) as folder:
        for name, dataset in parts.items():
            FORMATS[form].write(dataset, folder, name)
        write_warnings(folder, datasets)
        places = [FORMATS[form].PART.format(split=name) for name in names]
        for i in range(folds):
            content = {"path": ".", "train": places[:i] + places[i + 1 :], "val": places[i]}
            write_yaml(folder / f"fold{i + 1}.yaml", content | {"names": merged.types, "format": form})
    return parts


def _check(ratios: Sequence[float], names: Sequence[str], folds: int) -> None:
    if folds == 1 or folds < 0:
        raise LeukoError(f"--folds {folds}: give at least 2")
    if len(ratios) < 2 or not all(0 < r < float("inf") for r in ratios):
        shown = ":".join(f"{r:g}" for r in ratios)
        raise LeukoError(f"--ratios {shown}: give two or more numbers above 0, such as 4:1")
    if len(names) != len(ratios) or len(set(names)) != len(names):
        raise LeukoError(f"--names: give {len(ratios)} different names for {len(ratios)} splits, separated by commas")
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise LeukoError(f'--names: "{name}" is not a plain name; use letters, digits, - and _')


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
    if group_by.lower().endswith(".csv"):
        by_path, where = _read_groups(Path(group_by)), group_by
        groups = [_by_path(s.image, by_path) for s in samples]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise LeukoError(f"--group-by {group_by}: not a regular expression ({error}), nor a .csv file") from error
        hits = [pattern.search(s.image.as_posix()) for s in samples]
        groups = [((hit[1] if pattern.groups else hit[0]) or "") if hit else "" for hit in hits]
        where = f"--group-by {group_by}"
    if "" in groups:
        missing, number = samples[groups.index("")].image, groups.count("")
        raise LeukoError(f"{where}: gives no group to {missing} ({number} of {len(samples)} images); correct it")
    return groups


def _read_groups(file: Path) -> dict[tuple[str, ...], str]:
    """The groups of a CSV file by the parts of the images' paths."""
    reader = csv.DictReader(io.StringIO(read_text(file), newline=None))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise LeukoError(f"{file}: line {reader.reader.line_num}: broken CSV: {error}; save it again") from error
    if not rows or not {"image", "group"} <= set(rows[0]):
        raise LeukoError(f"{file}: has no columns image and group; give them in its first line")
    by_path: dict[tuple[str, ...], str] = {}
    for row in rows:
        path, group = PurePosixPath((row["image"] or "").replace("\\", "/")).parts, (row["group"] or "").strip()
        if by_path.setdefault(path, group) != group:
            raise LeukoError(f"{file}: {row['image']} has two groups, {by_path[path]} and {group}; keep one")
    return by_path


def _by_path(image: Path, by_path: dict[tuple[str, ...], str]) -> str:
    """The group of the longest path in ``by_path`` with which the image's path ends; "" without any."""
    parts = image.absolute().parts
    return next((by_path[parts[i:]] for i in range(len(parts)) if parts[i:] in by_path), "")


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

    The cells of each type, the images and the groups come as near to the wanted shares as was found: with few groups
    every division is tried, else random ones are improved by moving and exchanging groups.
    """
    keys = [s.group or f"\0{i}" for i, s in enumerate(dataset.samples)]
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([index[key] for key in keys])
    if len(index) < len(ratios):
        raise LeukoError(f"{len(index)} groups cannot be divided into {len(ratios)} splits; give fewer")
    counts = np.zeros((len(index), len(dataset.types) + 2))
    counts[:, -1] = 1
    for sample, g in zip(dataset.samples, group, strict=True):
        counts[g, :-2] += np.bincount(sample.labels[~sample.crowd], minlength=len(dataset.types))
        counts[g, -2] += 1
    targets = np.outer(ratios, counts.sum(0)) / sum(ratios)  # [splits, columns]
    rng = np.random.default_rng(seed)
    if len(ratios) ** len(counts) <= FEW:
        return _best_of_all(counts, targets, rng)[group]
    found = [_improved(counts, targets, rng) for _ in range(RESTARTS)]
    return min(found, key=lambda part: cost(part, counts, targets))[group]


def cost(part: np.ndarray, counts: np.ndarray, targets: np.ndarray) -> float:
    """How far a division is from the targets: the squared differences over the targets, summed (as in a chi-square).

    part [G] is the split of each group, counts [G, columns] what a group holds, targets [splits, columns].
    """
    sums = np.stack([counts[part == split].sum(0) for split in range(len(targets))])
    return float(((sums - targets) ** 2 / np.maximum(targets, 1e-9)).sum())


def _best_of_all(counts: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The division of least :func:`cost` of all that leave no split empty; among equals a random one."""
    splits, groups = len(targets), len(counts)
    every = np.stack(np.unravel_index(np.arange(splits**groups), (splits,) * groups), axis=1)
    is_in = every[:, :, None] == np.arange(splits)  # [divisions, groups, splits]
    every, is_in = (a[is_in.any(1).all(1)] for a in (every, is_in))
    sums = np.einsum("dgs,gc->dsc", is_in, counts)
    costs = ((sums - targets) ** 2 / np.maximum(targets, 1e-9)).sum((1, 2))
    return every[rng.choice(np.flatnonzero(costs <= costs.min() + 1e-9))]


def _improved(counts: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random division in which groups were moved, and pairs exchanged, wherever that lowers the :func:`cost`."""
    splits, groups = len(targets), len(counts)
    part = rng.choice(splits, groups, p=targets[:, -1] / targets[:, -1].sum())
    part[rng.permutation(groups)[:splits]] = np.arange(splits)  # no split is empty
    size = np.bincount(part, minlength=splits)
    excess = np.stack([counts[part == split].sum(0) for split in range(splits)]) - targets
    weight = 1 / np.maximum(targets, 1e-9)
    tries = np.column_stack([rng.integers(0, groups, (TRIES, 2)), rng.integers(0, splits, TRIES)])
    for a, b, target in tries.tolist():
        is_move = part[a] == part[b]
        here, there = part[a], target if is_move else part[b]
        if here == there or (is_move and size[here] == 1):
            continue
        change = counts[a] if is_move else counts[a] - counts[b]  # from here to there
        gain = ((2 * excess[there] + change) * change * weight[there]).sum()
        gain += ((change - 2 * excess[here]) * change * weight[here]).sum()
        if gain < -1e-9:
            excess[here] -= change
            excess[there] += change
            part[a] = there
            if is_move:
                size[here], size[there] = size[here] - 1, size[there] + 1
            else:
                part[b] = here
    return part
