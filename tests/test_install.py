"""What an installation holds: a wheel, and an editable install used from beside the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from leuko import __version__

pytest.importorskip("hatchling", reason="the extra `test` is not installed")
SCRIPT = """
from leuko import __version__, registry
print(__version__, registry.__file__, "yolo11n" in registry.registry(), registry.find_weights("leuko-small"))
"""
WEIGHTS = ("registry.yaml", "README.md", "leuko-small.safetensors")
OFFLINE = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy of the repository in a folder that has the package's name, as ``git clone`` makes it."""
    folder = tmp_path / "leuko"
    shutil.copytree(ROOT / "leuko", folder / "leuko", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", *(f"weights/{name}" for name in WEIGHTS)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_wheel_holds_the_package_and_all_that_it_reads(clone, tmp_path):
    templates = clone / "leuko/report/templates"
    templates.mkdir(exist_ok=True)
    (templates / "test.html.j2").write_text("{{ title }}")
    (clone / "weights/fcos.safetensors").write_bytes(b"not part of leuko")
    (clone / "weights/yolo11n.pt").write_bytes(b"of another licence")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", tmp_path, clone, cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("leuko-*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "installed")
    files = {str(path.relative_to(clone)) for path in (clone / "leuko").rglob("*") if path.is_file()}
    assert held == files | {f"leuko/weights/{name}" for name in WEIGHTS}
    assert {"leuko/report/templates/test.html.j2", "leuko/examples.md", "leuko/examples/pbc_1.jpg"} <= held
    installed = tmp_path / "installed"
    box = installed / "leuko/weights/leuko-small.safetensors"
    told = f"{__version__} {installed / 'leuko/registry.py'} True {box}"
    assert run(sys.executable, "-c", SCRIPT, cwd=installed) == told


def test_script_beside_an_editable_clone_imports_leuko(clone, tmp_path):
    venv.create(tmp_path / "venv", system_site_packages=True)
    scheme = {"base": tmp_path / "venv", "platbase": tmp_path / "venv"}
    site_packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # where leuko's dependencies are
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "--editable", clone, cwd=tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    box = clone / "weights/leuko-small.safetensors"
    told = f"{__version__} {clone / 'leuko/registry.py'} True {box}"
    assert run(python, tmp_path / "script.py", cwd=tmp_path) == told


def test_what_use_without_torch_needs_is_part_of_what_leuko_needs():
    needs = [line for line in (ROOT / "docs/deploy.txt").read_text().splitlines() if not line.startswith("#")]
    project = (ROOT / "pyproject.toml").read_text()
    assert len(needs) > 5 and all(f'"{line}"' in project for line in needs)
