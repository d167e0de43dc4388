"""``leuko adapt``: fit a detector with a typing stage to another laboratory."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("adapt")

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from . import __version__
from .config import AdaptOptions
from .data import typed
from .data.loader import file_images
from .data.workers import worker_count
from .engine import thresholds
from .engine.adaptation import LEAST_CELLS, LEAST_FIELDS, adapt_typer, probabilities
from .engine.checkpoint import save
from .engine.ensemble import EnsembleMember
from .engine.environment import environment
from .engine.laboratory import box_factors, in_types, labelled_fields, scores, unlabelled_crops
from .engine.metadata import ADAPTED, BOX_FACTORS, LEAST_FACTOR, MOST_FACTOR, SHIFT
from .engine.network import choose_device
from .errors import LeukoError, one_line
from .io import plain, write_json, write_yaml
from .predict import find_images
from .report import run


def adapt(options: AdaptOptions) -> Path:
    """Adapt by these options and return the run folder, with ``weights/best.safetensors`` and ``metrics.json``. Raises
    LeukoError for what the user can fix."""
    options.check()
    device = choose_device(options.device)
    member = EnsembleMember.load(options.weights, options.device)
    weights = member.weights
    if member.typing is None:
        raise LeukoError(f"{weights.path}: has no typing stage, which is what is adapted; train one by leuko type")
    if options.data and not weights.typer.replay:
        raise LeukoError(f"{weights.path}: keeps no cells that it has learned from, beside which it could learn labels")
    paths = find_images(options.source).images if options.source else []
    dataset = None
    if options.data:
        dataset = in_types(typed.load_split(options.data, options.split), member.typing.types, options.data)
        if not dataset.counts().sum():
            raise LeukoError(f"{options.data}: split {dataset.split} has no labelled cell; label some")
    workers = worker_count(options.workers)

    images = file_images(paths, member.sizes, min(workers, len(paths) // 8), options.max_pixels)
    threshold = thresholds.alone(member).value
    crops, errors = unlabelled_crops(member, images, len(paths), threshold)
    if paths and not len(crops):
        because = errors[0] if len(errors) == len(paths) else "no cell was found there"
        raise LeukoError(f"{options.source}: nothing to learn from on its {len(paths)} images ({because})")
    fields = labelled_fields(member, dataset, workers) if dataset else []
    before = weights.typer.about
    shift = np.array(before.get(SHIFT, np.zeros(len(weights.types))))
    net = weights.typer.build(weights.path).to(device)
    adapted = adapt_typer(net, weights.typer.replay, crops, fields, shift, prior=options.prior, seed=options.seed)

    if not (fields or adapted.about["statistics"] or adapted.about.get("shares")):
        raise LeukoError(
            f"{options.source}: nothing to adapt by: {adapted.about['cells']} cells were found, but it takes at least "
            f"{LEAST_CELLS}; give more fields, or a few with labels by --data"
        )
    about = adapted.about | {"leuko": __version__, "source": options.source, "data": options.data}
    about |= {"fields": len(paths) - len(errors), "labelled_fields": len(fields)}
    files = [*paths, *(field.sample.image for field in fields)]
    names = sorted(path.name for path in files)  # often patients' numbers, and so not in the weights
    listed = "\n".join(names).encode("utf-8", "surrogateescape")
    about |= {"files": len(names), "files_sha256": hashlib.sha256(listed).hexdigest()}
    kept = {key: value for key, value in weights.about.items() if key not in ("calibration", "val")}
    factors = member.typing.box_factors
    if fields:
        ours = box_factors(fields)
        of_found = [probabilities(adapted.net, field.found_crops) for field in fields]
        value, scaling = scores(fields, replace(member.typing, box_factors=ours), adapted.chances, of_found)
        factors = tuple(float(np.clip(a * b, LEAST_FACTOR, MOST_FACTOR)) for a, b in zip(factors, ours, strict=True))
        place = {"data": options.data, "split": dataset.split}
        if value:
            kept["counting"] = thresholds.of_model(value, member.sizes, **place)
        if scaling:
            kept["calibration"] = asdict(scaling) | place | {"sizes": member.sizes}
    laboratory = {BOX_FACTORS: factors, SHIFT: adapted.shift, ADAPTED: [*before.get(ADAPTED, []), about]}
    stage = replace(weights.typer, state=adapted.net.state_dict(), about=plain(before | laboratory))

    with run.whole_run(options.project, options.name, "weights") as folder:
        new = replace(weights, path=folder / "weights/best.safetensors", about=plain(kept), typer=stage)
        if any(value.dtype == torch.float16 for value in weights.typer.state.values()):
            new.halve()
        save(new)
        write_yaml(folder / "args.yaml", asdict(options))
        write_json(folder / "environment.json", environment(device))
        write_json(folder / "metrics.json", about | {BOX_FACTORS: factors, "file_names": names, "unreadable": errors})
    print("\n".join(summary(about, factors, thresholds.alone(replace(member, weights=new)).value, stage.types)))
    for line in errors:
        print(f"not read: {line}", file=sys.stderr)
    print(f"\nresults: {one_line(str(folder))}\nnext: leuko predict --weights {quote(str(folder))} --source IMAGES")
    return folder


def summary(about: dict, factors: Sequence[float], threshold: float, types: Sequence[str]) -> list[str]:
    """What was learned, and what of it is used, line by line."""
    lines = [f"{about['fields']} fields without labels, {about['cells']} cells in all, {about['labelled']} with labels"]
    if found := about.get("log_loss"):
        steps = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
        lines.append(f"log loss of the labelled types, of fields not learned from (less is better): {steps}")
        if "last layer" not in found:
            lines.append(
                f"the last layer stays: at least {LEAST_FIELDS} labelled fields with cells are needed to test it"
            )
        elif about["last_layer"]:
            lines.append("the last layer is fitted to these labels and to cells that it has learned before")
        elif found["last layer"] >= found["shares alone"]:
            lines.append("the last layer stays: these labels say no more than how frequent each type is")
        else:
            lines.append("the last layer stays: fitted to these labels, it does no better on those that were left out")
    few = f" (at least {LEAST_CELLS} cells are needed)" if about["cells"] < LEAST_CELLS else ""
    lines.append(f"statistics: {about['statistics']:.0%} of the way to these cells{few}")
    if shares := about.get("shares"):
        listed = ", ".join(f"{name} {share:.0%}" for name, share in zip(types, shares, strict=True))
        lines.append(f"types here, which count half from now on (--no-prior leaves them out): {listed}")
    lines.append(f"boxes: {factors[0]:.2f} times as wide, {factors[1]:.2f} times as high as the detector finds them")
    lines.append(f"cells count from a score of {threshold:.2f}")
    return lines
