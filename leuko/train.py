"""``leuko train``: train a detector."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("train")

import sys
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

import torch

from .baselines import ultralytics
from .baselines.ultralytics import IGNORED_OPTIONS, train_ultralytics
from .cli import flag, stored
from .config import TrainOptions, is_comparison
from .data import source, training
from .data.dataset import Dataset
from .data.transforms import compose
from .engine import checkpoint, distributed
from .engine import train as loop
from .engine.network import choose_device
from .engine.run import Run
from .engine.state import Progress, described, load_state, locked
from .errors import LeukoError
from .models import DetectionModel, check_name, create
from .registry import DOWNLOADS, FOREIGN, backbone_file, find_weights, registry
from .report import run, tables


def train(options: TrainOptions, given: Collection[str] = ()) -> Path:
    """Train by these options and return the run folder; ``given`` names those that the user chose (for ``resume``).

    Raises LeukoError for what the user can fix, and KeyboardInterrupt at Ctrl-C after the state is saved.
    """
    resumed = Path(options.resume) if options.resume else None
    if resumed:
        options = resumed_options(options, given)
    options.check()
    if not ultralytics.is_yolo(options.model):  # mistakes here are reported before the data is read
        check_name(options.model)
    compose.read_steps(compose.chosen(options.augment, 0))
    device = checked_device(options)
    with distributed.together(device), locked(resumed if distributed.leads() else None):
        return _train(options, given, device, resumed)


def _train(options: TrainOptions, given: Collection[str], device: torch.device, resumed: Path | None) -> Path:
    state = load_state(resumed / "resume.pt") if resumed else None
    if state and state.progress.is_finished(options.epochs):
        print(f"{resumed}: finished; --epochs N extends it")
        return resumed
    train_set, val_set = load_data(options)
    options = replace(options, augment=augmentation(options, train_set))
    model = build(options, train_set, fresh=state is None)
    options = replace(options, lr=options.lr or model.default_lr, clip=options.clip or model.default_clip)
    is_yolo = ultralytics.is_yolo(options.model)
    if is_yolo and (ignored := [flag(name) for name in IGNORED_OPTIONS if name in given]):
        print(f"{options.model} ignores {', '.join(ignored)}")
    parts = None if is_yolo else loop.Loop(options, model, train_set, device, state is None and not options.weights)
    progress = Progress()
    if state:
        state.check_data(described(train_set, val_set))
        parts.load_state_dict(state.parts, state.path)
        if state.progress.batch > len(parts.loader):
            raise LeukoError(f"{state.path}: batch {state.progress.batch} of an epoch that has fewer; restore the file")
        progress = state.progress
        progress.extend()
    name = options.name or ultralytics.plain_name(options.model)
    folder = resumed or distributed.led(run.new_run, options.project, name, "weights")
    begun = Run(folder, options, train_set, val_set, device, progress)
    with locked(folder if distributed.leads() and not resumed else None):
        try:
            train_yolo(begun, model) if is_yolo else loop.fit(begun, parts)
        except KeyboardInterrupt:
            remedy = "start it again" if is_yolo else f"go on with: leuko train --resume {quote(str(folder))}"
            if distributed.leads():
                print(f"\nstopped; {remedy}", file=sys.stderr)
            raise
    if not is_yolo and distributed.leads():
        best, about = run.read_evaluation(folder)
        lines = tables.aligned(tables.per_class(best), head=1)
        print(f"\nbest epoch ({about['epoch']}), on {len(val_set)} images:\n{lines}")
    print(f"\nresults: {folder}")
    weights, data = quote(str(folder)), quote(options.data)
    print(f"next: leuko val --weights {weights} --data {data}")
    print(f"      leuko predict --weights {weights} --source IMAGES")
    return folder


# ---------------------------------------------------------------- options


def checked_device(options: TrainOptions) -> torch.device:
    """The device, if it can do what the options ask of it."""
    device = choose_device(options.device, options.amp)
    if ultralytics.is_yolo(options.model):
        if options.amp == "fp16":
            raise LeukoError("--amp fp16: is for leuko's own models; give bf16 or none")
        if distributed.by_torchrun():
            raise LeukoError(f"--model {options.model}: is trained by one process; start it without torchrun")
    if options.tensorboard and not find_spec("tensorboard"):
        raise LeukoError("--tensorboard: needs its package; pip install 'leuko[loggers]'")
    return device


def resumed_options(options: TrainOptions, given: Collection[str]) -> TrainOptions:
    """The options that a run was started with; of the given ones only a larger number of epochs counts, and the
    permission to go on with groups that leak."""
    if extra := set(given) - {"resume", "epochs", "allow_leaks"}:
        names = ", ".join(flag(f.name) for f in fields(options) if f.name in extra)
        raise LeukoError(f"{names}: a resumed run keeps its own options; only --epochs may be given with --resume")
    path = Path(options.resume) / "args.yaml"
    if not path.is_file() and (path.parent / "weights").is_dir():
        raise LeukoError(f"{path.parent}: killed before anything was trained; remove it, and start it again")
    if not path.is_file():
        raise LeukoError(f"{path}: no such file; --resume takes the folder of a run, such as runs/train/fcos")
    before = stored(TrainOptions, path)
    if not is_comparison(before.model) and ultralytics.is_yolo(before.model):
        raise LeukoError(
            f"{options.resume}: a run of Ultralytics' {before.model} cannot be resumed; start a new one with --weights "
            f"{options.resume}"
        )
    before.allow_leaks |= options.allow_leaks
    if "epochs" in given:
        if options.epochs < before.epochs:
            raise LeukoError(
                f"--epochs {options.epochs}: the run has {before.epochs} already; --resume can only extend it"
            )
        before.epochs = options.epochs
    return before


# ---------------------------------------------------------------- data


def load_data(options: TrainOptions) -> tuple[Dataset, Dataset]:
    """The training and the validation split, warnings printed; validation falls back on ``test``, saying so."""
    there = source.find(options.data)
    val_split = options.val_split
    if val_split == "val" and "test" in there.splits and "val" not in (*there.splits, *there.missing):
        val_split = "test"
        print("the data has no val split: epochs are validated on test, so that `best` is chosen on it")
    train_set = source.load(options.data, options.train_split)
    val_set = source.load(options.data, val_split, types=train_set.types)
    if not options.allow_leaks and val_split != options.train_split:
        source.check_groups({options.train_split: train_set.groups(), val_split: val_set.groups()}, options.data)
    splits = {"train": (options.train_split, train_set), "val": (val_split, val_set)}
    for part, (name, dataset) in splits.items():
        if lines := tables.warnings(name, dataset, options.max_detections):
            print(lines)
        if not dataset.counts().sum():
            crowds = ', write "crowds: cells" in a data YAML if its crowds are cells' if dataset.crowds() else ""
            what = "learn from" if part == "train" else "measure an epoch by"
            raise LeukoError(
                f"{options.data}: split {name} has no cell to {what}; label some{crowds}, or name another split with "
                f"--{part}-split"
            )
    return train_set, val_set


def augmentation(options: TrainOptions, train_set: Dataset) -> list[dict]:
    """The augmentation as a list, which the run's args.yaml then holds; printed where ``auto`` chose it."""
    shown = options.epochs * len(train_set)
    name = compose.chosen(options.augment, shown)
    if name != options.augment and (is_comparison(options.model) or not ultralytics.is_yolo(options.model)):
        print(f"augmentation: {name}, since {shown:,} images will be shown ({compose.ENOUGH:,} are enough for smear)")
    return compose.listed(compose.read_steps(name))


