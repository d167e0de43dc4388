"""Files of weights (safetensors with what is needed to build the model) and the state that a run resumes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from ..baselines import ultralytics
from ..errors import LeukoError, nearest
from ..io import parse_json, plain, write_bytes
from ..kinds import fits, misfit
from ..models import DetectionModel, ModelOptions, create
from ..models.checkpoints import from_foreign
from ..models.tensors import read_safetensors, read_state

FOREIGN = ".pt"  # suffix of Ultralytics' weights, which are read and never written


@dataclass
class Weights:
    """A detector as it is stored.

    ``recipe`` builds it (:func:`build_model`); ``types`` are the class names in label order; ``about`` holds the leuko
    version, the epoch and the validation measures at which the weights were saved.
    """

    path: Path
    recipe: dict
    types: list[str]
    about: dict
    state: dict[str, Tensor]

    @cached_property
    def identity(self) -> str:
        """A digest of the weights alone, whatever the file says of them."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def build(self) -> DetectionModel:
        """The detector with these weights, in eval mode on the CPU."""
        with self._fitting():
            model = build_model(self.recipe)
            own = model.state_dict()
            if wrong := [
                k for k, v in self.state.items() if k in own and v.is_floating_point() != own[k].is_floating_point()
            ]:
                raise TypeError(f"{wrong[0]} is of type {self.state[wrong[0]].dtype}")
            model.load_state_dict(self.state)
        return model.eval()

    def check_size(self) -> None:
        """LeukoError if the model is far larger than its file. It is described without memory first, since the name of
        a backbone alone can stand for 10 GB."""
        with self._fitting(), torch.device("meta"):
            yolo = "architecture" in self.recipe
            model = ultralytics.layers_of(self.recipe) if yolo else create(**self.recipe)
            there, needed = (sum(v.numel() for v in values) for values in (self.state.values(), model.parameters()))
            if needed > there + 10**7:
                raise ValueError(f"{needed:,} numbers are needed, {there:,} are there")

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # torch, timm and Ultralytics raise errors of many kinds where a recipe is not theirs
            reason = (str(e).splitlines() or [type(e).__name__])[-1].strip()[:300]
            raise LeukoError(f"{self.path}: its weights do not fit its model ({reason}); train or copy it again") from e


def build_model(recipe: Mapping) -> DetectionModel:
    """The untrained detector that a recipe describes, leuko's own or one of Ultralytics'."""
    return ultralytics.create_yolo(**recipe) if "architecture" in recipe else create(**recipe)


# ---------------------------------------------------------------- weights


def save_weights(path: Path, recipe: dict, state: Mapping[str, Tensor], types: list[str], **about: object) -> None:
    """Write weights under a temporary name and rename; no code is needed, or run, to read them."""
    _write(path, recipe, types, {"leuko": __version__, **plain(about)}, state)


def save_about(weights: Weights, **about: dict) -> None:
    """Write a weights file again with more in its metadata: the calibration of its scores (see
    ``metrics.calibration``), or the scores from which counts are best (see ``engine.thresholds``). LeukoError as
    :func:`check_keeps` says."""
    check_keeps(weights)
    weights.about |= plain(about)
    _write(weights.path, weights.recipe, weights.types, weights.about, weights.state)


def _write(path: Path, recipe: dict, types: list[str], about: dict, state: Mapping[str, Tensor]) -> None:
    document = json.dumps({"recipe": recipe, "types": types, "about": about})
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_bytes(path, safetensors.torch.save(tensors, {"leuko": document}))


def check_keeps(weights: Weights) -> None:
    """LeukoError if the weights are not leuko's own file, since only that can keep what ``leuko val`` has found."""
    if weights.path.suffix == FOREIGN:
        raise LeukoError(
            f"{weights.path}: is Ultralytics' file, in which --calibrate cannot keep the fit; train from it "
            f"(leuko train --model {weights.path}), and calibrate that run"
        )


def find_weights(source: str | Path) -> Path:
    """The weights file that a run folder (its best weights, else its last) or a file's own path means."""
    path = Path(source)
    if path.is_dir():
        for name in ("best", "last"):
            if (file := path / "weights" / f"{name}.safetensors").is_file():
                return file
        raise LeukoError(
            f"{path}: no weights/best.safetensors or last.safetensors in it; name a run folder of leuko.train"
        )
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise LeukoError(f"{path}: no such run or weights file{nearest(path.name, siblings)}")
    return path


def load_weights(source: str | Path) -> Weights:
    """Read a weights file of leuko's (see :func:`find_weights`) or Ultralytics' ``.pt``; LeukoError if it is neither,
    cut off, or not safe."""
    path = find_weights(source)
    if path.suffix == FOREIGN:
        recipe, types, state = ultralytics.read_checkpoint(path)
        weights = Weights(path, recipe, types, {}, state)
    else:
        state, metadata = read_safetensors(path)
        try:
            document = parse_json(metadata.get("leuko", "{}"))
            problem = misfit(document, {"recipe": dict, "types": list[str], "about": dict}) or _misfit(**document)
        except ValueError as e:
            problem = str(e)
        if problem:
            raise LeukoError(
                f"{path}: safetensors without leuko's metadata, or not as this leuko writes it ({problem:.200}); name "
                "weights that leuko.train wrote"
            )
        weights = Weights(path, state=state, **document)
    weights.check_size()
    return weights


