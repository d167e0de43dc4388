"""The parts of detectors: against loops and against torchvision."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou
from torchvision.ops import roi_align as torchvision_roi_align

from leuko.data import images
from leuko.errors import LeukoError
from leuko.models import grid_rcnn
from leuko.models.criterion import RPNCriterion, best_levels
from leuko.models.matcher import IGNORED, NEGATIVE, CoreMatcher, IoUMatcher, PointMatcher, Sampler
from leuko.models.preprocess import Preprocess, resize, scales
from leuko.models.rpn import RPN, conv3x3_at
from leuko.ops import boxes
from leuko.ops import roi_align as roi_ops
from leuko.ops.pairs import box_iou as numpy_iou
from leuko.ops.roi_align import MAX_BIN, roi_align
from leuko.synth.render import render

quick = settings(max_examples=60, deadline=None)

side = st.integers(1, 9)
corner = st.integers(0, 12)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
some_boxes = st.lists(box, max_size=5)


def padded(gt_boxes: list[tuple]) -> torch.Tensor:
    """The boxes of a batch of one image, with one of padding: [1, M + 1, 4]."""
    return tensor([*gt_boxes, (0, 0, 0, 0)])[None]


def overlap(a: tuple, b: tuple) -> np.float32:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return np.float32(common) / np.float32(sum(area) - common)


@quick
@given(st.lists(box, max_size=8), some_boxes, st.sampled_from([(0.7, 0.3, 0.3, True), (0.5, 0.5, 0.5, False)]))
def test_iou_matcher_is_what_a_loop_finds(candidates, gt_boxes, how):
    positive, negative, min_pos_iou, low_quality = how
    matcher = IoUMatcher(positive, negative, min_pos_iou, low_quality)
    (match,) = matcher(tensor(candidates), padded(gt_boxes)).tolist()
    highest = [max((overlap(c, t) for c in candidates), default=0) for t in gt_boxes]
    for candidate, found in zip(candidates, match, strict=True):
        values = [overlap(candidate, t) for t in gt_boxes]
        best = max(values, default=np.float32(0))
        last = [j for j, v in enumerate(values) if low_quality and v == highest[j] and v >= np.float32(min_pos_iou)]
        if last:
            assert found == last[-1]
        elif best >= np.float32(positive):
            assert found >= 0 and values[found] == best
        else:
            assert found == (NEGATIVE if best < np.float32(negative) else IGNORED)


@quick
@given(some_boxes, st.sampled_from([None, 1.0, 3.0]))
def test_point_matcher_is_what_a_loop_finds(gt_boxes, radius):
    points = boxes.points(torch.zeros(1, 10, 11), 2, offset=0.5)
    limits = [(-1.0, 4.0) if i % 2 else (4.0, 64.0) for i in range(len(points))]
    strides = torch.full((len(points),), 2.0)
    matcher = PointMatcher(None if radius is None else radius / 2)
    (match,) = matcher(points, strides, tensor(limits, 2), padded(gt_boxes)).tolist()
    for (x, y), (low, high), found in zip(points.tolist(), limits, match, strict=True):
        allowed = {}
        for j, (x0, y0, x1, y1) in enumerate(gt_boxes):
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
@given(st.lists(st.tuples(box, box), min_size=1, max_size=6), st.sampled_from([(1.0, 1.0), (0.1, 0.2)]))
def test_delta_coder_is_torchvisions_and_has_an_inverse(pairs, std):
    a, b = (tensor(list(each)) for each in zip(*pairs, strict=True))
    weights = (1 / std[0], 1 / std[0], 1 / std[1], 1 / std[1])
    coder, reference = boxes.DeltaCoder(std), BoxCoder(weights, math.log(1000 / 16))
    deltas = coder.encode(a, b)
    assert torch.allclose(deltas, reference.encode_single(b, a), atol=1e-4)
    assert torch.allclose(coder.decode(a, deltas), b, atol=1e-3)
    assert torch.allclose(coder.decode(a, deltas), reference.decode_single(deltas, a), atol=1e-3)
    several = coder.decode(a[:, None], torch.stack([deltas, deltas * 0], dim=1))  # one box a class
    assert torch.allclose(several, torch.stack([b, a], dim=1), atol=1e-3)


def test_anchors_are_torchvisions_but_for_its_rounding():
    feature = torch.zeros(1, 8, 5, 7)
    reference = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))
    (wanted,) = reference(ImageList(torch.zeros(1, 3, 20, 28), [(20, 28)]), [feature])
    found, *_ = rpn().anchors([feature] * 5)
    assert found.shape == wanted.shape and (found - wanted).abs().max() <= 0.5
    size = found[:, 2:] - found[:, :2]
    assert torch.allclose(size.prod(1), torch.tensor(32.0**2)) and torch.allclose(
        (size[:, 1] / size[:, 0]).reshape(-1, 3), torch.tensor([0.5, 1.0, 2.0])
    )


@quick
@given(some_boxes)
def test_core_matcher_is_what_a_loop_finds(gt_boxes):
    points = boxes.points(torch.zeros(1, 10, 11), 2, offset=0.0)
    matcher = CoreMatcher(core=0.4, min_overlap=0.052)
    (match,), (others,) = matcher(points, torch.full((len(points),), 2.0), padded(gt_boxes))
    for (x, y), found, besides in zip(points.tolist(), match.tolist(), others.tolist(), strict=True):
        touched, within = set(), {}
        for j, (x0, y0, x1, y1) in enumerate(gt_boxes):
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
    best = best_levels(loss, level, cell, 3, levels=5).tolist()
    for g in {c for c, _, _ in positives}:
        means = {at: np.mean([v for c, a, v in positives if (c, a) == (g, at)]) for c, at, _ in positives if c == g}
        assert means[best[g]] == pytest.approx(min(means.values()), rel=1e-5)


@quick
@given(st.lists(st.tuples(box, box), min_size=1, max_size=4))
def test_heat_targets_are_what_a_loop_marks(pairs):
    rois, gt_boxes = (tensor(list(each)) for each in zip(*pairs, strict=True))
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
    assert torch.equal(grid_rcnn.heat_targets(rois, gt_boxes), torch.stack(parts, dim=1))


@quick
@given(st.lists(st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.6, 1.4)), min_size=1, max_size=4))
def test_grid_finds_the_box_that_its_heat_maps_mark(moves):
    """Heat maps as they are to be give the true box back, to a cell: a 28th of the RoI's side."""
    roi = torch.tensor([100.0, 200.0, 212.0, 312.0])
    rois = roi.repeat(len(moves), 1)
    gt_boxes = torch.stack([boxes.scaled(roi, s) + 112 * 0.5 * torch.tensor([dx, dy, dx, dy]) for dx, dy, s in moves])
    heat = grid_rcnn.heat_targets(rois, gt_boxes)
    middle = torch.nn.functional.avg_pool2d(heat, 3, stride=1, padding=1)  # highest in the middle of the disc
    found = grid_rcnn.boxes_from_heat(rois, 20 * heat * middle - 10)
    assert (found - gt_boxes).abs().max() <= 1.01 * 112 / 28


