"""Files of weights (safetensors with what is needed to build the model) and the state that a run resumes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from .. import __version__
from ..baselines import ultralytics
from ..errors import LeukoError
from ..io import parse_json, plain, write_bytes
from ..kinds import misfit
from ..models import DetectionModel, ModelOptions, create
from ..models.checkpoints import from_foreign
from ..models.tensors import read_safetensors, read_state
from ..models.typer import Typer
from ..registry import DEFAULT, FOREIGN, comes_with_leuko, find, find_weights
from ..runtime.graph import SUFFIXES as EXPORTED
from ..runtime.typing_stage import TypingStage
from . import cost
from .metadata import BOX_FACTORS, CELL, DOCUMENT, TYPER, document_misfit
from .network import Network, at_size, choose_device


@dataclass
class StoredTyper:
    """A typing stage as it is stored.

    ``recipe`` builds its network (``models.typer``); ``types`` are its own, in order; ``view`` is how much it sees of a
    cell's surroundings; ``classes`` are the types of the detector that it goes with, [] where it stands alone;
    ``about`` tells what it learned from and what was adapted. ``replay`` holds features [N, F] of cells that it has
    learned and their ``labels`` [N], from which ``leuko adapt`` goes on.
    """

    recipe: dict
    types: list[str]
    view: float
    classes: list[str]
    about: dict
    state: dict[str, Tensor]
    replay: dict[str, Tensor]

    def document(self) -> dict:
        """What the metadata of the file say of it."""
        return {name: getattr(self, name) for name in TYPER}

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in the file."""
        parts = {NET: self.state, REPLAY: self.replay}
        return {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}

    def build(self, path: Path) -> Typer:
        """The network with these weights, in eval mode on the CPU; LeukoError where they do not fit it."""
        with _fitting(path):
            with torch.device("meta"):
                check_numbers(Typer(**self.recipe), self.state)
            net = Typer(**self.recipe)
            net.load_state_dict(self.state)
            if self.replay:
                self._check_replay(net)
        return net.eval()

    def _check_replay(self, net: Typer) -> None:
        """ValueError where the cells that were learned are not such as the network's last layer sees."""
        features, labels = self.replay["features"], self.replay["labels"]
        are_types = not labels.is_floating_point() and ((labels >= 0) & (labels < net.last.out_features)).all()
        if features.shape != (labels.numel(), net.last.in_features) or labels.ndim != 1 or not are_types:
            raise ValueError(f"the cells that it has learned, {list(features.shape)}")


