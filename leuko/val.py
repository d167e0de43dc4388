"""``leuko val``: measure a trained detector, or several and their fusion."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("val")

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .cells import factor_names
from .config import ValOptions
from .data import source
from .data.dataset import Dataset
from .data.images import LoadedImage, read_image
from .data.tools.builder import write_warnings
from .data.tools.draw import with_factor
from .data.tools.found import write_labels
from .detections import Detections
from .engine import cost, distributed, thresholds
from .engine.ensemble import Ensemble, EnsembleMember
from .engine.environment import environment
from .engine.evaluate import predict_by
from .engine.network import choose_device
from .engine.thresholds import Threshold
from .engine.tiling import cells_at_network
from .errors import LeukoError
from .io import write_csv, write_json, write_text, write_yaml
from .metrics import calibration, coco
from .report import pages, pictures, plots, run, tables
from .report.results import ModelResult, write_results


def val(options: ValOptions) -> Path:
    """Validate by these options, print the table, and return the folder of results. Raises LeukoError for what the user
    can fix, before anything runs as far as possible."""
    options.check()
    device = choose_device(options.device, options.amp)
    with distributed.together(device):
        return distributed.led(_val, options, device)


def _val(options: ValOptions, device: torch.device) -> Path:
    factors = factor_names(options.factors) if options.factors else []
    split = split_of(options)
    dataset = source.load(options.data, split)
    if not options.allow_leaks and split != "train" and dataset.groups():
        source.check_groups({"train": source.groups(options.data, "train"), split: dataset.groups()}, options.data)
    if lines := tables.warnings(split, dataset, options.most_per_image):
        print(lines)
    ensemble = chosen_models(options, dataset)
    members = ensemble.members
    tuning = Tuning.of(options, dataset)
    folder = run.new_run(options.save, options.name or ensemble.name)
    try:
        if options.calibrate:
            calibrate(members, tuning, options)
        models = [measured(member, dataset, options, device, tuning) for member in members]
        if len(models) > 1:
            models = [*sorted(models, key=lambda m: m.evaluation.mAP), fuse(ensemble, models, dataset, tuning)]
        about = {"fusion": asdict(ensemble.fusion)} if len(models) > 1 else {}
        write(folder, options, dataset, models, about)
        told = [dataset, *([tuning.dataset] if tuning.is_told else [])]
        write_warnings(folder, {each.split: each for each in told})
        answer, lines = write_results(folder, dataset, models, options.draws)
        if factors:
            sweep(folder, members[0], dataset, factors, options.severities)
        if options.labels:
            reported = models[-1]
            lines += write_labels(folder / "labels", options.labels, dataset, reported.counted, split, reported.name)
        write_text(folder / "report.html", pages.build(folder))
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing was measured
    print(f"{options.data}, {split}: {len(dataset)} images\n\n{answer}\n\nCOCO's measures; types over their cells\n")
    print(tables.aligned(tables.table2(records(models), cells_of(dataset)), head=2))
    print(f"\n{tables.aligned(tables.per_class(models[-1].evaluation), head=1)}" if len(models) == 1 else "")
    tiny = tables.tiny_cells(cells_at_network(dataset, max(member.largest for member in members)))
    at_cap = tables.at_cap(images_at_cap(dataset, ensemble, models), options.most_per_image)
    print("\n".join([*lines, *filter(None, (tiny, at_cap))]))
    print(f"\nresults: {folder} (report.html shows them all)")
    return folder


# ---------------------------------------------------------------- what is measured, and on what


def split_of(options: ValOptions) -> str:
    """The split to validate on; a data set without splits has a single one of its own name."""
    there = source.splits(options.data)
    alone = options.split == ValOptions.split and len(there) == 1
    return there[0] if alone else source.split_name(options.data, options.split)


def chosen_models(options: ValOptions, dataset: Dataset) -> Ensemble:
    """The models to measure, whose types must be the data set's."""
    ensemble = Ensemble.of(options, dataset.types, source.find(options.data).new_name)
    for member in ensemble.members if options.calibrate else ():
        if member.typer:
            raise LeukoError("--calibrate: a fit is kept for a model's own typing stage; leave out --typer")
        member.weights.check_keeps()
    return ensemble


