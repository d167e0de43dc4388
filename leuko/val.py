"""`python -m leuko.val`: measure a trained detector, or several and their fusion."""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("val")

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .cells import factor_names
from .config import ValOptions
from .data import source
from .data.dataset import Dataset
from .data.images import read_image
from .data.tools.draw import with_factor
from .data.tools.split import check_groups
from .engine import cost
from .engine.checkpoint import check_calibrates, load_weights, save_calibration
from .engine.ensemble import Fusion, best_members, finished_runs, load_members, predict_members, tune
from .engine.evaluate import EnsembleMember, Predictions, choose_device, detect
from .engine.sizes import resized
from .errors import LeukoError
from .io import write_csv, write_json, write_text, write_yaml
from .metrics import calibration, coco, matching
from .report import figures, pages, pictures, plots, run, table
from .report.results import ModelResult
from .report.results import write as results_of
from .report.table import Row


def val(options: ValOptions) -> Path:
    """Validate by these options, print the table, and return the folder of results.

    Raises LeukoError for what the user can mend.
    """
    options.check()
    if options.factors:
        factor_names(options.factors)  # so that a slip in it is told before anything runs
    device = choose_device(options.device)
    dataset = source.load(options.data, split_of(options))
    if not options.allow_leaks:
        refuse_leaks(options, dataset)
    if told := table.warnings(split_of(options), dataset):
        print(told)
    if options.ensemble is None:
        sources: Sequence[str | Path] = [options.weights]
    else:
        sources = options.ensemble or finished_runs(options.project, dataset.types)
    if options.ensemble is not None and len(sources) < 2:
        raise LeukoError("--ensemble: name at least two models, or one with --weights")
    members = load_members(sources, device, options.imgsz or ())
    for member in members:  # what is refused is refused before anything runs
        member.labels_in(dataset.types)
        if options.calibrate:
            check_calibrates(member.weights)
        if options.calibrated:
            member.calibrated([])
    other = tuning_data(options, dataset) if options.tune or options.calibrate else None
    fused = best_members(members, options.best) if options.best else list(range(len(members)))
    fusion = Fusion(options.fusion_iou, options.fusion_score, options.fusion_weights)
    if len(members) > 1 and not options.tune:
        fusion.votes([members[i] for i in fused])
    folder = run.new_run(options.save, options.name or ("ensemble" if len(members) > 1 else members[0].name))
    try:
        measure(folder, options, members, fused, fusion, dataset, other, device)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing was measured
    return folder


def measure(
    folder: Path,
    options: ValOptions,
    members: Sequence[EnsembleMember],
    fused: Sequence[int],
    fusion: Fusion,
    dataset: Dataset,
    other: Dataset | None,
    device: torch.device,
) -> None:
    """Run the members, of which those of the indices ``fused`` are fused, on the data; write and print what is found.
    ``other`` is the split to tune and to calibrate on, if that is asked for."""
    tried = []
    if options.tune:
        fusion, tried = tuned([members[i] for i in fused], other, options, device)
    if options.calibrate:
        calibrate(members, other, options, device)
    results = predicted(members, dataset, options, device)
    rows = [row(m, r, dataset) for m, r in zip(members, results, strict=True)]
    found = results[0].found
    if len(members) > 1:
        sizes = [(s.width, s.height) for s in dataset.samples]
        found = fusion([members[i] for i in fused], [results[i].found for i in fused], sizes)
        name = "ensemble" if len(fused) == len(members) else f"ensemble of the best {len(fused)}"
        last = fused_row(name, [rows[i] for i in fused], coco.evaluate(dataset, found))
        rows = [*sorted(rows, key=lambda r: r.evaluation.mAP), last]
    models = [measured(m, r, dataset, options, device) for m, r in zip(members, results, strict=True)]
    plain, costs = models[0].evaluation.mAP, [m.cost for m in models]
    if len(members) > 1:
        models.sort(key=lambda m: m.evaluation.mAP)
        of_fused = [costs[i] for i in fused]
        cost = {key: round(sum(c[key] for c in of_fused), 1) for key in ("parameters", "GFLOPs", "file_MB")}
        models.append(ModelResult(rows[-1].name, found, rows[-1].evaluation, cost | {"fps": round(rows[-1].fps, 2)}))
    write(folder, options, dataset, found, rows, fusion)
    run.write_warnings(folder, dataset, *([other] if other else []))
    told = results_of(folder, dataset, models, options.draws)
    if options.factors:
        wanted = product(factor_names(options.factors), options.severities)
        sweep(folder, members[0], dataset, plain, wanted, device)
    write_text(folder / "report.html", pages.build(folder))
    if tried:
        write_csv(folder / "tuning.csv", tried)
        print(f"tuned on {options.tune_split}: {fusion}; all that was tried is in tuning.csv")
    print(f"{options.data}, {split_of(options)}: {len(dataset)} images; types over their number of cells\n")
    print(table.aligned(table.table2(rows, dataset.types), head=2))
    print(f"\n{table.per_class(rows[-1].evaluation)}" if len(rows) == 1 else "")
    print("\n".join(told))
    print(f"\nresults: {folder} (report.html shows them all)")


