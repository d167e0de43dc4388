"""`python -m leuko.train`: train a detector."""

from __future__ import annotations

if __name__ == "__main__":  # understood before all else is imported, so that --help and a slip are answered at once
    from leuko.cli import run_module

    run_module("train")

import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from .cli import stored
from .config import TrainOptions
from .data import balance, source
from .data.dataset import Dataset
from .data.loader import TrainingItems
from .data.tools.split import check_groups
from .data.transforms import compose
from .download import FOLDER, downloaded, registry
from .engine import checkpoint, yolo
from .engine.evaluate import choose_device
from .engine.trainer import Trainer
from .engine.training import Training
from .errors import LeukoError
from .io import remove_unfinished, write_json, write_yaml
from .models import DetectionModel, create, is_yolo, plain_name
from .report import pictures, plots, run, table


def train(options: TrainOptions, given: Collection[str] = ()) -> Path:
    """Train by these options and return the run folder; ``given`` names those that the user chose (for ``resume``).

    Raises LeukoError for what the user can mend, and KeyboardInterrupt at Ctrl-C after the state is saved.
    """
    resumed = bool(options.resume)
    folder = Path(options.resume)
    if resumed:
        options = resumed_options(options, given)
    options.check()
    choose_device(options.device)
    compose.read_steps(compose.chosen(options.augment, 0))  # so that a slip in it is told before data are read
    train_set, val_set = load_data(options)
    steps = augmentation(options, train_set)
    state = checkpoint.load_resume(folder / "resume.pt") if resumed else None
    if options.show_augment:
        return show_augmentation(replace(options, augment=steps), train_set)
    weights = balance.loss_weights(train_set) if options.type_weights == "balanced" else ()
    model = build(options, train_set.types, state, weights)
    options = replace(
        options, lr=options.lr or model.default_lr, clip=options.clip or model.default_clip, augment=steps
    )
    if is_yolo(options.model) and (unused := [n for n in yolo.UNUSED if n in given and (n != "augment" or steps)]):
        print(f"{options.model} takes no notice of {flags(unused)}")
    if not resumed:
        folder = run.new_run(options.project, options.name or plain_name(options.model), "weights")
    trainer = (yolo.YOLOTraining if is_yolo(options.model) else Trainer)(options, folder, model, train_set, val_set)
    if resumed:
        trainer.load_state(state)
        remove_unfinished(folder)
    elif not options.weights:
        trainer.begin()
    write_yaml(folder / "args.yaml", asdict(options))
    write_json(folder / "environment.json", run.environment())
    trainer.save_state()  # so that a run killed in its first minutes can be resumed, too
    try:
        describe(folder, trainer, train_set, val_set)
        trainer.train()
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: leuko train --resume {folder}", file=sys.stderr)
        raise
    trainer.write_results()
    if trainer.best_evaluation:
        print(f"\nbest epoch, on {len(val_set)} images:\n{table.per_class(trainer.best_evaluation)}")
    print(f"\nresults: {folder}")
    return folder


def resumed_options(options: TrainOptions, given: Collection[str]) -> TrainOptions:
    """The options that a run was started with; of the given ones only a larger number of epochs counts, and leave to
    go on with groups that leak."""
    if extra := set(given) - {"resume", "epochs", "allow_leaks"}:
        names = [f.name for f in fields(options) if f.name in extra]
        raise LeukoError(
            f"{flags(names)}: a resumed run keeps its own options; only --epochs may be given with --resume"
        )
    path = Path(options.resume) / "args.yaml"
    if not path.is_file():
        raise LeukoError(f"{path}: no such file; --resume takes the folder of a run, such as runs/train/fcos")
    before = stored(TrainOptions, path)
    before.allow_leaks |= options.allow_leaks
    if "epochs" in given:
        if options.epochs < before.epochs:
            raise LeukoError(
                f"--epochs {options.epochs}: the run has {before.epochs} already; --resume can only extend it"
            )
        before.epochs = options.epochs
    return before


