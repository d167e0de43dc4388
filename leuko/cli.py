"""The command line: ``COMMANDS``, and how words become options.

Options are a dataclass that is filled from a preset, a YAML file and flags; each overrides the one before. A field's
docstring is its help text. Nothing heavy is imported before the words are understood, so that ``--help`` and a mistyped
flag are answered at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import importlib
import inspect
import io
import os
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import NoReturn, TypeVar

from . import config
from .config import flag
from .data import config as data_config
from .errors import LeukoError, is_out_of_memory, nearest
from .io import read_yaml
from .kinds import fits

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """A command: its options, and ``module:function`` that takes them (and, with ``takes_given``, the names of those
    that the user chose) and may return an exit status."""

    options: type
    function: str
    takes_given: bool = False

    @property
    def help(self) -> str:
        """The first sentence about it, as one line."""
        first = " ".join(inspect.getdoc(self.options).split()).split(". ")[0].removesuffix(".")
        return first[0].lower() + first[1:]

    def load(self) -> Callable[..., int | None]:
        """Import the function, and with it all that it needs."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


COMMANDS: dict[str, Command] = {
    "train": Command(config.TrainOptions, "leuko.train:train", takes_given=True),
    "compare": Command(config.CompareOptions, "leuko.compare:compare", takes_given=True),
    "val": Command(config.ValOptions, "leuko.val:val"),
    "predict": Command(config.PredictOptions, "leuko.predict:predict"),
    "merge": Command(config.MergeOptions, "leuko.merge:merge"),
    "type": Command(config.TypeOptions, "leuko.type:train_typing"),
    "adapt": Command(config.AdaptOptions, "leuko.adapt:adapt"),
    "export": Command(config.ExportOptions, "leuko.export:export"),
    "download": Command(config.DownloadOptions, "leuko.download:run"),
    "report": Command(config.ReportOptions, "leuko.report.pages:run"),
}
DATA_COMMANDS: dict[str, Command] = {
    "apply-review": Command(data_config.ReviewOptions, "leuko.data.__main__:apply_review"),
    "check": Command(data_config.CheckOptions, "leuko.data.__main__:check"),
    "compose": Command(data_config.ComposeOptions, "leuko.data.__main__:compose"),
    "convert": Command(data_config.ConvertOptions, "leuko.data.__main__:convert"),
    "factors": Command(data_config.FactorOptions, "leuko.data.__main__:factors"),
    "resize": Command(data_config.ResizeOptions, "leuko.data.__main__:resize"),
    "split": Command(data_config.SplitOptions, "leuko.data.__main__:split"),
    "stats": Command(data_config.StatsOptions, "leuko.data.__main__:stats"),
    "synth": Command(data_config.SynthOptions, "leuko.data.__main__:synth"),
}

HABITS = {  # flags of other trainers that ours are spelled unlike: the first that the command has; or what to know
    "--conf": "--threshold",
    "--conf-thres": "--threshold",
    "--iou": "--fusion-iou",
    "--learning-rate": "--lr",
    "--warmup-epochs": "--warmup",
    "--save-txt": "--labels",
    "--save-dir": "--save --out --project",
    "--output": "--save --out --project",
    "--work-dir": "--save --out --project",
    "--load-from": "--weights",
    "--checkpoint": "--weights",
    "--exist-ok": "it is not needed: a run is never overwritten, and NAME-2 is made",
    "--optimizer": "it is not needed: leuko trains by SGD (--lr, --momentum, --weight-decay)",
    "--cos-lr": "it is not needed: the rate drops to a tenth after 8/12 and 11/12 of the epochs",
}


# ---------------------------------------------------------------- running a command


