"""``leuko type``: train a typing stage, alone or for a detector."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("type")

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from . import __version__
from .cells import BY_CODE, NONE, in_order
from .config import TypeOptions
from .data import source, typed
from .data.dataset import Dataset
from .data.typed import TypedCells
from .engine.checkpoint import StoredTyper, Weights, load_weights, save
from .engine.environment import environment
from .engine.metadata import SCORED
from .engine.network import choose_device
from .engine.train import Stop
from .engine.typer_training import measure, rates, replay, train_typer
from .errors import LeukoError
from .io import plain, write_csv, write_json, write_yaml
from .models.typer import Typer
from .registry import FOREIGN, backbone_file, find_weights
from .report import run, tables

TOO_FEW = "there are cells of fewer than two types to learn; name more data"


def train_typing(options: TypeOptions) -> Path:
    """Train by these options and return the run folder, with ``weights/best.safetensors``, ``metrics.json`` and
    ``confusion.csv``. Raises LeukoError for what the user can fix; a run that is stopped leaves nothing."""
    options.check()
    device = choose_device(options.device)
    detector = load_weights(options.weights) if options.weights else None
    places, crops = ([typed.centre_and_path(given) for given in each] for each in (options.data, options.crops))
    centres = list(dict.fromkeys(centre for centre, _ in [*places, *crops]))
    if options.leave_out and options.leave_out not in centres:
        raise LeukoError(f"--leave-out {options.leave_out}: is none of the centres {', '.join(centres)}")
    sets = [(centre, typed.load_split(p, options.train_split)) for centre, p in places if centre != options.leave_out]
    folders = [(centre, Path(path)) for centre, path in crops if centre != options.leave_out]
    types = types_to_learn([dataset for _, dataset in sets], [folder for _, folder in folders])
    check_detector(detector, types)
    others = sets_to_measure(options, places, types)
    other_folders = [(f"{centre}, crops", Path(path)) for centre, path in crops if centre == options.leave_out]
    torch.manual_seed(options.seed)
    net = Typer(options.backbone, len(types), options.side)
    if options.pretrained:
        named = options.backbone_weights
        file = find_weights(named) if named else backbone_file(options.backbone)  # None: those of a package
        print(f"backbone weights: {net.load_pretrained(file)}")
    net.to(device)

    learned = gather(types, sets, folders, options, f"learned as {NONE}")
    counts = learned.counts()
    for centre, row in counts.items():
        print(f"{centre}: " + ", ".join(f"{name} {number}" for name, number in row.items() if number))
    if sum(any(row[t] for row in counts.values()) for t in types) < 2:
        raise LeukoError(TOO_FEW)
    measured = gather(types, others, other_folders, options, "not measured, since no such type is learned")

    arguments = {"steps": options.steps, "batch": options.batch, "lr": options.lr, "seed": options.seed}
    base = detector or Weights(Path(), {}, [], {}, {})
    with Stop(), run.whole_run(options.project, options.name, "weights") as folder:  # before minutes are spent
        path = folder / "weights" / "best.safetensors"
        net = train_typer(net, learned, **arguments)
        confusions = measure(net, measured)
        about = {"leuko": __version__, "learned": counts, "left_out": options.leave_out, **arguments}
        about["measured"] = {name: rates(confusion) for name, confusion in confusions.items()}
        stage = StoredTyper(
            recipe=net.recipe,
            types=types,
            view=options.view,
            classes=base.classes,
            about=plain(about),
            state=net.state_dict(),
            replay=replay(net, learned, options.seed),
        )
        kept = {key: value for key, value in base.about.items() if key not in (*SCORED, "val")}
        weights = replace(base, path=path, types=types, about=kept, typer=stage)
        if options.half:
            weights.halve()
        save(weights)
        write_yaml(folder / "args.yaml", asdict(options))
        write_json(folder / "environment.json", environment(device))
        write_json(folder / "metrics.json", about)
        write_csv(folder / "confusion.csv", confusion_rows(confusions, types))
    if confusions:
        print(f"\n{summary(confusions, about['measured'], types)}")
    print(f"\nresults: {folder} ({path.stat().st_size / 1e6:.1f} MB)")
    used = "--weights" if detector else "--weights DETECTOR --typer"
    print(f"next: leuko predict {used} {quote(str(folder))} --source IMAGES")
    return folder


# ---------------------------------------------------------------- what is learned


def types_to_learn(sets: Sequence[Dataset], folders: Sequence[Path]) -> list[str]:
    """The types of the data sets; without any, the folders of crops that are called like one of the five types, or, if
    none is, all of them. LeukoError where there is no type."""
    if types := list(dict.fromkeys(name for dataset in sets for name in dataset.types)):
        return types
    names = in_order(name for folder in folders for name in typed.crop_folders(folder))
    if types := [name for name in names if name in BY_CODE] or [name for name in names if name != NONE]:
        return types
    raise LeukoError(TOO_FEW)


def check_detector(detector: Weights | None, types: Sequence[str]) -> None:
    """LeukoError if a typing stage for these types would not know what a detector finds, or cannot be kept with it."""
    if detector is None:
        return
    if detector.path.suffix == FOREIGN:
        raise LeukoError(
            f"{detector.path}: is Ultralytics' file, which cannot keep a typing stage; train from it first"
        )
    if not detector.recipe:
        raise LeukoError(f"{detector.path}: holds only a typing stage; name a detector with --weights")
    if len(detector.classes) > 1 and (unknown := [t for t in detector.classes if t not in types]):
        raise LeukoError(
            f'{detector.path}: finds the type "{unknown[0]}", which the data do not have; add data with it'
        )


def sets_to_measure(
    options: TypeOptions, places: Sequence[tuple[str, str]], types: Sequence[str]
) -> list[tuple[str, Dataset]]:
    """Of the centre that is left out, what would be learned; of the others the split to measure on, where they have it
    beside the one that is learned from. LeukoError if one has a type that is not learned."""
    found = []
    for centre, path in places:
        if centre == options.leave_out:
            name, dataset = centre, typed.load_split(path, options.train_split)
        elif options.val_split in (splits := source.splits(path)) and len(splits) > 1:
            name, dataset = f"{centre}, {options.val_split}", source.load(path, options.val_split)
        else:
            continue
        if unknown := [each for each in dataset.types if each not in types]:
            raise LeukoError(
                f'{path}: its split {dataset.split}, to measure on, has the type "{unknown[0]}", which is not among '
                f"those to learn ({', '.join(types)}); map or ignore it in a data YAML, or learn from data with it"
            )
        found.append((name, dataset))
    return found


def gather(
    types: Sequence[str],
    sets: Sequence[tuple[str, Dataset]],
    folders: Sequence[tuple[str, Path]],
    options: TypeOptions,
    fate: str,
) -> TypedCells:
    """Cut out the cells of data sets and of folders of crops, and print which crops are none (``fate``) or left out."""
    cells = TypedCells(list(types), options.side, options.view)
    for centre, dataset in sets:
        cells.add_fields(centre, dataset, options.seed)
    for centre, folder in folders:
        if others := [name for name in typed.crop_folders(folder) if name not in types]:
            print(f"{folder}: {fate}: {', '.join(others)}")
        if left_out := cells.add_crops(centre, folder):
            print(f"{folder}: {left_out} crops of types without a nucleus in the middle are left out")
    return cells


# ---------------------------------------------------------------- what came out


def confusion_rows(confusions: dict[str, np.ndarray], types: Sequence[str]) -> list[dict]:
    """A row per centre and true type: how many of its cells were taken for which type."""
    rows = []
    for centre, confusion in confusions.items():
        for name, row in zip(types, confusion.tolist(), strict=True):
            rows.append({"centre": centre, "type": name, **dict(zip([*types, NONE], row, strict=True))})
    return rows


def summary(confusions: dict[str, np.ndarray], measured: dict[str, dict], types: Sequence[str]) -> str:
    """A line per centre: cells, the share with the right type, kappa, and that share of each type."""
    lines = [["measured on", "cells", "right", "kappa", *types]]
    for centre, of in measured.items():
        confusion = confusions[centre]
        each = [f"{row[i] / n:.2f}" if (n := row.sum()) else "-" for i, row in enumerate(confusion)]
        lines.append([centre, str(of["cells"]), f"{of['right']:.3f}", f"{of['kappa']:.3f}", *each])
    return tables.aligned(lines, head=1)
