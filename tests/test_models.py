"""Detectors and their parts: against loops, against torchvision, and against the contract that all detectors share."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import Bomb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou
from torchvision.ops import roi_align as torchvision_roi_align

from leuko.engine.inference import prepared
from leuko.errors import LeukoError
from leuko.models import DETECTORS, Backbone, ModelOptions, anchors, boxes, create, folding, fsaf, grid_rcnn, winograd
from leuko.models.assign import IGNORED, NEGATIVE, IoUAssigner, assign_cores, assign_points
from leuko.models.preprocess import Preprocess
from leuko.models.roi_align import roi_align
from leuko.models.rpn import RPN

pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=60, deadline=None)

side = st.integers(1, 9)
corner = st.integers(0, 12)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
some_boxes = st.lists(box, max_size=5)


def tensor(rows: list, columns: int = 4) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def overlap(a: tuple, b: tuple) -> np.float32:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return np.float32(common) / np.float32(sum(area) - common)


# ---------------------------------------------------------------------- parts


@quick
@given(st.lists(box, max_size=8), some_boxes, st.sampled_from([(0.7, 0.3, 0.3, True), (0.5, 0.5, 0.5, False)]))
def test_iou_assigner_is_what_a_loop_finds(candidates, truth, how):
    positive, negative, floor, low_quality = how
    match = IoUAssigner(positive, negative, floor, low_quality)(tensor(candidates), tensor(truth)).tolist()
    highest = [max((overlap(c, t) for c in candidates), default=0) for t in truth]
    for candidate, found in zip(candidates, match, strict=True):
        values = [overlap(candidate, t) for t in truth]
        best = max(values, default=np.float32(0))
        last = [j for j, v in enumerate(values) if low_quality and v == highest[j] and v >= np.float32(floor)]
        if last:
            assert found == last[-1]
        elif best >= np.float32(positive):
            assert found >= 0 and values[found] == best
        else:
            assert found == (NEGATIVE if best < np.float32(negative) else IGNORED)


@quick
@given(some_boxes, st.sampled_from([None, 1.0, 3.0]))
def test_point_assigner_is_what_a_loop_finds(truth, radius):
    points = anchors.points(torch.zeros(1, 10, 11), 2)
    limits = [(-1.0, 4.0) if i % 2 else (4.0, 64.0) for i in range(len(points))]
    reach = None if radius is None else torch.full((len(points),), radius)
    match = assign_points(points, tensor(limits, 2), tensor(truth), reach).tolist()
    for (x, y), (low, high), found in zip(points.tolist(), limits, match, strict=True):
        allowed = {}
        for j, (x0, y0, x1, y1) in enumerate(truth):
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            near = radius is None or max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < radius
            if min(sides) > 0 and near and low <= max(sides) <= high:
                allowed[j] = (x1 - x0) * (y1 - y0)
        assert allowed.get(found) == min(allowed.values()) if allowed else found == NEGATIVE


@quick
@given(st.lists(st.tuples(box, box), min_size=1, max_size=6))
def test_overlaps_are_torchvisions(pairs):
    a, b = (tensor(list(each)) for each in zip(*pairs, strict=True))
    assert torch.allclose(boxes.iou(a, b), box_iou(a, b), atol=1e-6)
    assert torch.allclose(boxes.paired_iou(a, b), box_iou(a, b).diagonal(), atol=1e-6)
    assert torch.allclose(boxes.paired_giou(a, b), generalized_box_iou(a, b).diagonal(), atol=1e-6)


@quick
@given(st.lists(st.tuples(box, box), min_size=1, max_size=6), st.sampled_from([(1.0,) * 4, (0.1, 0.1, 0.2, 0.2)]))
def test_delta_coder_is_torchvisions_and_has_an_inverse(pairs, std):
    a, b = (tensor(list(each)) for each in zip(*pairs, strict=True))
    coder, reference = boxes.DeltaCoder(std), BoxCoder(tuple(1 / s for s in std), math.log(1000 / 16))
    deltas = coder.encode(a, b)
    assert torch.allclose(deltas, reference.encode_single(b, a), atol=1e-4)
    assert torch.allclose(coder.decode(a, deltas), b, atol=1e-3)
    assert torch.allclose(coder.decode(a, deltas), reference.decode_single(deltas, a), atol=1e-3)
    several = coder.decode(a, torch.stack([deltas, deltas * 0], dim=1))  # one box a class
    assert torch.allclose(several, torch.stack([b, a], dim=1), atol=1e-3)


def test_anchors_are_torchvisions_but_for_its_rounding():
    feature = torch.zeros(1, 8, 5, 7)
    reference = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))
    (wanted,) = reference(ImageList(torch.zeros(1, 3, 20, 28), [(20, 28)]), [feature])
    found = anchors.anchors(feature, 4, 8.0, (0.5, 1.0, 2.0))
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= 0.5
    size = found[:, 2:] - found[:, :2]
    assert torch.allclose(size.prod(1), torch.tensor(32.0**2)) and torch.allclose(
        (size[:, 1] / size[:, 0]).reshape(-1, 3), torch.tensor([0.5, 1.0, 2.0])
    )


@quick
@given(some_boxes)
def test_core_assigner_is_what_a_loop_finds(truth):
    points = anchors.points(torch.zeros(1, 10, 11), 2, offset=0.0)
    match, others = assign_cores(points, torch.full((len(points),), 2.0), tensor(truth), core=0.4, least=0.052)
    for (x, y), found, besides in zip(points.tolist(), match.tolist(), others.tolist(), strict=True):
        touched, within = set(), {}
        for j, (x0, y0, x1, y1) in enumerate(truth):
            middle, reach = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) * 0.2, (y1 - y0) * 0.2)
            shared = [min(p + 1, m + r) - max(p - 1, m - r) for p, m, r in zip((x, y), middle, reach, strict=True)]
            if min(shared) > 0 and shared[0] * shared[1] / 4 > 0.052:  # which no quotient here equals
                touched.add(j)
                if x0 < x < x1 and y0 < y < y1:
                    within[j] = (x1 - x0) * (y1 - y0)
        assert within.get(found) == min(within.values()) if within else found == NEGATIVE
        assert {j for j, is_other in enumerate(besides) if is_other} == touched - {found}


@quick
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.floats(0.1, 9)), min_size=1, max_size=20),
)
def test_best_level_is_the_one_of_least_mean_loss(positives):
    cell, level, loss = (torch.tensor(column) for column in zip(*positives, strict=True))
    best = fsaf.best_levels(loss, level, cell, 3).tolist()
    for g in {c for c, _, _ in positives}:
        means = {at: np.mean([v for c, a, v in positives if (c, a) == (g, at)]) for c, at, _ in positives if c == g}
        assert means[best[g]] == pytest.approx(min(means.values()), rel=1e-5)


@quick
@given(st.lists(st.tuples(box, box), min_size=1, max_size=4))
def test_heat_targets_are_what_a_loop_marks(pairs):
    rois, truth = (tensor(list(each)) for each in zip(*pairs, strict=True))
    wanted = torch.zeros(len(pairs), 9, 56, 56)
    for r, ((x0, y0, x1, y1), (u0, v0, u1, v1)) in enumerate(pairs):
        width, height = 2 * (x1 - x0), 2 * (y1 - y0)
        left, top = x0 - width / 4, y0 - height / 4
        for i in range(9) if min(width, height) > 3 else ():
            cx = int((u0 + (i // 3) / 2 * (u1 - u0) - left) / width * 56)
            cy = int((v0 + (i % 3) / 2 * (v1 - v0) - top) / height * 56)
            for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= cx + dx < 56 and 0 <= cy + dy < 56:
                    wanted[r, i, cy + dy, cx + dx] = 1
    parts = [wanted[:, i, b : b + 28, a : a + 28] for i in range(9) for a, b in [(i // 3 * 14, i % 3 * 14)]]
    assert torch.equal(grid_rcnn.heat_targets(rois, truth), torch.stack(parts, dim=1))


@quick
@given(st.lists(st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.6, 1.4)), min_size=1, max_size=4))
def test_grid_finds_the_box_that_its_heat_maps_mark(moves):
    """Heat maps as they are to be give the true box back, to a cell: a 28th of the RoI's side."""
    roi = torch.tensor([100.0, 200.0, 212.0, 312.0])
    rois = roi.repeat(len(moves), 1)
    truth = torch.stack([boxes.scaled(roi, s) + 112 * 0.5 * torch.tensor([dx, dy, dx, dy]) for dx, dy, s in moves])
    heat = grid_rcnn.heat_targets(rois, truth)
    middle = torch.nn.functional.avg_pool2d(heat, 3, stride=1, padding=1)  # highest in the middle of the disc
    found = grid_rcnn.boxes_of_grid(rois, 20 * heat * middle - 10)
    assert (found - truth).abs().max() <= 1.01 * 112 / 28


