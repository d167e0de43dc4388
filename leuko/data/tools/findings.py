"""Findings of a data set's check: in groups of one kind and class, ordered by what they do to a model or to a count."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("decide", "fixed", "note")
ERROR = "error: "  # how the kind of what stops reading begins
READERS = ""  # in ORDER, the place of all kinds that are not listed: what readers fixed, left out or noted
ORDER = (  # kinds in their order within a level: what stops, leaks, teaches something wrong, is lost, may be odd
    "split",
    "unreadable image",
    "group in two splits",
    "image in two splits",
    "duplicate across splits",
    "near duplicate across splits",
    "nearly the same box, two types",
    "duplicate, other labels",
    "near duplicate, other labels",
    "the whole split",
    "class missing on an image",
    "image without cells",
    READERS,
    "more cells than are detected",
    "nearly the same box",
    "unusual size",
    "image without labels",
    "duplicate",
    "near duplicate",
    "clipped",
    "split within another",
    "unused class",
    "class unused in a split",
)

TypedBox = tuple[str, tuple[float, ...]]  # a cell's type and its box, xyxy in pixels


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    ``text`` is the whole line: file, object, what leuko does. ``type`` is the class that it is about, if one;
    ``images`` are those that it is about and ``cells`` its boxes on the first of them; ``name`` stands for it in a
    list. ``summary`` says what all findings of the kind and class have in common, with ``{n}`` for their number,
    ``{pairs}`` for "3 pairs", ``{images}`` for "6 images" and ``{these}`` for "these 6 images".
    """

    level: str
    kind: str
    text: str
    splits: tuple[str, ...] = ()
    type: str = ""
    images: tuple[Path, ...] = ()
    cells: tuple[TypedBox, ...] = ()
    name: str = ""
    summary: str = ""


@dataclass(frozen=True)
class Group:
    """All findings of one level, kind and class, at least one."""

    level: str
    kind: str
    type: str
    findings: list[Finding]

    @property
    def images(self) -> list[Path]:
        """The distinct images that the findings are about."""
        return list(dict.fromkeys(image for finding in self.findings for image in finding.images))

    @property
    def examples(self) -> list[str]:
        """Names of the images, classes or groups that the findings are about; without a summary, their texts."""
        if not self.findings[0].summary:
            return [f.text for f in self.findings]
        names = [name for f in self.findings for name in ([f.name] if f.name else [i.name for i in f.images])]
        return list(dict.fromkeys(names))

    @property
    def text(self) -> str:
        """The group in one sentence."""
        n, images = len(self.findings), counted(len(self.images), "image")
        these = f"these {images}" if len(self.images) > 1 else "this image"
        if summary := self.findings[0].summary:
            pairs = counted(n, "pair")
            for name, value in (("{n}", str(n)), ("{images}", images), ("{these}", these), ("{pairs}", pairs)):
                summary = summary.replace(name, value)
            return summary
        if self.kind.startswith(ERROR):
            return f"{counted(n, 'error')} ({self.kind.removeprefix(ERROR)}), at which reading stops"
        what = f"{n} {self.type}" if self.type else counted(n, "finding")
        return f"{self.kind}: {what}" + (f" on {images}" if self.images else "")


def counted(number: int, noun: str) -> str:
    """``1 image``, ``6 images``, ``1,200 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, src: str | Path) -> str:
    """The text with paths in the folder ``src`` as they are in that folder."""
    folders = "|".join(re.escape(f"{folder}/") for folder in (Path(src).absolute(), Path(src)) if folder.name)
    return re.sub(rf"(?<![^\s(\"'])(?:{folders})", "", text)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """The groups of findings: what a person must decide first, then by kind (``ORDER``) and by number of images."""
    by_key: dict[tuple[str, str, str, str], list[Finding]] = defaultdict(list)
    for f in findings:
        by_key[f.level, f.kind, f.type, f.summary].append(f)
    groups = [Group(*key[:3], members) for key, members in by_key.items()]
    rank = {kind: i for i, kind in enumerate(ORDER)}

    def harm(group: Group) -> tuple:
        is_error = group.kind.startswith(ERROR)
        place = rank["split"] if is_error else rank.get(group.kind, rank[READERS])
        return group.level != "decide", place, -len(group.images), -len(group.findings)

    return sorted(groups, key=harm)


def as_json(groups: Sequence[Group]) -> dict[str, list[dict]]:
    """The groups with the numbers of their findings and distinct images, and all findings in the same order."""
    heads = [{"level": g.level, "kind": g.kind, "type": g.type, "text": g.text} for g in groups]
    numbers = [{"findings": len(g.findings), "images": len(g.images)} for g in groups]
    findings = [{k: v for k, v in vars(f).items() if k not in ("name", "summary")} for g in groups for f in g.findings]
    return {"groups": [a | b for a, b in zip(heads, numbers, strict=True)], "findings": findings}