MODEL = {"name": str, "num_classes": int} | {f.name: object for f in fields(ModelOptions)}  # values are checked there
OWN = MODEL | {"backbone": str, "norm": str, "freeze": bool, "normalize_features": bool}
YOLO = MODEL | {"architecture": dict}
ABOUT = {"epoch": int, "val": dict[str, float | None], "calibration": dict, "counting": dict[str, dict]}
COUNTING = {"threshold": float, "data": str, "split": str}
CALIBRATION = {"temperature": float, "shift": float, "sizes": list[int]}


def _misfit(recipe: dict, types: list[str], about: dict) -> str:
    """What is wrong with a model's description; "" where nothing is. A recipe holds only what builds a model: not
    ``pretrained``, for one, with which other weights would be looked for."""
    kinds = YOLO if "architecture" in recipe else OWN
    if problem := misfit(recipe, kinds, optional=kinds.keys() - {"name", "num_classes"}):
        return problem
    if problem := misfit(about, ABOUT, optional=ABOUT, more=True):
        return problem
    if len(set(types)) != len(types) or len(types) != recipe["num_classes"]:
        return f"{recipe['num_classes']} classes, but the types {', '.join(types)}"
    for found in about.get("counting", {}).values():
        if problem := misfit(found, COUNTING, more=True):
            return problem
    if not (fit := about.get("calibration", {})):
        return ""
    too_small = "a temperature of 0 or less" if fits(t := fit.get("temperature"), float) and t <= 0 else ""
    return misfit(fit, CALIBRATION, optional=("sizes",), more=True) or too_small


# ---------------------------------------------------------------- starting from trained weights


def transfer(weights: Weights, model: DetectionModel, types: list[str]) -> list[str]:
    """Start ``model`` for ``types`` from trained weights; the rows of class layers are matched by class name.

    Returns the types that the weights know; the others keep their fresh initialisation. LeukoError if the weights are
    another detector's or another backbone's.
    """
    for key in ("name", "backbone", "norm", "normalize_features", "channels", "fc_channels"):
        if (stored := weights.recipe.get(key)) != model.recipe.get(key):
            name = {"name": "model"}.get(key, key).replace("_", "-")
            remedy = f"--{name if stored else f'no-{name}'}" if type(stored) is bool else f"--{name} {stored}"
            raise LeukoError(f"{weights.path}: its {name} is {stored}, not {model.recipe[key]}; give {remedy}")
    known = [t for t in types if t in weights.types]
    state, own = weights.build().state_dict(), model.state_dict()
    for layer, rows in _class_layers(model).items():
        for key in (f"{layer}.weight", f"{layer}.bias"):
            fresh, trained = own[key].clone(), state[key]
            for t in known:
                to, at = types.index(t) * rows, weights.types.index(t) * rows
                fresh[to : to + rows] = trained[at : at + rows]
            fresh[len(types) * rows :] = trained[len(weights.types) * rows :]  # the background's, if there is one
            state[key] = fresh
    model.load_state_dict(state)
    return known


def transfer_foreign(path: Path, model: DetectionModel) -> list[str]:
    """Start ``model`` from a checkpoint of MMDetection or torchvision, all but the layers that belong to classes.

    Returns the names of those layers, which stay as they were initialised. LeukoError if the file is no such checkpoint
    or another detector's.
    """
    try:
        state = from_foreign(read_state(path))
    except (KeyError, IndexError, RuntimeError) as e:
        raise LeukoError(f"{path}: not a detector of MMDetection or torchvision that leuko knows ({e})") from e
    own, classes = model.state_dict(), list(_class_layers(model))
    without = ("num_batches_tracked", "backbone.std")
    taken = [k for k in own if k.rpartition(".")[0] not in classes and not k.endswith(without)]
    for key in taken:
        if key not in state or state[key].shape != own[key].shape:
            there = list(state[key].shape) if key in state else "nothing of that name"
            raise LeukoError(
                f"{path}: does not fit {model.recipe['name']} on {model.recipe['backbone']}: {key} is "
                f"{list(own[key].shape)} here, {there} there; see the models in `leuko download`"
            )
    model.load_state_dict({k: state[k] for k in taken}, strict=False)
    return classes


def _class_layers(model: DetectionModel) -> dict[str, int]:
    """The layers that belong to classes, by name, and how many rows of each belong to one class."""
    return {
        f"{name}.{layer}": rows
        for name, module in model.named_modules()
        for layer, rows in getattr(module, "per_class", {}).items()
    }
