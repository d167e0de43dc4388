"""leuko on a GPU, in one command of less than six minutes that needs nothing but the card:

    python benchmarks/gpu.py --out gpu.json

- agreement: losses, gradients and detections of the six detectors on the card against the CPU; in half precision, too.
- determinism: losses and gradients of the same step three times, without and with --deterministic.
- speed: a training step and the inference of 1 and 8 images (ms per image), ResNet-50, 600 x 600, beside torchvision's
  two detectors with the same layers frozen; the price of --deterministic; memory; the share of the measured rate of
  matrix products.
- roi_align: leuko's own against torchvision's.
- epoch: one epoch of leuko train on rendered fields, and how long it waits for the loader.

It prints Markdown, writes JSON, and exits with status 2 where there is no card. `--device cpu --quick` runs all of it
on tiny sizes, which measures nothing and shows that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from speed import Case, distance_to_nearest, leuko_model, torchvision_model
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torch.utils.flop_counter import FlopCounterMode
from torchvision import ops as torchvision_ops

from leuko.cells import TYPES
from leuko.config import SIX, TrainOptions
from leuko.data.tools.draw import synth
from leuko.engine import cost
from leuko.engine.network import prepare
from leuko.engine.train import be_deterministic
from leuko.io import write_json
from leuko.models import DetectionModel, create, param_groups
from leuko.ops.roi_align import on_cpu as own_roi_align
from leuko.report.tables import markdown
from leuko.synth.render import Picture, render
from leuko.train import train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it starts
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Step = tuple[dict[str, float], dict[str, Tensor]]  # losses and gradients by name
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: of speed backbone, side in pixels, batch and repeats; of agreement side and backbone; of
    the epoch images and side."""

    backbone: str = "resnet50"
    side: int = 600
    batch: int = 8
    repeats: int = 10
    small: int = 192
    small_backbone: str = "resnet18"
    rois: int = 4096
    matrix: int = 8192
    images: int = 320


QUICK = Sizes("resnet18", 96, 2, 1, 96, "test_resnet", 32, 256, 8)


# ---------------------------------------------------------------------- one step


def small_model(name: str, side: int, backbone: str) -> DetectionModel:
    """A detector with few channels and random weights, the same at each call, on the CPU."""
    torch.manual_seed(0)
    small = {"image_size": side, "channels": 32, "fc_channels": 64, "proposals": 100, "rois": 64}
    model = create(name, len(TYPES), backbone, normalize_features=True, **small)
    model.backbone.init_scale(model.preprocess(fields(side, 2, torch.device("cpu"))[0])[0])
    return model


@cache
def pictures(side: int, number: int) -> list[Picture]:
    """Rendered fields with two leukocytes each."""
    return [render(np.random.default_rng(i), side, side, ["NG", "L"]) for i in range(number)]


def fields(side: int, number: int, device: torch.device) -> Batch:
    """Such fields and their labels on a device."""
    drawn = pictures(side, number)
    images = [torch.from_numpy(p.image).permute(2, 0, 1).to(device).float() / 255 for p in drawn]
    labels = [(torch.from_numpy(p.boxes).to(device), torch.from_numpy(p.labels).to(device)) for p in drawn]
    return images, [{"boxes": boxes, "labels": label} for boxes, label in labels]


