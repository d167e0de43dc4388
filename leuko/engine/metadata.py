"""What the metadata of a weights file say: their keys, and whether a document is as this leuko writes it."""

from __future__ import annotations

import math
from dataclasses import fields

from ..kinds import fits, misfit
from ..models import ModelOptions
from ..runtime.detector import CELL

SCORED = ("calibration", "counting")  # what weights keep of scores, which are others with another typing stage
# Of the laboratory that a typing stage was adapted to: factors on the width and height of boxes, by what the types'
# logits are shifted for their shares there, and what was done, step by step.
BOX_FACTORS, SHIFT, ADAPTED = "box_factors", "shift", "adapted"
LABORATORY = {BOX_FACTORS: list[float], SHIFT: list[float], ADAPTED: list[dict]}
LEAST_FACTOR, MOST_FACTOR = 0.3, 3.0  # of boxes
TYPER = {"recipe": dict, "types": list[str], "view": float, "classes": list[str], "about": dict}
NETWORK = {"backbone": str, "num_types": int, "side": int}
DOCUMENT = {"recipe": dict, "types": list[str], "about": dict, "typer": dict}
MODEL = {"name": str, "num_classes": int} | {f.name: object for f in fields(ModelOptions)}  # values are checked there
OWN = MODEL | {"backbone": str, "norm": str, "freeze": bool, "normalize_features": bool}
YOLO = MODEL | {"made_for": int}
ABOUT = {"epoch": int, "stopped": int, "val": dict[str, float | None], "calibration": dict, "counting": dict[str, dict]}
ABOUT |= {CELL: dict[str, float]}
COUNTING = {"threshold": float, "data": str, "split": str}
SIDES = {"network": float, "stored": float}
CALIBRATION = {"temperature": float, "shift": float, "sizes": list[int]}


def document_misfit(recipe: dict, types: list[str], about: dict, typer: dict | None = None) -> str:
    """What is wrong with a model's description; "" where nothing is. A recipe holds only what builds a model: not
    ``pretrained``, for one, with which other weights would be looked for."""
    kinds = YOLO if "made_for" in recipe else OWN
    required = {"name", "num_classes"} if recipe or not typer else set()
    if problem := misfit(recipe, kinds, optional=kinds.keys() - required):
        return problem
    if typer is not None and (problem := _typer_misfit(typer, types)):
        return problem
    if problem := misfit(about, ABOUT, optional=ABOUT, more=True):
        return problem
    classes = typer["classes"] if typer else types
    if any(len(set(names)) != len(names) for names in (types, classes)) or len(classes) != recipe.get("num_classes", 0):
        return f"{recipe.get('num_classes', 0)} classes, but the types {', '.join(classes)}"
    for found in about.get("counting", {}).values():
        if problem := misfit(found, COUNTING, more=True):
            return problem
    if (sides := about.get(CELL)) is not None and (problem := misfit(sides, SIDES) or _not_positive(sides)):
        return f"{CELL}: {problem}"
    if not (fit := about.get("calibration", {})):
        return ""
    too_small = "a temperature of 0 or less" if fits(t := fit.get("temperature"), float) and t <= 0 else ""
    return misfit(fit, CALIBRATION, optional=("sizes",), more=True) or too_small


def _not_positive(sides: dict[str, float]) -> str:
    return "" if all(0 < side < math.inf for side in sides.values()) else "a side of 0 or less"


def _typer_misfit(typer: dict, types: list[str]) -> str:
    """What is wrong with a typing stage's description; "" where nothing is."""
    problem = misfit(typer, TYPER) or misfit(typer["recipe"], NETWORK)
    if problem := problem or misfit(typer["about"], LABORATORY, optional=LABORATORY, more=True):
        return problem
    if not 0.1 <= typer["view"] <= 10 or not 16 <= typer["recipe"]["side"] <= 512:
        return "a view or side of no use"
    factors, shift = typer["about"].get(BOX_FACTORS, [1.0, 1.0]), typer["about"].get(SHIFT, types)
    if len(factors) != 2 or not all(LEAST_FACTOR <= factor <= MOST_FACTOR for factor in factors):
        return f"{BOX_FACTORS}: {factors!r:.60} are not two numbers from {LEAST_FACTOR:g} to {MOST_FACTOR:g}"
    if len(shift) != len(types):
        return f"{SHIFT}: not a number for each of {len(types)} types"
    if typer["types"] != types or len(types) != typer["recipe"]["num_types"]:
        return f"the types {', '.join(types)}, but its typing stage {', '.join(typer['types'])}"
    return ""
