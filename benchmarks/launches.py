"""How often a step and an inference make a GPU work, and how often they wait for it: counted, on a machine without one.

    python benchmarks/launches.py
    PYTHONPATH=OTHER_COPY python benchmarks/launches.py --detectors fcos faster_rcnn

For each detector and for torchvision's two, ResNet-18, with images and targets on the GPU as floats (so that both
libraries get the same):

- launches: operators of ATen and torchvision that compute something. Not counted are views, memory that is only
  allocated, and what is done on the CPU. (One operator may be several kernels: `nms` is about six.)
- waits: places where the CPU waits until the GPU has done all that it was given: `item`, `tolist` and `cpu`; operators
  whose result has a size that depends on data (`nonzero`, a mask as an index, `unique`, `nms`); and constants copied to
  the GPU from ordinary memory. Copies from pinned memory do not wait.

The models run on the CPU, but every tensor says that it is on a GPU unless it was made on the CPU: so all branches are
those of a GPU (see `Gpu`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from leuko.models import create

TYPES = 5
PARTS = ("forward", "backward", "optimiser", "use")
DETECTORS = ("fcos", "fsaf", "faster_rcnn", "grid_rcnn", "double_head_rcnn", "cascade_rcnn")
PEERS = {"fcos": "torchvision FCOS", "faster_rcnn": "torchvision Faster R-CNN"}
# Heads are narrow, which changes no count, and every score counts: else an untrained FCOS skips levels.
NARROW = {"channels": 64, "fc_channels": 64, "score_threshold": 0.0}
GPU, CPU = torch.device("cuda"), torch.device("cpu")
FREE = ("empty", "new_empty", "lift_fresh", "_local_scalar_dense", "_unsafe_view")  # which compute nothing
WAIT = ("local_scalar_dense", "nonzero", "masked_select", "unique", "nms", "equal", "bincount", "is_nonzero")
MASKS = ("index", "index_put", "index_put_")
CONSTANTS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


# ---------------------------------------------------------------------- counting


class Operators(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, but for those on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.on_cpu = False

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not self.on_cpu:
            mask = name in MASKS and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            if mask or name.removeprefix("_").startswith(WAIT) or func.name() == "aten::repeat_interleave.Tensor":
                self.waits[name] += 1
            if not is_view and not name.startswith(FREE):
                self.launches[name] += 1
        return func(*args, **(kwargs or {}))


class Gpu(TorchFunctionMode):
    """Lets a program on the CPU take the ways of a GPU: ``tensor.device`` says ``cuda``, except for tensors that the
    program itself makes on the CPU, and devices in arguments are replaced."""

    def __init__(self, operators: Operators):
        super().__init__()
        self.operators = operators

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_cpu = all(getattr(t, "made_on_cpu", False) for t in tensors)
        if func in (Tensor.device.__get__, Tensor.is_cuda.__get__):
            device = CPU if on_cpu else GPU
            return device if func == Tensor.device.__get__ else device == GPU
        if func == Tensor.pin_memory:
            args[0].pinned = True
            return args[0]
        asked = [d for d in (*args, *kwargs.values()) if isinstance(d, torch.device)]
        asked += [CPU] if func == Tensor.cpu else []
        args = tuple(CPU if isinstance(a, torch.device) else a for a in args)
        kwargs = {name: CPU if isinstance(a, torch.device) else a for name, a in kwargs.items()}
        target_on_cpu = asked[0].type == "cpu" if asked else on_cpu
        copied = bool(tensors) and on_cpu != target_on_cpu
        waits = self.operators.waits
        if copied and not (kwargs.get("non_blocking") and getattr(tensors[0], "pinned", False)):
            waits["upload" if on_cpu else "download"] += 1
        if func in CONSTANTS and not target_on_cpu and not copied:
            waits["constant"] += 1
        if func == Tensor.tolist and not on_cpu:
            waits["tolist"] += 1
        self.operators.on_cpu = target_on_cpu or copied
        result = func(*args, **kwargs)
        if copied:
            result = result.clone()
        self.operators.on_cpu = False
        for t in tree_leaves(result) if target_on_cpu else ():
            if isinstance(t, Tensor):
                t.made_on_cpu = True
        return result


@contextmanager
def counted() -> Iterator[Operators]:
    """Count what is done within, as if it were done on a GPU."""
    generator = torch.Generator
    with patch.object(torch, "Generator", lambda device: generator()), Operators() as operators, Gpu(operators):
        yield operators


# ---------------------------------------------------------------------- models


def torchvision_model(detector: str, size: int) -> nn.Module:
    """torchvision's counterpart."""
    if detector == "fcos":
        levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3, **levels)
        return FCOS(body, TYPES, min_size=size, max_size=size)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
    return FasterRCNN(body, TYPES + 1, min_size=size, max_size=size)


def example(images: int, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise, with one to three cells per image."""
    draw = torch.Generator().manual_seed(1)
    cells = torch.tensor([[60, 80, 170, 190], [330, 290, 445, 395], [400, 60, 505, 175]]) * size / 600
    targets = [{"boxes": cells[i % 3 :], "labels": torch.arange(1, 4 - i % 3)} for i in range(images)]
    return [torch.rand(3, size, size, generator=draw) for _ in range(images)], targets


def measure(model: nn.Module, images: int, size: int, names: Sequence[str] = PARTS) -> dict[str, Operators]:
    """What parts of a training step, and an inference, take."""
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3, momentum=0.9)
    pixels, targets = example(images, size)
    parts = {}
    with counted() as parts["forward"]:
        loss = sum(model(pixels, targets).values())
    if "backward" in names:
        with counted() as parts["backward"]:
            loss.backward()
        with counted() as parts["optimiser"]:
            optimizer.step()
    with torch.no_grad(), counted() as parts["use"]:  # in inference mode composite operators are not taken apart
        model.eval()(pixels)
    return parts


# ---------------------------------------------------------------------- the command


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1], help="images per step")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels; changes little")
    parser.add_argument("--details", action="store_true", help="list the operators and the waits")
    options = parser.parse_args()
    print(f"torch {torch.__version__}; launches / waits of each part; forward includes the losses")
    print("| images | detector | " + " | ".join(PARTS) + " |\n" + "|---" * (len(PARTS) + 2) + "|")
    for batch in options.batches:
        for detector in options.detectors:
            for peer in (False, True) if detector in PEERS else (False,):
                torch.manual_seed(0)
                model = torchvision_model(detector, options.size) if peer else None
                model = model or create(detector, TYPES, "resnet18", image_size=options.size, **NARROW)
                parts = measure(model, batch, options.size)
                cells = [f"{parts[n].launches.total()} / {parts[n].waits.total()}" for n in PARTS]
                print(f"| {batch} | {PEERS[detector] if peer else detector} | " + " | ".join(cells) + " |", flush=True)
                for name in PARTS if options.details else ():
                    print(name, dict(parts[name].launches.most_common()), dict(parts[name].waits), sep="\n  ")


if __name__ == "__main__":
    main()
