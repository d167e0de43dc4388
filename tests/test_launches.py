"""How much work a step gives a GPU, and how often it waits: counted on the CPU, by the benchmark's own counter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from leuko.models import create

SCRIPT = Path(__file__).parents[1] / "benchmarks/launches.py"
# The most launches and waits of a forward pass with losses and of an inference. They are bounds for 8 images: where an
# operator runs for each image again, they are passed at once.
LIMITS = {
    "fcos": ((550, 6), (550, 8)),
    "fsaf": ((550, 6), (550, 8)),
    "faster_rcnn": ((700, 10), (550, 12)),
    "grid_rcnn": ((1000, 12), (900, 14)),
    "double_head_rcnn": ((900, 12), (700, 14)),
    "cascade_rcnn": ((1050, 16), (700, 16)),
}

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not in an installed package")


@pytest.fixture(scope="module")
def launches():
    spec = importlib.util.spec_from_file_location("launches", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("detector", LIMITS)
def test_a_batch_takes_few_launches_and_waits(detector, launches):
    torch.manual_seed(0)
    tiny = {"image_size": 64, "channels": 64, "fc_channels": 32, "proposals": 50, "rois": 32, "score_threshold": 0.0}
    parts = launches.measure(create(detector, 5, "resnet18", **tiny), 8, 64, ("forward", "use"))
    for part, (most_launches, most_waits) in zip(parts.values(), LIMITS[detector], strict=True):
        assert 100 < part.launches.total() <= most_launches, part.launches
        assert 0 < part.waits.total() <= most_waits, part.waits


def test_what_waits_is_counted(launches):
    x = torch.arange(6.0)
    with launches.counted() as seen:
        assert x.device.type == "cuda" and torch.zeros(2).device.type == "cpu"
        x[x > 2].sum().item()
        x.new_tensor([1.0, 2.0]) + x[:2]
        torch.ones(2).pin_memory().to(x.device, non_blocking=True)
        torch.ones(2).to(x.device)
        x.cpu() + 1
    assert dict(seen.waits) == {"index": 1, "_local_scalar_dense": 1, "constant": 1, "upload": 1, "download": 1}
    assert dict(seen.launches) == {"gt": 1, "index": 1, "sum": 1, "add": 1}