@dataclass
class Weights:
    """A detector as it is stored; only a typing stage, where ``recipe`` is empty.

    ``recipe`` builds it (:func:`build_model`); ``types`` are the class names in label order, those of its typing stage
    if it has one; ``about`` holds the leuko version, the epoch and the validation measures at which the weights were
    saved.
    """

    path: Path
    recipe: dict
    types: list[str]
    about: dict
    state: dict[str, Tensor]
    typer: StoredTyper | None = None

    @property
    def image_size(self) -> int:
        """Longer side in pixels at which it was trained."""
        return self.recipe.get("image_size", ModelOptions.image_size)

    @property
    def classes(self) -> list[str]:
        """The detector's own types, which its typing stage replaces, if it has one."""
        return self.typer.classes if self.typer else self.types

    @cached_property
    def identity(self) -> str:
        """A digest of the weights alone, whatever the file says of them."""
        return identity_of(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file, those of its typing stage, too."""
        return self.state | (self.typer.tensors() if self.typer else {})

    @property
    def cell_sides(self) -> dict[str, float]:
        """How large cells were in training (see ``tiling.cell_sides``): as the metadata say, or as the registry says of
        the detector that comes with leuko, also where it lies in another file; {} where neither does."""
        if CELL in self.about:
            return self.about[CELL]
        own = load_weights(DEFAULT)
        same = self.recipe == own.recipe and all(
            name in self.state and torch.equal(value, self.state[name]) for name, value in own.state.items()
        )
        network, stored = map(float, find(DEFAULT).cell.split()) if same else (0, 0)
        return {"network": network, "stored": stored} if same else {}

    def at_work(self, device: str, amp: str, max_detections: int) -> Network:
        """The detector on a ``--device``, at the precision of ``--amp``, to give so many detections."""
        place, model = choose_device(device, amp), self.build()
        model.max_detections = max_detections
        return Network(model, place, amp)

    def typing_stage(self, device: str) -> TypingStage | None:
        """The typing stage on a ``--device``, if there is one; LeukoError where it does not fit its network."""
        if not self.typer:
            return None
        stored = self.typer
        net = stored.build(self.path)
        net.fuse()
        net.to(device=choose_device(device), memory_format=torch.channels_last)
        factors = tuple(stored.about.get(BOX_FACTORS, (1.0, 1.0)))
        numbers = cost.parameters(net)
        return TypingStage(net.probabilities, net.side, tuple(stored.types), stored.view, factors, numbers)

    def gflops(self, sizes: Sequence[int], device: torch.device) -> float:
        """The operations for one image at all ``sizes``, in 10^9."""
        model = self.build().to(device)  # not fused, for counting
        return sum(cost.gflops(at_size(model, size), size, device) for size in sizes)

    def check_keeps(self) -> None:
        """LeukoError if it cannot keep what ``leuko val`` has found: only a file of leuko's that belongs to the user
        can."""
        if self.path.suffix == FOREIGN:
            raise LeukoError(
                f"{self.path}: is Ultralytics' file, in which --calibrate cannot keep the fit; train from it (leuko "
                f"train --model {self.path}), and calibrate that run"
            )
        if comes_with_leuko(self.path):
            raise LeukoError(
                f"{self.path}: comes with leuko and stays as it is; name a copy of it with --weights to keep it there"
            )

    def keep(self, **about: dict) -> None:
        """Write the file again with more in its metadata: the calibration of its scores (see ``metrics.calibration``),
        or the scores from which counts are best (see ``engine.thresholds``). LeukoError as :meth:`check_keeps`."""
        self.check_keeps()
        self.about |= plain(about)
        save(self)

    def halve(self) -> None:
        """Round all numbers to half precision, except where one is too large for it."""
        parts = [self.state, *((self.typer.state,) if self.typer else ())]
        for part in parts:
            for name, value in part.items():
                if value.dtype == torch.float32 and torch.isfinite(half := value.half()).all():
                    part[name] = half

    def build(self) -> DetectionModel:
        """The detector with these weights, in eval mode on the CPU."""
        if not self.recipe:
            raise LeukoError(f"{self.path}: holds only a typing stage; give it by --typer, and a detector by --weights")
        with _fitting(self.path):
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
        if not self.recipe:
            return
        yolo = "made_for" in self.recipe
        if yolo:
            ultralytics.tasks()  # imported here, since the package makes tensors when it is imported
        with _fitting(self.path), torch.device("meta"):
            check_numbers(ultralytics.layers_of(self.recipe) if yolo else create(**self.recipe), self.state)


def identity_of(tensors: Mapping[str, Tensor]) -> str:
    """A digest of tensors and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_numbers(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """ValueError if a network has far more parameters than there are numbers for."""
    there, needed = (sum(v.numel() for v in values) for values in (state.values(), network.parameters()))
    if needed > there + 10**7:
        raise ValueError(f"{needed:,} numbers are needed, {there:,} are there")


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # torch, timm and Ultralytics raise errors of many kinds where a recipe is not theirs
        reason = (str(e).splitlines() or [type(e).__name__])[-1].strip()[:300]
        raise LeukoError(f"{path}: its weights do not fit its model ({reason}); train or copy it again") from e


def build_model(recipe: Mapping) -> DetectionModel:
    """The untrained detector that a recipe describes, leuko's own or one of Ultralytics'."""
    return ultralytics.create_yolo(**recipe) if "made_for" in recipe else create(**recipe)


# ---------------------------------------------------------------- weights


def save_weights(path: Path, recipe: dict, state: Mapping[str, Tensor], types: list[str], **about: object) -> None:
    """Write weights under a temporary name and rename; no code is needed, or run, to read them."""
    save(Weights(path, recipe, types, {"leuko": __version__, **plain(about)}, dict(state)))


def save(weights: Weights) -> None:
    """Write a weights file, with its typing stage, as :func:`save_weights` does."""
    document = {"recipe": weights.recipe, "types": weights.types, "about": weights.about}
    document |= {"typer": weights.typer.document()} if weights.typer else {}
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.tensors().items()}
    write_bytes(weights.path, safetensors.torch.save(tensors, {"leuko": json.dumps(plain(document))}))


def load_weights(source: str | Path) -> Weights:
    """Read a weights file of leuko's (see :func:`find_weights`) or Ultralytics' ``.pt``; LeukoError if it is neither,
    cut off, or not safe."""
    path = find_weights(source)
    if path.suffix in EXPORTED:
        raise LeukoError(f"{path}: is an export, which is only for use; name the weights that it was made of")
    if path.suffix == FOREIGN:
        recipe, types, state = ultralytics.read_checkpoint(path)
        weights = Weights(path, recipe, types, {}, state)
    else:
        state, metadata = read_safetensors(path)
        try:
            document = parse_json(metadata.get("leuko", "{}"))
            problem = misfit(document, DOCUMENT, optional=("typer",)) or document_misfit(**document)
        except ValueError as e:
            problem = str(e)
        if problem:
            raise LeukoError(
                f"{path}: safetensors without leuko's metadata, or not as this leuko writes it ({problem:.200}); name "
                "weights that leuko.train wrote"
            )
        typer = document.pop("typer", None)
        own = {key: value for key, value in state.items() if not (typer and key.startswith((NET, REPLAY)))}
        weights = Weights(path, state=own, **document)
        if typer:
            net, replay = (_under(prefix, state) for prefix in (NET, REPLAY))
            weights.typer = StoredTyper(state=net, replay=replay, **typer)
    weights.check_size()
    return weights


NET, REPLAY = "typer.net.", "typer.replay."  # how the names of a typing stage's tensors begin in a file


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


# ---------------------------------------------------------------- starting from trained weights


def transfer(weights: Weights, model: DetectionModel, types: list[str]) -> list[str]:
    """Start ``model`` for ``types`` from trained weights; the rows of class layers are matched by class name.

    Returns the types that the weights know; the others keep their fresh initialisation. LeukoError if the weights are
    another detector's or another backbone's.
    """
    keys = ("name", "backbone", "norm", "normalize_features", "channels", "fc_channels")
    other = {key: weights.recipe.get(key) for key in keys if weights.recipe.get(key) != model.recipe.get(key)}
    if other:
        differences, flags = [], []
        for key, stored in other.items():
            name = {"name": "model"}.get(key, key).replace("_", "-")
            differences.append(f"its {name} is {stored}, not {model.recipe.get(key)}")
            flags.append(f"--{name if stored else f'no-{name}'}" if type(stored) is bool else f"--{name} {stored}")
        raise LeukoError(f"{weights.path}: {', '.join(differences)}; give {' '.join(flags)}")
    known = [t for t in types if t in weights.classes]
    state, own = weights.build().state_dict(), model.state_dict()
    for layer, rows in _class_layers(model).items():
        for key in (f"{layer}.weight", f"{layer}.bias"):
            fresh, trained = own[key].clone(), state[key]
            for t in known:
                to, at = types.index(t) * rows, weights.classes.index(t) * rows
                fresh[to : to + rows] = trained[at : at + rows]
            fresh[len(types) * rows :] = trained[len(weights.classes) * rows :]  # the background's, if there is one
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
