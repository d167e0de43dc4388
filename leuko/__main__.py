"""`leuko COMMAND`, which is the same as `python -m leuko.COMMAND`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .commandline import run
from .errors import LeukoError, nearest

COMMANDS = {
    "train": ("leuko.train", "train a detector"),
    "val": ("leuko.val", "measure a detector, or several and their fusion"),
    "predict": ("leuko.predict", "find and count leukocytes on new images"),
    "download": ("leuko.download", "fetch weights that others trained"),
    "report": ("leuko.report.__main__", "make a run's page again, or compare runs on one"),
    "data": ("leuko.data.__main__", "tools for data sets: check, convert, split, resize, synth, compose ..."),
}


def usage() -> str:
    """What there is."""
    lines = [f"  {name:<9}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: leuko COMMAND ...", "", *lines, "", "leuko COMMAND --help teaches each by example."])


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command and return its status, if it has one; raises LeukoError for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"leuko {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise LeukoError(f'unknown command "{words[0]}"{nearest(words[0], COMMANDS)} (see leuko --help)')
    return importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])


def console() -> None:
    """The entry point of the `leuko` command."""
    run(main)


if __name__ == "__main__":
    console()