def flags(names: Sequence[str]) -> str:
    """Options as they are written on the command line."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def load_data(options: TrainOptions) -> tuple[Dataset, Dataset]:
    """The training and the validation split, warnings told; validation falls back on ``test``, saying so."""
    there = source.splits(options.data)
    val_split = options.val_split
    if val_split == "val" and "val" not in there and "test" in there:
        val_split = "test"
        print("the data has no val split: epochs are validated on test, so that `best` is chosen on it")
    train_set = source.load(options.data, options.train_split)
    val_set = source.load(options.data, val_split, types=train_set.types)
    if not options.allow_leaks and val_split != options.train_split:
        check_groups({options.train_split: train_set.groups(), val_split: val_set.groups()}, options.data)
    for name, dataset in ((options.train_split, train_set), (val_split, val_set)):
        if told := table.warnings(name, dataset):
            print(told)
    if not train_set.counts().sum():
        raise LeukoError(f"{options.data}: split {options.train_split} has no cell to learn from; label some")
    if not val_set.counts().sum():
        raise LeukoError(
            f"{options.data}: split {val_split} has no cell to measure an epoch by; label some, or name another split "
            "by --val-split"
        )
    return train_set, val_set


def build(
    options: TrainOptions, types: list[str], state: dict | None = None, class_weights: tuple[float, ...] = ()
) -> DetectionModel:
    """The model to train, with the weights it starts from; or without, if the state of a run will bring them."""
    torch.manual_seed(options.seed)
    if is_yolo(options.model):
        return build_yolo(options, types, state)
    fresh = state is None and not options.weights
    pretrained: bool | Path = options.pretrained and fresh
    if pretrained and options.backbone_weights:
        pretrained = weights_file(options.backbone_weights)
    scratch = not options.pretrained and not options.weights
    norm = "train" if scratch and options.norm == "frozen" else options.norm
    if norm != options.norm:
        print("from scratch: BatchNorm follows the batches and no stage is frozen, since nothing is pretrained")
    model = create(
        options.model,
        len(types),
        options.backbone,
        pretrained=pretrained,
        norm=norm,
        freeze=options.freeze and not scratch,
        normalize_features=options.normalize_features,
        image_size=options.imgsz,
        class_weights=class_weights,
        **{f: getattr(options, f) for f in ("channels", "fc_channels", "proposals", "rois", "vote")},
    )
    if options.weights and state is None:
        begin_from(weights_file(options.weights), model, types)
    elif model.pretrained_from:
        print(f"backbone weights: {model.pretrained_from}")
    return model


def build_yolo(options: TrainOptions, types: list[str], state: dict | None) -> DetectionModel:
    """One of Ultralytics' models, as :func:`build` does it."""
    if options.amp == "fp16":
        raise LeukoError("--amp fp16: is for leuko's own models; give bf16 or none")
    size = {"image_size": options.imgsz}
    if state is not None:
        return create(options.model, len(types), architecture=state.get("architecture"), **size)
    path = yolo_weights(options)
    if path is None:
        print("from scratch")
        return create(options.model, len(types), **size)
    weights = checkpoint.load_weights(path)
    name = weights.recipe["name"] if options.model.endswith(".pt") else options.model
    model = create(name, len(types), architecture=weights.recipe.get("architecture"), **size)
    tell_known(weights, checkpoint.transfer(weights, model, types), types)
    return model


def yolo_weights(options: TrainOptions) -> Path | None:
    """The file that one of Ultralytics' models starts from; None from scratch. LeukoError if it is not there."""
    if options.weights:
        return weights_file(options.weights)
    if options.model.endswith((".yaml", ".yml")) or not options.pretrained:
        return None
    name = plain_name(options.model)
    for file in (Path(options.model), FOLDER / f"{name}.pt"):
        if file.is_file():
            return file
    remedy = f"leuko download {name}" if name in registry() else "get it from github.com/ultralytics/assets/releases"
    raise LeukoError(f"{FOLDER / name}.pt: no such file; {remedy}, or train from scratch with --no-pretrained")


