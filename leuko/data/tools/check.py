"""A data set's doctor: what is wrong with it, what leuko does about it, what a person has to decide.

A finding of level ``decide`` is an error, or something only a person can settle; ``mended`` is what readers mend by
themselves; ``note`` is worth a look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import LeukoError
from .. import source
from ..dataset import Dataset, Sample
from ..formats.records import Problems
from ..formats.yolo import label_folder
from ..images import is_shown_otherwise, list_images, read_image
from . import duplicates

SAME_CELL = 0.8  # IoU of two boxes that are likely one cell's
USUAL = 2.5  # times larger or smaller than a type's median cell is unusual
NEARLY_ALL = 0.9  # share of the images
FEW_CELLS = 8  # of a type, below which it has no usual size
LEVELS = ("decide", "mended", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found: ``level`` (see above), ``kind``, the split(s), the text (file, object, what leuko does)
    and the images that it is about."""

    level: str
    kind: str
    split: str
    text: str
    images: tuple[Path, ...] = ()


def check(src: str | Path, pixels: bool = True, progress: bool = False) -> tuple[dict[str, Dataset], list[Finding]]:
    """Examine a data set, all of its splits.

    Args:
        src: a folder, a COCO file or a data YAML.
        pixels: decode all images and look for duplicates, too; without it, only label files and headers are read.
        progress: show a bar on the terminal.

    Returns:
        What could be read of each split, and the findings, those that a person must decide first.

    Raises:
        LeukoError: there is no data set.
    """
    found = source.find(src)
    datasets: dict[str, Dataset] = {}
    findings: list[Finding] = []
    for split in found.splits:
        problems = Problems(collect=True)
        try:
            datasets[split] = source.load(src, split, problems=problems)
        except LeukoError as error:
            findings.append(Finding("decide", "split", split, f"{error} (the split cannot be read)"))
        for kind, messages in problems.by_kind.items():
            findings += [Finding("decide", f"error: {kind}", split, f"{text} (reading stops)") for text in messages]
    for split, dataset in datasets.items():
        findings += [
            Finding("mended", warning.action, split, str(warning), (warning.file,)) for warning in dataset.warnings
        ]
        findings += _cells(split, dataset)
        findings += _missing(split, dataset)
    findings += _classes(datasets)
    findings += _groups(src, datasets)
    findings += _orphans(found, datasets)
    if pixels:
        findings += _pixels(datasets, progress)
    return datasets, sorted(_merged(findings), key=lambda f: (LEVELS.index(f.level), f.kind))


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, with all the splits (train and trainval, say) that it stands in."""
    merged: dict[tuple, Finding] = {}
    for finding in findings:
        key = (finding.level, finding.kind, finding.text)
        if key in merged and finding.split not in merged[key].split.split(", "):
            finding = replace(finding, split=f"{merged[key].split}, {finding.split}")
        merged[key] = finding
    return list(merged.values())


def _cells(split: str, dataset: Dataset) -> Iterator[Finding]:
    """Images without cells, boxes that are nearly the same, cells of an unusual size."""
    sides = [np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(1)) for s in dataset.samples]
    usual = {}
    for k in range(len(dataset.types)):
        of_type = np.concatenate([v[s.labels == k] for v, s in zip(sides, dataset.samples, strict=True)] or [[]])
        if len(of_type) >= FEW_CELLS:
            usual[k] = float(np.median(of_type))
    for sample, side in zip(dataset.samples, sides, strict=True):
        if not len(sample.boxes):
            text = f"{sample.image}: no cell is labelled; it is learned from as background"
            yield Finding("note", "image without cells", split, text, (sample.image,))
        for i, size in enumerate(side):
            ratio = size / usual.get(int(sample.labels[i]), size)
            if not 1 / USUAL <= ratio <= USUAL and not sample.crowd[i]:
                name, median = dataset.types[sample.labels[i]], usual[int(sample.labels[i])]
                text = f"{sample.image}: {name} {_box(sample, i)} is {size:.0f} px wide, {ratio:.1f} times the usual "
                yield Finding("note", "unusual size", split, f"{text}{median:.0f}; it is kept", (sample.image,))
        for i, j in combinations(np.flatnonzero(~sample.crowd), 2):
            if _iou(sample.boxes[i], sample.boxes[j]) > SAME_CELL:
                names = [dataset.types[sample.labels[k]] for k in (i, j)]
                both = f"{names[0]} {_box(sample, i)} and {names[1]} {_box(sample, j)}"
                text = f"{sample.image}: {both} are nearly the same box; both are kept, as two cells"
                level = "note" if names[0] == names[1] else "decide"
                yield Finding(level, "nearly the same box", split, text, (sample.image,))


def _missing(split: str, dataset: Dataset) -> Iterator[Finding]:
    """Images without a cell of a class that nearly all others have: it may have been forgotten."""
    has = np.array([np.bincount(s.labels, minlength=len(dataset.types)) > 0 for s in dataset.samples])
    for k, share in enumerate(has.mean(0)):
        if NEARLY_ALL <= share < 1 and len(has) >= FEW_CELLS:
            name = dataset.types[k]
            for i in np.flatnonzero(~has[:, k]):
                image = dataset.samples[i].image
                text = f"{image}: no {name} is labelled, as on {share:.0%} of the images; what is there is background"
                yield Finding("note", "class missing on an image", split, text, (image,))


def _box(sample: Sample, i: int) -> str:
    return "[" + ", ".join(f"{v:.5g}" for v in sample.boxes[i]) + "]"


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    both = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


def _classes(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Classes that no cell has, in one split or in all."""
    types = list(dict.fromkeys(name for dataset in datasets.values() for name in dataset.types))
    counts = {s: dict(zip(d.types, d.counts(), strict=True)) for s, d in datasets.items()}
    for name in types:
        without = [split for split in datasets if not counts[split].get(name)]
        if len(without) == len(datasets):
            yield Finding("note", "unused class", "all", f"class {name}: no cell has it; a model learns nothing of it")
        else:
            for split in without:
                text = f"class {name}: no cell of {split} has it; its AP there is none"
                yield Finding("note", "unused class", split, text)
    for split, dataset in datasets.items():
        for name, number in dataset.ignored.items():
            text = f"class {name}: {number} cells are left out, as the data YAML says"
            yield Finding("note", "ignored class", split, text)


