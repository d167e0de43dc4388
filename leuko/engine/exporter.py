"""A trained detector as graphs of ONNX or OpenVINO: what they compute, what their metadata say, and how they are
written. Whether they say the same as the detector is shown by ``parity``.

Letters: N images, H, W the largest height and width in a batch, D the most detections of an image, K types.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import __version__
from ..config import SIZES
from ..errors import LeukoError
from ..io import plain
from ..models import DetectionModel
from ..ops.boxes import clip
from ..registry import licence_of
from ..runtime.detector import FORM
from ..runtime.graph import KEY
from ..synth.stain import REFERENCE
from . import thresholds
from .checkpoint import Weights, identity_of
from .ensemble import EnsembleMember
from .metadata import CELL

OPSET = 17
FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
DETECTIONS = ("boxes", "scores", "labels", "counts")


class DetectorGraph(nn.Module):
    """images [N, H, W, 3] uint8 RGB, padded at the right and below, and their sizes [N, 2] int64 (height, width) ->
    boxes [N, D, 4] xyxy in pixels, scores [N, D] in descending order, labels [N, D], and the number of each image's
    detections [N], behind which nothing is meant."""

    def __init__(self, model: DetectionModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.for_export()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        preprocess = self.model.preprocess
        height, width = images.shape[1:3]
        batch = (images.permute(0, 3, 1, 2).float() / 255 - preprocess.mean) / preprocess.std
        rows = torch.arange(height)[None] < sizes[:, :1]  # [N, H]
        columns = torch.arange(width)[None] < sizes[:, 1:]  # [N, W]
        batch = torch.where(rows[:, None, :, None] & columns[:, None, None], batch, batch.new_zeros(()))
        batch = F.pad(batch, (0, -width % preprocess.divisor, 0, -height % preprocess.divisor))
        found = self.model.detect(self.model.fpn(self.model.backbone(batch)), sizes.float())
        return clip(found.boxes, sizes.float()), found.scores, found.labels, (found.scores >= 0).sum(1)


class TyperGraph(nn.Module):
    """crops [N, S, S, 3] uint8 RGB -> the probabilities [N, K + 1] of the types and, last, of none."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, crops: Tensor) -> Tensor:
        return self.net(crops.permute(0, 3, 1, 2).float() / 255).softmax(1)


def check_packages(format: str) -> None:
    """LeukoError where a package that writes or runs a format is not installed."""
    for package in ("onnx", "onnxruntime", *(["openvino"] if format == "openvino" else [])):
        if not importlib.util.find_spec(package):
            extra = "openvino,export" if format == "openvino" else "export"
            raise LeukoError(f"--format {format}: the package {package} is not installed; pip install 'leuko[{extra}]'")


def write(member: EnsembleMember, path: Path, half: bool = False) -> list[Path]:
    """Write a member's graphs, ``path`` with the suffix of its format and, for a typing stage, one beside it; the files
    that were written, that of the detector first. With ``half``, weights are stored in 16 bits and computed with in 32.
    LeukoError where the network cannot be exported."""
    if not isinstance(member.weights, Weights):
        raise LeukoError(f"{member.weights.path}: is an export already; name the weights that it was made of")
    suffix = path.suffix
    about = metadata(member, half)
    written = [path]
    if member.typing:
        net, other = member.weights.typer.build(member.weights.path), path.with_name(f"{path.stem}.typer{suffix}")
        net.fuse()
        identity = identity_of(net.state_dict())
        about["typer"] |= {"file": other.name, "identity": identity}
        crops = torch.zeros(2, net.side, net.side, 3, dtype=torch.uint8)
        axes = {"crops": {0: "N"}, "probabilities": {0: "N"}}
        _write(TyperGraph(net), {"crops": crops}, axes, {"identity": identity}, other, half)
        written.append(other)
    images = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)  # of no use but to be traced
    inputs = {"images": images, "sizes": torch.tensor([[96, 100], [90, 128]])}
    axes = {"images": {0: "N", 1: "H", 2: "W"}, "sizes": {0: "N"}} | {name: {0: "N"} for name in DETECTIONS}
    _write(DetectorGraph(member.model.model), inputs, axes, about, path, half)
    return [*written, *(file.with_suffix(".bin") for file in written if suffix == ".xml")]  # OpenVINO's weights


def metadata(member: EnsembleMember, half: bool) -> dict:
    """What the file says of a detector, as ``runtime.detector.ABOUT`` describes it."""
    weights, model, stage = member.weights, member.model.model, member.typing
    typer = {}
    if stage:
        typer = {"side": stage.side, "view": stage.view, "types": stage.types, "box_factors": stage.box_factors}
        typer["stain"] = asdict(REFERENCE)
    about = {
        "form": FORM,
        "leuko": __version__,
        "model": weights.recipe["name"],
        "licence": "AGPL-3.0" if "made_for" in weights.recipe else licence_of(weights.path),
        "identity": weights.identity,
        "parameters": member.parameters,
        "half": half,
        "types": member.types,
        "classes": weights.classes,
        "image_size": member.sizes[0],
        "sides": [1, SIZES[1]],
        "mean": model.preprocess.mean.flatten().tolist(),
        "std": model.preprocess.std.flatten().tolist(),
        "max_detections": member.max_detections,
        "score_threshold": model.score_threshold,
        "threshold": thresholds.alone(member).value,
        "about": weights.about | ({CELL: sides} if (sides := weights.cell_sides) else {}),
        "typer": typer,
    }
    return plain(about)


def _write(graph: nn.Module, inputs: dict[str, Tensor], axes: dict, about: dict, path: Path, half: bool) -> None:
    """Trace a graph and write it in the format of the path's suffix, with its metadata."""
    import onnx

    onnx_path = path.with_suffix(".onnx")
    outputs = [name for name in axes if name not in inputs]
    graph = graph.eval().to(memory_format=torch.contiguous_format)
    names = {"input_names": list(inputs), "output_names": outputs, "dynamic_axes": axes}
    with _quiet(), torch.no_grad():
        try:
            torch.onnx.export(graph, tuple(inputs.values()), str(onnx_path), dynamo=False, opset_version=OPSET, **names)
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = str(error).splitlines()[0]
            raise LeukoError(f"{path.name}: its network cannot be exported ({reason:.200})") from error
    model = onnx.load(onnx_path)
    if half and path.suffix == ".onnx":
        _halve(model)
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.save(model, onnx_path)
    if path.suffix == ".xml":
        _convert(onnx_path, path, about, half)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the tracer says of Python that branches on sizes (parity shows what is right), and that it prints
    a graph that it cannot export, past Python."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _halve(model) -> None:
    """Store the weights of an ONNX model in 16 bits, and let the graph widen them when it is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) > 1000:
            name, halved = tensor.name, numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(halved, f"{name}.half"))
            model.graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))


def _convert(onnx_path: Path, path: Path, about: dict, half: bool) -> None:
    """Convert an ONNX file to OpenVINO's two files, and remove it."""
    import openvino

    model = openvino.Core().read_model(str(onnx_path))
    model.set_rt_info(json.dumps(about), [KEY])
    openvino.save_model(model, str(path), compress_to_fp16=half)
    onnx_path.unlink()
