"""What is wrong with a data set, what leuko does about it, and what a person must decide: ``leuko data check``.

A finding of level ``decide`` is an error, or something only a person can settle; ``fixed`` is what readers fix or leave
out by themselves; ``note`` is worth a look. ``findings`` groups and orders them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ...detections import MAX_DETECTIONS
from ...errors import LeukoError
from ...ops.pairs import box_iou
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from ..formats.records import Problems
from ..images import ImageFile, is_image, list_images
from . import duplicates
from .builder import in_threads
from .findings import ERROR, Finding, TypedBox, grouped

SAME_CELL = 0.8  # IoU above which two boxes are probably one cell's
USUAL = 2.5  # times larger or smaller than a type's median cell is unusual
NEARLY_ALL = 0.9  # share of the images that have a class, from which on the others are worth a look
ALMOST_ALL = 0.98  # the same, from which on its cells were probably forgotten on the others
FEW = 8  # cells of a type below which it has no usual size, images below which a share means nothing
_MEMORY = "what is measured there is memory"


def check(src: str | Path, pixels: bool = True, progress: bool = False) -> tuple[dict[str, Dataset], list[Finding]]:
    """Examine all splits of a data set; without ``pixels`` only label files and the headers of images are read.

    Returns what could be read of each split, and the findings in the order of their groups. Raises LeukoError where
    there is no data set.
    """
    datasets: dict[str, Dataset] = {}
    findings: list[Finding] = []
    for split in source.splits(src):
        problems = Problems(collect=True)
        try:
            datasets[split] = source.load(src, split, problems=problems)
        except LeukoError as error:
            findings.append(Finding("decide", "split", f"{error} (the split cannot be read)", (split,)))
        for kind, messages in problems.by_kind.items():
            findings += [Finding("decide", f"{ERROR}{kind}", message, (split,)) for message in messages]
    for split, dataset in datasets.items():
        findings += [_of_warning(warning, split) for warning in dataset.warnings]
        findings += [Finding("note", "the whole split", n, (split,), images=n.images, summary=n) for n in dataset.notes]
    images = _distinct(datasets)
    for examine in (_sizes, _same_boxes, _crowded, _missing):
        findings += examine(images)
    for examine in (_classes, partial(_shared, src), _unlabelled):
        findings += examine(datasets)
    if pixels:
        findings += _pixels(images, progress)
    merged: dict[tuple, Finding] = {}  # each finding once, with all the splits (train and trainval, say) that have it
    for f in findings:
        splits = merged.get((f.level, f.kind, f.text), f).splits
        merged[f.level, f.kind, f.text] = replace(f, splits=tuple(dict.fromkeys(splits + f.splits)))
    return datasets, [f for group in grouped(merged.values()) for f in group.findings]


def _of_warning(w: LabelWarning, split: str) -> Finding:
    """What a reader fixed or left out: its kind is what was done."""
    image = w.image or (w.file if is_image(w.file) else None)
    cells = ((w.type, w.box),) if w.box else ()
    return Finding("fixed", w.action, str(w), (split,), w.type, (image,) if image else (), cells)


# ---------------------------------------------------------------- labels


@dataclass(frozen=True)
class _Image:
    """An image with its labels, once for all the splits that have it with the same labels."""

    sample: Sample
    types: list[str]
    splits: tuple[str, ...]

    def cell(self, i: int) -> TypedBox:
        return self.types[self.sample.labels[i]], tuple(self.sample.boxes[i].tolist())

    def finding(self, level: str, kind: str, problem: str, **more: object) -> Finding:
        image = self.sample.image
        return Finding(level, kind, f"{image}: {problem}", self.splits, images=(image,), **more)


def _distinct(datasets: dict[str, Dataset]) -> list[_Image]:
    images: dict[tuple, _Image] = {}
    for split, dataset in datasets.items():
        for s in dataset.samples:
            types = tuple(dataset.types[label] for label in s.labels)
            key = s.image.resolve(), types, s.boxes.tobytes(), s.crowd.tobytes()
            before = images[key].splits if key in images else ()
            images[key] = _Image(s, dataset.types, (*before, split))
    return list(images.values())


def _shown(cell: TypedBox) -> str:
    return f"{cell[0]} [{', '.join(f'{v:.5g}' for v in cell[1])}]"


def _sizes(images: Sequence[_Image]) -> Iterator[Finding]:
    """Cells of an unusual size."""
    sizes: dict[str, list[float]] = defaultdict(list)
    widths = [np.sqrt((i.sample.boxes[:, 2:] - i.sample.boxes[:, :2]).prod(1)) for i in images]
    for image, of_image in zip(images, widths, strict=True):
        for label, width in zip(image.sample.labels, of_image, strict=True):
            sizes[image.types[label]].append(float(width))
    medians = {name: float(np.median(values)) for name, values in sizes.items() if len(values) >= FEW}
    for image, of_image in zip(images, widths, strict=True):
        for i in np.flatnonzero(~image.sample.crowd):
            cell = image.cell(i)
            name = cell[0]
            ratio = of_image[i] / medians.get(name, np.nan)
            if ratio < 1 / USUAL or ratio > USUAL:
                size = f"{of_image[i]:.0f} px wide, {ratio:.1f} times the usual {medians[name]:.0f}; it is kept"
                problem = f"{_shown(cell)} is {size}"
                unusual = f"at least {USUAL:g} times wider or narrower than the usual {medians[name]:.0f} px"
                summary = f"{{n}} {name} on {{images}}, {unusual}; they are kept"
                yield image.finding("note", "unusual size", problem, type=name, cells=(cell,), summary=summary)


def _same_boxes(images: Sequence[_Image]) -> Iterator[Finding]:
    """Boxes that are nearly the same."""
    for image in images:
        cells = np.flatnonzero(~image.sample.crowd)
        boxes = image.sample.boxes[cells]
        is_same = np.triu(box_iou(boxes, boxes) > SAME_CELL, k=1)
        for i, j in cells[np.argwhere(is_same)]:
            pair = image.cell(i), image.cell(j)
            names = " and ".join(sorted({name for name, _ in pair}))
            level, kind = ("note", "") if pair[0][0] == pair[1][0] else ("decide", ", two types")
            problem = f"{_shown(pair[0])} and {_shown(pair[1])} are nearly the same box; both are kept, as two cells"
            summary = f"{{pairs}} of {names} boxes nearly the same, on {{images}}; each counts as two cells"
            about = {"type": names, "cells": pair, "summary": summary}
            yield image.finding(level, f"nearly the same box{kind}", problem, **about)


def _crowded(images: Sequence[_Image]) -> Iterator[Finding]:
    """Images with more cells than detectors find by default."""
    for image in images:
        if (cells := int((~image.sample.crowd).sum())) > MAX_DETECTIONS:
            limit = f"at most {MAX_DETECTIONS} are detected per image, unless --max-detections is raised"
            problem = f"{cells} cells are labelled; {limit}"
            summary = f"{{images}} with more than {MAX_DETECTIONS} cells; {limit}"
            yield image.finding("note", "more cells than are detected", problem, summary=summary)


def _missing(images: Sequence[_Image]) -> Iterator[Finding]:
    """Images without a cell of a class that nearly all others have, or without any: it may have been forgotten."""
    names = [{image.types[label] for label in image.sample.labels} for image in images]
    shares = {name: sum(name in n for n in names) / len(images) for name in dict.fromkeys(n for s in names for n in s)}
    usual = {name: share for name, share in shares.items() if share >= NEARLY_ALL and len(images) >= FEW}
    for image, present in zip(images, names, strict=True):
        for name, share in usual.items():
            if name not in present:
                level = "decide" if share >= ALMOST_ALL else "note"
                percent = min(99, round(100 * share))
                have = f"although {percent} % have one; leuko would learn any {name} there as background"
                summary = f"no {name} is labelled on {{these}} {have}"
                about = {"type": name, "summary": summary}
                yield image.finding(level, "class missing on an image", f"no {name} is labelled {have}", **about)
        if not present and not usual:
            text = "no cell is labelled"
            use = "leuko would learn any cell there as background"
            summary = f"{text} on {{these}}; {use}"
            yield image.finding("note", "image without cells", f"{text}; {use}", summary=summary)


def _classes(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Classes that no cell has, in one split or in all."""
    counts = {split: dict(zip(d.types, d.counts(), strict=True)) for split, d in datasets.items()}
    for name in dict.fromkeys(name for dataset in datasets.values() for name in dataset.types):
        without = tuple(split for split in datasets if not counts[split].get(name))
        if len(without) == len(datasets):
            text, summary = f"class {name}: no cell has it; a model cannot learn it", "classes that no cell has: {n}"
            yield Finding("note", "unused class", text, name=name, summary=f"{summary}; a model cannot learn them")
            continue
        for split in without:
            text = f"class {name}: no cell of {split} has it; it has no AP there"
            about = {
                "name": f"{name} ({split})",
                "summary": "classes without a cell in a split: {n}; they have no AP there",
            }
            yield Finding("note", "class unused in a split", text, (split,), **about)


