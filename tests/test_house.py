"""How the package is built: imports go down the floors, commands answer at once, words are the field's."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leuko"
GROUND = ("__init__", "errors", "cells", "detections", "config", "io", "kinds", "registry", "cli")
GROUND += ("__main__", "data.config")
FLOORS = (  # lowest first; a room may import what lies below it, and its own floor without a circle
    GROUND,
    ("ops", "synth"),
    ("models", "data", "metrics"),
    ("report",),
    ("baselines",),
    ("runtime",),
    ("engine",),
    ("download", "train", "val", "predict", "export", "type", "detector", "data.__main__"),
    ("compare", "adapt", "merge"),
)


DRAWS = ("data.tools.draw", "data.transforms.", "data.crops", "data.typed", "engine.exporter", "engine.parity")
LAZY = ("__init__", "cli")  # whose functions import what is asked for by name


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def floor_of(module: str) -> int:
    """The floor of the longest name that the module has or lies in."""
    at = [(len(room), i) for i, rooms in enumerate(FLOORS) for room in rooms if f"{module}.".startswith(f"{room}.")]
    assert at, f"{module} is on no floor"
    return max(at)[1]


def nodes(tree: ast.AST, runs: bool) -> Iterator[ast.AST]:
    """All nodes below one; ``runs``: without those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if not (runs and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node, runs)


def imports(path: Path, runs: bool = False) -> set[str]:
    """The package's modules that a file imports, in functions, too; ``runs``: without what only type checkers see. Of
    ``LAZY`` modules, only what is imported at once."""
    tree, module = ast.parse(path.read_text(encoding="utf-8")), module_name(path)
    own, found = module.split(".")[:-1], set()
    for node in tree.body if module in LAZY else nodes(tree, runs):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "leuko" for alias in node.names), f"{path}: absolute import"
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("leuko")):
            continue
        assert node.level or "leuko.cli" in node.module, f"{path}: absolute import"
        base = own[: len(own) - node.level + 1] + (node.module or "").split(".") if node.level else ["cli"]
        base = [part for part in base if part]
        for alias in node.names:
            name = ".".join([*base, alias.name])
            found.add(name if name in MODULES else ".".join(base) or "__init__")
    return {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in found}


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def test_imports_go_down_the_floors():
    for module, path in MODULES.items():
        for name in imports(path):
            assert floor_of(name) <= floor_of(module), f"{module} imports {name}, which lies above it"


def test_rooms_know_what_they_may():
    """data and models meet only in tensors; what is drawn knows nothing of data; data does not know the report."""
    forbidden = {"data": ("models", "metrics", "report", "engine"), "models": ("data", "metrics"), "synth": ("data",)}
    forbidden |= {"ops": ("models", "data", "synth"), "metrics": ("models", "synth")}
    for module, path in MODULES.items():
        room = module.split(".")[0]
        if module == "data.__main__":
            continue  # a command
        for name in imports(path):
            assert name.split(".")[0] not in forbidden.get(room, ()), f"{module} imports {name}"
            draws = name.startswith("synth.") and room != "synth"
            assert not draws or module.startswith(DRAWS), f"{module} imports {name}, which is for what draws or stains"


def test_there_is_no_circle():
    edges = {module: imports(path, runs=True) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for name in edges.get(module, ()):
                if name != module:
                    visit(name, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_files_are_rooms():
    long = {module: n for module, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 350}
    assert not long


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("-m leuko --help", 0),
        ("-m leuko train --hlep", 2),
        ("-m leuko.val --hlep", 2),
        ("-m leuko.data check --help", 0),
    ],
)
def test_a_slip_is_answered_at_once(words, code):
    """Nothing heavy is imported before the words are understood: the best of three is under a second."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, cwd=PACKAGE.parent)
        seconds.append(time.perf_counter() - start)
    assert result.returncode == code and (result.stderr.count("\n") == 1 if code else result.stdout)
    assert min(seconds) < 1
