"""Which runs of a project folder are finished, and can be fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import TrainOptions
from ..errors import LeukoError
from ..io import read_yaml

LAST = Path("weights/last.safetensors")


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether a run was trained for so many epochs or more, or stopped early when it was to have so many: by its last
    weights, which an epoch writes after all its other results."""
    from .checkpoint import load_weights  # here, since it takes torch, and who names exports needs none

    if not (folder / LAST).is_file():
        return False
    about = load_weights(folder / LAST).about
    return max(about.get("epoch", 0), about.get("stopped", 0)) >= epochs


def epochs_of(folder: Path) -> int:
    """The epochs that a run is to have; its other options, which an older leuko may have written, are not looked at."""
    path = folder / "args.yaml"
    epochs = read_yaml(path).get("epochs", TrainOptions.epochs)
    if type(epochs) is not int:
        raise LeukoError(f"{path}: epochs: {epochs!r} is not a whole number; correct it")
    return epochs


def finished_runs(project: str | Path, types: Sequence[str] | None = None) -> list[Path]:
    """The runs of a project folder that were trained to their last epoch, and on the given types if any are given.

    Raises LeukoError if there are fewer than two, since there is nothing to fuse then.
    """
    from .checkpoint import load_weights

    runs = [args.parent for args in sorted(Path(project).glob("*/args.yaml")) if (args.parent / LAST).is_file()]
    runs = [run for run in runs if is_finished(run, epochs_of(run))]
    if types is not None:
        runs = [run for run in runs if set(load_weights(run / LAST).types) == set(types)]
    if len(runs) < 2:
        fits = "" if types is None else f" for the types {', '.join(types)}"
        raise LeukoError(
            f"{project}: {len(runs)} finished runs{fits}, but an ensemble needs two; train more, name them, or give "
            "their folder by --project"
        )
    return runs
