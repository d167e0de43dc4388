"""``leuko predict``: find the leukocytes on new images, and count them by type."""

from __future__ import annotations

if __name__ == "__main__":  # read before all else is imported, so that --help and a mistyped flag are answered at once
    from leuko.cli import run_module

    run_module("predict")

import glob
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from . import __version__
from .config import PredictOptions
from .data.images import IMAGE_SUFFIXES, is_hidden, list_images
from .data.slides import SLIDE_SUFFIXES
from .engine import on_processes
from .engine.on_ray import predict_on_ray
from .engine.predictor import Models, Predictor
from .errors import LeukoError, one_line
from .io import digest, make_folder, read_list, write_yaml
from .registry import find_weights
from .report import prediction
from .report.journal import Journal, write_journal
from .report.prediction import About
from .report.records import Predictions
from .runtime.typing_stage import OFF

SHARD = "shard.jsonl"  # what one of several jobs has found, for leuko merge
LIST = ".txt"  # how a list of images ends


def predict(options: PredictOptions) -> Path:
    """Predict by these options and return the folder of results: pictures, ``cells.json``, ``cells.csv`` and the
    differential count per folder of images (a slide) and per image. Raises LeukoError for what the user can fix.

    What is found goes into a journal, batch by batch, of which the results are made in the end. Where the process ends
    before, the same options go on with it. Of a shard, the folder holds what ``leuko merge`` needs.
    """
    options.check()
    options = of_torchrun(options)
    source = ImageFiles([], [], []) if options.is_remote else find_images(options.source)
    predictor = Predictor(**asdict(options))
    models = predictor.models
    threshold, others = models.threshold, [list(map(str, each)) for each in (source.skipped, source.hidden)]
    model = models.name, models.types, threshold.value, threshold.origin, models.least_cell
    about = About(options, *model, *others)
    index, shards = options.shard_of
    name = (options.name or models.name) + (f"-{index + 1}-of-{shards}" if shards > 1 else "")
    journal = Journal.open(options.save, name, request(options, models))
    folder = journal.folder
    write_yaml(folder / "args.yaml", asdict(options))

    pictures, batches = None, []
    try:
        if options.engine == "ray":
            numbers = predict_on_ray(predictor, source.images, journal, options.source)
        else:
            pictures = make_folder(folder / "images") if len(source.images) <= options.pictures else None
            batches = on_processes.batches_of(source.images, pictures, predictor.batch_size)
            numbers = on_processes.predict_batches(predictor, batches[index::shards], journal, options)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        raise
    if pictures:
        remove_others(pictures, (journal[number] for number in numbers))
    if shards > 1:
        head = {"request": request(options, models) | {"shard": "", "device": ""}, "batches": len(batches)}
        head |= {"about": asdict(about), "shard": [index, shards]}
        write_journal(folder / SHARD, head, (journal[number] for number in numbers))
        said = f"shard {index + 1} of {shards}; leuko merge puts them together"
    else:
        predictions = Predictions([(journal, number) for number in numbers], models.types)
        if not predictions:
            shutil.rmtree(folder)
            errors = predictions.errors
            raise LeukoError(f"{options.source}: none of its {len(errors)} files is a readable image ({errors[0]})")
        prediction.write(folder, about, predictions, with_review=pictures is not None)
        said = "report.html shows them" + ("; review.html is to correct and sign" if pictures else "")
    journal.finish()
    print(f"\nresults: {one_line(str(folder))} ({said})")
    return folder


def of_torchrun(options: PredictOptions) -> PredictOptions:
    """The options of one of several processes that torchrun has started: its shard, and its GPU if there are any."""
    shards = int(os.environ.get("WORLD_SIZE", 1))
    if shards == 1 or options.shard:
        return options
    import torch  # which torchrun is part of

    device = options.device
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return replace(options, shard=f"{int(os.environ['RANK']) + 1}/{shards}", device=device)


def request(options: PredictOptions, models: Models) -> dict:
    """What must be the same for a prediction to go on, or to be put together: all that its results depend on."""
    weights = [digest(member.weights.path) for member in models.members]
    if options.typer and options.typer != OFF:
        weights.append(digest(find_weights(options.typer)))
    about = {"leuko": __version__, **asdict(options), "workers": None, "place": os.getcwd()}
    return about | {"threshold": models.threshold.value, "digests": weights}


def remove_others(pictures: Path, batches: Iterable[list[dict]]) -> None:
    """Remove the pictures of images that are no longer there."""
    known = {record["picture"] for batch in batches for record in batch if "error" not in record}
    for picture in pictures.iterdir():
        if picture.name not in known:
            picture.unlink()


# ---------------------------------------------------------------- images


class ImageFiles(NamedTuple):
    """The files that ``--source`` means: those taken for images, a folder's others, and hidden images."""

    images: list[Path]
    skipped: list[Path]
    hidden: list[Path]


def find_images(source: str) -> ImageFiles:
    """An image, the files of a folder named like images, those of a pattern, or of a list in a text file, which are
    named from its folder; LeukoError where there is none."""
    path = Path(source)
    remedy = "check the path, and put a pattern in quotes"
    hidden: list[Path] = []
    skipped: list[Path] = []
    if path.is_dir():
        found = list_images(path, recursive=True, hidden=hidden, suffixes=IMAGE_SUFFIXES + SLIDE_SUFFIXES)
        others = {p for p in path.rglob("*") if p.is_file()} - {*found, *hidden}
        skipped = sorted(p for p in others if not any(map(is_hidden, p.relative_to(path).parts)))
        remedy = "put images into it"
    elif path.suffix == LIST and path.exists():
        found = [path.parent / line for line in read_list(path)]
    elif path.exists():
        found = [path]
    else:
        named = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(p)]
        hidden = [p for p in named if any(is_hidden(part) and part not in path.parts for part in p.parts)]
        found = [p for p in named if p not in set(hidden)]
    if not found:
        but = f" but {len(hidden)} hidden ones" if hidden else ""
        raise LeukoError(f"{source}: no image there{but}; {remedy}")
    return ImageFiles(found, skipped, hidden)