def begin_from(path: Path, model: DetectionModel, types: list[str]) -> None:
    """Start a model from trained weights, leuko's own or another library's, and say what they know."""
    if path.suffix in (".pth", ".pt"):
        classes = checkpoint.transfer_foreign(path, model)
        print(f"from {path}: all but the layers of its classes ({', '.join(classes)}), which begin afresh")
        return
    weights = checkpoint.load_weights(path)
    tell_known(weights, checkpoint.transfer(weights, model, types), types)


def tell_known(weights: checkpoint.Weights, known: list[str], types: list[str]) -> None:
    """Say which types the weights know, and which begin afresh."""
    new = [t for t in types if t not in known]
    print(f"from {weights.path}: types known {', '.join(known) or 'none'}; new {', '.join(new) or 'none'}")


def weights_file(source: str) -> Path:
    """A run, a file, or the file of a name that ``leuko download`` knows; LeukoError if that is not downloaded yet."""
    return downloaded(source) if not Path(source).exists() and source in registry() else Path(source)


def augmentation(options: TrainOptions, train_set: Dataset) -> list[dict]:
    """The augmentation as a list, which the run's args.yaml then holds; told where ``auto`` chose it."""
    shown = options.epochs * len(train_set)
    name = compose.chosen(options.augment, shown)
    if name != options.augment and not is_yolo(options.model):
        print(f"augmentation: {name}, since {shown:,} images will be shown ({compose.ENOUGH:,} are enough for smear)")
    return compose.listed(compose.read_steps(name))


def show_augmentation(options: TrainOptions, train_set: Dataset) -> Path:
    """Draw what augmentation makes of a training image, and return the folder."""
    steps = compose.read_steps(options.augment)
    items = TrainingItems(train_set, options.imgsz, steps, options.seed)
    folder = run.new_run(options.project, options.name or "augment")
    plots.write_image(folder / "augment.jpg", pictures.augmentation(items, train_set.types))
    print(f"augmentation: {folder / 'augment.jpg'}")
    return folder


def describe(folder: Path, trainer: Training, train_set: Dataset, val_set: Dataset) -> None:
    """Write what a run is about to learn from: the warnings, the labels' statistics, the first batches as pictures."""
    run.write_warnings(folder, train_set, val_set)
    plots.label_statistics(train_set, folder / "labels.png")
    trainer.draw_first_batches()
    cells = ", ".join(f"{t} {n}" for t, n in zip(train_set.types, train_set.counts(), strict=True))
    print(f"training on {len(train_set)} images ({cells}), validating on {len(val_set)}; results go to {folder}")
    balanced = describe_balance(trainer.options, train_set)
    place = {"epoch": trainer.progress.epoch, "batch": trainer.progress.batch}
    run.log(folder, "start", **place, images=len(train_set), **balanced)


def describe_balance(options: TrainOptions, train_set: Dataset) -> dict[str, dict]:
    """Print what --repeat-factor and --type-weights change, and return it for the run's log."""
    changed: dict[str, dict] = {}
    if options.repeat_factor:
        factors = balance.repeat_factors(train_set, options.repeat_factor)
        cells = [round(n) for n in balance.shown(train_set, factors)]
        changed["cells_an_epoch"] = dict(zip(train_set.types, cells, strict=True))
        listed = ", ".join(f"{t} {n}" for t, n in changed["cells_an_epoch"].items())
        print(f"repeat factor: {factors.sum():.0f} images an epoch instead of {len(factors)} ({listed})")
    if options.type_weights != "none":
        changed["type_weights"] = dict(zip(train_set.types, balance.loss_weights(train_set), strict=True))
        print("type weights: " + ", ".join(f"{t} {w:.2f}" for t, w in changed["type_weights"].items()))
    return changed
