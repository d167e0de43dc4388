"""Which runs of a project folder are finished, and can be fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import TrainOptions
from ..errors import LeukoError
from ..io import read_yaml

LAST = Path("weights/last.safetensors")


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether a run was trained for so many epochs or more, or stopped early when it was to have so many: by its state,
    which an epoch writes after its weights, or, where somebody has removed that, by these."""
    from .checkpoint import load_weights  # here, since they take torch, and who names exports needs none
    from .state import load_state

    last, state = folder / LAST, folder / "resume.pt"
    if not last.is_file():
        return False
    if not state.is_file():
        return (load_weights(last).about.get("epoch") or 0) >= epochs
    return load_state(state).progress.is_finished(epochs)


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

    runs = []
    for args in sorted(Path(project).glob("*/args.yaml")):
        folder = args.parent
        if not (folder / LAST).is_file() or not is_finished(folder, epochs_of(folder)):
            continue
        if types is None or set(load_weights(folder / LAST).types) == set(types):
            runs.append(folder)
    if len(runs) < 2:
        fits = "" if types is None else f" for the types {', '.join(types)}"
        raise LeukoError(
            f"{project}: {len(runs)} finished runs{fits}, but an ensemble needs two; train more, or name them"
        )
    return runs
