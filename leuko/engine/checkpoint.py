"""Files of weights (safetensors with what is needed to build the model) and the state that a run resumes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import __version__
from ..baselines import ultralytics
from ..errors import LeukoError, nearest
from ..io import plain, replacing, write_bytes
from ..models import DetectionModel, create
from ..models.checkpoints import from_foreign, read_state

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

    def build(self) -> DetectionModel:
        """The detector with these weights, in eval mode on the CPU."""
        try:
            model = build_model(self.recipe)
            model.load_state_dict(self.state)
        except (RuntimeError, TypeError, KeyError) as e:
            reason = str(e).splitlines()[-1].strip()
            raise LeukoError(f"{self.path}: its weights do not fit its model ({reason}); train or copy it again") from e
        return model.eval()


def build_model(recipe: Mapping) -> DetectionModel:
    """The untrained detector that a recipe describes, leuko's own or one of Ultralytics'."""
    return ultralytics.create_yolo(**recipe) if ultralytics.is_yolo(recipe["name"]) else create(**recipe)


# ---------------------------------------------------------------- weights


def save_weights(path: Path, recipe: dict, state: Mapping[str, Tensor], types: list[str], **about: object) -> None:
    """Write weights under a temporary name and rename; no code is needed, or run, to read them."""
    _write(path, recipe, types, {"leuko": __version__, **plain(about)}, state)


def save_calibration(weights: Weights, calibration: dict) -> None:
    """Write a weights file again with a calibration of its scores in its metadata (see ``metrics.calibration``) and the
    image sizes that it holds for; LeukoError as :func:`check_calibrates` says."""
    check_calibrates(weights)
    about = {**weights.about, "calibration": plain(calibration)}
    _write(weights.path, weights.recipe, weights.types, about, weights.state)


def _write(path: Path, recipe: dict, types: list[str], about: dict, state: Mapping[str, Tensor]) -> None:
    document = json.dumps({"recipe": recipe, "types": types, "about": about})
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_bytes(path, safetensors.torch.save(tensors, {"leuko": document}))


def check_calibrates(weights: Weights) -> None:
    """LeukoError if the weights are not leuko's own file, since only that can hold a calibration."""
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
        return Weights(path, recipe, types, {}, state)
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})["leuko"])
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (it is no dict)
        return Weights(path, document["recipe"], document["types"], document["about"], state)
    except (SafetensorError, OSError) as e:
        raise LeukoError(
            f"{path}: not a whole safetensors file ({str(e)[:100]}); leuko reads only these, because other formats can "
            "run code: train or copy it again"
        ) from e
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise LeukoError(f"{path}: safetensors without leuko's metadata; name weights that leuko.train wrote") from e


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


# ---------------------------------------------------------------- the state of a run


def save_resume(path: Path, state: dict) -> None:
    """Write the state of a run: tensors, numbers, strings, lists and dicts, under a temporary name, then renamed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # torch hides the system's refusal to write behind one of its own
                raise e.__context__ from None
            raise


def load_resume(path: Path) -> dict:
    """Read a run's state without running code; LeukoError if it is missing or broken."""
    if not path.is_file():
        raise LeukoError(f"{path}: no such file; name a run folder that leuko.train has written a state into")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises errors of many kinds on a broken file
        raise LeukoError(
            f"{path}: cannot be read ({type(e).__name__}); start a new run, with --weights if it helps"
        ) from e
    whole = isinstance(state, dict) and {"model", "progress", "images", "types"} <= set(state)
    if not whole or not isinstance(state["progress"], dict):
        raise LeukoError(f"{path}: not the state of a run; start a new run, with --weights if it helps")
    return state
