"""A detector's network at work: on a device, at a precision, made for inference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.loader import to_tensor
from ..detections import Detections
from ..errors import LeukoError
from . import cost, distributed

if TYPE_CHECKING:
    from ..models import DetectionModel

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """A detector of torch's, made ready by :func:`prepare`, on a device, with the precision of an ``--amp`` option. An
    export has the same face (``runtime.ExportedDetector``)."""

    def __init__(self, model: DetectionModel, device: torch.device, amp: str = "none"):
        self.model = prepare(model, device)
        self.amp = amp
        self.parameters = cost.parameters(model)

    @property
    def device(self) -> torch.device:
        """Where it is; in another process, which got it from this one, a device of that process."""
        return next(self.model.parameters()).device

    @property
    def is_on_cpu(self) -> bool:
        """Whether it is not on a GPU."""
        return self.device.type == "cpu"

    @property
    def image_size(self) -> int:
        """Longer side in pixels at which it was trained."""
        return self.model.preprocess.image_size

    @property
    def max_detections(self) -> int:
        """Most detections per image."""
        return self.model.max_detections

    @torch.inference_mode()
    def detect(self, views: Sequence[np.ndarray]) -> list[Detections]:
        """Detections on images [h, w, 3] uint8 RGB of one longer side, in their pixels."""
        images = [to_tensor(view) for view in views]
        with autocast(self.device, self.amp):
            outputs = at_size(self.model, max(views[0].shape[:2]))(images)
        return [Detections.from_tensors(output) for output in outputs]


def choose_device(name: str, amp: str = "none") -> torch.device:
    """The device of a ``--device`` option (``0`` means ``cuda:0``), of which torchrun gives each process its own;
    LeukoError if this machine does not have it, or if it cannot do ``--amp``.

    This is the one place where TF32 is switched: a GPU that has it rounds the factors of float32 products to it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = distributed.own_device(f"cuda:{name}" if name.isdecimal() else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise LeukoError(
            f"--device {name}: not on this machine ({str(e).splitlines()[0]}); leave it out or give cpu"
        ) from e
    if amp == "fp16" and device.type != "cuda":
        raise LeukoError("--amp fp16: needs a GPU; give bf16 or none")
    return device


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of an ``--amp`` option, for a block."""
    return torch.autocast(device.type, dtype=PRECISIONS[amp], enabled=amp != "none")


def prepare(model: DetectionModel, device: torch.device) -> DetectionModel:
    """A copy of the model made for inference: BatchNorm fused into convolutions, channels last in memory. Its outputs
    are the model's to rounding; it cannot be trained."""
    model = copy.deepcopy(model).eval()
    model.fuse()
    return model.to(device=device, memory_format=torch.channels_last)


def at_size(model: DetectionModel, size: int) -> DetectionModel:
    """The same detector, sharing all weights, for images whose longer side is ``size`` pixels."""
    if model.preprocess.image_size == size:
        return model
    other = copy.copy(model)
    other._modules = dict(model._modules)  # a shallow copy shares the table of modules, too
    other.preprocess = copy.copy(model.preprocess)
    other.preprocess.image_size = size
    return other