def main(argv: Sequence[str] | None = None) -> int | None:
    """``leuko COMMAND ...``: returns the command's exit status, if it has one; raises LeukoError."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--version"], ["version"]):
        from . import __version__

        print(f"leuko {__version__}")
        return None
    if words[:1] == ["data"]:
        return _run_one_of(DATA_COMMANDS, words[1:], "leuko data")
    return _run_one_of(COMMANDS | {"data": None}, words, "leuko")


def _run_one_of(commands: dict[str, Command | None], words: list[str], prog: str) -> int | None:
    if not words or words[0] in ("-h", "--help", "help"):
        tools = "tools for data sets: " + ", ".join(DATA_COMMANDS)
        lines = [f"  {name:<14}{command.help if command else tools}" for name, command in commands.items()]
        print("\n".join([f"usage: {prog} COMMAND ...", "", *lines, "", f"{prog} COMMAND --help shows examples."]))
        return None
    name = words[0]
    if name not in commands:
        raise LeukoError(f'unknown command "{name}"{nearest(name, commands)} (see {prog} --help)')
    return run_command(commands[name], words[1:], f"{prog} {name}")


def run_command(command: Command, words: Sequence[str], prog: str) -> int | None:
    """Read the options from the command line, then import what the command needs and call it."""
    options, given = parse(command.options, words, prog)
    if type(options) is config.TrainOptions and (folder := options.resume):
        if (args := Path(folder) / "args.yaml").is_file() and config.is_comparison(read_yaml(args).get("model")):
            command = COMMANDS["compare"]
    elif type(options) is config.TrainOptions and config.is_comparison(options.model):
        command = COMMANDS["compare"]
    result = command.load()(options, given) if command.takes_given else command.load()(options)
    return result if isinstance(result, int) else None


def run_module(name: str) -> NoReturn:
    """What ``python -m leuko.NAME`` does."""
    leave(lambda: main([*name.split(), *sys.argv[1:]]))


def leave(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status: its own or 0, or 2 after one line about what the user can fix."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may not be valid Unicode
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":  # one of torchrun's processes is enough
        sys.stdout, os.environ["TQDM_DISABLE"] = open(os.devnull, "w"), "1"  # noqa: SIM115
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # it has many lines about a broken image
    try:
        status = command()
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (LeukoError, OSError, RuntimeError, MemoryError, ModuleNotFoundError) as e:
        if not (line := _line_about(e)):
            raise
        print(f"leuko: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status or 0)


def _line_about(error: Exception) -> str:
    """The line about what the user can fix; "" where the error is leuko's own."""
    if isinstance(error, LeukoError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: too long for a file name; check the path"
    if isinstance(error, ModuleNotFoundError) and (error.name or __package__).partition(".")[0] != __package__:
        return f"{error.name} is not installed; install all that leuko needs (without PyTorch: docs/deploy.md)"
    if is_out_of_memory(error):
        return "out of memory: lower --batch or --imgsz"
    return ""


# ---------------------------------------------------------------- from words to options


def parse(cls: type[T], argv: Sequence[str], prog: str) -> tuple[T, set[str]]:
    """Options of ``cls`` from command-line words, and the names of those that the user gave by flag or YAML."""
    hints = typing.get_type_hints(cls)
    names = {f.name: f for f in fields(cls)}
    places = "".join(f" {name.upper()}" for name, f in names.items() if is_positional(f))
    parser = _Parser(
        prog=prog,
        usage=f"{prog}{places} [--OPTION VALUE ...]",
        description=inspect.getdoc(cls),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(cls.EXAMPLES).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if not any(is_positional(f) for f in names.values()):
        parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags override it")
    for name, text in _docs(cls).items():
        default = names[name].default
        shown = "" if default in ("", None, MISSING) else f" [{default}]"
        keywords = {"help": (text + shown).replace("%", "%%"), **_argument(hints[name])}
        if is_positional(names[name]):
            parser.add_argument(name, **keywords | {"metavar": name.upper()})
        else:
            parser.add_argument(flag(name), dest=name, **keywords)
    given = vars(parser.parse_args(list(argv)))  # words, which are read here as YAML is
    chosen = _read_options(Path(given.pop("config")), cls) if "config" in given else {}
    chosen |= {name: _typed(flag(name), value, hints[name]) for name, value in given.items()}
    defaults = config.preset(str(chosen.get("preset", "paper"))) if issubclass(cls, config.TrainOptions) else {}
    return cls(**{**defaults, **chosen}), set(chosen)


def is_positional(field: Field) -> bool:
    """Whether an option is given by its place on the command line."""
    return bool(field.metadata.get("positional"))


class _Parser(argparse.ArgumentParser):
    """Errors are LeukoErrors that name the nearest flag."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0]
            message = self._about(word)
        raise LeukoError(f"{message} (see {self.prog} --help)")

    def _about(self, word: str) -> str:
        flags = [f for f in self._option_string_actions if f not in ("-h", "--help")]
        name, _, value = word.partition("=")
        if not word.startswith("-") and value:
            return f"{word}: options are written as flags: {flag(name)} {value}"
        if not word.startswith("-"):
            return f"{word}: is not expected here; a flag takes one value, and names with spaces need quotes"
        if (hint := HABITS.get(name)) is None:
            return f"unknown flag {name}{nearest(name, flags, 0.7)}"
        if hint.startswith("--"):
            own = next((f for f in hint.split() if f in flags), None)
            hint = f"leuko has {own}" if own else "this command has nothing like it"
        return f"unknown flag {name}; {hint}"


def _kind(hint: object) -> tuple[object, bool]:
    """The type of an option, or of its items, and whether it is a list of them; without None, which it may be, too."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is UnionType else hint
    return (typing.get_args(kind)[0], True) if typing.get_origin(kind) is list else (kind, False)


def _argument(hint: object) -> dict:
    """argparse's keywords for a field of this type, whose words :func:`_typed` reads."""
    kind, is_list = _kind(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = typing.get_args(kind)
    shown = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X", str: "TEXT"}[kind]
    return {"metavar": shown} | ({"nargs": "*" if kind is str else "+"} if is_list else {})


def _docs(cls: type) -> dict[str, str]:
    """The docstring under each field, those of base classes last."""
    docs: dict[str, str] = {}
    for each in cls.__mro__[:-1]:
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        docs |= {
            field.target.id: " ".join(doc.value.value.split())
            for field, doc in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and field.target.id not in docs
        }
    return docs


# ---------------------------------------------------------------- options from YAML


def stored(cls: type[T], path: Path) -> T:
    """Options that a run has saved as YAML; LeukoError if the file is missing, broken or holds other things."""
    remedy = f"; of a training by another version of leuko, start a new one with --weights {path.parent}"
    given = _read_options(path, cls, remedy)
    try:
        return cls(**given)
    except LeukoError as error:
        raise LeukoError(f"{path}: {error}") from error


def _read_options(path: Path, cls: type, remedy: str = "") -> dict[str, object]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    given = read_yaml(path)
    for key in given:
        if key not in names:
            raise LeukoError(f'{path}: unknown option "{key!s:.60}"{nearest(str(key), names)}{remedy}')
    return {key: _typed(f"{path}: {key}", value, hints[key]) for key, value in given.items()}


def _typed(where: str, value: object, hint: object) -> object:
    """A word of the command line, or a value of YAML, which reads 1e-4 as text, as the field's type."""
    kind, is_list = _kind(hint)
    if is_list and isinstance(value, list):
        return [_typed(where, item, kind) for item in value]
    if not is_list and kind in (int, float) and type(value) in (int, float, str):
        with contextlib.suppress(ValueError, OverflowError):
            number = kind(value)
            if kind is float or isinstance(value, str) or number == value:
                return number
    elif fits(value, hint):
        return value
    if choices := typing.get_args(kind):
        noun = f"one of {', '.join(choices)}{nearest(str(value), choices)}"
    else:
        noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    noun = "a list" if is_list else "text or a list" if hint == str | list else noun
    raise LeukoError(f"{where}: {value!r:.60} is not {noun}")