def test_points_lie_in_the_middle_of_their_cells():
    wanted = [[(x + 0.5) * 8, (y + 0.5) * 8] for y in range(3) for x in range(2)]
    assert boxes.points(torch.zeros(1, 1, 3, 2), 8, offset=0.5).tolist() == wanted


def test_nms_drops_empty_boxes_and_keeps_groups_apart():
    given_boxes = tensor([(0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 10), (5, 5, 5, 9)])
    scores, groups = torch.tensor([0.5, 0.9, 0.4, 1.0]), torch.tensor([0, 0, 1, 0])
    kept, kept_scores, kept_groups = boxes.batched_nms(given_boxes[None], scores[None], groups[None], 0.5, 10)
    assert kept_scores[0].tolist() == pytest.approx([0.9, 0.4]) and kept_groups[0].tolist() == [0, 1]
    assert kept[0].tolist() == [[0, 0, 10, 9], [0, 0, 10, 10]]


@quick
@given(st.lists(st.lists(st.tuples(box, st.integers(0, 2), st.integers(-1, 4)), max_size=9), min_size=1, max_size=5))
def test_nms_of_a_batch_is_that_of_each_image(images):
    """On the CPU as in the way of a GPU, also in parts; a score below 0 is none."""
    wanted, rows = [], []
    for i in images:
        i = [(b, g, s + k / 16) for k, (b, g, s) in enumerate(i)]  # no two scores are equal
        left, kept = sorted((c for c in i if c[2] >= 0), key=lambda c: -c[2]), []
        for c in left:
            if all(c[1] != k[1] or overlap(c[0], k[0]) <= np.float32(0.5) for k in kept):
                kept.append(c)
        wanted.append([(*b, g) for b, g, _ in kept[:4]])
        rows.append([*i, *[((0, 0, 9, 9), 0, -1.0)] * (9 - len(i))])
    given_boxes = torch.stack([tensor([b for b, _, _ in row]) for row in rows])
    groups, scores = (torch.tensor([[r[i] for r in row] for row in rows]) for i in (1, 2))
    for way in (boxes._kept_on_cpu, boxes._kept):
        with patch.object(boxes, "_kept_on_cpu", way), patch.object(boxes, "AT_ONCE", 20):
            kept, kept_scores, kept_groups = boxes.batched_nms(given_boxes, scores, groups, 0.5, 4)
        for found, score, group, expected in zip(kept, kept_scores, kept_groups, wanted, strict=True):
            number = int((score >= 0).sum())
            assert torch.cat([found, group[:, None]], 1)[:number].tolist() == [list(map(float, c)) for c in expected]
            assert not found[number:].any()


