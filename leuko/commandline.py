"""Options from the command line: a dataclass filled from a preset, a YAML file and flags, in this order of rising
authority.

A key or flag that does not exist is an error that names the nearest one.
"""

from __future__ import annotations

import argparse
import ast
import errno
import inspect
import io
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from .config import preset
from .errors import LeukoError, nearest

T = TypeVar("T")
_ITEMS = {list[str] | None: str, list[int] | None: int}  # lists that an option may take, and what is in them


def parse(cls: type[T], argv: Sequence[str] | None, prog: str, examples: str) -> tuple[T, set[str]]:
    """Options of ``cls`` from command-line words, and which of them the user gave by flag or YAML."""
    names = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    parser = Parser(
        prog=prog,
        description=textwrap.dedent(inspect.getdoc(cls) or ""),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags override it")
    for name, help_text in _docs(cls).items():
        default = names[name].default
        shown = "" if default in ("", None, MISSING) else f" [{default}]"
        help_text = (help_text + shown).replace("%", "%%")
        parser.add_argument("--" + name.replace("_", "-"), dest=name, help=help_text, **_argument(hints[name]))
    given = vars(parser.parse_args(argv))
    from_file = _read_yaml(Path(given.pop("config")), names, hints) if "config" in given else {}
    chosen = from_file | given
    defaults = preset(str(chosen.get("preset", "paper"))) if "preset" in names else {}
    return cls(**{**defaults, **chosen}), set(chosen)


class Parser(argparse.ArgumentParser):
    """Errors are LeukoErrors that name the nearest flag."""

    def error(self, message: str) -> typing.NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if len(unknown) and message.startswith("unrecognized") and unknown[0].startswith("-"):
            word = unknown[0].split("=")[0]
            flags = [flag for flag in self._option_string_actions if flag not in ("-h", "--help")]
            message = f"unknown flag {word}{nearest(word, flags)}"
        raise LeukoError(f"{message} (see {self.prog} --help)")


def _argument(hint: object) -> dict:
    """argparse's keywords for a field of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if hint == str | list:
        return {"type": str, "metavar": "TEXT"}
    if hint == list[int] | None:
        return {"nargs": "+", "type": int, "metavar": "N"}
    if hint == list[str] | None:
        return {"nargs": "*", "metavar": "RUN"}
    return {"type": hint, "metavar": {int: "N", float: "X", str: "TEXT"}[hint]}


def _docs(cls: type) -> dict[str, str]:
    """The docstring under each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


def stored(cls: type[T], path: Path) -> T:
    """Options that a run has saved as YAML; LeukoError if the file is missing, broken or holds other things."""
    return cls(**_read_yaml(path, {f.name: f for f in fields(cls)}, typing.get_type_hints(cls)))


def _read_yaml(path: Path, names: dict, hints: dict[str, object]) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise yaml.YAMLError("aliases (*NAME) are not accepted")
        given = yaml.safe_load(text) or {}
    except OSError as e:
        raise LeukoError(f"{path}: cannot be read ({e.strerror}); check the path") from e
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as e:  # !!bool maybe, say
        raise LeukoError(f"{path}: not valid YAML ({str(e).splitlines()[0]})") from e
    if not isinstance(given, dict):
        raise LeukoError(f"{path}: holds no options; write one 'key: value' a line")
    for key, value in given.items():
        if key not in names:
            raise LeukoError(f'{path}: unknown option "{key}"{nearest(str(key), names)}')
        given[key] = _typed(path, key, value, hints[key])
    return given


def _typed(path: Path, key: str, value: object, hint: object) -> object:
    """The YAML value as the field's type; 1e-4, which YAML reads as text, counts as a number."""
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise LeukoError(f"{path}: {key}: {value!r} is not one of {', '.join(typing.get_args(hint))}")
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (ValueError, OverflowError):
            number = None
        if number is not None and (hint is float or number == value):
            return number
    elif hint in (bool, str, str | list):
        if isinstance(value, hint):
            return value
    elif hint in _ITEMS and (
        value is None or (isinstance(value, list) and all(type(v) is _ITEMS[hint] for v in value))
    ):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text", str | list: "text or a list"}
    kinds |= {list[int] | None: "a list of whole numbers", list[str] | None: "a list of texts"}
    raise LeukoError(f"{path}: {key}: {value!r} is not {kinds[hint]}")


def as_dict(options: object) -> dict[str, object]:
    """Options as plain values, in the order of the fields."""
    return asdict(options)


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Run a command and leave with its status: its own or 0, or 2 after one line about what the user can mend."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        status = main(argv)
    except (LeukoError, OSError, RuntimeError) as e:
        if not (told := _mendable(e)):
            raise
        print(f"leuko: {told}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status or 0)


def _mendable(error: Exception) -> str:
    """The line about what the user can mend; "" where the error is leuko's own."""
    if isinstance(error, LeukoError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: too long for the name of a file; check the path"
    if isinstance(error, RuntimeError) and re.search("(out of|can't allocate|not enough) memory", str(error)):
        return "out of memory: lower --batch or --imgsz"
    return ""
