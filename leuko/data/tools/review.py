"""Corrections from a review of the labels that several models doubt: ``leuko data apply-review``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import LeukoError, nearest
from ...io import read_json, write_csv
from ...kinds import misfit
from ..dataset import LabelWarning, Sample
from ..formats import FORMATS
from .builder import building, read_source, with_cells, write_warnings

KEEP, ACCEPT = "keep", "accept"
COLUMNS = ("image", "kind", "before", "after", "x0", "y0", "x1", "y1")
SUSPECT = {"image": str, "kind": Literal["type", "unlabelled", "missed"], "cell": int, "label": str, "says": str} | {
    "box": list[float],
    "sure": float,
    "votes": list[dict],
    "image_id": int,
    "verdict": str,
}
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
    places: dict[Path, list[tuple[str, int]]] = {}  # the splits that hold an image, and its number there
    for split, dataset in datasets.items():
        for i, sample in enumerate(dataset.samples):
            places.setdefault(sample.image.resolve(), []).append((split, i))
    types = next(iter(datasets.values())).types
    rows: list[dict] = []
    for number, s in enumerate(_read(review), 1):
        if (image := Path(s["image"]).resolve()) not in places:
            raise LeukoError(f"{review}: image {s['image']} is not in {src}; name the data set that was validated")
        if (after := _verdict(s, types, review)) is None:
            continue
        label = types.index(after) if after else None
        row = {"image": "", "kind": s["kind"], "before": s.get("label", ""), "after": after}
        for split, i in places[image]:
            dataset, sample = datasets[split], datasets[split].samples[i]
            if (cell := _find(sample, s, types)) is None:
                about = f"suspect {number} of the review", f"its cell is not in split {split}", "left out"
                dataset.warnings.append(LabelWarning(sample.image, *about))
                continue
            if min(s["box"]) < 0 or s["box"][2] > sample.width or s["box"][3] > sample.height:
                raise LeukoError(
                    f"{review}: suspect {number}: its box is not inside {s['image']}; edit its verdict only"
                )
            dataset.samples[i] = _changed(sample, cell, s["box"], label, row["before"])
            row["image"] = str(sample.image)
        if not row["image"]:
            problem = f"cell {s['cell']}, {s.get('label')}, is no longer in the data"
            raise LeukoError(f"{review}: suspect {number}: {s['image']}: {problem}; validate the data anew")
        rows.append(row | dict(zip(COLUMNS[4:], s["box"], strict=True)))
    with building(dst, force) as folder:
        for split, dataset in datasets.items():
            FORMATS[form].write(dataset, folder, split)
        write_warnings(folder, datasets)
        write_csv(folder / "reviewed.csv", rows, COLUMNS)
    return rows


def _read(file: Path) -> list[dict]:
    """The suspects of a review, checked to be what ``leuko val`` writes."""
    content = read_json(file)
    if problem := misfit(content, {"suspects": list[dict]}, more=True):
        raise LeukoError(f"{file}: not a review ({problem}); give the consensus.json of leuko val --ensemble")
    for number, s in enumerate(content["suspects"], 1):
        problem = misfit(s, SUSPECT, optional=("sure", "votes", "image_id", "verdict"))
        if not problem and (len(s["box"]) != 4 or not (s["box"][0] < s["box"][2] and s["box"][1] < s["box"][3])):
            problem = f"box {s['box']!r:.60}"
        if not problem and (bool(s["says"]) != (s["kind"] != "missed") or "\0" in s["image"]):
            problem = f"kind {s['kind']}, says {s['says']!r:.40}"
        if problem:
            raise LeukoError(
                f"{file}: suspect {number}: is not as leuko val wrote it ({problem}); edit its verdict only"
            )
    return content["suspects"]


def _verdict(suspect: dict, types: list[str], file: Path) -> str | None:
    """The type that a verdict gives, "" for no cell, None where the label stays; LeukoError for one that is unknown."""
    verdict, known = suspect.get("verdict", "").strip(), (KEEP, ACCEPT, *types)
    place = f"{file}: {Path(suspect['image']).name}"
    if verdict and verdict not in known:
        raise LeukoError(f'{place}: verdict "{verdict}" is unknown{nearest(verdict, known)} ({", ".join(known)})')
    if verdict in ("", KEEP):
        return None
    after = suspect["says"] if verdict == ACCEPT else verdict
    if after and after not in types:
        raise LeukoError(f'{place}: the type "{after}" is not among {", ".join(types)}')
    return after


def _find(sample: Sample, suspect: dict, types: list[str]) -> int | None:
    """The index of a suspect's cell, which another split may list in another place; None where it is not there; of a
    cell that has no label yet the next free one."""
    if suspect["cell"] < 0:
        return len(sample.boxes)
    near = np.isclose(sample.boxes, suspect["box"], rtol=0, atol=ROUNDING).all(1)
    same = [i for i in np.flatnonzero(near).tolist() if types[sample.labels[i]] == suspect.get("label", "")]
    return suspect["cell"] if suspect["cell"] in same else next(iter(same), None)


def _changed(sample: Sample, cell: int, box: list[float], label: int | None, before: str) -> Sample:
    """The sample with another label of a cell, without the cell (None), or with a new one where there is none yet."""
    if label is None:
        return with_cells(sample, np.delete(np.arange(len(sample.boxes)), cell))
    if cell == len(sample.boxes):
        sample = replace(
            sample,
            boxes=[*sample.boxes, box],
            labels=[*sample.labels, label],
            crowd=[*sample.crowd, False],
            cell_factors=[*sample.cell_factors, ()],
            attributes=[*sample.attributes, {}],
        )
    sample.labels[cell] = label
    sample.attributes[cell]["label_before"] = before
    return sample
