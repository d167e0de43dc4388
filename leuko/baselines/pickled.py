"""Ultralytics' ``.pt``: a network pickled whole. It is read as data: none of its classes is imported, none of its calls
is made, the file is only opened, and the package ``ultralytics``, which deletes and downloads files, has no part in it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import torch
from torch import Tensor

from ..errors import LeukoError, one_line
from ..kinds import fits
from ..models.tensors import check_archive, check_tensors

MAKERS = {  # the only calls that are made: they put tensors together from bytes of the file
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
MOST_MODULES = 20_000  # yolo11x has 900


class Inert:
    """What stands for an object of any class: its state, and nothing that runs."""

    state: Mapping = MappingProxyType({})

    def __init__(self, *_: object, **__: object) -> None:
        """Takes any arguments, as the object did."""

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        return MAKERS.get((module, name), Inert)


def read_network(path: Path) -> tuple[str, list[str], int, dict[str, Tensor]]:
    """The name of the network in a ``.pt`` file, its class names, its image size, and its weights by name in float32;
    LeukoError if the file is broken or holds anything else."""
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise ValueError("TorchScript, which is code")
        reader = SimpleNamespace(__name__="inert", Unpickler=_Unpickler)
        stored = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
        network = stored.get("ema") or stored["model"]
        name = Path(network.state["yaml"]["yaml_file"]).stem
        names, arguments = network.state["names"], stored.get("train_args")
        image_size = arguments.get("imgsz", 640) if isinstance(arguments, dict) else 640
        state = weights_of(network)
        names = [names[i] for i in range(len(names))]
        if not (state and fits(names, list[str]) and len(set(names)) == len(names)):
            raise ValueError("no weights, or no names of classes")
    except Exception as e:  # torch and pickle raise errors of many kinds on a broken or hostile file
        reason = one_line(repr(e))[:160]
        raise LeukoError(f"{path}: not a detector of Ultralytics that can be read ({reason}); get it again") from e
    check_tensors(path, state)
    return name, names, image_size, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def weights_of(network: Inert) -> dict[str, Tensor]:
    """The parameters and buffers of a network, and of the modules in it, by name; ValueError if they have no end."""
    state: dict[str, Tensor] = {}
    modules = [("", network)]
    for prefix, module in modules:
        left_out = module.state.get("_non_persistent_buffers_set", ())
        own = {**module.state.get("_parameters", {}), **module.state.get("_buffers", {})}
        state |= {prefix + k: v.detach() for k, v in own.items() if isinstance(v, Tensor) and k not in left_out}
        inside = module.state.get("_modules", {}).items()
        modules += [(f"{prefix}{name}.", child) for name, child in inside if isinstance(child, Inert)]
        if len(modules) > MOST_MODULES:
            raise ValueError(f"more than {MOST_MODULES:,} modules")
    return state
