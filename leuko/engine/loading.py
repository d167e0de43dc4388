"""What the name of a detector means: weights, for which torch is imported, or an export, which does without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LeukoError
from ..registry import find_weights
from ..runtime import ExportedDetector
from ..runtime.graph import SUFFIXES as EXPORTED
from ..runtime.typing_stage import OFF, TypingStage

if TYPE_CHECKING:
    from .checkpoint import Weights


def load_detector(source: str | Path, max_detections: int = 0) -> Weights | ExportedDetector:
    """Read weights, or what ``leuko export`` has made of them, which must give as many detections; raises
    LeukoError."""
    path = find_weights(source)
    if path.suffix in EXPORTED:
        return ExportedDetector.load(path, max_detections)
    try:
        from .checkpoint import load_weights  # not before: it takes torch, and seconds
    except ImportError as error:
        raise LeukoError(
            f"{path}: weights need PyTorch, which is not installed ({error}); install leuko with all it needs, or name "
            "an export of them"
        ) from error
    return load_weights(path)


def typing_of(weights: Weights | ExportedDetector, typer: str, device: str) -> tuple[TypingStage | None, str]:
    """The typing stage that ``--typer`` means for a model, and whose it is: "" its own, if it has one; "off" none; else
    that of other weights, told by the beginning of their digest. Raises LeukoError."""
    if typer == OFF:
        return None, OFF if weights.typer else ""
    keeper = load_detector(typer) if typer else weights
    if keeper.typer is None:
        if typer:
            raise LeukoError(f"{keeper.path}: holds no typing stage; train one by leuko type")
        return None, ""
    stage = keeper.typing_stage(device)
    if keeper is weights or keeper.identity == weights.identity:
        return stage, ""
    return replace(stage, box_factors=(1.0, 1.0)), keeper.identity[:12]  # factors are of its own detector's boxes