@dataclass
class Tuning:
    """The split that is not reported: thresholds of counts are found on it, and what --calibrate fits.
    ``dataset`` is None where there is none; it ``is_told`` where the user asked for it."""

    options: ValOptions
    reported: str
    dataset: Dataset | None
    is_told: bool
    why_not: str
    found: dict[str, list[Detections]] = field(default_factory=dict)

    @classmethod
    def of(cls, options: ValOptions, dataset: Dataset) -> Tuning:
        """The split that --tune-split names; LeukoError if it is needed, and has no cell or an image that is reported.
        Where it is not needed, a threshold says why it is not found there."""
        is_needed, why_not, other = options.calibrate, "", None
        try:
            other = tuning_data(options, dataset)
        except LeukoError as error:
            if is_needed:
                raise
            why_not = str(error)
        if is_needed and (lines := tables.warnings(options.tune_split, other, options.most_per_image)):
            print(lines)
        return cls(options, dataset.split, other, is_needed, why_not)

    def predictions(self, member: EnsembleMember) -> list[Detections]:
        """What a member finds on the split, once; scores are calibrated where that is asked for."""
        if member.name not in self.found:
            options = self.options
            predictions = predict_by(member, self.dataset, options.batch, options.workers).predictions
            self.found[member.name] = member.calibrated(predictions) if options.calibrated else predictions
        return self.found[member.name]

    def threshold(self, ensemble: Ensemble) -> Threshold:
        """The score from which a model, or a fusion, counts: given, kept in the weights, or found here and kept."""
        options = self.options
        if options.threshold is not None:
            return Threshold(options.threshold, "as --threshold says")
        threshold = thresholds.kept(ensemble, reported=(options.data, self.reported))
        if threshold is None and self.dataset:
            predictions = [self.predictions(member) for member in ensemble.members]
            fused = ensemble.fused(predictions, [(s.width, s.height) for s in self.dataset.samples])
            if value := thresholds.find(self.dataset, fused):
                threshold = Threshold(value, f"found on {self.dataset.split} of {options.data}")
                if len(ensemble.members) > 1 or not options.calibrated:
                    try:
                        thresholds.keep(ensemble, value, options.data, self.dataset.split)
                    except LeukoError as error:  # such as weights that others may only read: it is used all the same
                        print(f"the threshold {value:.2f} is not kept: {error}")
        return threshold or Threshold(origin=f"a default; {self.why_not or 'nothing right was found to fit it'}")


def tuning_data(options: ValOptions, dataset: Dataset) -> Dataset:
    """The split that is not reported; LeukoError if it has no cell, or an image that is reported."""
    if source.split_name(options.data, options.tune_split) == dataset.split:
        raise LeukoError(f"--tune-split {options.tune_split}: is the split that is reported; name another one")
    other = source.load(options.data, options.tune_split, dataset.types)
    if shared := sorted({s.image.resolve() for s in other.samples} & {s.image.resolve() for s in dataset.samples}):
        raise LeukoError(
            f"--tune-split {options.tune_split}: {len(shared)} of its images are in {dataset.split}, which is "
            f"reported, such as {shared[0]}; name another one, or divide the data anew by leuko data split"
        )
    if not other.counts().sum():
        raise LeukoError(f"--tune-split {options.tune_split}: has no cell to fit anything to; name another one")
    return other


# ---------------------------------------------------------------- measuring


def measured(
    member: EnsembleMember, dataset: Dataset, options: ValOptions, device: torch.device, tuning: Tuning
) -> ModelResult:
    """A member's detections and measures on a data set, and what it costs on this machine."""
    cost.reset_peak_memory(device)
    result = predict_by(member, dataset, options.batch, options.workers)
    memory = cost.peak_memory(device)
    predictions = member.calibrated(result.predictions) if options.calibrated else result.predictions
    operations = member.weights.gflops(member.sizes, device)
    about = environment(device)
    costs = {
        "parameters": member.parameters,
        "GFLOPs": round(operations, 1),
        "image_size": " ".join(map(str, member.sizes)) if len(member.sizes) > 1 else member.sizes[0],
        "file_MB": round(member.weights.path.stat().st_size / 1e6, 1),
        "fps": result.fps,
        **(cost.percentiles(result.seconds) if options.batch == 1 else {}),
        "peak_memory_MiB": round(memory, 1),
        "on": about["gpu"] or about["cpu"],
        "threads": about["threads"],
    }
    evaluation = coco.evaluate(dataset, predictions, member.max_detections)
    scaling = None if options.calibrated else member.scaling
    threshold = tuning.threshold(Ensemble([member], calibrated=options.calibrated))
    return ModelResult(member.name, predictions, evaluation, threshold.value, threshold.origin, costs, scaling)


def fuse(ensemble: Ensemble, models: Sequence[ModelResult], dataset: Dataset, tuning: Tuning) -> ModelResult:
    """The members' fusion: all their parameters, and the speed of one member after the other."""
    predictions = ensemble.fused([m.predictions for m in models], [(s.width, s.height) for s in dataset.samples])
    costs = {key: round(sum(m.cost[key] for m in models), 1) for key in ("parameters", "GFLOPs", "file_MB")}
    costs["fps"] = 1 / sum(1 / m.cost["fps"] for m in models)
    evaluation = coco.evaluate(dataset, predictions, ensemble.max_detections)
    threshold = tuning.threshold(ensemble)
    return ModelResult(ensemble.name, predictions, evaluation, threshold.value, threshold.origin, costs)