def _shared(src: str | Path, datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Groups (smears, patients), and images, that are in more than one split."""
    for a, b in combinations(datasets, 2):
        for group in sorted(datasets[a].groups() & datasets[b].groups()):
            stops = "training stops, unless --allow-leaks is given"
            text = f"{src}: group {group}: has images in {a} and in {b}; {stops}"
            summary = f"groups (smears, patients) with images in two splits: {{n}}; {stops}"
            yield Finding("decide", "group in two splits", text, (a, b), name=group, summary=summary)
        in_a, in_b = ({s.image.resolve() for s in datasets[split].samples} for split in (a, b))
        if in_a < in_b or in_b < in_a:
            part, whole = (a, b) if in_a < in_b else (b, a)
            remedy = "train on one, and validate on what is in neither"
            text, name = f"{src}: {part} is a part of {whole}; {remedy}", f"{part} in {whole}"
            about = {"name": name, "summary": f"splits that are a part of another: {{n}}; {remedy}"}
            yield Finding("note", "split within another", text, (a, b), **about)
            continue
        for image in (s.image for s in datasets[b].samples if s.image.resolve() in in_a):
            text = f"{image}: is in {a} and in {b}; {_MEMORY}"
            summary = f"the same image in two splits, {{images}}; {_MEMORY}"
            yield Finding("decide", "image in two splits", text, (a, b), images=(image,), summary=summary)


def _unlabelled(datasets: dict[str, Dataset]) -> Iterator[Finding]:
    """Images beside the labelled ones that no label file names."""
    samples = [s for dataset in datasets.values() for s in dataset.samples]
    known = {s.image.resolve() for s in samples}
    known |= {warning.file.resolve() for dataset in datasets.values() for warning in dataset.warnings}
    for image in (image for folder in sorted({s.image.parent for s in samples}) for image in list_images(folder)):
        if image.resolve() not in known:
            text, summary = "no label file names it; it is left out", "{images} that no label file names, left out"
            yield Finding("note", "image without labels", f"{image}: {text}", images=(image,), summary=summary)


# ---------------------------------------------------------------- pixels


def _pixels(images: Sequence[_Image], progress: bool) -> Iterator[Finding]:
    """Images that cannot be decoded, and duplicates."""
    files: dict[Path, _Image] = {}  # one an image, whatever its labels
    for image in images:
        path = image.sample.image.resolve()
        before = files.get(path, image)
        files[path] = replace(before, splits=tuple(dict.fromkeys(before.splits + image.splits)))
    places = list(files.values())
    examined = in_threads(lambda place: _examine(place.sample.image), places, "reading images", progress)
    first: dict[str, int] = {}  # by digest
    pairs: list[tuple[int, int, bool]] = []
    for i, (place, (error, digest, _)) in enumerate(zip(places, examined, strict=True)):
        if error:
            summary = "{images} cannot be read; reading stops there"
            about = {"images": (place.sample.image,), "summary": summary}
            yield Finding("decide", "unreadable image", f"{error} (reading stops)", place.splits, **about)
        if digest and first.setdefault(digest, i) != i:
            pairs.append((first[digest], i, True))
    copies = {j for _, j, _ in pairs}
    looks = [None if i in copies else look for i, (*_, look) in enumerate(examined)]
    pairs += [(i, j, False) for i, j in duplicates.near(looks)]
    for i, j, is_exact in sorted(pairs):
        yield _duplicate(places[i], places[j], is_exact)


def _examine(image: Path) -> tuple[str, str, np.ndarray | None]:
    """The error in reading an image, its digest, and what it looks like."""
    try:
        file = ImageFile(image)
        return "", file.sha256, duplicates.look(file.decode())
    except LeukoError as error:
        return str(error), "", None


def _duplicate(one: _Image, other: _Image, is_exact: bool) -> Finding:
    """Two images that are the same: worth a look in one split, a leak across two."""
    kind, relation = ("duplicate", "is the same file as") if is_exact else ("near duplicate", "looks the same as")
    a, b = one.sample, other.sample
    boxes = [s.boxes.round() if is_exact else 0 * s.boxes for s in (a, b)]  # a near duplicate may be turned
    cells = [sorted(zip(s.labels.tolist(), x.tolist(), strict=True)) for s, x in zip((a, b), boxes, strict=True)]
    labels = "" if cells[0] == cells[1] else ", with other labels"
    about = {"splits": tuple(dict.fromkeys(one.splits + other.splits)), "images": (b.image, a.image)}
    pairs = f"{{pairs}} of {kind}s{labels}, {{images}} in all"
    if len(about["splits"]) > 1 and one.splits != other.splits:
        both = f"{b.image} ({other.splits[0]}) {relation} {a.image} ({one.splits[0]}){labels}"
        summary = f"{{pairs}} of {kind}s across splits, {{images}} in all; {_MEMORY}"
        text = f"{both}; both are used, {_MEMORY}"
        return Finding("decide", f"{kind} across splits", text, summary=summary, **about)
    text = f"{b.image} {relation} {a.image}{labels}; both are used"
    level, kind = ("decide", f"{kind}, other labels") if labels else ("note", kind)
    return Finding(level, kind, text, summary=f"{pairs}; both are used", **about)