def test_points_lie_in_the_middle_of_their_cells():
    wanted = [[(x + 0.5) * 8, (y + 0.5) * 8] for y in range(3) for x in range(2)]
    assert anchors.points(torch.zeros(1, 1, 3, 2), 8).tolist() == wanted


def test_suppress_drops_empty_boxes_and_keeps_groups_apart():
    given_boxes = tensor([(0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 10), (5, 5, 5, 9)])
    scores, groups = torch.tensor([0.5, 0.9, 0.4, 1.0]), torch.tensor([0, 0, 1, 0])
    kept, kept_scores, kept_groups = boxes.suppress(given_boxes, scores, groups, 0.5, 10)
    assert kept_scores.tolist() == pytest.approx([0.9, 0.4]) and kept_groups.tolist() == [0, 1]
    assert kept.tolist() == [[0, 0, 10, 9], [0, 0, 10, 10]]


def test_rpn_at_single_anchors_is_the_pass_over_whole_maps():
    torch.manual_seed(0)
    rpn = RPN(8, border=-1, beta=0.0, keep=(10, 10))
    shapes = [(12, 9), (6, 5), (3, 3), (2, 2), (1, 1)]
    pyramid = [torch.randn(2, 8, *shape, requires_grad=True) for shape in shapes]
    logits, deltas = (torch.cat(kind, dim=1) for kind in rpn(pyramid))
    image, index = torch.randint(0, 2, (60,)), torch.randint(0, logits.shape[1], (60,))
    weight = torch.randn(60, 5)

    def gradients(chosen_logits: torch.Tensor, chosen_deltas: torch.Tensor) -> list[torch.Tensor]:
        total = (torch.cat([chosen_logits[:, None], chosen_deltas], dim=1) * weight).sum()
        return torch.autograd.grad(total, [*pyramid, *rpn.parameters()])

    at = rpn.at(pyramid, image, index)
    dense = logits[image, index], deltas[image, index]
    for one, other in zip([*at, *gradients(*at)], [*dense, *gradients(*dense)], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@quick
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 96]))
def test_preprocess_maps_boxes_there_and_back(height, width, image_size):
    preprocess = Preprocess(image_size, (0.5,) * 3, (0.25,) * 3)
    batch, (size,) = preprocess([torch.rand(3, height, width)])
    assert max(size) == image_size and batch.shape[-1] % 32 == batch.shape[-2] % 32 == 0
    whole = torch.tensor([0.0, 0.0, width, height])
    factors = preprocess.scale((height, width), size, whole)
    assert torch.allclose(whole * factors, torch.tensor([0.0, 0.0, size[1], size[0]]))
    assert torch.allclose(whole * factors / factors, whole)


