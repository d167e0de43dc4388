"""Findings of a data set's check, in groups of one kind and class. ``KINDS`` says what follows of each kind, and so in
which order they are shown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("decide", "fixed", "note")
ERROR = "error: "  # how the kind of what stops reading begins
_MEMORY = "both are used, and what is measured there is memory"
_LEARNED = "leuko would learn any such cell there as background"
_TWO_CELLS = "both are kept, as two cells"
_READERS = ""  # the place of all kinds that are not listed: what readers fixed or left out
KINDS = {  # level and consequence: what stops, leaks, teaches something wrong, is lost, may be odd
    ERROR: ("decide", ""),
    "split": ("decide", "the split cannot be read"),
    "unreadable image": ("decide", "reading stops there"),
    "group in two splits": ("decide", "training stops, unless --allow-leaks is given"),
    "image in two splits": ("decide", _MEMORY),
    "duplicate across splits": ("decide", _MEMORY),
    "near duplicate across splits": ("decide", _MEMORY),
    "nearly the same box, two types": ("decide", _TWO_CELLS),
    "duplicate, other labels": ("decide", "both are used"),
    "near duplicate, other labels": ("decide", "both are used"),
    "class missing on an image": ("decide", _LEARNED),
    "the whole split": ("note", ""),
    "image without cells": ("note", _LEARNED),
    _READERS: ("fixed", ""),
    "nearly the same box": ("note", _TWO_CELLS),
    "unusual size": ("note", "it is kept"),
    "image without labels": ("note", "it is left out"),
    "duplicate": ("note", "both are used"),
    "near duplicate": ("note", "both are used"),
    "split within another": ("note", "train on one, and validate on what is in neither"),
    "unused class": ("note", "a model cannot learn it"),
}

TypedBox = tuple[str, tuple[float, ...]]  # a cell's type and its box, xyxy in pixels


@dataclass(frozen=True)
class Finding:
    """One thing that was found: its file, object and ``problem``. ``type`` is the class that it is about, if one;
    ``images`` are those that it is about and ``cells`` its boxes on the first of them."""

    kind: str
    problem: str
    splits: tuple[str, ...] = ()
    type: str = ""
    images: tuple[Path, ...] = ()
    cells: tuple[TypedBox, ...] = ()

    @property
    def place(self) -> str:
        """The key in ``KINDS`` of its kind."""
        kind = ERROR if self.kind.startswith(ERROR) else self.kind
        return kind if kind in KINDS else _READERS

    @property
    def level(self) -> str:
        """``decide`` for what only a person can settle, ``fixed`` for what readers fix or leave out by themselves,
        ``note`` for what is worth a look."""
        return KINDS[self.place][0]

    @property
    def text(self) -> str:
        """The whole line: the problem, and what leuko does or what follows."""
        return "; ".join(filter(None, (self.problem, KINDS[self.place][1])))


@dataclass(frozen=True)
class Group:
    """All findings of one kind and class, at least one."""

    level: str
    kind: str
    type: str
    findings: list[Finding]

    @property
    def images(self) -> list[Path]:
        """The distinct images that the findings are about."""
        return list(dict.fromkeys(image for finding in self.findings for image in finding.images))

    @property
    def text(self) -> str:
        """The group in one sentence: a single finding's line."""
        first, number, images = self.findings[0], len(self.findings), len(self.images)
        if number == 1:
            return first.text
        head = f"{self.kind} ({self.type})" if self.type else self.kind
        where = f" on {counted(images, 'image')}" if images else ""
        what = counted(images, "image") if images == number else f"{number}{where}"
        return "; ".join(filter(None, (f"{head}: {what}", KINDS[first.place][1])))


def counted(number: int, noun: str) -> str:
    """``1 image``, ``6 images``, ``1,200 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, src: str | Path) -> str:
    """The text with paths in the folder ``src`` as they are in that folder."""
    folders = "|".join(re.escape(f"{folder}/") for folder in (Path(src).absolute(), Path(src)) if folder.name)
    return re.sub(rf"(?<![^\s(\"'])(?:{folders})", "", text)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """The groups of findings in the order of ``KINDS``, then by number of images. What is true of a whole split is a
    group of its own."""
    by_key: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for f in findings:
        by_key[f.level, f.kind, f.type, f.text if f.kind == "the whole split" else ""].append(f)
    groups = [Group(*key[:3], members) for key, members in by_key.items()]
    place = list(KINDS).index
    return sorted(groups, key=lambda g: (place(g.findings[0].place), -len(g.images), -len(g.findings)))


def as_json(groups: Sequence[Group]) -> dict[str, list[dict]]:
    """The groups with the numbers of their findings and distinct images, and all findings in the same order."""
    heads = [{"level": g.level, "kind": g.kind, "type": g.type, "text": g.text} for g in groups]
    numbers = [{"findings": len(g.findings), "images": len(g.images)} for g in groups]
    keys = ("level", "kind", "text", "splits", "type", "images", "cells")
    findings = [{key: getattr(f, key) for key in keys} for g in groups for f in g.findings]
    return {"groups": [a | b for a, b in zip(heads, numbers, strict=True)], "findings": findings}