def predicted(
    members: Sequence[EnsembleMember], dataset: Dataset, options: ValOptions, device: torch.device
) -> list[Predictions]:
    """Each member's predictions, their scores calibrated where that is asked for."""
    results = predict_members(members, dataset, device, batch=options.batch, workers=options.workers)
    if options.calibrated:
        for member, result in zip(members, results, strict=True):
            result.found = member.calibrated(result.found)
    return results


def measured(
    member: EnsembleMember, result: Predictions, dataset: Dataset, options: ValOptions, device: torch.device
) -> ModelResult:
    """A member's detections and measures, and what it costs on this machine."""
    plain = member.weights.build().to(device)  # as it was trained
    operations = sum(cost.gflops(resized(plain, size), size, device) for size in member.sizes)
    shown = " ".join(map(str, member.sizes)) if len(member.sizes) > 1 else member.sizes[0]
    cost = {"parameters": member.parameters, "GFLOPs": round(operations, 1), "image_size": shown}
    cost |= {"file_MB": round(member.weights.path.stat().st_size / 1e6, 1), "fps": round(result.fps, 2)}
    cost |= cost.percentiles(result.seconds) if options.batch == 1 else {}
    about = run.environment()
    cost |= {"peak_memory_MiB": round(cost.peak_memory(device)), "on": about["gpu"] or about["cpu"]}
    cost["threads"] = about["threads"]
    scaling = None if options.calibrated else member.scaling
    return ModelResult(member.name, result.found, coco.evaluate(dataset, result.found), cost, scaling)


def tuning_data(options: ValOptions, dataset: Dataset) -> Dataset:
    """The split to tune and to calibrate on, warnings told; LeukoError if it has no cell, or an image that is reported."""
    if source.split_name(options.data, options.tune_split) == split_of(options):
        raise LeukoError(f"--tune-split {options.tune_split}: is the split that is reported; name another one")
    other = source.load(options.data, options.tune_split)
    if shared := sorted({s.image.resolve() for s in other.samples} & {s.image.resolve() for s in dataset.samples}):
        raise LeukoError(
            f"--tune-split {options.tune_split}: {len(shared)} of its images stand in {split_of(options)}, which is "
            f"reported, such as {shared[0]}; name another one, or divide the data anew by leuko data split"
        )
    if not other.counts().sum():
        raise LeukoError(f"--tune-split {options.tune_split}: has no cell to tune or calibrate by; name another one")
    if told := table.warnings(options.tune_split, other):
        print(told)
    return other