def test_preprocess_normalises_and_pads_with_zeros():
    batch, sizes = Preprocess(64, (0.5,) * 3, (0.25,) * 3)([torch.ones(3, 64, 40), torch.zeros(3, 20, 64)])
    assert sizes == [(64, 40), (20, 64)] and batch.shape == (2, 3, 64, 64)
    assert (batch[0, :, :, :40] == 2).all() and (batch[0, :, :, 40:] == 0).all()
    assert (batch[1, :, :20] == -2).all() and (batch[1, :, 20:] == 0).all()
    with pytest.raises(LeukoError, match=r"image 0 is torch\.uint8"):
        Preprocess(64, (0.5,) * 3, (0.25,) * 3)([torch.zeros(3, 8, 8, dtype=torch.uint8)])


# ---------------------------------------------------------------------- whole detectors

TINY = {"image_size": 64, "channels": 64, "fc_channels": 32, "proposals": 50, "rois": 16, "score_threshold": 0.0}
BACKBONES = ("resnet18", "tf_efficientnet_lite0")
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


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_keeps_the_contract(name, backbone):
    model = build(name, backbone).train()
    randomise_norm(model)  # timm starts some of its scales at zero, which stops gradients
    for cells in (CELLS, ([], [], [])):
        model.zero_grad()
        losses = model(*batch(cells))
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
    images, _ = batch()
    with torch.inference_mode():
        found = model.eval()(images)
    assert len(found) == 3 and sum(len(f["boxes"]) for f in found)
    for image, f in zip(images, found, strict=True):
        number, (height, width) = len(f["boxes"]), image.shape[-2:]
        assert f["boxes"].shape == (number, 4) and f["scores"].shape == f["labels"].shape == (number,)
        assert number <= ModelOptions().max_detections and f["labels"].dtype == torch.int64
        x0, y0, x1, y1 = f["boxes"].unbind(1)
        assert (x0 >= 0).all() and (x0 <= x1).all() and (x1 <= width).all()
        assert (y0 >= 0).all() and (y0 <= y1).all() and (y1 <= height).all()
        assert (f["scores"].diff() <= 0).all() and ((f["scores"] >= 0) & (f["scores"] <= 1)).all()
        assert ((f["labels"] >= 0) & (f["labels"] < 5)).all()
    assert create(**model.recipe).load_state_dict(model.state_dict())


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