@quick
@given(some_boxes, st.integers(0, 2**31), st.sampled_from([0.3, 0.5, 0.8]))
def test_box_voting_is_the_mean_by_score_of_what_overlaps(given_boxes, seed, threshold):
    draw = torch.Generator().manual_seed(seed)
    candidates = padded(given_boxes)
    scores = torch.rand(candidates.shape[:2], generator=draw) + 0.01
    groups = torch.randint(0, 2, scores.shape, generator=draw)
    kept = boxes.batched_nms(candidates, scores, groups, 0.5, 100)
    found = boxes.box_voting(kept, boxes.Found(candidates, scores, groups), threshold)[0]
    candidates, scores, groups = candidates[0], scores[0], groups[0]
    for i in range(len(given_boxes) and int((kept[1] >= 0).sum())):
        voters = (box_iou(kept[0][:, i], candidates)[0] >= threshold) & (groups == kept[2][0, i])
        assert voters.any()
        wanted = np.average(candidates[voters].numpy(), axis=0, weights=scores[voters].numpy())
        assert found[i].numpy() == pytest.approx(wanted, rel=1e-5)


def test_box_voting_leaves_a_box_of_next_to_no_area_as_it_is():
    speck = tensor([(5, 5, 5.0001, 5.0001)])[None], torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(boxes.box_voting(speck, speck, 0.8), speck[0])


def rpn(channels: int = 8) -> RPN:
    criterion = RPNCriterion(
        matcher=IoUMatcher(0.7, 0.3, 0.3, True),
        sampler=Sampler(32, 0.5),
        coder=boxes.DeltaCoder(),
        beta=0.0,
        allowed_border=-1,
    )
    return RPN(channels, criterion=criterion, proposals=(10, 10), candidates=(50, 50))


def test_rpn_at_single_anchors_is_the_pass_over_whole_maps():
    torch.manual_seed(0)
    model = rpn()
    shapes = [(12, 9), (6, 5), (3, 3), (2, 2), (1, 1)]
    pyramid = [torch.randn(2, 8, *shape, requires_grad=True) for shape in shapes]
    logits, deltas = (torch.cat(kind, dim=1) for kind in model(pyramid))
    image, index = torch.randint(0, 2, (60,)), torch.randint(0, logits.shape[1], (60,))
    weight = torch.randn(60, 5)

    def gradients(chosen_logits: torch.Tensor, chosen_deltas: torch.Tensor) -> list[torch.Tensor]:
        total = (torch.cat([chosen_logits[:, None], chosen_deltas], dim=1) * weight).sum()
        return torch.autograd.grad(total, [*pyramid, *model.parameters()])

    at = model.at(pyramid, image, index)
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
    factors = scales([(height, width)], [size])[0, 0]
    assert torch.allclose(whole * factors, torch.tensor([0.0, 0.0, size[1], size[0]]))
    assert torch.allclose(whole * factors / factors, whole)


def test_preprocess_normalises_and_pads_with_zeros():
    batch, sizes = Preprocess(64, (0.5,) * 3, (0.25,) * 3)([torch.ones(3, 64, 40), torch.zeros(3, 20, 64)])
    assert sizes == [(64, 40), (20, 64)] and batch.shape == (2, 3, 64, 64)
    assert (batch[0, :, :, :40] == 2).all() and (batch[0, :, :, 40:] == 0).all()
    assert (batch[1, :, :20] == -2).all() and (batch[1, :, 20:] == 0).all()
    with pytest.raises(LeukoError, match=r"image 0 is torch\.int16"):
        Preprocess(64, (0.5,) * 3, (0.25,) * 3)([torch.zeros(3, 8, 8, dtype=torch.int16)])


