"""What must hold on a CUDA card (``-m cuda``), by the functions of ``benchmarks/gpu.py``; each runs on the CPU, too."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import DEVICES, ROOT

from leuko.config import SIX

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu

CPU = torch.device("cpu")
SIDE, BACKBONE = 96, "test_resnet"  # at 64 px, torch's bfloat16 gradients of a 1 x 1 map are not finite on a CPU
FEW = ("fcos", "faster_rcnn")  # where all six say no more
CASES = [("cpu", name) for name in FEW] + [pytest.param("cuda", name, marks=DEVICES[1].marks) for name in SIX]


@pytest.mark.parametrize(("device", "name"), CASES)
def test_losses_gradients_and_detections_are_the_cpus(name, device):
    model, device = gpu.small_model(name, SIDE, BACKBONE), torch.device(device)
    reference = gpu.step(model, gpu.fields(SIDE, 2, CPU), CPU)
    with gpu.exact():
        losses, gradients = gpu.apart(reference, gpu.step(model, gpu.fields(SIDE, 2, device), device))
        sizes = gpu.Sizes(small=SIDE, small_backbone=BACKBONE)
        far, without, compared = gpu.detections_apart(name, sizes, device)
    assert losses < 1e-4 and gradients < 1e-4 and far < 1e-4
    assert without <= 0.02 * compared  # an untrained model's scores lie close together
    with torch.no_grad():
        next(p for p in reversed(list(model.parameters())) if p.requires_grad).mul_(1.1).add_(0.01)
    assert max(gpu.apart(reference, gpu.step(model, gpu.fields(SIDE, 2, device), device))) > 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FEW)
def test_half_precision_trains(name, device):
    device = torch.device(device)
    model, batch = gpu.small_model(name, SIDE, BACKBONE), gpu.fields(SIDE, 2, device)
    reference = gpu.step(model, batch, device)
    for amp in gpu.HALF if device.type == "cuda" else ("bf16",):
        losses, gradients = gpu.step(model, batch, device, amp)
        assert all(g.isfinite().all() for g in gradients.values())
        assert sum(losses.values()) == pytest.approx(sum(reference[0].values()), rel=0.1) and losses != reference[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FEW)
def test_a_deterministic_step_is_the_same_bit_for_bit(name, device):
    device = torch.device(device)
    model, batch = gpu.small_model(name, SIDE, BACKBONE), gpu.fields(SIDE, 2, device)
    with gpu.deterministic(True):
        first, second = (gpu.step(model, batch, device) for _ in range(2))
    assert gpu.is_same(first, second)
    next(iter(second[1].values())).view(-1)[0] += 1e-3
    assert not gpu.is_same(first, second)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_the_benchmark_says_that_there_is_no_card(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2 and capsys.readouterr().err.count("\n") == 1