def test_norm_may_follow_the_batches_or_be_group_norm():
    model = build(norm="train", freeze=False).train()
    assert all(p.requires_grad for p in model.parameters())
    before = model.backbone.body.bn1.running_mean.clone()
    model(*batch())
    assert not torch.equal(model.backbone.body.bn1.running_mean, before)
    for backbone in BACKBONES:
        model = build(backbone=backbone, norm="gn").train()
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.isfinite(v) for v in model(*batch()).values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folded_norm_gives_the_same_maps_and_gradients(backbone):
    plain = Backbone(backbone, norm="train", freeze=False).eval()
    randomise_norm(plain)
    folded = copy.deepcopy(plain)
    folding.fold(folded)
    images = torch.randn(2, 3, 64, 96)
    wanted, maps = plain(images), folded(images)
    for found in (wanted, maps):
        sum((m * m).mean() for m in found).backward()
    others = dict(folded.named_parameters())
    assert plain.state_dict().keys() == folded.state_dict().keys()
    for key, parameter in plain.named_parameters():
        assert near(others[key].grad, parameter.grad), key
    folding.keep(folded)
    with torch.inference_mode():
        for kept, one, other in zip(folded(images), maps, wanted, strict=True):
            assert near(one, other) and near(kept, other)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-3 * max(1e-3, other.abs().max()))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (('"fcoss"', 'did you mean "fcos"'), lambda: create("fcoss", 5)),
        (('"resnet19"', "did you mean"), lambda: create("fcos", 5, "resnet19")),
        (('"chanels"', 'did you mean "channels"'), lambda: create("fcos", 5, "resnet18", chanels=64)),
        (("at least one class",), lambda: create("fcos", 0)),
        (("levit_128s", "strides"), lambda: create("fcos", 5, "levit_128s")),
        (("no such file",), lambda: create("fcos", 5, "resnet18", pretrained="none.pth")),
        (("GroupNorm",), lambda: create("fcos", 5, "convnext_atto", norm="gn")),
        (("[9.0, 9.0, 3.0, 3.0]",), lambda: build().train()(*batch(([[9, 9, 3, 3]], [], [])))),
        (("needs targets",), lambda: build().train()(batch()[0])),
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
    with pytest.raises(LeukoError, match=r"weights\.pth: not a readable file of weights"):
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