def calibrate(members: Sequence[EnsembleMember], tuning: Tuning, options: ValOptions) -> None:
    """Fit each member's scores on the split that is not reported, and keep the fit in its weights file."""
    fits = []
    for member in members:
        matches = coco.match(tuning.dataset, tuning.predictions(member))
        fits.append(calibration.fit(*calibration.outcomes(matches)))
        if fits[-1] is None:
            problem = f"too few of its detections on the {options.tune_split} split are true, or false, to learn from"
            raise LeukoError(f"{member.weights.path}: {problem}; train it for longer, or calibrate on more images")
    for member, scaling in zip(members, fits, strict=True):
        about = {"data": options.data, "split": options.tune_split, "sizes": member.sizes}
        member.weights.keep(calibration=asdict(scaling) | about)
        print(f"{member.name}: temperature {scaling.temperature:.2f}, shift {scaling.shift:+.2f}, kept in its weights")


def sweep(
    folder: Path,
    member: EnsembleMember,
    dataset: Dataset,
    factors: Sequence[str],
    severities: Sequence[int],
) -> None:
    """mAP with each factor on the images, at each severity: ``severity.csv`` and its picture. Severity 0 is measured
    the same way, on images decoded in full: validation may decode large JPEGs to a half or less, a slight change."""
    rows = []
    for name, severity in [("", 0), *product(factors, severities)]:
        samples, predictions = [], []
        for i, sample in enumerate(tqdm(dataset.samples, f"{name} {severity}", unit="image", leave=False)):
            image, changed = read_image(sample.image), sample
            if name:
                image, changed = with_factor(sample, image, name, severity, np.random.default_rng(i))
            detections = member.detect([LoadedImage.of_pixels(image, member.views)])
            predictions += member.relabel(detections, dataset.types)
            samples.append(replace(changed, width=image.shape[1], height=image.shape[0]))
        mAP = coco.evaluate(replace(dataset, samples=samples), predictions, member.max_detections).mAP
        rows.append({"model": member.name, "factor": name, "severity": severity, "mAP": mAP})
    write_csv(folder / "severity.csv", rows)
    plots.severity(rows, member.name, folder / "severity.png")


# ---------------------------------------------------------------- writing


def images_at_cap(dataset: Dataset, ensemble: Ensemble, models: Sequence[ModelResult]) -> list[Path]:
    """The images on which a model found as many cells as it may. Scores below those that are calibrated don't count: of
    those, Ultralytics' models have as many as they may on nearly every image."""
    least = calibration.LEAST_SCORE
    found = np.array([[ensemble.places(p.above(least)) for p in m.predictions] for m in models])
    full = (found >= models[0].evaluation.max_detections).any(0)
    return [sample.image for sample, is_full in zip(dataset.samples, full, strict=True) if is_full]


def records(models: Sequence[ModelResult]) -> list[dict]:
    """The models' lines of the table."""
    return [tables.record(m.name, m.evaluation, m.cost["parameters"], m.cost["fps"]) for m in models]


def cells_of(dataset: Dataset) -> dict[str, int]:
    """The cells of each type."""
    return dict(zip(dataset.types, dataset.counts().tolist(), strict=True))


def write(folder: Path, options: ValOptions, dataset: Dataset, models: Sequence[ModelResult], about: dict) -> None:
    """The files of a validation: of the last model (the fusion, if there is one), with each model's line beside it."""
    reported, rows = models[-1], records(models)
    write_yaml(folder / "args.yaml", asdict(options))
    write_json(folder / "environment.json", environment(choose_device(options.device)))
    about = {"model": reported.name, "data": options.data} | {k: rows[-1][k] for k in ("parameters", "fps")} | about
    if len(models) > 1:
        about["members"] = rows[:-1]
    run.write_evaluation(folder, reported.evaluation, coco.to_coco_results(dataset, reported.predictions), **about)
    lines = tables.table2(rows, cells_of(dataset))
    write_text(folder / "table.txt", tables.aligned(lines, head=2) + "\n")
    write_text(folder / "table.md", tables.markdown(lines) + "\n")
    write_csv(folder / "table.csv", rows)
    head = {"data": options.data, "split": split_of(options), "cells": cells_of(dataset)}
    write_json(folder / "table.json", {**head, "rows": rows})
    sheet = pictures.gt_and_predictions(dataset, reported.counted, reported.rule)
    pictures.write_image(folder / "predictions.jpg", sheet)
