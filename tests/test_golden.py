"""leuko's detectors against reference tensors of an independent implementation (tests/golden/README.md).

``LEUKO_GOLDEN`` names another folder of the same shape.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from leuko.models import DETECTORS, ModelOptions
from leuko.models.checkpoints import from_mmdetection, mmdetection_names
from leuko.models.dense import STRIDES, OneStage
from leuko.models.grid_rcnn import GridRCNN
from leuko.models.matcher import Sampler
from leuko.models.preprocess import Preprocess
from leuko.ops.boxes import clip, has_area

GOLDEN = Path(os.environ.get("LEUKO_GOLDEN", Path(__file__).parent / "golden"))
NAMES = sorted(p.stem for p in GOLDEN.glob("*.json") if p.stem in DETECTORS)
ALL = 100_000  # no sampling: every anchor and RoI counts, so that no random stream matters


class GivenMaps(nn.Module):
    """A backbone that returns the golden C2 to C5, and lets gradients reach them."""

    def __init__(self, maps: list[torch.Tensor]):
        super().__init__()
        self.maps = [m.clone().requires_grad_() for m in maps]
        self.channels = [m.shape[1] for m in maps]

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return self.maps


class Golden:
    """One reference file and leuko's detector with its weights."""

    def __init__(self, name: str):
        self.tensors, self.meta = (
            load_file(GOLDEN / f"{name}.safetensors"),
            json.loads((GOLDEN / f"{name}.json").read_text()),
        )
        config, size = self.meta["config"], self.meta["image_size_hw"]
        weights = {k.removeprefix("weights/"): v for k, v in self.tensors.items() if k.startswith("weights/")}
        test = config["test_cfg"]
        options = ModelOptions(
            image_size=max(size),
            channels=config["neck"]["out_channels"],
            fc_channels=next((len(v) for k, v in weights.items() if k.endswith(("fcs.0.bias", "fc_branch.0.bias"))), 1),
            rois=ALL,
            score_threshold=test.get("rcnn", test)["score_thr"],
            max_detections=test.get("rcnn", test)["max_per_img"],
        )
        kinds = {}
        if norm := config.get("bbox_head", {}).get("norm_cfg"):
            kinds["groups"] = norm["num_groups"]
        if name == "double_head_rcnn":
            kinds["box_channels"] = config["roi_head"]["bbox_head"]["conv_out_channels"]
        backbone = GivenMaps([self.tensors[f"input/c{i}"] for i in (2, 3, 4, 5)])
        self.model = DETECTORS[name](
            preprocess=Preprocess(max(size), (0.0,) * 3, (1.0,) * 3),
            backbone=backbone,
            num_classes=self.meta["num_classes"],
            options=options,
            **kinds,
        )
        self.names = mmdetection_names(weights)
        self.model.load_state_dict(from_mmdetection(weights))
        self.images, self.sizes = [torch.zeros(3, *size) for _ in range(2)], torch.tensor([size, size]).float()
        if not isinstance(self.model, OneStage):
            self.model.rpn.criterion = replace(self.model.rpn.criterion, sampler=Sampler(ALL, positive_fraction=0.5))
            train, test = config["train_cfg"]["rpn_proposal"], test["rpn"]
            self.model.rpn.proposals = (train["max_per_img"], test["max_per_img"])
            self.model.rpn.candidates = (train["nms_pre"], test["nms_pre"])
        if isinstance(self.model, GridRCNN):
            self.model.jitter = 0.0

    def train(self) -> None:
        """Training mode, but for BatchNorm's statistics."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def listed(self, prefix: str) -> list[torch.Tensor]:
        found = [k for k in self.tensors if k.startswith(prefix + ".")]
        return [self.tensors[f"{prefix}.{i}"] for i in range(len(found))]

    def targets(self, empty: bool) -> list[dict[str, torch.Tensor]]:
        boxes, labels = self.listed("input/gt_boxes"), self.listed("input/gt_labels")
        return [
            {"boxes": b[:0] if empty else b, "labels": n[:0] if empty else n}
            for b, n in zip(boxes, labels, strict=True)
        ]


@cache
def golden(name: str) -> Golden:
    return Golden(name)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the reference's largest value."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert error(actual, expected) < tolerance


def test_golden_folder_has_every_detector() -> None:
    assert set(NAMES) == set(DETECTORS), f"{GOLDEN} lacks {set(DETECTORS) - set(NAMES)}"


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_golden_pyramid_and_dense_outputs(name: str) -> None:
    g = golden(name)
    g.model.eval()
    pyramid = g.model.fpn(g.model.backbone.maps)
    for actual, expected in zip(pyramid, g.listed("expect/p"), strict=True):
        close(actual, expected, 1e-4)
    if isinstance(g.model, OneStage):
        dense = [o for kind in zip(*g.model.head(pyramid), strict=True) for o in kind]
        if name == "fsaf":  # the reference's boxes are in units of four strides, as top, bottom, left and right
            for i, stride in enumerate(STRIDES):
                dense[len(STRIDES) + i] = dense[len(STRIDES) + i][:, [1, 3, 0, 2]] / (4 * stride)
    else:  # [N, H*W*A(, 4)] back to the reference's [N, A(*4), H, W]
        dense = [
            o.reshape(len(o), *f.shape[-2:], -1).permute(0, 3, 1, 2)
            for kind in g.model.rpn(pyramid)
            for o, f in zip(kind, pyramid, strict=True)
        ]
    for actual, expected in zip(dense, g.listed("expect/dense"), strict=True):
        close(actual, expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_golden_detections(name: str) -> None:
    g = golden(name)
    g.model.eval()
    if proposals := g.listed("expect/proposals"):
        rpn, pyramid = g.model.rpn, g.model.fpn(g.model.backbone.maps)
        found = rpn.propose(*rpn(pyramid), rpn.anchors(pyramid), g.sizes)
        for actual, expected in zip(found, proposals, strict=True):
            close(actual[has_area(actual)], expected[:, :4], 1e-4)
    for i, found in enumerate(g.model(g.images)):
        wanted = g.tensors[f"expect/boxes.{i}"]
        if name == "grid_rcnn":  # the reference means to clip its final boxes, but clips a copy of them
            wanted = clip(wanted[None], g.sizes[i : i + 1])[0]
        assert torch.equal(found["labels"], g.tensors[f"expect/labels.{i}"])
        close(found["scores"], g.tensors[f"expect/scores.{i}"], 1e-4)
        close(found["boxes"], wanted, 1e-4)


def gradients_match(g: Golden) -> bool:
    """Backpropagate the summed losses; are all gradients the reference's to 1e-3?"""
    g.model.zero_grad()
    for m in g.model.backbone.maps:
        m.grad = None
    sum(g.model(g.images, g.targets(empty=False)).values()).backward()
    for i, m in enumerate(g.model.backbone.maps):
        reference = g.tensors.get(f"expect/grad.c{i + 2}")
        if reference is not None and error(m.grad, reference) >= 1e-3:
            return False
    gradients = {k: torch.zeros(()) if p.grad is None else p.grad for k, p in g.model.named_parameters()}
    for theirs, norm in g.meta["grad_norms"].items():
        ours = g.names[theirs]
        if ours.startswith("head.scales."):
            gradient = gradients["head.scales"][int(ours.split(".")[2])]
        else:
            gradient = gradients[ours]
        if gradient.norm().item() != pytest.approx(norm, rel=1e-3, abs=1e-5):
            return False
    return True


