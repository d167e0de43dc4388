"""Weights of other libraries: torchvision's own models, converted, compute what torchvision computes.

MMDetection's names are tested by the golden tensors, which are loaded through the conversion (test_golden.py).
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TINY, TYPES, Bomb, in_child, packed
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn

from leuko.engine.checkpoint import transfer_foreign
from leuko.errors import LeukoError
from leuko.models import DetectionModel, create
from leuko.models.checkpoints import from_foreign
from leuko.models.roi_heads import SIZE, pool
from leuko.ops.roi_align import RoIs

CLASSES = 6


def randomised(model: nn.Module) -> nn.Module:
    """With norms that do something, and outputs far from zero."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() == 1:
            tensor.data.normal_(0, 0.1, generator=generator)
        elif tensor.dim() > 1:
            tensor.data.normal_(0, 1.4 / tensor[0].numel() ** 0.5, generator=generator)
    return model.eval()


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    make = {"fcos_improved": fcos_resnet50_fpn, "faster_rcnn": fasterrcnn_resnet50_fpn}[name]
    return randomised(make(weights=None, weights_backbone=None, num_classes=CLASSES))


def converted(name: str, theirs: nn.Module) -> DetectionModel:
    classes = CLASSES - (name == "faster_rcnn")  # FCOS counts the background as a class that never is
    ours = create(name, classes, "resnet50", image_size=128).eval()
    missing, unexpected = ours.load_state_dict(from_foreign(theirs.state_dict()), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return ours


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in the files that torchvision published before its FPN and RPN were made of blocks of several layers."""
    blocks = re.compile(r"(?<=_blocks\.\d)\.0(?=\.)|(?<=rpn\.head\.conv)\.0\.0(?=\.)")
    return {blocks.sub("", name): value for name, value in state.items()}


@torch.no_grad()
def test_torchvision_fcos_is_leukos_improved_form():
    theirs = torchvision_model("fcos_improved")
    ours = converted("fcos_improved", theirs)
    batch = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    their_maps = list(theirs.backbone(batch).values())
    our_maps = ours.fpn(ours.backbone(batch))
    assert all(close(a, b) for a, b in zip(our_maps, their_maps, strict=True))
    heads = theirs.head(their_maps)
    logits, distances, centerness = (
        torch.cat([o.flatten(2).transpose(1, 2) / s for o, s in zip(kind, scale, strict=True)], dim=1)
        for kind, scale in zip(
            zip(*ours.head(our_maps), strict=True), ((1,) * 5, (8, 16, 32, 64, 128), (1,) * 5), strict=True
        )
    )
    assert close(logits, heads["cls_logits"]) and close(centerness, heads["bbox_ctrness"])
    assert close(distances, heads["bbox_regression"]) and distances.max() > 0


@torch.no_grad()
def test_torchvision_faster_rcnn_is_leukos():
    theirs = torchvision_model("faster_rcnn")
    ours = converted("faster_rcnn", theirs)
    batch = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    their_maps = list(theirs.backbone(batch).values())
    our_maps = ours.fpn(ours.backbone(batch))
    assert all(close(a, b) for a, b in zip(our_maps, their_maps, strict=True))
    logits, deltas = theirs.rpn.head(their_maps)
    for o, t in zip(ours.rpn(our_maps)[0], logits, strict=True):
        assert close(o, t.permute(0, 2, 3, 1).flatten(1))
    for o, t in zip(ours.rpn(our_maps)[1], deltas, strict=True):
        assert close(o, t.permute(0, 2, 3, 1).reshape(1, -1, 4))
    corners = torch.rand(20, 2, generator=torch.Generator().manual_seed(2)) * 80
    rois = RoIs.of(torch.cat([corners, corners + 40], dim=1)[None])
    pooled = pool(our_maps, rois, SIZE)  # theirs samples bins otherwise, which is no matter of weights
    scores, moves = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
    our_scores, our_moves = ours.head(our_maps, rois)
    assert close(our_scores, torch.cat([scores[:, 1:], scores[:, :1]], dim=1))
    assert close(our_moves.flatten(1), moves[:, 4:])


@pytest.mark.parametrize("name", ["fcos_improved", "faster_rcnn"])
def test_files_of_older_names_are_read_too(name):
    state = torchvision_model(name).state_dict()
    older = old_names(state)
    assert set(older) != set(state)
    assert from_foreign(older).keys() == from_foreign(state).keys()


def test_foreign_weights_start_all_but_the_class_layers(tmp_path):
    torch.save({"meta": {"epoch": 12}, "state_dict": torchvision_model("faster_rcnn").state_dict()}, tmp_path / "a.pth")
    model = create("faster_rcnn", 3, "resnet50")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert transfer_foreign(tmp_path / "a.pth", model) == ["head.cls_logits", "head.bbox_pred"]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k for k in before if "num_batches" not in k} - changed == {
        f"head.{layer}.{kind}" for layer in ("cls_logits", "bbox_pred") for kind in ("weight", "bias")
    }
    with pytest.raises(LeukoError, match=r"a\.pth: does not fit fcos_improved on resnet50: fpn\.lateral"):
        transfer_foreign(tmp_path / "a.pth", create("fcos_improved", 3, "resnet50"))
    with pytest.raises(LeukoError, match=r"a\.pth: does not fit faster_rcnn on resnet18: backbone"):
        transfer_foreign(tmp_path / "a.pth", create("faster_rcnn", 3, "resnet18"))


def test_what_is_no_detector_is_refused(data, tmp_path, leuko):
    words = ["train", "--data", data, "--project", tmp_path / "runs", *TINY, "--model", "fcos", "--weights"]
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "other.pth")
    leuko(*words, tmp_path / "other.pth").refused("other.pth", "encoder.weight", "MMDetection or torchvision")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "touched")}, protocol=2))
    leuko(*words, tmp_path / "bomb.pth").refused("bomb.pth", "cannot be read", "in need of code")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------- what is let in


def hostile_safetensors(folder: Path) -> dict[Path, str]:
    """Weights files that are wrong or would do harm, with a word of each refusal."""
    model = create("faster_rcnn", 5, "mobilenetv3_small_050", image_size=64, channels=32, fc_channels=32)
    recipe, state = model.recipe, {k: v.clone() for k, v in model.state_dict().items()}
    first = next(iter(state))
    files = {}

    def stored(
        said: str, about: dict | list = (), types: list = TYPES, new: Tensor | None = None, **more: object
    ) -> None:
        path = folder / f"{len(files)}.safetensors"
        document = json.dumps(
            {"recipe": recipe | more, "types": types, "about": {"epoch": 1} if about == () else about}
        )
        safetensors.torch.save_file(state if new is None else state | {first: new}, path, {"leuko": document})
        files[path] = said

    def raw(said: str, header: bytes, body: bytes = b"", length: int | None = None) -> None:
        path = folder / f"{len(files)}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
        files[path] = said

    stored('unknown "pretrained"', pretrained=True)
    stored('unknown "pretrained"', pretrained="/etc/passwd")
    for key, value in (("channels", 10**9), ("image_size", 10**9), ("proposals", -1), ("rois", 1.5), ("vote", "x")):
        stored(f"model option {key}", **{key: value})
    stored("numbers are needed", channels=1024)
    stored("numbers are needed", backbone="convnext_xxlarge")
    stored("unknown to timm", backbone="hf-hub:timm/resnet18")
    stored("classes, but the types", num_classes=10**9)
    stored("classes, but the types", types=["NG"] * 5)
    stored("types", types=[1, 2, 3, 4, 5])
    stored("about", about=[])
    stored("temperature", about={"calibration": {"temperature": 0, "shift": 0}})
    stored("nan or inf", new=torch.full_like(state[first], math.nan))
    stored("do not fit", new=state[first].int())
    stored("complex64", new=state[first].to(torch.complex64))
    stored("do not fit", new=state[first][:1])
    raw("not a whole", b"{}", length=10**12)
    raw("not a whole", b" " * 90_000_000)
    raw("not a whole", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}')
    raw("not a whole", b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}', b"1234")
    raw("nested too deeply", b'{"__metadata__":{"leuko":"' + b"[" * 10**6 + b'"}}')
    os.mkfifo(folder / "pipe.safetensors")
    return files | {folder / "pipe.safetensors": "pipe", Path("/dev/zero"): "device"}


def test_hostile_weights_are_refused_at_once(data, tmp_path):
    """In one line, within seconds and little memory, with nothing run, asked for or written."""
    files, touched = hostile_safetensors(tmp_path), tmp_path / "touched"
    expanded = {"state_dict": {"roi_heads.box_predictor.cls_score.weight": torch.zeros(1).expand(10**9)}}
    foreign = {packed(tmp_path / "packed.pth"): "does not compress"}
    for name, content, said in (
        ("list", [1], "no weights by name"),
        ("expanded", expanded, "larger than the file"),
        ("bomb", Bomb(touched), "in need of code"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        foreign[tmp_path / f"{name}.pth"] = said
    predict = ["predict", "--source", data / "images", "--save", tmp_path / "out", "--weights"]
    train = ["train", "--data", data, "--project", tmp_path / "out", "--backbone", "resnet18", "--weights"]
    backbone = [*train[:-1], "--backbone-weights"]
    said = [*files.values(), *foreign.values(), *foreign.values()]
    paths = [*files, *foreign, *foreign]
    commands = [[*predict, p] for p in files] + [[*way, p] for way in (train, backbone) for p in foreign]
    ended, peak = in_child(commands)
    for path, words, (result, seconds) in zip(paths, said, ended, strict=True):
        result.refused(str(path), words)
        assert seconds < 5, (path, words)
    assert peak < 0.3 and not touched.exists() and not (tmp_path / "out").exists()