def calibrate(members: Sequence[EnsembleMember], dataset: Dataset, options: ValOptions, device: torch.device) -> None:
    """Fit each member's scores on the split to tune on, and keep the fit in its weights file."""
    results = predicted(members, dataset, options, device)
    fits = [calibration.fit(*calibration.outcomes(matching.match(dataset, r.found))) for r in results]
    for member, scaling in zip(members, fits, strict=True):
        if scaling is None:
            why = f"too few of its detections on the {options.tune_split} split are true, or false, to learn from"
            raise LeukoError(f"{member.weights.path}: {why}; train it for longer, or calibrate on more images")
    for member, scaling in zip(members, fits, strict=True):
        about = {"data": options.data, "split": options.tune_split, "sizes": member.sizes}
        save_calibration(member.weights, asdict(scaling) | about)
        member.weights = load_weights(member.weights.path)
        print(f"{member.name}: temperature {scaling.temperature:.2f}, shift {scaling.shift:+.2f}, kept in its weights")


def sweep(
    folder: Path,
    member: EnsembleMember,
    dataset: Dataset,
    without: float,
    wanted: Iterable[tuple[str, int]],
    device: torch.device,
) -> None:
    """mAP with each factor on the images, at each severity: ``severity.csv`` and its picture."""
    rows = [{"model": member.name, "factor": "", "severity": 0, "mAP": without}]
    for name, severity in wanted:
        samples, found = [], []
        for i, sample in enumerate(tqdm(dataset.samples, f"{name} {severity}", unit="image", leave=False)):
            image, changed = with_factor(sample, read_image(sample.image), name, severity, np.random.default_rng(i))
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            found += member.relabel(detect(member.model, [pixels], device), dataset.types)
            samples.append(replace(changed, width=image.shape[1], height=image.shape[0]))
        mAP = coco.evaluate(replace(dataset, samples=samples), found).mAP
        rows.append({"model": member.name, "factor": name, "severity": severity, "mAP": mAP})
    write_csv(folder / "severity.csv", rows)
    figures.severity(rows, member.name, folder / "severity.png")


def tuned(
    members: Sequence[EnsembleMember], dataset: Dataset, options: ValOptions, device: torch.device
) -> tuple[Fusion, list[dict]]:
    """The fusion that does best on the split to tune on, and all that were tried."""
    results = predicted(members, dataset, options, device)
    return tune(members, [r.found for r in results], dataset)


def split_of(options: ValOptions) -> str:
    """The split to validate on; a data set without splits has one of its own name."""
    there = source.splits(options.data)
    alone = options.split == ValOptions.split and len(there) == 1
    return there[0] if alone else source.split_name(options.data, options.split)


def refuse_leaks(options: ValOptions, dataset: Dataset) -> None:
    """LeukoError if a group of the split's images stands in the training split of the data, too."""
    split = split_of(options)
    if split != "train" and dataset.groups():
        check_groups({"train": source.groups(options.data, "train"), split: dataset.groups()}, options.data)


def row(member: EnsembleMember, result: Predictions, dataset: Dataset) -> Row:
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
    write_yaml(folder / "args.yaml", asdict(options))
    write_json(folder / "environment.json", run.environment())
    about = {"model": last.name, "data": options.data, "parameters": last.parameters, "fps": last.fps}
    if len(rows) > 1:
        about |= {"fusion": asdict(fusion), "members": [table.record(r) for r in rows[:-1]]}
    run.write_evaluation(folder, last.evaluation, coco.to_coco_results(dataset, found), **about)
    lines = table.table2(rows, dataset.types)
    write_text(folder / "table.txt", table.aligned(lines, head=2) + "\n")
    write_text(folder / "table.md", table.markdown(lines) + "\n")
    records = [table.record(r) for r in rows]
    write_csv(folder / "table.csv", records)
    cells = dict(zip(dataset.types, dataset.counts().tolist(), strict=True))
    write_json(
        folder / "table.json", {"data": options.data, "split": split_of(options), "cells": cells, "rows": records}
    )
    plots.write_image(folder / "predictions.jpg", pictures.truth_and_found(dataset, found))
