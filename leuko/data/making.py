"""The commands that make data: rendered, composed, interfered with, resized (see ``__main__``)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import LeukoError
from ..report import table
from ..synth.factors import FACTORS
from ..synth.sheet import types_sheet
from .dataset import Dataset
from .tools import stats
from .tools.builder import FORMATS
from .tools.compose import compose
from .tools.convert import load_all
from .tools.factors import put_on
from .tools.resize import resize
from .tools.synth import synth


@dataclass(frozen=True)
class Command:
    """One sub-command: a line of help, examples, its arguments, and what it does with them, which may give a status."""

    help: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument(
        "--preset",
        default="demo",
        help="demo, or paper: images and cells a type and split as in Li et al. 2022, factors tagged [demo]",
    )
    parser.add_argument("--images", metavar="N", type=int, help="images in all [200, or the paper's 6273]")
    parser.add_argument("--size", metavar="PX", type=int, default=320, help="side of an image in pixels [320]")
    parser.add_argument("--format", default="coco", help=f"{', '.join(FORMATS)} [coco]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all pixels and boxes follow from it [0]")
    parser.add_argument("--val", metavar="SHARE", type=float, default=0.15, help="share for validation [0.15]")
    parser.add_argument("--test", metavar="SHARE", type=float, default=0.15, help="share for testing [0.15]")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="threads; 0: one a core [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="also draw the five types side by side into FILE")


def _synth(args: argparse.Namespace) -> None:
    options = dict(vars(args))
    sheet = options.pop("sheet")
    datasets = synth(**options, progress=True)
    print(f"{args.dst}: {args.format}, {args.size}x{args.size} pixels, seed {args.seed}")
    print(counts(datasets))
    if rows := stats.factors(datasets):
        print(table.aligned([list(rows[0]), *([str(v) for v in row.values()] for row in rows)], head=1))
    if sheet:
        try:
            types_sheet(args.seed).save(sheet)
        except (OSError, ValueError) as error:  # ValueError: Pillow does not know the file's ending
            raise LeukoError(f"{sheet}: cannot be written: {error}; name a .png in a folder that exists") from error
        print(f"{sheet}: the five types")


def told(dst: Path, before: dict[str, Dataset]) -> None:
    """Tell what of a source did not come into the data set that was made of it."""
    if (mended := dst / "warnings.txt").is_file():
        print(f"{len(mended.read_text(encoding='utf-8').splitlines())} warnings mended, listed in {mended}")
    for name, number in next(iter(before.values())).ignored.items():
        print(f"{number} cells of the class {name} left out, as the data YAML says")


def counts(datasets: dict[str, Dataset]) -> str:
    """Images and cells per split and type, as lines of text."""
    types = next(iter(datasets.values())).types
    lines = [["split", "images", *types, "cells"]]
    for name, dataset in datasets.items():
        counts = dataset.counts()
        lines.append([name, *map(str, (len(dataset), *counts, counts.sum()))])
    return table.aligned(lines, head=1)


def _composed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--donors", metavar="FOLDER", type=Path, required=True, help="a folder of crops a class in it")
    parser.add_argument("--images", metavar="N", type=int, default=200, help="fields in all [200]")
    parser.add_argument("--size", metavar="PX", type=int, default=600, help="side of a field in pixels [600]")
    parser.add_argument("--cells", metavar="A-B", default="1-6", help="leukocytes a field, least and most [1-6]")
    parser.add_argument("--format", default="coco", help=f"{', '.join(FORMATS)} [coco]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all choices follow from it [0]")
    parser.add_argument("--val", metavar="SHARE", type=float, default=0.15, help="share for validation [0.15]")
    parser.add_argument("--test", metavar="SHARE", type=float, default=0.15, help="share for testing [0.15]")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="threads; 0: one a core [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _compose(args: argparse.Namespace) -> None:
    options = dict(vars(args))
    least, _, most = options.pop("cells").partition("-")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise LeukoError(f"--cells {args.cells}: give the least and the most leukocytes a field, such as 1-6")
    datasets, uncertain = compose(**options, least=int(least), most=int(most or least), progress=True)
    print(f"{args.dst}: {args.format}, {args.size}x{args.size} pixels, seed {args.seed}")
    if uncertain:
        print(f"{len(uncertain)} crops gave no cell, since its outline is uncertain, such as {uncertain[0]}")
    print(counts(datasets))


def _factors_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--factor", metavar="NAME", required=True, help=f"all (by turns), or {', '.join(FACTORS)}")
    parser.add_argument("--severity", metavar="1..5", type=int, default=3, help="how strong [3]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="all choices follow from it [0]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _factors(args: argparse.Namespace) -> None:
    before = load_all(args.src)
    datasets = put_on(**vars(args), progress=True)
    cells, after = (sum(int(d.counts().sum()) for d in sets.values()) for sets in (before, datasets))
    print(f"{args.dst}: {args.factor}, severity {args.severity}")
    if after < cells:
        print(f"{cells - after} of {cells} cells lie on what was cut off")
    told(args.dst, before)
    if rows := stats.factors(datasets):
        print(table.aligned([list(rows[0]), *([str(v) for v in row.values()] for row in rows)], head=1))


def _resize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make, in the same format")
    parser.add_argument("--size", metavar="PX", type=int, default=600, help="longer side in pixels [600]")
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _resize(args: argparse.Namespace) -> None:
    before = load_all(args.src)
    datasets = resize(**vars(args), progress=True)
    told(args.dst, before)
    print(f"{args.dst}: longer side {args.size} pixels; leuko predict --originals draws on the originals")
    print(counts(datasets))


MAKING = {
    "compose": Command(
        "compose fields with several leukocytes from crops of single ones",
        """
  python -m leuko.data compose datasets/composed --donors crops
  python -m leuko.data compose datasets/composed --donors crops --images 1000 --cells 2-8 --format yolo""",
        _composed_arguments,
        _compose,
    ),
    "factors": Command(
        "put an interference factor on every image, tagged",
        """
  python -m leuko.data factors slides datasets/blurred --factor defocus --severity 4
  python -m leuko.data factors slides datasets/each --factor all""",
        _factors_arguments,
        _factors,
    ),
    "resize": Command(
        "scale all images and boxes, linked to the originals",
        """
  python -m leuko.data resize slides datasets/mini --size 600
  leuko predict --weights runs/train/fcos --source datasets/mini --originals""",
        _resize_arguments,
        _resize,
    ),
    "synth": Command(
        "render a data set of stained fields with the five leukocyte types",
        """
  python -m leuko.data synth datasets/demo
  python -m leuko.data synth datasets/demo --images 1000 --size 600 --format voc --seed 7
  python -m leuko.data synth datasets/paper --preset paper --size 600
  python -m leuko.data synth datasets/demo --force --val 0.2 --test 0""",
        _synth_arguments,
        _synth,
    ),
}
