"""Several detectors trained one after the other and measured side by side: ``leuko train --model all``.

A comparison is a folder in the project with a run a model, ``NAME/fcos``, ``NAME/fsaf`` ..., and in the end
``NAME/table`` with the paper's Table 2 for this data.
"""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("compare")

import shutil
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

from .config import TrainOptions, ValOptions
from .data import source
from .data.tools.split import check_groups
from .engine.ensemble import epochs_of, is_finished
from .errors import LeukoError, nearest
from .io import write_yaml
from .models import DETECTORS, is_yolo, plain_name
from .report import run
from .train import augmentation, resumed_options, train
from .val import val

SIX = ("fsaf", "fcos", "faster_rcnn", "grid_rcnn", "double_head_rcnn", "cascade_rcnn")  # in the order of the paper


def models_of(options: TrainOptions) -> list[str]:
    """The models of ``--model``: a comma stands between several, and ``all`` among them is the paper's six. LeukoError
    on a name that is none, or stands there twice."""
    names: list[str] = []
    for name in options.model.split(","):
        names += SIX if name.strip() == "all" else [name.strip()]
    for name in names:
        if name not in DETECTORS and not is_yolo(name):
            raise LeukoError(
                f'--model: "{name}" is unknown{nearest(name, DETECTORS)} (there are: {", ".join(DETECTORS)}, and '
                "Ultralytics' yolo11n and its like)"
            )
    folders = [plain_name(name) for name in names]
    for folder in folders:
        if folders.count(folder) > 1:
            raise LeukoError(f"--model {options.model}: {folder} stands there twice; name each model once")
    return names


def is_comparison(options: TrainOptions, given: Collection[str]) -> bool:
    """Whether these options mean several models, or go on with a comparison."""
    if options.resume:
        path = Path(options.resume) / "args.yaml"
        return path.is_file() and len(models_of(resumed_options(options, given))) > 1
    return len(models_of(options)) > 1


def compare(options: TrainOptions, given: Collection[str] = ()) -> Path:
    """Train each model that is not trained yet, going on with what was interrupted, and write the table; returns the
    comparison's folder. ``--show-augment`` is of the first model alone, without any of that. Raises LeukoError for what
    the user can mend, and KeyboardInterrupt at Ctrl-C."""
    resumed = options.resume
    if resumed:
        options = resumed_options(options, given)
    names = models_of(options)
    if options.show_augment:
        return train(replace(options, model=names[0]), given)
    options.check()
    split = "test" if "test" in source.splits(options.data) else options.val_split
    if not options.allow_leaks and split != options.train_split:
        check_groups({name: source.groups(options.data, name) for name in (options.train_split, split)}, options.data)
    if options.augment == "auto":  # chosen once, so that it is the same for all models if epochs are added later
        options = replace(options, augment=augmentation(options, source.load(options.data, options.train_split)))
    folder = Path(resumed) if resumed else run.new_run(options.project, options.name or "comparison")
    write_yaml(folder / "args.yaml", asdict(options))
    for i, name in enumerate(names, 1):
        child = folder / plain_name(name)
        if is_finished(child, options.epochs):
            print(f"{name} is trained ({i} of {len(names)})")
            continue
        print(f"\n{name} ({i} of {len(names)})")
        try:
            if (child / "resume.pt").is_file():
                epochs = max(options.epochs, epochs_of(child))  # it may have been extended by itself
                train(replace(options, resume=str(child), epochs=epochs), given={"resume", "epochs", "allow_leaks"})
            else:
                remove_unbegun(child)
                train(replace(options, model=name, project=str(folder), name=plain_name(name), resume=""), given)
        except LeukoError:
            if not resumed and not any(p.is_dir() for p in folder.iterdir()):
                shutil.rmtree(folder)  # nothing was begun
            raise
        except KeyboardInterrupt:
            print(f"all of the comparison: leuko train --resume {folder}", file=sys.stderr)
            raise
    runs = [str(folder / plain_name(name)) for name in names]
    about = {name: getattr(options, name) for name in ("data", "device", "workers", "allow_leaks")}
    val(ValOptions(ensemble=runs, split=split, save=str(folder), name="table", **about))
    return folder


def remove_unbegun(child: Path) -> None:
    """Remove what a run left that was killed before its first state; LeukoError if it holds weights, which stay."""
    if any(child.glob("weights/*.safetensors")):
        raise LeukoError(f"{child}: has weights but no resume.pt to go on from; restore it, or move the folder away")
    if child.exists():
        shutil.rmtree(child)