def step(model: DetectionModel, batch: Batch, device: torch.device, amp: str = "none") -> Step:
    """The losses and gradients of a training step from the same random numbers each time, whatever the device."""
    torch.manual_seed(1)
    model.to(device).train().zero_grad()
    with random_on_cpu(), torch.autocast(device.type, HALF.get(amp, torch.bfloat16), enabled=amp in HALF):
        losses = model(*batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


@contextlib.contextmanager
def random_on_cpu() -> Iterator[None]:
    """Let torch draw random numbers on the CPU: a GPU has others for the same seed."""

    def on_cpu(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*shape: object, generator: torch.Generator | None = None, device: object = None, **how: object):
            if generator is not None:
                how["generator"] = torch.Generator().manual_seed(generator.initial_seed())
            return draw(*shape, **how).to(device or "cpu")

        return drawn

    with mock.patch.multiple(torch, rand=on_cpu(torch.rand), randperm=on_cpu(torch.randperm)):
        yield


def apart(one: Step, other: Step) -> tuple[float, float]:
    """How far two steps are apart: the largest relative difference of a loss, and of a parameter's gradient (the norm
    of the difference, in that of the gradient or, where it is larger, a thousandth of the largest one)."""
    assert one[0].keys() == other[0].keys() and one[1].keys() == other[1].keys()
    losses = max(abs(a - other[0][name]) / max(abs(a), 1e-3) for name, a in one[0].items())
    least = max(g.norm() for g in one[1].values()) / 1000
    gradients = (float((g - other[1][name]).norm() / max(g.norm(), least)) for name, g in one[1].items())
    return losses, max(gradients)


def is_same(one: Step, other: Step) -> bool:
    """Whether two steps have the same losses and gradients, bit for bit."""
    return one[0] == other[0] and all(torch.equal(g, other[1][name]) for name, g in one[1].items())


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Products in full single precision, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def deterministic(wholly: bool) -> Iterator[None]:
    """As a training runs without and with --deterministic."""
    be_deterministic(wholly)
    try:
        yield
    finally:
        be_deterministic(False)


def detections_apart(name: str, sizes: Sizes, device: torch.device) -> tuple[float, int, int]:
    """Detections on the device against the CPU's: the largest difference of a score, or of a box relative to its
    coordinates, how many have no counterpart to 1e-3, and how many were compared. (An untrained model's scores lie so
    close together that rounding exchanges some.)"""
    found = []
    for place in (torch.device("cpu"), device):
        model = prepare(small_model(name, sizes.small, sizes.small_backbone), place)
        with torch.inference_mode():
            found.append([{k: v.cpu() for k, v in d.items()} for d in model(fields(sizes.small, 2, place)[0])])
    pairs = [(a, b) for one, other in zip(*found, strict=True) for a, b in ((one, other), (other, one))]
    far = torch.cat([distance_to_nearest(a, b, 100) for a, b in pairs])
    return float(far[far <= 1e-3].amax()) if (far <= 1e-3).any() else 0.0, int((far > 1e-3).sum()), len(far)


# ---------------------------------------------------------------------- sections


def agreement(sizes: Sizes, device: torch.device) -> list[dict]:
    """Each detector on the device against the CPU."""
    rows = []
    for name in SIX:
        model = small_model(name, sizes.small, sizes.small_backbone)
        reference = step(model, fields(sizes.small, 2, torch.device("cpu")), torch.device("cpu"))
        batch = fields(sizes.small, 2, device)
        with exact():
            losses, gradients = apart(reference, step(model, batch, device))
            far, without, compared = detections_apart(name, sizes, device)
        row = {"detector": name, "losses": losses, "gradients": gradients, "detections": far}
        row |= {"without counterpart": f"{without} of {compared}"}
        for amp in HALF if device.type == "cuda" else ("bf16",):
            halved = step(model, batch, device, amp)
            row |= {f"losses {amp}": apart(reference, halved)[0]}
            row |= {f"{amp} finite": all(bool(g.isfinite().all()) for g in halved[1].values())}
        rows.append(row)
    return rows


def determinism(sizes: Sizes, device: torch.device) -> list[dict]:
    """Whether the same step gives the same losses and gradients, bit for bit, three times."""
    rows = []
    for name in SIX:
        row: dict = {"detector": name}
        model, batch = small_model(name, sizes.small, sizes.small_backbone), fields(sizes.small, 2, device)
        for title, wholly in (("usual", False), ("--deterministic", True)):
            try:
                with deterministic(wholly):
                    steps = [step(model, batch, device) for _ in range(3)]
                row[title] = "same" if all(is_same(steps[0], each) for each in steps) else "differs"
            except RuntimeError as error:  # an operator that has no such implementation
                row[title] = str(error).splitlines()[0]
        rows.append(row)
    return rows


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int, warmups: int = 3) -> float:
    """The median time of a call, all of the device's work included."""
    times = []
    for i in range(warmups + repeats if repeats > 1 else 1):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        if i >= warmups or repeats == 1:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rates(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """TFLOP/s of a product of large square matrices: what the card gives, by precision."""
    rates = {}
    for name, dtype in (("none", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=dtype) for _ in range(2))
        ms = milliseconds(partial(torch.matmul, a, b), device, sizes.repeats)
        rates[name] = 2 * sizes.matrix**3 / ms / 1e9
    return rates


def speed(sizes: Sizes, device: torch.device) -> list[dict]:
    """Training and inference of the six and of torchvision's two: ms, torchvision's time / leuko's, GiB, and the share
    of the measured matrix rate."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rates = matrix_rates(sizes, device)
    rows = [measure(library, name, rates, sizes, device) for library, name in cases()]
    peers = {row["detector"]: row for row in rows if row["library"] == "torchvision"}
    for row in rows:
        peer = peers["fcos" if Case(row["detector"], True, "").dense else "faster_rcnn"]
        row |= {f"{key} ratio": peer[key] / row[key] for key in list(row) if key.endswith("ms") and key in peer}
    return [*rows, {"library": "matrix products, TFLOP/s", "detector": json.dumps(rates)}]


def cases() -> list[tuple[str, str]]:
    """Library and detector of each case, torchvision's beside those that are held against it."""
    return [("torchvision", "fcos"), ("torchvision", "faster_rcnn"), *(("leuko", name) for name in SIX)]


def measure(library: str, name: str, rates: dict[str, float], sizes: Sizes, device: torch.device) -> dict:
    """A row of the table of :func:`speed`."""
    torch.manual_seed(0)
    row: dict = {"library": library, "detector": name}
    build = leuko_model if library == "leuko" else torchvision_model
    model = build(Case(name, True, ""), sizes.side, sizes.backbone).to(device).train()
    groups = param_groups(model) if library == "leuko" else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(groups, lr=1e-9, momentum=0.9, weight_decay=1e-4)  # the work stays the same
    images, targets = fields(sizes.side, sizes.batch, device)
    if library == "torchvision" and name == "faster_rcnn":
        targets = [t | {"labels": t["labels"] + 1} for t in targets]

    with FlopCounterMode(display=False) as counter:
        train_step(model, optimizer, images, targets)
    cost.reset_peak_memory(device)
    for amp in ("none", "bf16"):
        title = f"train {'fp32' if amp == 'none' else amp}"
        run = partial(train_step, model, optimizer, images, targets, amp)
        row[f"{title} ms"] = milliseconds(run, device, sizes.repeats)
        row[f"{title} share"] = counter.get_total_flops() / (row[f"{title} ms"] * 1e9 * rates[amp])
        if amp == "none":
            row["train GiB"] = cost.peak_memory(device) / 1024
    if library == "leuko":
        with contextlib.suppress(RuntimeError), deterministic(True):  # an operator that has no such implementation
            row["bf16 deterministic ms"] = milliseconds(run, device, sizes.repeats)
    del model, optimizer, targets, run
    model = build(Case(name, False, ""), sizes.side, sizes.backbone)
    model = prepare(model, device) if library == "leuko" else model.to(device).eval()
    for number in (1, sizes.batch):
        with torch.inference_mode():
            row[f"infer {number} ms"] = milliseconds(partial(model, images[:number]), device, sizes.repeats) / number
    del model
    gc.collect()
    return row


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor], targets: list[dict], amp: str = "none"
) -> None:
    """A whole step; nothing is waited for but what the model itself waits for."""
    optimizer.zero_grad()
    with torch.autocast(images[0].device.type, torch.bfloat16, enabled=amp == "bf16"):
        losses = model(images, targets)
    sum(losses.values()).backward()
    optimizer.step()


