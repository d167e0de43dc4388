"""What is wrong with a data set, what leuko does about it, and what a person must decide: ``leuko data check``.

A finding of level ``decide`` is an error, or something only a person can settle; ``fixed`` is what readers fix by
themselves; ``note`` is worth a look.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ...detections import MAX_DETECTIONS
from ...errors import LeukoError
from ...ops.boxes import box_iou
from .. import source
from ..dataset import Dataset, Sample
from ..formats.records import Problems
from ..header import image_header
from ..images import list_images, read_image
from . import duplicates
from .builder import in_threads

SAME_CELL = 0.8  # IoU above which two boxes are probably one cell's
USUAL = 2.5  # times larger or smaller than a type's median cell is unusual
NEARLY_ALL = 0.9  # share of the images
FEW_CELLS = 8  # of a type, below which it has no usual size
LEVELS = ("decide", "fixed", "note")


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
    """Examine all splits of a data set; without ``pixels`` only label files and the headers of images are read.

    Returns what could be read of each split, and the findings, those that a person must decide first. Raises LeukoError
    where there is no data set.
    """
    datasets: dict[str, Dataset] = {}
    findings: list[Finding] = []
    for split in source.splits(src):
        problems = Problems(collect=True)
        try:
            datasets[split] = source.load(src, split, problems=problems)
        except LeukoError as error:
            findings.append(Finding("decide", "split", split, f"{error} (the split cannot be read)"))
        for kind, messages in problems.by_kind.items():
            findings += [Finding("decide", f"error: {kind}", split, f"{text} (reading stops)") for text in messages]
    for split, dataset in datasets.items():
        findings += [Finding("fixed", w.action, split, str(w), (w.file,)) for w in dataset.warnings]
        findings += [Finding("note", "data set", split, note) for note in dataset.notes]
    for examine in (_sizes, _same_boxes, _crowded, _missing, _classes, partial(_shared, src), _unlabelled):
        findings += examine(datasets)
    if pixels:
        findings += _pixels(datasets, progress)
    merged: dict[tuple, Finding] = {}  # each finding once, with all the splits (train and trainval, say) that have it
    for f in findings:
        other = merged.setdefault((f.level, f.kind, f.text), f)
        if f.split not in other.split.split(", "):
            merged[f.level, f.kind, f.text] = replace(f, split=f"{other.split}, {f.split}")
    return datasets, sorted(merged.values(), key=lambda f: (LEVELS.index(f.level), f.kind))


def counted(findings: Iterable[Finding]) -> list[tuple[str, str, int, Finding]]:
    """Level, kind, number and first finding of each kind, in order."""
    findings = list(findings)
    numbers = Counter((f.level, f.kind) for f in findings)
    first = {(f.level, f.kind): f for f in reversed(findings)}
    return [(level, kind, number, first[level, kind]) for (level, kind), number in numbers.items()]


# ---------------------------------------------------------------- labels


def _cell(dataset: Dataset, sample: Sample, i: int) -> str:
    return f"{dataset.types[sample.labels[i]]} [{', '.join(f'{v:.5g}' for v in sample.boxes[i])}]"


def _sizes(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Cells of an unusual size."""
    for split, dataset in datasets.items():
        sides = [np.sqrt((s.boxes[:, 2:] - s.boxes[:, :2]).prod(1)) for s in dataset.samples]
        labels = np.concatenate([s.labels for s in dataset.samples])
        by_type = [np.concatenate(sides)[labels == k] for k in range(len(dataset.types))]
        medians = [float(np.median(sizes)) if len(sizes) >= FEW_CELLS else np.nan for sizes in by_type]
        for sample, widths in zip(dataset.samples, sides, strict=True):
            for i in np.flatnonzero(~sample.crowd):
                median = medians[sample.labels[i]]
                ratio = widths[i] / median
                if ratio < 1 / USUAL or ratio > USUAL:
                    size = f"{widths[i]:.0f} px wide, {ratio:.1f} times the usual {median:.0f}; it is kept"
                    text = f"{sample.image}: {_cell(dataset, sample, i)} is {size}"
                    yield Finding("note", "unusual size", split, text, (sample.image,))