class ReLUWithKnee(torch.autograd.Function):
    """ReLU whose gradient passes above ``knee`` instead of above zero; what goes forward is the same."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, knee: float) -> torch.Tensor:
        ctx.save_for_backward(x > knee)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


@pytest.mark.parametrize("empty", [False, True], ids=["cells", "no_cells"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_losses(name: str, empty: bool) -> None:
    g = golden(name)
    g.train()
    losses = g.model(g.images, g.targets(empty))
    expected = [sum(v) for k, v in g.meta["losses_empty" if empty else "losses"].items() if "loss" in k]
    if name == "grid_rcnn" and empty:  # the reference leaves the grid loss out where it is nothing
        expected.append(0.0)
    assert [v.item() for v in losses.values()] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert sum(losses.values()).item() == pytest.approx(g.meta["loss_total_empty" if empty else "loss_total"], rel=1e-3)
    sum(losses.values()).backward()  # the reference has no gradients without cells; the pass must run all the same
    assert all(torch.isfinite(m.grad).all() for m in g.model.backbone.maps if m.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_golden_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is zero but for rounding may fall on either side of its ReLU, in the reference as here, and takes
    its gradient along: the RPN's hidden map has one (-1e-7). So values this close to zero may take either side."""
    g = golden(name)
    g.train()
    for knee in (0.0, -3e-7, 3e-7, -1e-6, 1e-6):
        monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False, k=knee: ReLUWithKnee.apply(x, k))
        if gradients_match(g):
            return
    pytest.fail("the gradients differ from the reference's")