def roi_aligns(sizes: Sizes, device: torch.device) -> list[dict]:
    """RoIs of 7 x 7 from a map at stride 8, forwards and backwards: leuko's own against torchvision's."""
    generator = torch.Generator().manual_seed(0)
    side = sizes.side // 8
    feature = torch.randn(2, 64, side, side, generator=generator).to(device).requires_grad_()
    corner = torch.rand(sizes.rois, 2, generator=generator) * sizes.side * 0.7
    boxes = torch.cat([corner, corner + 30 + torch.rand(sizes.rois, 2, generator=generator) * 80], 1).to(device)
    index = torch.randint(2, (sizes.rois,), generator=generator).to(device)

    def theirs() -> Tensor:
        rois = torch.cat([index[:, None].float(), boxes], 1)
        return torchvision_ops.roi_align(feature, rois, 7, 1 / 8, sampling_ratio=0, aligned=True)

    def own() -> Tensor:
        return own_roi_align(feature, index, boxes, 8, 7)

    difference = float((theirs() - own()).abs().max().detach())
    times = [milliseconds(lambda r=run: r().sum().backward(), device, sizes.repeats) for run in (own, theirs)]
    names = {"RoIs": sizes.rois, "own ms": times[0], "torchvision ms": times[1], "ratio": times[1] / times[0]}
    return [names | {"largest difference": difference}]


