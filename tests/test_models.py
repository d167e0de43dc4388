"""Whole detectors: the contract that all of them share, their backbones, and what is made of them for inference."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import DEVICES, Bomb, tensor
from torch import nn

from leuko.errors import LeukoError
from leuko.models import DETECTORS, Backbone, ModelOptions, create, param_groups
from leuko.models.batch_norm import FusedNorm, fuse_conv_bn
from leuko.models.dense import OneStage
from leuko.models.preprocess import scales
from leuko.ops import boxes
from leuko.ops.roi_align import RoIs

TINY = {"image_size": 64, "channels": 64, "fc_channels": 32, "proposals": 50, "rois": 16, "score_threshold": 0.0}
BACKBONES = ("resnet18", "tf_efficientnet_lite0")
# Of timm's families with BatchNorm, small ones that import and run fast.
FUSIBLE = "resnet10t resnet18d resnetv2_18 seresnet18 skresnet18 mobilenetv2_035 mobilenetv3_small_050"
FUSIBLE += (
    " mobilenetv4_conv_small_035 efficientnet_b0 mnasnet_small lcnet_050 tinynet_e fbnetc_100 ghostnet_050 regnety_002"
)
FUSIBLE += " repvgg_a0 densenet121 dla46_c ese_vovnet19b_slim_dw mobilevit_xxs hgnetv2_b0 rexnet_100 fastvit_t8"
IMAGES = ((60, 80), (1, 1), (100, 40))  # height, width
CELLS = ([[5, 5, 40, 35], [30, 20, 75, 58]], [], [[2, 30, 38, 90]])


def build(name: str = "fcos", backbone: str = "resnet18", **options) -> nn.Module:
    torch.manual_seed(0)
    return create(name, 5, backbone, **{**TINY, **options})


def batch(cells: tuple = CELLS) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    rng = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=rng) for size in IMAGES]
    return images, [{"boxes": tensor(b), "labels": torch.arange(len(b))} for b in cells]


def randomise_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


def on(device: str, images: list, targets: list = ()) -> tuple[list, list]:
    return [i.to(device) for i in images], [{k: v.to(device) for k, v in t.items()} for t in targets]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_keeps_the_contract(name, backbone, device):
    model = build(name, backbone).train().to(device)
    randomise_norm(model)  # timm starts some of its scales at zero, which stops gradients
    for cells in (CELLS, ([], [], [])):
        model.zero_grad()
        losses = model(*on(device, *batch(cells)))
        assert losses and all(v.dim() == 0 and torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None or (key.startswith(("box_head.", "grid_head.")) and not any(cells)), (
                    key
                )
                assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
                assert not any(cells) or parameter.grad.abs().max() > 0 or key.startswith("fpn."), key
            else:
                assert parameter.grad is None, key
    images, _ = on(device, *batch())
    with torch.inference_mode():
        predictions = model.eval()(images)
    assert len(predictions) == 3 and sum(len(f["boxes"]) for f in predictions)
    for image, f in zip(images, predictions, strict=True):
        number, (height, width) = len(f["boxes"]), image.shape[-2:]
        assert f["boxes"].shape == (number, 4) and f["scores"].shape == f["labels"].shape == (number,)
        assert number <= ModelOptions().max_detections and f["labels"].dtype == torch.int64
        assert {v.device.type for v in f.values()} == {device}
        x0, y0, x1, y1 = f["boxes"].unbind(1)
        assert (x0 >= 0).all() and (x0 <= x1).all() and (x1 <= width).all()
        assert (y0 >= 0).all() and (y0 <= y1).all() and (y1 <= height).all()
        assert (f["scores"].diff() <= 0).all() and ((f["scores"] >= 0) & (f["scores"] <= 1)).all()
        assert ((f["labels"] >= 0) & (f["labels"] < 5)).all()
    assert create(**model.recipe).load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", DETECTORS)
@torch.inference_mode()
def test_as_many_detections_as_asked_for(name, monkeypatch):
    """The option decides, not the weights' recipe, and what goes on to NMS is no cap of its own."""
    monkeypatch.setattr(OneStage, "candidates", 50)
    model = build(name, image_size=160, proposals=40, max_detections=9).eval()
    model.nms_threshold = 1.0  # the boxes of an untrained head are much alike
    image = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(1))
    found = []
    for model.max_detections in (9, 100, 300):
        found.append(len(model([image])[0]["boxes"]))
    assert found == [9, 100, 300]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_new_model_is_in_training_mode_throughout(name):
    for norm, backbone in (("frozen", "resnet18"), ("train", "tf_efficientnet_lite0")):
        model = build(name, backbone, norm=norm)
        modes = {key: module.training for key, module in model.named_modules()}
        model.train()
        assert modes == {key: module.training for key, module in model.named_modules()}
        assert model.training and model.backbone.training and model.backbone.body.training


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_frozen_does_not_change(backbone):
    model = build(backbone=backbone)
    randomise_norm(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    sum(model.train()(*batch()).values()).backward()
    optimiser.step()
    named = dict(model.named_parameters())
    stays = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    learned = [key for key in named if key.startswith("backbone.") and named[key].requires_grad]
    frozen = [key for key in named if not named[key].requires_grad]
    assert frozen and all(
        "conv1" in k or "conv_stem" in k or "bn1" in k or "layer1" in k or "blocks" in k for k in frozen
    )
    assert set(frozen) <= stays and not stays & set(learned) and learned
    assert {key for key, _ in model.named_buffers() if "running" in key} <= stays


def test_norm_may_follow_the_batches():
    model = build(norm="train", freeze=False).train()
    assert all(p.requires_grad for p in model.parameters())
    before = model.backbone.body.bn1.running_mean.clone()
    model(*batch())
    assert not torch.equal(model.backbone.body.bn1.running_mean, before)
    still = build(norm="train").train()  # the stem and the first stage are frozen
    before = copy.deepcopy(still.state_dict())
    still(*batch())
    moved = {k for k, v in still.state_dict().items() if "running" in k and not torch.equal(v, before[k])}
    assert moved and not any("body.bn1" in k or "layer1" in k for k in moved)


@pytest.mark.parametrize("backbone", FUSIBLE.split())
def test_fused_norm_gives_the_same_maps(backbone):
    torch.manual_seed(0)
    plain = Backbone(backbone, norm="train", freeze=False).eval()
    randomise_norm(plain)
    fused = copy.deepcopy(plain)
    fuse_conv_bn(fused, for_inference=True)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert sum(isinstance(m, FusedNorm) for m in fused.modules()) >= norms * 0.4  # others have no convolution before
    assert plain.state_dict().keys() <= fused.state_dict().keys()
    with torch.inference_mode():
        images = torch.randn(1, 3, 64, 96)
        for one, other in zip(fused(images), plain(images), strict=True):
            assert near(one, other, 1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_fused_norm_gives_the_same_gradients(backbone):
    plain = Backbone(backbone, norm="train", freeze=False).eval()
    randomise_norm(plain)
    fused = copy.deepcopy(plain)
    fuse_conv_bn(fused)
    images = torch.randn(2, 3, 64, 96)
    for network in (plain, fused):
        sum((m * m).mean() for m in network(images)).backward()
    others = dict(fused.named_parameters())
    assert plain.state_dict().keys() == fused.state_dict().keys()
    for key, parameter in plain.named_parameters():
        assert near(others[key].grad, parameter.grad), key


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-3) -> bool:
    return bool((one - other).abs().max() <= tolerance * max(1e-3, other.abs().max()))


def labelled(*labels: float) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The batch with these labels in the last image, which has one box."""
    images, targets = batch()
    targets[-1]["labels"] = torch.tensor(labels)
    return images, targets


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (('"fcoss"', 'did you mean "fcos"'), lambda: create("fcoss", 5)),
        (('"resnet19"', "did you mean"), lambda: create("fcos", 5, "resnet19")),
        (('"chanels"', 'did you mean "channels"'), lambda: create("fcos", 5, "resnet18", chanels=64)),
        (("at least one class",), lambda: create("fcos", 0)),
        (("channels=70", "multiple of 32"), lambda: build("fcos_improved", channels=70)),
        (("channels=70", "multiple of 16"), lambda: build("grid_rcnn", channels=70)),
        (("rois=0", "at least 1"), lambda: build("faster_rcnn", rois=0)),
        (("2 weights for 5 classes",), lambda: build("faster_rcnn", class_weights=(1.0, 2.0))),
        (("levit_128s", "strides"), lambda: create("fcos", 5, "levit_128s")),
        (("no such file",), lambda: create("fcos", 5, "resnet18", pretrained="none.pth")),
        (("[9.0, 9.0, 3.0, 3.0]",), lambda: build().train()(*batch(([[9, 9, 3, 3]], [], [])))),
        (("needs targets",), lambda: build().train()(batch()[0])),
        (("image 2", "label -1", "0..4"), lambda: build().train()(*labelled(-1))),
        (("image 2", "label 5", "0..4"), lambda: build("faster_rcnn").train()(*labelled(5))),
        (("image 2", "boxes [1, 4] and labels [2]"), lambda: build("fsaf").train()(*labelled(0, 1))),
        (("image 2", "label 2.5"), lambda: build().train()(*labelled(2.5))),
        (("3 images and 2 targets",), lambda: build().train()(batch()[0], batch()[1][:2])),
        (('image 0 of the batch has no "labels"',), lambda: build().train()(batch()[0], [{"boxes": []}] * 3)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_named(words, call):
    with pytest.raises(LeukoError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_backbone_weights_never_run_code(tmp_path):
    hostile, touched = tmp_path / "weights.pth", tmp_path / "touched"
    hostile.write_bytes(pickle.dumps({"state_dict": Bomb(touched)}, protocol=2))
    with pytest.raises(LeukoError, match=r"weights\.pth: cannot be read"):
        create("fcos", 5, "resnet18", pretrained=hostile)
    torch.save(Bomb(touched), hostile)
    with pytest.raises(LeukoError, match=r"weights\.pth"):
        create("fcos", 5, "resnet18", pretrained=hostile)
    assert not touched.exists()


def test_backbone_weights_come_from_a_file(tmp_path):
    source = Backbone("resnet18")
    randomise_norm(source)
    torch.save(source.body.state_dict(), tmp_path / "weights.pth")
    model = create("fcos", 5, "resnet18", pretrained=tmp_path / "weights.pth")
    own, given_state = model.backbone.body.state_dict(), source.body.state_dict()
    assert all(torch.equal(own[key], given_state[key]) for key in own if "num_batches" not in key)


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn", "grid_rcnn", "double_head_rcnn"])
def test_fused_model_predicts_what_the_model_predicts(name):
    torch.manual_seed(0)
    model = create(name, 5, "resnet18", image_size=224, channels=128, score_threshold=0.0).eval()
    randomise_norm(model)
    fast = copy.deepcopy(model)
    fast.fuse()
    assert not any(type(m) is nn.BatchNorm2d for m in fast.modules())
    with torch.inference_mode():
        (wanted,), (found,) = model([image := torch.rand(3, 224, 200)]), fast([image])
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-3)
    same = found["labels"][:, None] == wanted["labels"]  # the order of nearly equal scores may differ
    same &= torch.isclose(found["boxes"][:, None], wanted["boxes"], rtol=1e-3, atol=1e-2).all(-1)
    same &= (found["scores"][:, None] - wanted["scores"]).abs() < 1e-3
    assert same.any(0).all() and same.any(1).all()


@torch.no_grad()
def test_double_head_skips_only_what_cannot_be_predicted():
    model = build("double_head_rcnn", score_threshold=None).eval()
    randomise_norm(model)
    nn.init.normal_(model.head.cls_logits.weight, std=1.0)
    given, sizes = model.preprocess(images := batch()[0])
    pyramid, sizes_ = model.fpn(model.backbone(given)), torch.tensor(sizes).float()
    proposals = model.rpn.propose(*model.rpn(pyramid), model.rpn.anchors(pyramid), sizes_)
    rois = RoIs.of(proposals)
    logits = model.head(pyramid, rois)
    model.head.cls_logits.bias[-1] += 4 - (logits[:, -1] - logits[:, :-1].amax(1)).median()  # half are background
    seen: list[int] = []
    model.box_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[1].boxes)))
    found = model(images)
    assert 0 < seen[0] < boxes.has_area(rois.boxes).sum()
    deltas = model.box_head(pyramid, rois).unflatten(0, proposals.shape[:2])
    moved = model.criterion.coder.decode(proposals[:, :, None], deltas)
    whole = model.select_rois(model.head(pyramid, rois), moved, sizes_)
    originals = [tuple(image.shape[-2:]) for image in images]
    moved = boxes.clip(whole.boxes / scales(originals, sizes), torch.tensor(originals))
    for i, f in enumerate(found):
        there = whole.scores[i] >= 0
        assert torch.equal(whole.labels[i][there], f["labels"])
        assert torch.allclose(whole.scores[i][there], f["scores"])
        assert torch.allclose(moved[i][there], f["boxes"], atol=1e-3)


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_voting_moves_the_boxes_of_a_head_and_nothing_else(name):
    images = batch()[0]
    plain, voted = (build(name, vote=iou).eval()(images) for iou in (0.0, 0.8))
    moved = False
    for p, v in zip(plain, voted, strict=True):
        assert torch.equal(p["scores"], v["scores"]) and torch.equal(p["labels"], v["labels"])
        assert (torch.isclose(boxes.iou(p["boxes"], v["boxes"]).diagonal(), torch.ones(()), atol=0.3)).all()
        moved |= not torch.equal(p["boxes"], v["boxes"])
    assert moved == (name in ("faster_rcnn", "double_head_rcnn", "cascade_rcnn"))


def test_fcos_moves_its_boxes_as_far_in_a_step_as_its_improved_form():
    plain, improved = build("fcos"), build("fcos_improved")
    spread = [model.head.bbox_pred.weight.std().item() for model in (plain, improved)]
    assert spread[0] * 6 == pytest.approx(spread[1], rel=0.1)
    plain.head.box_tower.load_state_dict(improved.head.box_tower.state_dict(), strict=False)  # it has no biases
    plain.head.bbox_pred.weight.data = improved.head.bbox_pred.weight.data / 6
    feature, moved = torch.randn(2, 64, 8, 8), []
    for model in (plain, improved):
        groups = param_groups(model)
        assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
        optimiser = torch.optim.SGD([{**g, "lr": 1e-3 * g["lr_multiplier"]} for g in groups])
        before = model.head.regress(feature, feature, 0)[0].log()
        before.mean().backward()
        optimiser.step()
        moved.append(model.head.regress(feature, feature, 0)[0].log() - before)
    assert 1e-4 < moved[0].std() < 1 and torch.allclose(*moved, rtol=0.1, atol=1e-5)


def test_normalised_features_have_std_one_and_keep_it():
    torch.manual_seed(0)
    backbone, batch = Backbone("resnet18", normalize_features=True).eval(), torch.randn(2, 3, 96, 96)
    backbone.init_scale(batch)
    with torch.no_grad():
        assert [m.std().item() for m in backbone(batch)] == pytest.approx([1.0] * 4, rel=1e-4)
    follows = Backbone(
        "resnet18", norm="train", freeze=False, normalize_features=True
    ).eval()  # as a run from scratch begins
    before = copy.deepcopy(follows.state_dict())
    follows.init_scale(batch)
    assert {k for k, v in follows.state_dict().items() if not torch.equal(v, before[k])} == {"std"}
    with torch.no_grad():
        assert [m.std().item() for m in follows.train()(batch)] == pytest.approx([1.0] * 4, rel=1e-4)
    other = Backbone("resnet18", normalize_features=True)
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.std, backbone.std)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224"])
def test_backbone_of_one_image_size_is_refused(name):
    with pytest.raises(LeukoError, match="any size"):
        Backbone(name)


def test_freezing_reaches_a_stage_without_parameters_of_its_own():
    frozen = [name for name, p in Backbone("vgg11_bn").body.named_parameters() if not p.requires_grad]
    assert frozen and frozen[0].startswith("features_0")


def test_backbone_weights_without_names_are_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "x.pth")
    with pytest.raises(LeukoError, match=r"x\.pth: holds no weights by name"):
        create("fcos", 5, "resnet18", pretrained=tmp_path / "x.pth")
