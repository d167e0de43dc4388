"""Corrections from a review of the labels that models doubt together: ``leuko data apply-review``."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from leuko.data import source
from leuko.data.convert import WRITERS, check_apart, list_flaws, load_all
from leuko.data.files import read_text, write_text
from leuko.data.folder import building
from leuko.data.sample import Dataset, Sample
from leuko.errors import LeukoError, nearest

KEEP, ACCEPT = "keep", "accept"
COLUMNS = ("image", "kind", "before", "after", "x0", "y0", "x1", "y1")


def apply_review(src: str | Path, review: str | Path, dst: str | Path, *, force: bool = False) -> list[dict]:
    """Write a data set with the verdicts of a review put into its labels, and return what changed.

    Each suspect of ``consensus.json`` has a ``verdict``, which a person fills in: ``keep`` (or nothing) leaves the
    label, ``accept`` does what the models say (another type, a new cell, no cell), a type's name gives that type. The
    cell's old type stays as its attribute ``label_before``, and all changes stand in ``reviewed.csv``.

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
    of_image: dict[Path, list[dict]] = {}
    suspects = _read(Path(review))
    for suspect in suspects:
        of_image.setdefault(Path(suspect["image"]).resolve(), []).append(suspect)
    changes: dict[Path, list[dict]] = {}
    new: dict[str, Dataset] = {}
    for split, dataset in datasets.items():
        samples = []
        for sample in dataset.samples:
            key = sample.image.resolve()
            sample, changed = _reviewed(sample, of_image.get(key, []), dataset.types, Path(review))
            changes[key] = changes.get(key, []) + [row for row in changed if row not in changes.get(key, [])]
            samples.append(sample)
        new[split] = replace(dataset, samples=samples)
    if lost := [path for path in of_image if path not in changes]:
        raise LeukoError(f"{review}: image {lost[0]} is not in {src}; name the data set that was validated")
    rows = [row for changed in changes.values() for row in changed]
    form = source.find(src).format
    with building(dst, force) as folder:
        for split, dataset in new.items():
            WRITERS[form](dataset, folder, split)
        list_flaws(folder, datasets)
        write_text(folder / "reviewed.csv", _table(rows))
    return rows


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


def _reviewed(sample: Sample, suspects: list[dict], types: list[str], file: Path) -> tuple[Sample, list[dict]]:
    """A sample with the verdicts on its cells put into effect, and a row for each change."""
    boxes, labels, crowd = sample.boxes.tolist(), sample.labels.tolist(), sample.crowd.tolist()
    factors, attributes = list(sample.cell_factors), [dict(a) for a in sample.attributes]
    rows, gone = [], set()
    for s in suspects:
        verdict = s.get("verdict", "").strip()
        if verdict in ("", KEEP):
            continue
        if verdict not in (ACCEPT, *types):
            known = (KEEP, ACCEPT, *types)
            place = f"{file}: {sample.image.name}"
            raise LeukoError(f'{place}: verdict "{verdict}" is none{nearest(verdict, known)} ({", ".join(known)})')
        cell, before, after = s["cell"], s.get("label", ""), s.get("says", "") if verdict == ACCEPT else verdict
        if cell >= 0 and (cell >= len(labels) or types[labels[cell]] != before):
            raise LeukoError(f"{file}: {sample.image}: cell {cell} is no {before} any more; validate the data anew")
        if after and after not in types:
            raise LeukoError(f'{file}: {sample.image.name}: the type "{after}" is not among {", ".join(types)}')
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
        rows.append({"image": str(sample.image), "kind": s["kind"], "before": before, "after": after, **box})
    kept = [i for i in range(len(labels)) if i not in gone]
    changed = replace(
        sample,
        boxes=np.array([boxes[i] for i in kept]),
        labels=np.array([labels[i] for i in kept]),
        crowd=np.array([crowd[i] for i in kept], dtype=bool),
        cell_factors=[factors[i] for i in kept],
        attributes=[attributes[i] for i in kept],
    )
    return changed, rows


def _table(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