def epoch(sizes: Sizes, device: torch.device) -> list[dict]:
    """One epoch of ``leuko train`` on rendered fields: images per second, and the loader's share of the time."""
    waited = 0.0
    take = _BaseDataLoaderIter.__next__

    def timed(loader: _BaseDataLoaderIter) -> object:
        nonlocal waited
        start = time.perf_counter()
        try:
            return take(loader)
        finally:
            waited += time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synth(data, images=sizes.images + 2, size=sizes.side, seed=0, val=2 / sizes.images, test=0.0)
        options = TrainOptions(str(data), "fcos", sizes.backbone, epochs=1, batch=sizes.batch, imgsz=sizes.side)
        options = replace(options, pretrained=False, device=str(device), amp="bf16", project=folder)
        output = io.StringIO()
        with (
            mock.patch.object(_BaseDataLoaderIter, "__next__", timed),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            run = train(options)
        seconds = float((run / "results.csv").read_text().splitlines()[1].split(",")[2])
    number = sizes.images
    return [{"images": number, "seconds": seconds, "images/s": number / seconds, "waiting for the loader s": waited}]


SECTIONS = {
    "agreement": agreement,
    "determinism": determinism,
    "speed": speed,
    "roi_align": roi_aligns,
    "epoch": epoch,
}


# ---------------------------------------------------------------------- the command


def as_table(rows: Sequence[dict]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    written = [[_written(row.get(key, "")) for key in columns] for row in rows]
    return markdown([columns, *written])


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
    return str(value)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the results as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA card here; --device cpu --quick shows that it runs", file=sys.stderr)
        return 2
    sizes = QUICK if options.quick else Sizes()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict = {"device": name, "torch": torch.__version__, "sizes": sizes}
    print(f"{name}, torch {torch.__version__}; {sizes}")
    for title in options.only:
        start = time.perf_counter()
        try:
            result[title] = SECTIONS[title](sizes, device)
        except RuntimeError as error:  # what a card is asked for once is not to be lost for one section
            result[title] = [{"failed": str(error).splitlines()[0]}]
        print(f"\n## {title} ({time.perf_counter() - start:.0f} s)\n\n{as_table(result[title])}", flush=True)
        write_json(options.out, result)
    return int(any("failed" in result[title][0] for title in options.only))


if __name__ == "__main__":
    sys.exit(main())
