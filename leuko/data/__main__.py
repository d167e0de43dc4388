"""Tools for data sets: ``python -m leuko.data COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leuko.config import Parser, run
from leuko.data.convert import FORMATS as CONVERTED
from leuko.data.convert import convert
from leuko.data.sample import Dataset
from leuko.data.synth import FORMATS, synth
from leuko.errors import LeukoError, nearest
from leuko.report import table
from leuko.smear.sheet import types_sheet


@dataclass(frozen=True)
class Command:
    """One sub-command: a line of help, examples, its arguments, and what it does with them."""

    help: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--images", metavar="N", type=int, default=200, help="images in all [200]")
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
    print(_table(datasets))
    if sheet:
        try:
            types_sheet(args.seed).save(sheet)
        except (OSError, ValueError) as error:  # ValueError: Pillow does not know the file's ending
            raise LeukoError(f"{sheet}: cannot be written: {error}; name a .png in a folder that exists") from error
        print(f"{sheet}: the five types")


def _table(datasets: dict[str, Dataset]) -> str:
    """Images and cells per split and type, as lines of text."""
    types = next(iter(datasets.values())).types
    lines = [["split", "images", *types, "cells"]]
    for split, dataset in datasets.items():
        counts = dataset.counts()
        lines.append([split, *map(str, (len(dataset), *counts, counts.sum()))])
    return table.aligned(lines, head=1)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", type=Path, help="data set: a folder, a COCO file or a data YAML")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(CONVERTED))
    parser.add_argument(
        "--voc-origin",
        metavar="N",
        type=int,
        choices=(0, 1),
        default=0,
        help="0: VOC as LabelImg has it; 1: official [0]",
    )
    parser.add_argument("--force", action="store_true", help="replace the data set that DST holds")


def _convert(args: argparse.Namespace) -> None:
    datasets = convert(**vars(args), progress=True)
    for split, dataset in datasets.items():
        if told := table.flaws(split, dataset):
            print(told)
    print(f"{args.dst}: {args.to}")
    print(_table(datasets))


COMMANDS = {
    "convert": Command(
        "write a data set in another format, with nothing lost",
        """
  python -m leuko.data convert slides datasets/slides --to coco
  python -m leuko.data convert slides.yaml datasets/slides --to yolo --force
  python -m leuko.data convert train.json datasets/official --to voc --voc-origin 1""",
        _convert_arguments,
        _convert,
    ),
    "synth": Command(
        "render a data set of stained fields with the five leukocyte types",
        """
  python -m leuko.data synth datasets/demo
  python -m leuko.data synth datasets/demo --images 1000 --size 600 --format voc --seed 7
  python -m leuko.data synth datasets/demo --force --val 0.2 --test 0""",
        _synth_arguments,
        _synth,
    ),
}


def _overview() -> str:
    commands = "".join(f"\n  {name:<10}{command.help}" for name, command in COMMANDS.items())
    return f"usage: python -m leuko.data COMMAND ...\n\n{commands.lstrip(chr(10))}\n\n`COMMAND --help` shows examples."


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command; raises LeukoError for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    name = words[0]
    if name not in COMMANDS:
        raise LeukoError(f'unknown command "{name}"{nearest(name, COMMANDS)} (see python -m leuko.data --help)')
    command = COMMANDS[name]
    parser = Parser(
        prog=f"python -m leuko.data {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=f"examples:{command.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    command.run(parser.parse_args(words[1:]))


if __name__ == "__main__":
    run(main)