# ---------------------------------------------------------------- the model and the weights it starts from


def build(options: TrainOptions, train_set: Dataset, fresh: bool = True) -> DetectionModel:
    """The model to train, with the weights it starts from; or without, if the state of a run will bring them."""
    torch.manual_seed(options.seed)
    if ultralytics.is_yolo(options.model):
        return build_yolo(options, train_set.types)
    pretrained: bool | Path = options.pretrained and fresh and not options.weights
    if pretrained:
        named = options.backbone_weights
        pretrained = find_weights(named) if named else backbone_file(options.backbone) or True
    scratch = not options.pretrained and not options.weights
    norm = "train" if scratch else options.norm
    if norm != options.norm:
        print("from scratch: BatchNorm follows the batches and no stage is frozen, since nothing is pretrained")
    model = create(
        options.model,
        len(train_set.types),
        options.backbone,
        pretrained=pretrained,
        norm=norm,
        freeze=options.freeze and not scratch,
        normalize_features=options.normalize_features,
        image_size=options.imgsz,
        class_weights=training.loss_weights(train_set) if options.type_weights == "balanced" else (),
        **{f: getattr(options, f) for f in ("channels", "fc_channels", "proposals", "rois", "vote", "max_detections")},
    )
    if options.weights and fresh:
        start_from(find_weights(options.weights), model, train_set.types)
    elif model.pretrained_from:
        print(f"backbone weights: {model.pretrained_from}")
    return model