def _groups(src: str | Path, datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Groups (smears, patients), and images, that stand in more than one split."""
    for (a, ours), (b, theirs) in combinations(datasets.items(), 2):
        for group in sorted(ours.groups() & theirs.groups()):
            text = f"{src}: group {group}: has images in {a} and in {b}; training stops, unless --allow-leaks is given"
            yield Finding("decide", "group in two splits", f"{a}, {b}", text)
        mine, other = ({s.image.resolve() for s in d.samples} for d in (ours, theirs))
        if mine < other or other < mine:
            part, whole = (a, b) if mine < other else (b, a)
            text = f"{src}: {part} is a part of {whole}; train on one, and validate on what is in neither"
            yield Finding("note", "split within another", f"{a}, {b}", text)
            continue
        for sample in theirs.samples:
            if sample.image.resolve() in mine:
                text = f"{sample.image}: stands in {a} and in {b}; what is measured on it is memory"
                yield Finding("decide", "image in two splits", f"{a}, {b}", text, (sample.image,))


def _orphans(found: source.Source, datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """YOLO labels without an image, and images beside the labelled ones that no label file names."""
    known = {s.image.resolve() for dataset in datasets.values() for s in dataset.samples}
    folders = sorted({s.image.parent for dataset in datasets.values() for s in dataset.samples})
    told = {file for dataset in datasets.values() for warning in dataset.warnings for file in (warning.file.resolve(),)}
    for folder in folders:
        images = list_images(folder)
        for image in images:
            if image.resolve() not in known and image.resolve() not in told:
                text = f"{image}: no label file names it; it is left out"
                yield Finding("note", "image without labels", "all", text, (image,))
        if found.format == "yolo":
            stems = {image.stem for image in images}
            for file in sorted(label_folder(folder).glob("*.txt")):
                if file.stem not in stems and file.name != "classes.txt":
                    text = f"{file}: labels without an image called {file.stem}; they are left out"
                    yield Finding("decide", "labels without image", "all", text)


def _pixels(datasets: dict[str, Dataset], progress: bool) -> Iterator[Finding]:
    """Images that cannot be decoded, that EXIF turns, that stand there twice."""
    unique: dict[Path, tuple[Sample, list[str]]] = {}
    for split, dataset in datasets.items():
        for sample in dataset.samples:
            unique.setdefault(sample.image.resolve(), (sample, []))[1].append(split)
    places = list(unique.values())
    with ThreadPoolExecutor() as pool:
        reading = pool.map(lambda place: _examined(place[0].image), places)
        seen = list(tqdm(reading, "reading images", len(places), unit="image", disable=not progress))
    for (sample, splits), (error, turned, _, _) in zip(places, seen, strict=True):
        if error:
            yield Finding("decide", "unreadable image", splits[0], f"{error} (reading stops)", (sample.image,))
        if turned:
            text = f"{sample.image}: EXIF says to turn or mirror it; leuko does not: boxes refer to stored pixels"
            yield Finding("note", "EXIF orientation", splits[0], text, (sample.image,))
    same: dict[str, list[int]] = {}
    for i, (_, _, digest, _) in enumerate(seen):
        same.setdefault(digest, []).append(i)
    exact = {pair for numbers in same.values() for pair in combinations(numbers, 2)}
    for pair in sorted(exact):
        yield _twice(*(places[i] for i in pair), "duplicate", "is the same file as")
    for pair in duplicates.near([entry[3] for entry in seen]):
        if pair not in exact:
            yield _twice(*(places[i] for i in pair), "near duplicate", "looks the same as")


def _twice(one: tuple[Sample, list[str]], other: tuple[Sample, list[str]], kind: str, says: str) -> Finding:
    """Two images that are the same: worth a look in one split, a leak across two."""
    (a, in_a), (b, in_b) = one, other
    across = sorted({x for x in in_a for y in in_b if x != y} | {y for x in in_a for y in in_b if x != y})
    cells = [sorted(zip(s.labels.tolist(), s.boxes.round().tolist(), strict=True)) for s in (a, b)]
    same = cells[0] == cells[1] if kind == "duplicate" else [c[0] for c in cells[0]] == [c[0] for c in cells[1]]
    labels = "" if same else ", with other labels"
    images = (a.image, b.image)
    if across:
        text = f"{b.image} ({in_b[0]}) {says} {a.image} ({in_a[0]}){labels}; both are used, what is measured is memory"
        return Finding("decide", f"{kind} across splits", ", ".join(across), text, images)
    text = f"{b.image} {says} {a.image}{labels}; both are used"
    return Finding("decide" if labels else "note", kind, in_a[0], text, images)


def _examined(image: Path) -> tuple[str, bool, str, np.ndarray | None]:
    """The error in reading an image, whether EXIF turns it, its digest, and what it looks like."""
    try:
        pixels = read_image(image)
        return "", is_shown_otherwise(image), duplicates.digest(image), duplicates.look(pixels)
    except LeukoError as error:
        return str(error), False, f"unreadable {image}", None


def counted(findings: Iterable[Finding]) -> list[tuple[str, str, int, Finding]]:
    """Level, kind, number and first finding of each kind, in order."""
    findings = list(findings)
    numbers = Counter((f.level, f.kind) for f in findings)
    first = {(f.level, f.kind): f for f in reversed(findings)}
    return [(level, kind, numbers[level, kind], first[level, kind]) for level, kind in dict.fromkeys(numbers)]
