"""Splits that are stratified by type and keep whole groups (smears, patients) together: ``leuko data split``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from ...errors import LeukoError
from ...io import read_text, write_text
from .. import source
from ..dataset import Dataset, Sample
from .convert import WRITERS, check_apart, check_names, list_warnings, load_all
from .folder import building

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}
FEW = 1 << 15  # divisions: so many are all tried
RESTARTS = 4  # orders in which the groups are dealt out; the best is kept
TRIES = 20_000  # exchanges of groups that are tried after dealing


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
    """Divide a data set anew and write it in its own format, images linked; returns the splits. What reading mends is
    written mended, and listed in ``warnings.txt``.

    Args:
        src: the data set; all its splits are taken together, an image that stands in several of them once.
        dst: the folder to make. It appears when all is done, or not at all.
        ratios: the wished share of each split, in any unit.
        names: the splits' names; by default train and test, or train, val and test.
        folds: instead of ``ratios``, make so many equal parts, and data YAMLs ``fold1.yaml`` ... that validate on one
            part each and train on the others.
        group_by: which images belong together, beside what the data set says: a CSV file with the columns ``image``
            and ``group``, or a regular expression that is searched in each image's path, whose first bracket (or all
            of it) is the group.
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
    form = source.find(src).format
    check_names(names, form)
    datasets = load_all(src)
    check_apart(src, dst, datasets)
    merged = merge(datasets)
    if group_by:
        given = _groups(merged.samples, group_by)
        for sample, group in zip(merged.samples, joined([s.group for s in merged.samples], given), strict=True):
            sample.group = group
    part = divide(merged, ratios, seed)
    parts = {
        name: replace(merged, samples=[s for s, p in zip(merged.samples, part, strict=True) if p == i], warnings=[])
        for i, name in enumerate(names)
    }
    with building(dst, force) as folder:
        for name, dataset in parts.items():
            WRITERS[form](dataset, folder, name)
        list_warnings(folder, datasets)
        for i in range(folds):
            write_text(folder / f"fold{i + 1}.yaml", _fold(form, merged.types, names, i))
    return parts


def _check(ratios: Sequence[float], names: Sequence[str], folds: int) -> None:
    if folds == 1 or folds < 0:
        raise LeukoError(f"--folds {folds}: give at least 2")
    if len(ratios) < 2 or not all(0 < r < float("inf") for r in ratios):
        raise LeukoError(
            f"--ratios {':'.join(f'{r:g}' for r in ratios)}: give two or more numbers above 0, such as 4:1"
        )
    if len(names) != len(ratios) or len(set(names)) != len(names):
        raise LeukoError(f"--names: give {len(ratios)} different names for {len(ratios)} splits, with commas between")
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise LeukoError(f'--names: "{name}" is no plain name; use letters, digits, - and _')


def merge(datasets: dict[str, Dataset]) -> Dataset:
    """All splits as one data set, each image once; ids are given anew where they are not unique.

    Raises LeukoError for an image that two splits label differently.
    """
    first = next(iter(datasets.values()))
    found: dict[Path, tuple[str, Sample]] = {}
    for name, dataset in datasets.items():
        for sample in dataset.samples:
            other, before = found.setdefault(sample.image.resolve(), (name, sample))
            if _cells(sample) != _cells(before):
                remedy = "write a data YAML that names the splits to take"
                raise LeukoError(f"{sample.image}: is labelled differently in {other} and in {name}; {remedy}")
    samples = [sample for _, sample in found.values()]
    if len({s.id for s in samples}) < len(samples):
        samples = [replace(s, id=number) for number, s in enumerate(samples, 1)]
    return replace(first, samples=samples)


def _cells(sample: Sample) -> list[tuple]:
    """What is labelled on an image, whatever its order."""
    return sorted(zip(sample.labels.tolist(), sample.crowd.tolist(), sample.boxes.tolist(), strict=True))


def _groups(samples: Sequence[Sample], group_by: str) -> list[str]:
    """Each image's group by a CSV file or a regular expression."""
    if group_by.lower().endswith(".csv"):
        file = Path(group_by)
        reader = csv.DictReader(io.StringIO(read_text(file), newline=None))
        try:
            rows = list(reader)
        except csv.Error as error:
            raise LeukoError(f"{file}: line {reader.reader.line_num}: broken CSV: {error}; save it anew") from error
        if not rows or not {"image", "group"} <= set(rows[0]):
            raise LeukoError(f"{file}: has no columns image and group; give them in its first line")
        of_path: dict[tuple[str, ...], str] = {}
        for row in rows:
            path, group = PurePosixPath((row["image"] or "").replace("\\", "/")).parts, (row["group"] or "").strip()
            if of_path.setdefault(path, group) != group:
                raise LeukoError(f"{file}: {row['image']} has two groups, {of_path[path]} and {group}; keep one")
        found, where = [_by_path(s.image, of_path) for s in samples], str(file)
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise LeukoError(f"--group-by {group_by}: no regular expression ({error}), and no .csv file") from error
        hits = [pattern.search(s.image.as_posix()) for s in samples]
        found = [((hit[1] if pattern.groups else hit[0]) or "") if hit else "" for hit in hits]
        where = f"--group-by {group_by}"
    if "" in found:
        missing = samples[found.index("")].image
        raise LeukoError(f"{where}: gives no group to {missing} ({found.count('')} of {len(samples)} images); mend it")
    return found


def _by_path(image: Path, groups: dict[tuple[str, ...], str]) -> str:
    """The group of the longest path in ``groups`` with which the image's path ends; "" without any."""
    parts = image.absolute().parts
    return next((groups[parts[i:]] for i in range(len(parts)) if parts[i:] in groups), "")