def test_resizing_gives_the_pixels_of_the_loader():
    """OpenCV's area filter when shrinking, its bilinear one when enlarging, up to the rounding to whole grey values."""
    image = render(np.random.default_rng(0), 190, 150, ["NG"]).image
    tensor_image = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    for size in (64, 95, 111, 189, 190, 240):
        wanted = images.fit(image, size)
        resized = resize(tensor_image, Preprocess(size, (0.5,) * 3, (0.25,) * 3).resized((150, 190)))
        found = 255 * resized.permute(1, 2, 0).numpy()
        assert found.shape == wanted.shape and np.abs(found - wanted).max() < (0.51 if size < 190 else 1.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize(tensor_image, (48, 64)), resize(tensor_image, (48, 64)).float())


def rois(number: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes about a 208 x 160 image, some of which reach out of it, and the image of each."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 240 - 30
    sides = torch.rand(number, 2, generator=generator) * 150
    return torch.cat([corner, corner + sides], dim=1), torch.randint(0, 2, (number,), generator=generator)


@pytest.mark.parametrize("slivers", [False, True])
def test_roi_align_is_torchvisions(slivers):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, 5, 40, 52, generator=generator, requires_grad=True)
    boxes_, image = rois(40)
    if slivers:
        boxes_[7], boxes_[30] = tensor([(0, 20, 208, 22)])[0], tensor([(90, -10, 92, 170)])[0]
    large = (boxes_[:, 2:] - boxes_[:, :2]).amax(1) > MAX_BIN * 7 * 4
    assert large.sum() == (2 if slivers else 0)
    wanted = torchvision_roi_align(
        feature, torch.cat([image[:, None].float(), boxes_], dim=1), 7, 1 / 4, 0, aligned=True
    )
    weight = torch.randn(wanted.shape, generator=generator)
    for function in (roi_align, roi_ops.on_cpu):
        found = function(feature, image, boxes_, stride=4, size=7)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        gradients = [
            torch.autograd.grad((pooled * weight).sum(), feature, retain_graph=True)[0] for pooled in (found, wanted)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_slivers_do_not_blow_up_roi_align(monkeypatch):
    """The sums over cells that the CPU implementation allocates grow with the number of RoIs, not with the longest."""
    sizes = []
    monkeypatch.setattr(
        roi_ops.F,
        "embedding_bag",
        lambda cells, *args, f=torch.nn.functional.embedding_bag, **kw: (
            sizes.append(cells.numel()) or f(cells, *args, **kw)
        ),
    )
    feature = torch.randn(1, 4, 256, 256)
    corner = torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) * 900
    plain = torch.cat([corner, corner + 100], dim=1)
    mixed = torch.cat([plain, tensor([(0, 500, 1024, 508), (500, 0, 508, 1024)])])
    for given_boxes in (plain, mixed):
        roi_align(feature, torch.zeros(len(given_boxes), dtype=torch.int64), given_boxes, stride=4, size=7)
    assert sizes[1] == sizes[0] <= 256 * 49 * (MAX_BIN + 2) ** 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (12, 9)])
def test_conv3x3_at_single_cells_is_the_convolution(shape):
    torch.manual_seed(0)
    feature, weight, bias = torch.randn(2, 5, *shape), torch.randn(6, 5, 3, 3), torch.randn(6)
    image, cell = torch.randint(0, 2, (20,)), torch.randint(0, shape[0] * shape[1], (20,))
    dense = torch.nn.functional.conv2d(feature, weight, bias, padding=1).flatten(2)[image, :, cell]
    torch.testing.assert_close(conv3x3_at(feature, weight, bias, image, cell), dense, rtol=1e-4, atol=1e-4)


def test_level_choice_does_not_round_to_half_precision():
    loss, gt = torch.tensor([1.0, 1.001]), torch.zeros(2, dtype=torch.int64)
    for order in ([0, 1], [1, 0]):
        level = torch.tensor(order)
        with torch.autocast("cpu", torch.bfloat16):
            assert best_levels(loss, level, gt, 1, levels=2).tolist() == [order[0]]


@quick
@given(some_boxes, some_boxes, st.booleans())
def test_numpy_iou_is_what_a_loop_finds(a, b, crowd):
    flags = np.array([crowd and j % 2 == 0 for j in range(len(b))], dtype=bool)
    found = numpy_iou(np.float32(a).reshape(-1, 4), np.float32(b).reshape(-1, 4), flags)
    assert found.shape == (len(a), len(b)) and found.dtype == np.float64
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            share = overlap(one, other)
            if flags[j]:
                area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (one, other)]
                share = share / (1 + share) * sum(area) / area[0]
            assert found[i, j] == pytest.approx(share, rel=1e-5)
    assert not numpy_iou(np.zeros((1, 4)), np.zeros((1, 4))).any()
