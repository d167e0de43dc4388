"""Corrections from a review of the labels that models doubt together: ``leuko data apply-review``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import LeukoError, nearest
from ...io import read_text, write_text
from .. import source
from ..dataset import Dataset, LabelWarning, Sample
from .convert import WRITERS, check_apart, check_names, list_warnings, load_all
from .folder import building

KEEP, ACCEPT = "keep", "accept"
COLUMNS = ("image", "kind", "before", "after", "x0", "y0", "x1", "y1")
ROUNDING = 0.02  # pixels by which a cell's box may differ from the review's, which is rounded to .01


def apply_review(src: str | Path, review: str | Path, dst: str | Path, *, force: bool = False) -> list[dict]:
    """Write a data set with the verdicts of a review put into its labels, and return what changed.

    Each suspect of ``consensus.json`` has a ``verdict``, which a person fills in: ``keep`` (or nothing) leaves the
    label, ``accept`` does what the models say (another type, a new cell, no cell), a type's name gives that type. The
    cell's old type stays as its attribute ``label_before``, and all changes stand in ``reviewed.csv``. A verdict goes
    to every split that holds the image; one that lacks the cell keeps its labels, and ``warnings.txt`` says so.

    Args:
        src: the data set that was validated.
        review: the file, as edited.
        dst: the folder to make, in the same format.
        force: replace a data set that is in ``dst``.

    Raises:
        LeukoError: the review is broken, does not fit the data, or the data set cannot be read or written.
    """
    datasets = load_all(src)
    check_apart(src, dst, datasets)
    form = source.find(src).format
    check_names(datasets, form)
    suspects = dict(enumerate(_read(Path(review)), 1))
    of_image: dict[Path, dict[int, dict]] = {}
    for number, suspect in suspects.items():
        of_image.setdefault(Path(suspect["image"]).resolve(), {})[number] = suspect
    images = {sample.image.resolve() for dataset in datasets.values() for sample in dataset.samples}
    if lost := [path for path in of_image if path not in images]:
        raise LeukoError(f"{review}: image {lost[0]} is not in {src}; name the data set that was validated")
    changes: dict[int, dict] = {}
    lacking: set[int] = set()
    new: dict[str, Dataset] = {}
    for split, dataset in datasets.items():
        samples, warnings = [], []
        for before in dataset.samples:
            here = of_image.get(before.image.resolve(), {})
            sample, rows, absent = _reviewed(before, here, dataset.types, Path(review))
            samples.append(sample)
            changes |= rows
            lacking.update(absent)
            problem = f"its cell is not in split {split}"
            warnings += [
                LabelWarning(before.image, f"suspect {n} of the review", problem, "left out there") for n in absent
            ]
        new[split] = replace(dataset, samples=samples, warnings=dataset.warnings + warnings)
    if nowhere := sorted(lacking - changes.keys()):
        s = suspects[nowhere[0]]
        where = f"{review}: suspect {nowhere[0]}: {s['image']}"
        raise LeukoError(f"{where}: cell {s['cell']}, {s['label']}, is not there any more; validate the data anew")
    with building(dst, force) as folder:
        for split, dataset in new.items():
            WRITERS[form](dataset, folder, split)
        list_warnings(folder, new)
        write_text(folder / "reviewed.csv", _table(changes.values()))
    return list(changes.values())


def _read(file: Path) -> list[dict]:
    try:
        suspects = json.loads(read_text(file))["suspects"]
        for number, s in enumerate(suspects, 1):
            good = isinstance(s["image"], str) and isinstance(s["cell"], int) and isinstance(s.get("verdict", ""), str)
            numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in s["box"]]
            says = isinstance(s["says"], str) and bool(s["says"]) == (s["kind"] != "missed")
            known = s["kind"] in ("type", "unlabelled", "missed")
            if not (good and known and says and numbers == [True] * 4):
                raise LeukoError(f"{file}: suspect {number}: is not as leuko val wrote it; edit its verdict only")
        return suspects
    except LeukoError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise LeukoError(
            f"{file}: no review ({error!r:.80}); give the consensus.json of leuko val --ensemble"
        ) from error


def _reviewed(
    sample: Sample, suspects: dict[int, dict], types: list[str], file: Path
) -> tuple[Sample, dict[int, dict], list[int]]:
    """A sample with the verdicts on its cells put into effect, a row for each change by the suspect's number, and the
    numbers of suspects whose cell it lacks."""
    boxes, labels, crowd = sample.boxes.tolist(), sample.labels.tolist(), sample.crowd.tolist()
    factors, attributes = list(sample.cell_factors), [dict(a) for a in sample.attributes]
    rows: dict[int, dict] = {}
    absent, gone = [], set()
    for number, s in suspects.items():
        verdict = s.get("verdict", "").strip()
        if verdict in ("", KEEP):
            continue
        if verdict not in (ACCEPT, *types):
            known = (KEEP, ACCEPT, *types)
            place = f"{file}: {sample.image.name}"
            raise LeukoError(f'{place}: verdict "{verdict}" is none{nearest(verdict, known)} ({", ".join(known)})')
        cell, before, after = s["cell"], s.get("label", ""), s.get("says", "") if verdict == ACCEPT else verdict
        if after and after not in types:
            raise LeukoError(f'{file}: {sample.image.name}: the type "{after}" is not among {", ".join(types)}')
        if cell >= 0:  # where another split lists the image, its cells may stand in another order
            near = [np.allclose(box, s["box"], rtol=0, atol=ROUNDING) for box in boxes]
            same = [i for i, label in enumerate(labels) if near[i] and types[label] == before]
            if not same:
                absent.append(number)
                continue
            cell = cell if cell in same else same[0]
        if cell < 0:
            boxes.append(s["box"])
            labels.append(types.index(after))
            crowd.append(False)
            factors.append(())
            attributes.append({"label_before": ""})
        elif not after:
            gone.add(cell)
        else:
            labels[cell] = types.index(after)
            attributes[cell]["label_before"] = before
        box = dict(zip(("x0", "y0", "x1", "y1"), s["box"], strict=True))
        rows[number] = {"image": str(sample.image), "kind": s["kind"], "before": before, "after": after, **box}
    kept = [i for i in range(len(labels)) if i not in gone]
    changed = replace(
        sample,
        boxes=np.array([boxes[i] for i in kept]),
        labels=np.array([labels[i] for i in kept]),
        crowd=np.array([crowd[i] for i in kept], dtype=bool),
        cell_factors=[factors[i] for i in kept],
        attributes=[attributes[i] for i in kept],
    )
    return changed, rows, absent


def _table(rows: Iterable[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