def joined(own: Sequence[str], given: Sequence[str]) -> list[str]:
    """Groups that keep together what belongs together by the data set's own groups ("" is none) or by the given ones.

    Each is named by the given groups in it, with + between.
    """
    members: dict[str, set[str]] = {name: {name} for name in given}
    of_own: dict[str, str] = {}
    for mine, name in zip(own, given, strict=True):
        other = of_own.setdefault(mine, name) if mine else name
        if members[name] is not members[other]:
            members[name] |= members[other]
            for each in members[name]:
                members[each] = members[name]
    return ["+".join(sorted(members[name])) for name in given]


def divide(dataset: Dataset, ratios: Sequence[float], seed: int = 0) -> np.ndarray:
    """Which split each image goes to: [images] int, whole groups together, an image without group alone.

    Cells of each type, images, and groups come as near to the wished shares as was found. With few groups every
    division is tried; else groups are dealt out, large ones first, each to where it is wanted most, and then exchanges
    that bring the counts nearer are made.
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
    share = np.array(ratios, dtype=float) / sum(ratios)
    wish = share[:, None] * counts.sum(0)  # [splits, columns]
    rng = np.random.default_rng(seed)
    if len(wish) ** len(counts) <= FEW:
        return _best_of_all(counts, wish, rng)[group]
    found = [_improve(_deal(counts, wish, rng), counts, wish, rng) for _ in range(RESTARTS)]
    return min(found, key=lambda part: cost(part, counts, wish))[group]


def cost(part: np.ndarray, counts: np.ndarray, wish: np.ndarray) -> float:
    """How far a division is from the wish: the squared differences over the wish, summed (as in a chi-square).

    part [G] is the split of each group, counts [G, columns] what a group brings, wish [splits, columns].
    """
    have = np.stack([counts[part == split].sum(0) for split in range(len(wish))])
    return float(((have - wish) ** 2 / np.maximum(wish, 1e-9)).sum())


def _best_of_all(counts: np.ndarray, wish: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The division of least :func:`cost` of all that leave no split empty; among equals at random."""
    every = np.stack(np.unravel_index(np.arange(len(wish) ** len(counts)), (len(wish),) * len(counts)), axis=1)
    there = every[:, :, None] == np.arange(len(wish))  # [divisions, groups, splits]
    every, there = (a[there.any(1).all(1)] for a in (every, there))
    have = np.einsum("dgs,gc->dsc", there, counts)
    costs = ((have - wish) ** 2 / np.maximum(wish, 1e-9)).sum((1, 2))
    return every[rng.choice(np.flatnonzero(costs <= costs.min() + 1e-9))]


def _deal(counts: np.ndarray, wish: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal out the groups, the largest first; among equals at random."""
    rarity = counts / np.maximum(counts.sum(0), 1)
    order = np.lexsort([rng.random(len(counts)), -rarity.sum(1)])
    part, have = np.zeros(len(counts), dtype=int), np.zeros_like(wish)
    weight = 1 / np.maximum(wish, 1e-9)
    for g in order:
        gain = ((2 * (have - wish) + counts[g]) * counts[g] * weight).sum(1)
        part[g] = gain.argmin()
        have[part[g]] += counts[g]
    for split in range(len(wish)):  # none stays empty
        if not (part == split).any():
            part[np.flatnonzero(part == np.bincount(part).argmax())[-1]] = split
    return part


def _improve(part: np.ndarray, counts: np.ndarray, wish: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move groups, and exchange pairs, as long as that brings the counts nearer to the wish."""
    part, size = part.copy(), np.bincount(part, minlength=len(wish))
    have = np.stack([counts[part == split].sum(0) for split in range(len(wish))])
    weight = 1 / np.maximum(wish, 1e-9)
    pairs = rng.integers(0, len(part), (TRIES, 2))
    targets = rng.integers(0, len(wish), TRIES)
    for (a, b), target in zip(pairs.tolist(), targets.tolist(), strict=True):
        moved = a == b or part[a] == part[b]
        here, there = part[a], target if moved else part[b]
        if here == there or (moved and size[here] == 1):
            continue
        change = counts[a] if moved else counts[a] - counts[b]  # what goes from here to there
        gain = ((2 * (have[there] - wish[there]) + change) * change * weight[there]).sum()
        gain += ((2 * (wish[here] - have[here]) + change) * change * weight[here]).sum()
        if gain < -1e-9:
            have[here] -= change
            have[there] += change
            part[a] = there
            if moved:
                size[here], size[there] = size[here] - 1, size[there] + 1
            else:
                part[b] = here
    return part


def _fold(form: str, types: Sequence[str], names: Sequence[str], number: int) -> str:
    """The data YAML of one fold."""
    place = {"coco": "{}.json", "voc": "ImageSets/Main/{}.txt", "yolo": "images/{}"}[form]
    parts = [place.format(name) for name in names]
    content = {"path": ".", "train": parts[:number] + parts[number + 1 :], "val": parts[number]}
    content |= {"names": list(types), "format": form}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def check_groups(groups: dict[str, set[str]], data: str | Path) -> None:
    """Raise LeukoError where a group has images in two splits, since what is measured then is memory.

    ``groups`` holds the groups of each split by its name (see ``source.groups``).
    """
    for (a, ours), (b, theirs) in combinations(groups.items(), 2):
        if shared := sorted(ours & theirs):
            raise LeukoError(
                f"{data}: {len(shared)} groups have images in {a} and in {b}, such as {shared[0]}; divide the data "
                "anew by leuko data split, or give --allow-leaks"
            )