def _same_boxes(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Boxes that are nearly the same."""
    for split, dataset in datasets.items():
        for sample in dataset.samples:
            cells = np.flatnonzero(~sample.crowd)
            is_same = np.triu(box_iou(sample.boxes[cells], sample.boxes[cells]) > SAME_CELL, k=1)
            for i, j in cells[np.argwhere(is_same)]:
                level = "note" if sample.labels[i] == sample.labels[j] else "decide"
                both = f"{_cell(dataset, sample, i)} and {_cell(dataset, sample, j)}"
                text = f"{sample.image}: {both} are nearly the same box; both are kept, as two cells"
                yield Finding(level, "nearly the same box", split, text, (sample.image,))


def _crowded(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Images with more cells than detectors find by default."""
    for split, dataset in datasets.items():
        for sample, cells in zip(dataset.samples, dataset.counts_per_image().sum(1), strict=True):
            if cells > MAX_DETECTIONS:
                limit = f"at most {MAX_DETECTIONS} are detected per image, unless --max-detections is raised"
                text = f"{sample.image}: {cells} cells are labelled; {limit}"
                yield Finding("note", "more cells than are detected", split, text, (sample.image,))


def _missing(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Images without cells, or without a cell of a class that nearly all others have: it may have been forgotten."""
    for split, dataset in datasets.items():
        has = np.array([np.bincount(s.labels, minlength=len(dataset.types)) > 0 for s in dataset.samples])
        for sample in (s for s in dataset.samples if not len(s.boxes)):
            text = f"{sample.image}: no cell is labelled; it is used as background"
            yield Finding("note", "image without cells", split, text, (sample.image,))
        for k, share in enumerate(has.mean(0)):
            if NEARLY_ALL <= share < 1 and len(has) >= FEW_CELLS:
                problem = f"no {dataset.types[k]} is labelled, as on {share:.0%} of the images"
                for image in (dataset.samples[i].image for i in np.flatnonzero(~has[:, k])):
                    text = f"{image}: {problem}; unlabelled cells are used as background"
                    yield Finding("note", "class missing on an image", split, text, (image,))


def _classes(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Classes that no cell has, in one split or in all, and those that are ignored."""
    counts = {split: dict(zip(d.types, d.counts(), strict=True)) for split, d in datasets.items()}
    for name in dict.fromkeys(name for dataset in datasets.values() for name in dataset.types):
        without = [split for split in datasets if not counts[split].get(name)]
        if len(without) == len(datasets):
            yield Finding("note", "unused class", "all", f"class {name}: no cell has it; a model cannot learn it")
            continue
        for split in without:
            yield Finding("note", "unused class", split, f"class {name}: no cell of {split} has it; it has no AP there")
    for split, dataset in datasets.items():
        for name, number in dataset.ignored.items():
            text = f"class {name}: {number} cells are left out, as the data YAML says"
            yield Finding("note", "ignored class", split, text)


def _shared(src: str | Path, datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Groups (smears, patients), and images, that are in more than one split."""
    for a, b in combinations(datasets, 2):
        both = f"{a}, {b}"
        for group in sorted(datasets[a].groups() & datasets[b].groups()):
            text = f"{src}: group {group}: has images in {a} and in {b}; training stops, unless --allow-leaks is given"
            yield Finding("decide", "group in two splits", both, text)
        in_a, in_b = ({s.image.resolve() for s in datasets[split].samples} for split in (a, b))
        if in_a < in_b or in_b < in_a:
            part, whole = (a, b) if in_a < in_b else (b, a)
            text = f"{src}: {part} is a part of {whole}; train on one, and validate on what is in neither"
            yield Finding("note", "split within another", both, text)
            continue
        for image in (s.image for s in datasets[b].samples if s.image.resolve() in in_a):
            text = f"{image}: is in {a} and in {b}; what is measured on it is memory"
            yield Finding("decide", "image in two splits", both, text, (image,))


def _unlabelled(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Images beside the labelled ones that no label file names."""
    samples = [s for dataset in datasets.values() for s in dataset.samples]
    known = {s.image.resolve() for s in samples}
    known |= {warning.file.resolve() for dataset in datasets.values() for warning in dataset.warnings}
    for image in (image for folder in sorted({s.image.parent for s in samples}) for image in list_images(folder)):
        if image.resolve() not in known:
            yield Finding(
                "note", "image without labels", "all", f"{image}: no label file names it; it is left out", (image,)
            )


# ---------------------------------------------------------------- pixels


def _pixels(datasets: dict[str, Dataset], progress: bool) -> Iterator[Finding]:
    """Images that cannot be decoded, that have an EXIF orientation, that are duplicates."""
    unique: dict[Path, tuple[Sample, list[str]]] = {}
    for split, dataset in datasets.items():
        for sample in dataset.samples:
            unique.setdefault(sample.image.resolve(), (sample, []))[1].append(split)
    places = list(unique.values())
    examined = in_threads(lambda place: _examine(place[0].image), places, "reading images", progress)
    by_digest: dict[str, list[int]] = {}
    for i, ((sample, splits), (error, is_turned, digest, _)) in enumerate(zip(places, examined, strict=True)):
        by_digest.setdefault(digest, []).append(i)
        if error:
            yield Finding("decide", "unreadable image", splits[0], f"{error} (reading stops)", (sample.image,))
        if is_turned:
            text = f"{sample.image}: EXIF says to turn or mirror it; leuko does not: boxes refer to stored pixels"
            yield Finding("note", "EXIF orientation", splits[0], text, (sample.image,))
    exact = {pair for same in by_digest.values() for pair in combinations(same, 2)}
    near = [pair for pair in duplicates.near([look for *_, look in examined]) if pair not in exact]
    for i, j in [*sorted(exact), *near]:
        yield _duplicate(places[i], places[j], is_exact=(i, j) in exact)


def _examine(image: Path) -> tuple[str, bool, str, np.ndarray | None]:
    """The error in reading an image, whether EXIF turns it, its digest, and what it looks like."""
    try:
        look = duplicates.look(read_image(image))
        return "", image_header(image).orientation != 1, hashlib.sha256(image.read_bytes()).hexdigest(), look
    except LeukoError as error:
        return str(error), False, f"unreadable {image}", None


def _duplicate(a: tuple[Sample, list[str]], b: tuple[Sample, list[str]], is_exact: bool) -> Finding:
    """Two images that are the same: worth a look in one split, a leak across two."""
    (one, splits_a), (other, splits_b) = a, b
    kind, relation = ("duplicate", "is the same file as") if is_exact else ("near duplicate", "looks the same as")
    across = sorted({split for x in splits_a for y in splits_b if x != y for split in (x, y)})
    boxes = [s.boxes.round() if is_exact else 0 * s.boxes for s in (one, other)]  # a near duplicate may be turned
    cells = [sorted(zip(s.labels.tolist(), b.tolist(), strict=True)) for s, b in zip((one, other), boxes, strict=True)]
    labels = "" if cells[0] == cells[1] else ", with other labels"
    images = (one.image, other.image)
    if across:
        both = f"{other.image} ({splits_b[0]}) {relation} {one.image} ({splits_a[0]}){labels}"
        text = f"{both}; both are used, what is measured is memory"
        return Finding("decide", f"{kind} across splits", ", ".join(across), text, images)
    text = f"{other.image} {relation} {one.image}{labels}; both are used"
    return Finding("decide" if labels else "note", kind, splits_a[0], text, images)
