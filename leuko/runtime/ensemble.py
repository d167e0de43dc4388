"""An exported ensemble: a folder of detectors, and a manifest that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import LeukoError
from ..io import read_json, write_json
from ..kinds import misfit

MANIFEST = "ensemble.json"


def write_manifest(folder: Path, members: Sequence[Path]) -> None:
    """Name the files of the members, which lie in the folder."""
    write_json(folder / MANIFEST, {"leuko": __version__, "members": [path.name for path in members]})


def members_of(sources: Sequence[str | Path]) -> list[str | Path]:
    """What ``--ensemble`` names, with the members of an exported ensemble in place of its folder. Raises LeukoError."""
    found: list[str | Path] = []
    for each in sources:
        manifest = Path(each) / MANIFEST
        if not manifest.is_file():
            found.append(each)
            continue
        content = read_json(manifest)
        if problem := misfit(content, {"leuko": str, "members": list[str]}):
            raise LeukoError(f"{manifest}: is not as leuko export writes it ({problem}); export the ensemble again")
        found += [manifest.with_name(Path(name).name) for name in content["members"]]
    return found