def build_yolo(options: TrainOptions, types: list[str]) -> DetectionModel:
    """One of Ultralytics' models, as :func:`build` does it."""
    about = {"image_size": options.imgsz, "max_detections": options.max_detections}
    if not (options.pretrained or options.weights):
        print("from scratch")
        return ultralytics.create_yolo(options.model, len(types), **about)
    weights = checkpoint.load_weights(yolo_weights(options))
    name = weights.recipe["name"] if options.model.endswith(FOREIGN) else options.model
    model = ultralytics.create_yolo(name, len(types), weights.recipe.get("made_for", 0), **about)
    print_known(weights, checkpoint.transfer(weights, model, types), types)
    return model


def yolo_weights(options: TrainOptions) -> Path:
    """The file that one of Ultralytics' models starts from; LeukoError if it is not there."""
    if options.weights:
        return find_weights(options.weights)
    name = ultralytics.plain_name(options.model)
    for file in (Path(options.model), DOWNLOADS / f"{name}.pt"):
        if file.is_file():
            return file
    remedy = f"leuko download {name}" if name in registry() else "get it from github.com/ultralytics/assets/releases"
    raise LeukoError(f"{DOWNLOADS / name}.pt: no such file; {remedy}, or train from scratch with --no-pretrained")


def start_from(path: Path, model: DetectionModel, types: list[str]) -> None:
    """Start a model from trained weights, leuko's own or another library's, and print what they know."""
    if path.suffix in (".pth", ".pt"):
        classes = checkpoint.transfer_foreign(path, model)
        print(f"from {path}: all but the layers of its classes ({', '.join(classes)}), which start afresh")
        return
    weights = checkpoint.load_weights(path)
    print_known(weights, checkpoint.transfer(weights, model, types), types)


def print_known(weights: checkpoint.Weights, known: Sequence[str], types: Sequence[str]) -> None:
    """Print which types the weights know, and which start afresh."""
    new = [t for t in types if t not in known]
    print(f"from {weights.path}: types known {', '.join(known) or 'none'}; new {', '.join(new) or 'none'}")
    if weights.typer:
        print(f"its typing stage is not trained and stays there; use it on this run, too, by --typer {weights.path}")


def train_yolo(begun: Run, model: ultralytics.YOLO) -> None:
    """Train one of Ultralytics' models by its own loop; each epoch ends as all others do."""

    def end_epoch(averaged: DetectionModel, losses: dict, learning_rate: float, seconds: float) -> bool:
        begun.progress.seconds = seconds
        return bool(begun.end_epoch(averaged, losses, learning_rate).stopped)

    begun.begin()
    about = (begun.options, begun.folder, begun.train_set, begun.val_set, begun.device)
    train_ultralytics(model, *about, end_epoch, begun.stop_diverged)