@pytest.mark.parametrize(
    ("number", "channels", "out", "height", "width"),
    [(2, 128, 160, 50, 61), (2, 130, 128, 48, 48), (99, 128, 128, 7, 7), (1, 8, 8, 3, 900)],
)
def test_winograd_is_the_direct_convolution(number, channels, out, height, width):
    x, bias = torch.randn(number, channels, height, width), torch.randn(out)
    weight = torch.randn(out, channels, 3, 3) / math.sqrt(9 * channels)
    direct = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(winograd.conv3x3(x, weight, bias), direct, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn", "grid_rcnn", "double_head_rcnn"])
def test_prepared_model_finds_what_the_model_finds(name):
    torch.manual_seed(0)
    model = create(name, 5, "resnet18", image_size=224, channels=128, score_threshold=0.0).eval()
    randomise_norm(model)
    fast = prepared(model, torch.device("cpu"))
    assert not any(type(m) is nn.BatchNorm2d for m in fast.modules())
    assert any(isinstance(m, winograd.WinogradConv) for m in fast.modules())
    assert not any(isinstance(m, winograd.WinogradConv) for m in model.modules())
    with torch.inference_mode():
        (wanted,), (found,) = model([image := torch.rand(3, 224, 200)]), fast([image])
    assert torch.equal(found["labels"], wanted["labels"])
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-3)
    torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=1e-3, atol=1e-2)


def test_roi_align_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 20, 26, generator=generator, requires_grad=True)
    corner = torch.rand(40, 2, generator=generator) * 240 - 30  # some boxes reach out of the 208 x 160 pixels
    boxes_ = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 150], dim=1)
    image = torch.randint(0, 2, (40,), generator=generator)
    rois = torch.cat([image[:, None].float(), boxes_], dim=1)
    wanted = torchvision_roi_align(feature, rois, 7, 1 / 8, 0, aligned=True)
    found = roi_align(feature, image, boxes_, stride=8, side=7)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=generator)
    gradients = [torch.autograd.grad((pooled * weight).sum(), feature)[0] for pooled in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_double_head_skips_only_what_cannot_be_found():
    model = build("double_head_rcnn", score_threshold=None).eval()
    randomise_norm(model)
    nn.init.normal_(model.head.class_logits.weight, std=1.0)
    pyramid = model.fpn(model.backbone(model.preprocess(images := batch()[0])[0]))
    sizes = model.preprocess(images)[1]
    proposals = model.rpn.propose(*model.rpn(pyramid), model.rpn.anchors(pyramid), sizes)
    logits = model.head(pyramid, proposals)
    model.head.class_logits.bias[-1] += 4 - (logits[:, -1] - logits[:, :-1].amax(1)).median()  # half are background
    seen: list[int] = []
    model.box_head.register_forward_pre_hook(lambda _, inputs: seen.append(sum(map(len, inputs[1]))))
    found = model(images)
    assert 0 < seen[0] < sum(map(len, proposals))
    counts = [len(p) for p in proposals]
    every = zip(
        model.head(pyramid, proposals).softmax(1).split(counts),
        proposals,
        model.box_head(pyramid, proposals).split(counts),
        sizes,
        strict=True,
    )
    for (p, b, d, size), image, f in zip(every, images, found, strict=True):
        whole = model.select(p, model.stage.coder.decode(b, d), size)
        scale = model.preprocess.scale(image.shape[-2:], size, f["boxes"])
        assert torch.equal(whole["labels"], f["labels"]) and torch.allclose(whole["scores"], f["scores"])
        assert torch.allclose(boxes.clip(whole["boxes"] / scale, image.shape[-2:]), f["boxes"], atol=1e-3)


def test_unit_maps_deviate_by_one_and_the_deviation_is_kept():
    torch.manual_seed(0)
    backbone, batch = Backbone("resnet18", unit_maps=True).eval(), torch.randn(2, 3, 96, 96)
    backbone.calibrate(batch)
    with torch.no_grad():
        assert [m.std().item() for m in backbone(batch)] == pytest.approx([1.0] * 4, rel=1e-4)
    other = Backbone("resnet18", unit_maps=True)
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.deviation, backbone.deviation)


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
