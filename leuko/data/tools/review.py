"""Corrections from a review of the labels that several models doubt: ``leuko data apply-review``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError, nearest
from ...io import read_text, write_csv
from ..dataset import Dataset, LabelWarning, Sample
from ..formats import FORMATS
from .builder import building, read_source, with_cells, write_warnings

KEEP, ACCEPT = "keep", "accept"
COLUMNS = ("image", "kind", "before", "after", "x0", "y0", "x1", "y1")
ROUNDING = 0.02  # pixels by which a cell's box may differ from the review's, which is rounded to .01


def apply_review(src: str | Path, review: str | Path, dst: str | Path, *, force: bool = False) -> list[dict]:
    """Write a data set with the verdicts of a review in its labels, and return a row for each change.

    Each suspect of ``consensus.json`` has a ``verdict``, which a person fills in: ``keep`` (or nothing) leaves the
    label, ``accept`` does what the models say (another type, a new cell, no cell), a type's name gives that type. The
    cell's old type is kept as its attribute ``label_before``, and all changes are listed in ``reviewed.csv``. A verdict
    applies to every split that holds the image; one that lacks the cell keeps its labels, with a warning.

    For the arguments see ``config.ReviewOptions``. Raises LeukoError.
    """
    review = Path(review)
    form, datasets = read_source(src, dst)
    suspects = _read(review)
    images = {sample.image.resolve() for dataset in datasets.values() for sample in dataset.samples}
    for s in suspects:
        if Path(s["image"]).resolve() not in images:
            raise LeukoError(f"{review}: image {s['image']} is not in {src}; name the data set that was validated")
        _check_verdict(s, next(iter(datasets.values())).types, review)
    changes: dict[int, dict] = {}
    missing: dict[int, dict] = {}
    new: dict[str, Dataset] = {}
    for split, dataset in datasets.items():
        samples, warnings = list(dataset.samples), []
        index: dict[Path, list[int]] = {}
        for i, sample in enumerate(samples):
            index.setdefault(sample.image.resolve(), []).append(i)
        removed: dict[int, list[int]] = {}
        for number, s in enumerate(suspects, 1):
            before, after = s.get("label", ""), _after(s)
            for i in index.get(Path(s["image"]).resolve(), []) if after is not None else []:
                sample = samples[i]
                cell = _find(sample, s, dataset.types) if s["cell"] >= 0 else len(sample.boxes)
                if cell is None:
                    missing[number] = s
                    problem = f"its cell is not in split {split}"
                    warnings.append(LabelWarning(sample.image, f"suspect {number} of the review", problem, "left out"))
                    continue
                if after:
                    samples[i] = _labelled(sample, cell, s["box"], dataset.types.index(after), before)
                else:
                    removed.setdefault(i, []).append(cell)
                row = {"image": str(sample.image), "kind": s["kind"], "before": before, "after": after}
                changes[number] = row | dict(zip(("x0", "y0", "x1", "y1"), s["box"], strict=True))
        for i, gone in removed.items():
            samples[i] = with_cells(samples[i], np.setdiff1d(np.arange(len(samples[i].boxes)), gone))
        new[split] = replace(dataset, samples=samples, warnings=dataset.warnings + warnings)
    for number, s in missing.items():
        if number not in changes:
            where = f"{review}: suspect {number}: {s['image']}"
            problem = f"cell {s['cell']}, {s.get('label')}, is no longer in the data"
            raise LeukoError(f"{where}: {problem}; validate the data anew")
    with building(dst, force) as folder:
        for split, dataset in new.items():
            FORMATS[form].write(dataset, folder, split)
        write_warnings(folder, new)
        write_csv(folder / "reviewed.csv", list(changes.values()), COLUMNS)
    return list(changes.values())


def _read(file: Path) -> list[dict]:
    """The suspects of a review, checked to be what ``leuko val`` writes."""
    text = read_text(file)
    try:
        suspects = json.loads(text)["suspects"]
        for number, s in enumerate(suspects, 1):
            numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in s["box"]]
            is_whole = isinstance(s["image"], str) and isinstance(s["cell"], int) and numbers == [True] * 4
            is_whole = is_whole and isinstance(s["says"], str) and isinstance(s.get("verdict", ""), str)
            is_known = s["kind"] in ("type", "unlabelled", "missed") and bool(s["says"]) == (s["kind"] != "missed")
            if not (is_whole and is_known):
                raise LeukoError(f"{file}: suspect {number}: is not as leuko val wrote it; edit its verdict only")
        return suspects
    except LeukoError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        remedy = "give the consensus.json of leuko val --ensemble"
        raise LeukoError(f"{file}: not a review ({error!r:.80}); {remedy}") from error


def _check_verdict(suspect: dict, types: list[str], file: Path) -> None:
    verdict, after = suspect.get("verdict", "").strip(), _after(suspect)
    place = f"{file}: {Path(suspect['image']).name}"
    known = (KEEP, ACCEPT, *types)
    if verdict and verdict not in known:
        problem = f'verdict "{verdict}" is unknown{nearest(verdict, known)}'
        raise LeukoError(f"{place}: {problem} ({', '.join(known)})")
    if after and after not in types:
        raise LeukoError(f'{place}: the type "{after}" is not among {", ".join(types)}')


def _after(suspect: dict) -> str | None:
    """The type that a verdict gives, "" for no cell, None where the label stays."""
    verdict = suspect.get("verdict", "").strip()
    if verdict in ("", KEEP):
        return None
    return suspect["says"] if verdict == ACCEPT else verdict


def _find(sample: Sample, suspect: dict, types: list[str]) -> int | None:
    """The index of a suspect's cell, which another split may list in another place; None where it is not there."""
    near = np.isclose(sample.boxes, suspect["box"], rtol=0, atol=ROUNDING).all(1)
    same = [i for i in np.flatnonzero(near).tolist() if types[sample.labels[i]] == suspect.get("label", "")]
    return suspect["cell"] if suspect["cell"] in same else next(iter(same), None)


def _labelled(sample: Sample, cell: int, box: list[float], label: int, before: str) -> Sample:
    """The sample with another label of a cell, or with a new cell where ``cell`` is their number."""
    is_new = cell == len(sample.boxes)
    labels, attributes = [*sample.labels, label], [*sample.attributes, {"label_before": before}]
    if not is_new:
        labels = [label if i == cell else old for i, old in enumerate(sample.labels)]
        attributes = [a | {"label_before": before} if i == cell else a for i, a in enumerate(sample.attributes)]
    return replace(
        sample,
        boxes=[*sample.boxes, box] if is_new else sample.boxes,
        labels=labels,
        crowd=[*sample.crowd, False] if is_new else sample.crowd,
        cell_factors=[*sample.cell_factors, ()] if is_new else sample.cell_factors,
        attributes=attributes,
    )
