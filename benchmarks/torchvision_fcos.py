"""torchvision's own FCOS, trained as ``leuko train --preset small`` trains leuko's detectors: the figure to reach.

    python benchmarks/torchvision_fcos.py --data DATA --out runs/torchvision_fcos

The same: backbone and its ImageNet weights, frozen part and norm layers, width, image size, batches and their order,
augmentation, schedule, optimiser and evaluator. torchvision's: FPN, head, targets, losses, test-time choices.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from leuko.config import PRESETS, TrainOptions
from leuko.data import source, training
from leuko.data.dataset import Dataset
from leuko.data.loader import to_tensor
from leuko.data.transforms.compose import read_steps
from leuko.detections import Detections
from leuko.engine.detect import Pipeline
from leuko.engine.evaluate import TimedPredictions, predict
from leuko.engine.schedule import step_schedule
from leuko.metrics import coco
from leuko.models import Backbone
from leuko.models.dense import OneStage
from leuko.report import run, tables

RECIPE = TrainOptions(**PRESETS["small"], lr=OneStage.default_lr, clip=OneStage.default_clip)
CPU = torch.device("cpu")
OWN_THRESHOLD = 0.2  # torchvision's default, of the square root of class score times centerness
LOW_THRESHOLD = 0.05  # as low as mAP could profit from


class BackboneWithFPN(nn.Module):
    """leuko's backbone under torchvision's FPN: P3 to P5 from C3 to C5, P6 and P7 from P5 (as in fcos_resnet50_fpn)."""

    def __init__(self, body: Backbone, channels: int):
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels[1:], channels, extra_blocks=LastLevelP6P7(channels, channels))

    def forward(self, batch: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), c) for i, c in enumerate(self.body(batch)[1:])))


def build(num_classes: int) -> FCOS:
    """The detector with ImageNet weights in its backbone. Its labels are 0-based, like leuko's."""
    body = Backbone(RECIPE.backbone, norm=RECIPE.norm, freeze=RECIPE.freeze)
    print(f"backbone weights: {body.load_pretrained()}", flush=True)
    model = FCOS(
        BackboneWithFPN(body, RECIPE.channels),
        num_classes,
        min_size=RECIPE.imgsz,
        max_size=RECIPE.imgsz,
        image_mean=list(body.image_mean),
        image_std=list(body.image_std),
    )
    model.register_forward_pre_hook(lambda _, given: ([i.float() / 255 for i in given[0]], *given[1:]))
    return model.to(memory_format=torch.channels_last)


def train_one_epoch(
    model: FCOS,
    optimiser: torch.optim.Optimizer,
    items: training.TrainingImages,
    options: argparse.Namespace,
    epoch: int,
) -> float:
    """One pass over the training images; returns the mean loss."""
    model.train()
    batches = math.ceil(len(items.samples) / options.batch)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    total = 0.0
    schedule = step_schedule(options.lr, batches, options.epochs, RECIPE.warmup)
    for i, batch in enumerate(training.TrainingLoader(items, options.batch).epoch(epoch)):
        for group in optimiser.param_groups:
            group["lr"] = schedule(epoch * batches + i)
        loss = sum(model(list(batch.images), batch.targets).values())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, RECIPE.clip)
        optimiser.step()
        total += loss.item()
    return total / batches


@dataclass
class AtWork:
    """The model with the face that leuko's loop over a data set expects."""

    model: FCOS

    @torch.inference_mode()
    def detect(self, views: list[np.ndarray]) -> list[Detections]:
        """Detections on images [h, w, 3] uint8 RGB, in their pixels."""
        return [Detections.from_tensors(output) for output in self.model([to_tensor(view) for view in views])]


def evaluate(model: FCOS, dataset: Dataset, threshold: float) -> tuple[coco.Evaluation, TimedPredictions]:
    """COCO's measures, with detections scored at ``threshold`` or above."""
    model.eval()
    model.score_thresh = threshold
    result = predict(Pipeline(AtWork(model), (RECIPE.imgsz,)), dataset, workers=0)
    return coco.evaluate(dataset, result.predictions), result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set with the splits train and test")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--batch", type=int, default=RECIPE.batch, help="images per step, at most (%(default)s)")
    parser.add_argument("--lr", type=float, default=RECIPE.lr, help="learning rate (%(default)s, leuko's for FCOS)")
    parser.add_argument("--out", type=Path, default=Path("runs/torchvision_fcos"), help="folder of results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    train_set = source.load(options.data, "train")
    test_set = source.load(options.data, "test", types=train_set.types)
    torch.manual_seed(options.seed)
    model = build(len(train_set.types))
    items = training.TrainingImages(train_set, RECIPE.imgsz, read_steps("standard"), options.seed, cache="ram")
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=options.lr,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
    )
    start, rows = time.perf_counter(), []
    for epoch in range(options.epochs):
        loss = train_one_epoch(model, optimiser, items, options, epoch)
        minutes = (time.perf_counter() - start) / 60
        print(f"epoch {epoch + 1}/{options.epochs}: loss {loss:.3f}, {minutes:.1f} min", flush=True)
        rows.append({"epoch": epoch + 1, "loss": loss, "minutes": minutes})
        if (epoch + 1) % 4 == 0 and epoch + 1 < options.epochs:
            evaluation, _ = evaluate(model, test_set, OWN_THRESHOLD)
            rows[-1] |= {"mAP": evaluation.mAP, "mAP50": evaluation.mAP50, "mAR": evaluation.mAR}
            print(tables.aligned(tables.per_class(evaluation), head=1), flush=True)

    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, options.out / "last.safetensors"
    )
    low, _ = evaluate(model, test_set, LOW_THRESHOLD)
    evaluation, predictions = evaluate(model, test_set, OWN_THRESHOLD)
    parameters = sum(p.numel() for p in model.parameters())
    shown = [
        tables.record(f"torchvision FCOS, scores >= {threshold}", measured, parameters, predictions.fps)
        for threshold, measured in ((OWN_THRESHOLD, evaluation), (LOW_THRESHOLD, low))
    ]
    print(
        tables.aligned(
            tables.table2(shown, dict(zip(test_set.types, test_set.counts().tolist(), strict=True))), head=2
        ),
        flush=True,
    )
    results = coco.to_coco_results(test_set, predictions.predictions)
    run.write_evaluation(
        options.out,
        evaluation,
        results,
        parameters=parameters,
        epochs=rows,
        seed=options.seed,
        batch=options.batch,
        lr=options.lr,
        low_threshold=low,
    )


if __name__ == "__main__":
    main()
