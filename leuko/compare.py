"""``leuko compare``: train several detectors one after the other and measure them side by side.

A comparison is a folder in the project with one run per model, ``NAME/fcos``, ``NAME/fsaf`` ..., and in the end
``NAME/table`` with the paper's Table 2 for this data.
"""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("compare")

import shutil
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

from .baselines.ultralytics import is_yolo, plain_name
from .config import TrainOptions, ValOptions, model_names
from .data import source
from .engine import distributed
from .engine.finished import epochs_of, is_finished
from .errors import LeukoError
from .io import write_yaml
from .models import check_name
from .report import run
from .train import augmentation, resumed_options, train
from .val import val


def compare(options: TrainOptions, given: Collection[str] = ()) -> Path:
    """Train each model that is not trained yet, going on with what was interrupted, and write the table; returns the
    comparison's folder. Raises LeukoError for what the user can fix, and KeyboardInterrupt at Ctrl-C."""
    if distributed.by_torchrun():
        raise LeukoError("a comparison is trained by one process; start each model's training by torchrun instead")
    resumed = options.resume
    options = resumed_options(options, given) if resumed else TrainOptions(**asdict(options))
    names = checked_names(options.model)
    if len(names) < 2:
        alone = f"leuko train --resume {resumed}" if resumed else "leuko train"
        raise LeukoError(f"{resumed or '--model'}: {names[0]} alone, but a comparison is of several; run: {alone}")
    options.check()
    split = "test" if "test" in source.splits(options.data) else options.val_split
    if not options.allow_leaks and split != options.train_split:
        groups = {name: source.groups(options.data, name) for name in (options.train_split, split)}
        source.check_groups(groups, options.data)
    if options.augment == "auto":  # chosen once, so that it is the same for all models if epochs are added later
        options = replace(options, augment=augmentation(options, source.load(options.data, options.train_split)))
    folder = Path(resumed) if resumed else run.new_run(options.project, options.name or "comparison")
    write_yaml(folder / "args.yaml", asdict(options))
    try:
        for i, name in enumerate(names, 1):
            train_one(folder / plain_name(name), name, f"{i} of {len(names)}", options, given)
    except LeukoError:
        if not resumed and not any(p.is_dir() for p in folder.iterdir()):
            shutil.rmtree(folder)  # nothing was begun
        raise
    except KeyboardInterrupt:
        print(f"all of the comparison: leuko compare --resume {quote(str(folder))}", file=sys.stderr)
        raise
    runs = [str(folder / plain_name(name)) for name in names]
    about = {name: getattr(options, name) for name in ("data", "device", "workers", "allow_leaks", "max_detections")}
    val(ValOptions(ensemble=runs, split=split, save=str(folder), name="table", **about))
    return folder


def checked_names(model: str) -> list[str]:
    """The models of ``--model``; LeukoError on a name that is unknown, or stands there twice."""
    names = model_names(model)
    for name in names:
        if not is_yolo(name):
            check_name(name)
    folders = [plain_name(name) for name in names]
    for folder in folders:
        if folders.count(folder) > 1:
            raise LeukoError(f"--model {model}: {folder} stands there twice; name each model once")
    return names


def train_one(folder: Path, name: str, place: str, options: TrainOptions, given: Collection[str]) -> None:
    """Train one of the models in its folder, from where it is."""
    if is_finished(folder, options.epochs):
        print(f"{name} is trained ({place})")
        return
    print(f"\n{name} ({place})")
    if (folder / "args.yaml").is_file() and not is_yolo(name):
        epochs = max(options.epochs, epochs_of(folder))  # it may have been extended by itself
        train(replace(options, resume=str(folder), epochs=epochs), given={"resume", "epochs", "allow_leaks"})
        return
    if any(folder.glob("weights/*.safetensors")) and not is_yolo(name):
        raise LeukoError(f"{folder}: has weights but no args.yaml to go on by; restore it, or move the folder away")
    if folder.exists():
        print(f"{name} begins again: what is in {folder} is removed")
        shutil.rmtree(folder)  # killed before it began, or one of Ultralytics', which cannot be resumed
    train(replace(options, model=name, project=str(folder.parent), name=plain_name(name), resume=""), given)
