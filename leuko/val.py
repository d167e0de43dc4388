"""`python -m leuko.val`: measure a trained detector, or several and their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .commandline import as_dict, parse
from .commandline import run as run_command
from .config import ValOptions
from .data import source
from .data.sample import Dataset
from .data.split import check_groups
from .engine.ensemble import Fusion, best_members, finished_runs, load_members, predict_members, tune
from .engine.inference import Member, Predictions, choose_device
from .errors import LeukoError
from .metrics import coco
from .report import pictures, plots, run, table
from .report.table import Row

EXAMPLES = """
# one model on the test split
leuko val --weights runs/train/fcos --data datasets/smears
# another split, a weights file
leuko val --weights fcos.safetensors --data datasets/smears --split val
# three models and their fusion in one table
leuko val --ensemble runs/train/fcos runs/train/faster_rcnn runs/train/cascade_rcnn --data datasets/smears
# all finished runs of runs/train that fit the data
leuko val --ensemble --data datasets/smears
# fuse only the three best, by options of the fusion that do best on the val split
leuko val --ensemble --members best:3 --tune --data datasets/smears
"""


def val(options: ValOptions) -> Path:
    """Validate by these options, print the table, and return the folder of results.

    Raises LeukoError for what the user can mend.
    """
    options.check()
    device = choose_device(options.device)
    dataset = source.load(options.data, split_of(options))
    if not options.allow_leaks:
        refuse_leaks(options, dataset)
    if told := table.flaws(split_of(options), dataset):
        print(told)
    if options.ensemble is None:
        sources: Sequence[str | Path] = [options.weights]
    else:
        sources = options.ensemble or finished_runs(options.project, dataset.types)
    if options.ensemble is not None and len(sources) < 2:
        raise LeukoError("--ensemble: name at least two models, or one with --weights")
    members = load_members(sources, device)
    fused = best_members(members, options.best) if options.best else list(range(len(members)))
    fusion, tried = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights), []
    if options.tune:
        fusion, tried = tuned([members[i] for i in fused], options, device)
    results = predict_members(members, dataset, device, batch=options.batch, workers=options.workers)
    rows = [row(m, r, dataset) for m, r in zip(members, results, strict=True)]
    found = results[0].found
    if len(members) > 1:
        sizes = [(s.width, s.height) for s in dataset.samples]
        found = fusion([members[i] for i in fused], [results[i].found for i in fused], sizes)
        name = "ensemble" if len(fused) == len(members) else f"ensemble of the best {len(fused)}"
        last = fused_row(name, [rows[i] for i in fused], coco.evaluate(dataset, found))
        rows = [*sorted(rows, key=lambda r: r.evaluation.mAP), last]
    folder = run.new_run(options.save, options.name or ("ensemble" if len(members) > 1 else members[0].name))
    write(folder, options, dataset, found, rows, fusion)
    if tried:
        run.write_csv(folder / "tuning.csv", tried)
        print(f"tuned on {options.tune_split}: {fusion}; all that was tried is in tuning.csv")
    print(f"{options.data}, {split_of(options)}: {len(dataset)} images; types over their number of cells\n")
    print(table.aligned(table.table2(rows, dataset.types), head=2))
    print(f"\n{table.per_class(rows[-1].evaluation)}" if len(rows) == 1 else "")
    print(f"results: {folder}")
    return folder


def tuned(members: Sequence[Member], options: ValOptions, device: torch.device) -> tuple[Fusion, list[dict]]:
    """The fusion that does best on the split to tune on, and all that were tried."""
    if options.tune_split == split_of(options):
        raise LeukoError(f"--tune-split {options.tune_split}: is the split that is reported; tune on another one")
    dataset = source.load(options.data, options.tune_split)
    results = predict_members(members, dataset, device, batch=options.batch, workers=options.workers)
    return tune(members, [r.found for r in results], dataset)


def split_of(options: ValOptions) -> str:
    """The split to validate on; a data set without splits has one of its own name."""
    there = source.splits(options.data)
    return there[0] if options.split == ValOptions.split and len(there) == 1 else options.split


def refuse_leaks(options: ValOptions, dataset: Dataset) -> None:
    """LeukoError if a group of the split's images stands in the training split of the data, too."""
    split = split_of(options)
    if split != "train" and dataset.groups():
        check_groups({"train": source.groups(options.data, "train"), split: dataset.groups()}, options.data)


def row(member: Member, result: Predictions, dataset: Dataset) -> Row:
    """A member's line of the table."""
    return Row(member.name, coco.evaluate(dataset, result.found), member.parameters, result.fps)


def fused_row(name: str, rows: Sequence[Row], evaluation: coco.Evaluation) -> Row:
    """The fusion's line: all its members' parameters, and the speed of one member after the other."""
    seconds = sum(1 / r.fps for r in rows)
    return Row(name, evaluation, sum(r.parameters for r in rows), 1 / seconds)


def write(
    folder: Path, options: ValOptions, dataset: Dataset, found: list[dict], rows: Sequence[Row], fusion: Fusion
) -> None:
    """The files of a validation: of the fusion if there are several models, with each model's line beside it."""
    last = rows[-1]
    run.write_yaml(folder / "args.yaml", as_dict(options))
    run.write_json(folder / "environment.json", run.environment())
    run.write_flaws(folder, dataset)
    about = {"model": last.name, "data": options.data, "parameters": last.parameters, "fps": last.fps}
    if len(rows) > 1:
        about |= {"fusion": asdict(fusion), "members": [table.record(r) for r in rows[:-1]]}
    run.write_evaluation(folder, last.evaluation, coco.to_coco_results(dataset, found), **about)
    lines = table.table2(rows, dataset.types)
    run.write_text(folder / "table.txt", table.aligned(lines, head=2) + "\n")
    run.write_text(folder / "table.md", table.markdown(lines) + "\n")
    records = [table.record(r) for r in rows]
    run.write_csv(folder / "table.csv", records)
    cells = dict(zip(dataset.types, dataset.counts().tolist(), strict=True))
    run.write_json(
        folder / "table.json", {"data": options.data, "split": split_of(options), "cells": cells, "rows": records}
    )
    plots.write_image(folder / "predictions.jpg", pictures.truth_and_found(dataset, found))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    options, _ = parse(ValOptions, argv, "leuko val", EXAMPLES)
    val(options)


if __name__ == "__main__":
    run_command(main)
