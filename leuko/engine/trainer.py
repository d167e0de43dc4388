"""leuko's own training loop: one epoch after another, each validated, saved whole, and resumable bit for bit.

The seed and the place in the run (epoch, step) fix all randomness, so nothing of the random streams has to be saved:
a run that is killed goes on from ``resume.pt``, redoes what came after it, and ends in the same weights.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TrainOptions
from ..data import loader
from ..data.dataset import Dataset
from ..data.transforms.compose import read_steps
from ..models import DetectionModel
from . import evaluate
from .schedule import learning_rate
from .training import Training


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Within the block, the first Ctrl-C only fills the yielded list, so that a step is never cut in two."""
    interrupted: list[bool] = []
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        interrupted.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def param_groups_of(model: DetectionModel) -> dict[float, list[nn.Parameter]]:
    """The trainable parameters by the factor on their learning rate (``model.lr_multipliers``), those of factor 1 first."""
    result: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((f for start, f in model.lr_multipliers.items() if name.startswith(start)), 1.0)
            result.setdefault(factor, []).append(parameter)
    return result


class Trainer(Training):
    """leuko's detectors, trained by SGD."""

    def __init__(
        self, options: TrainOptions, folder: Path, model: DetectionModel, train_set: Dataset, val_set: Dataset
    ):
        super().__init__(options, folder, model, train_set, val_set)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if options.channels_last:
            in_layout = model.backbone if self.device.type == "cpu" else model
            in_layout.to(memory_format=torch.channels_last)
        steps = read_steps(options.augment)
        self.items = loader.TrainingItems(
            train_set, options.imgsz, steps, options.seed, options.cache, options.repeat_factor
        )
        self.bounds = loader.batch_bounds(len(self.items), options.batch)
        self.batches = len(self.bounds) - 1
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.factors, groups = zip(*param_groups_of(model).items(), strict=True)
        self.optimiser = torch.optim.SGD(
            [{"params": parameters} for parameters in groups],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == "fp16")
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if options.ema else {}

    def begin(self) -> None:
        if self.model.wants_normalized_features:
            items = next(iter(loader.training_batches(self.items, 0, self.options.batch)))
            batch, _ = self.model.preprocess([evaluate.to_unit(item["image"], self.device) for item in items])
            self.model.backbone.init_scale(batch)
        if self.ema:
            self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}

    def draw_first_batches(self) -> None:
        batches = loader.training_batches(self.items, 0, min(self.options.batch, 16))
        for i, items in enumerate(islice(batches, 2)):
            self.draw_batch(i, items)

    def train(self) -> None:
        """Train to the last epoch. Ctrl-C saves the state and raises KeyboardInterrupt; a second one stops at once."""
        self.model.train()
        while self.progress.epoch < self.options.epochs:
            with interruptible() as interrupted:
                terms = self.train_one_epoch(interrupted)
            self.save_state()
            if interrupted:
                raise KeyboardInterrupt
            self.finish_epoch(terms)

    def train_one_epoch(self, interrupted: list[bool]) -> dict[str, float]:
        """Go through the rest of the epoch's batches; returns the mean of each loss term over the epoch.

        Returns early, between two steps of the optimiser, once ``interrupted`` is no longer empty.
        """
        options, progress = self.options, self.progress
        title = f"epoch {progress.epoch + 1}/{options.epochs}"
        batches = loader.training_batches(
            self.items, progress.epoch, options.batch, start=progress.batch, workers=self.workers
        )
        saved = started = time.perf_counter()
        with tqdm(total=len(self.items), initial=self.bounds[progress.batch], desc=title, unit="image") as bar:
            for items in batches:
                terms = self.step(items)
                for name, value in terms.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.batch += 1
                bar.update(len(items))
                bar.set_postfix(loss=f"{sum(terms.values()):.3f}", lr=f"{self.optimiser.param_groups[0]['lr']:.2g}")
                now = time.perf_counter()
                progress.seconds, started = progress.seconds + now - started, now
                if progress.batch % options.accumulate:
                    continue  # gradients are waiting for more batches, and a state holds none
                if interrupted:
                    break
                if now - saved > options.save_minutes * 60:
                    self.save_state()
                    saved = now
        return {name: total / self.batches for name, total in progress.sums.items()}

    def step(self, items: list[loader.Item]) -> dict[str, float]:
        """One batch: losses, gradients, and the optimiser's step when enough batches are summed; loss terms by name."""
        options, progress = self.options, self.progress
        at = progress.epoch * self.batches + progress.batch
        torch.manual_seed((options.seed << 32) + at)
        rate = learning_rate(options.lr, at, self.batches, options.epochs, options.warmup)
        for factor, group in zip(self.factors, self.optimiser.param_groups, strict=True):
            group["lr"] = rate * factor
        images = [evaluate.to_unit(item["image"], self.device) for item in items]
        targets = [{k: item[k].to(self.device) for k in ("boxes", "labels")} for item in items]
        precision = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.amp]
        with torch.autocast(self.device.type, dtype=precision, enabled=options.amp != "none"):
            losses = self.model(images, targets)
        total = sum(losses.values())
        terms = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(sum(terms.values())):
            self.stop_diverged(at, [str(self.train_set.samples[item["index"]].image) for item in items], terms)
        self.scaler.scale(total / options.accumulate).backward()
        last = progress.batch + 1 == self.batches
        if (progress.batch + 1) % options.accumulate == 0 or last:
            if math.isfinite(options.clip):
                self.scaler.unscale_(self.optimiser)
                nn.utils.clip_grad_norm_(self.parameters, options.clip)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.optimiser.zero_grad(set_to_none=True)
            self.update_ema()
        return terms

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the running mean of the weights towards the weights."""
        if self.ema:
            own = self.model.state_dict()
            for key, mean in self.ema.items():
                if mean.is_floating_point():
                    mean.lerp_(own[key], 1 - self.options.ema)
                else:
                    mean.copy_(own[key])

    def prepared(self) -> DetectionModel:
        if not self.ema:
            return evaluate.prepared(self.model, self.device)
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        mean = evaluate.prepared(self.model, self.device)
        self.model.load_state_dict(own)
        return mean

    def learning_rate(self) -> float:
        return self.optimiser.param_groups[0]["lr"]

    def weights_now(self) -> dict[str, Tensor]:
        return self.ema or self.model.state_dict()

    def resume_state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        for key, value in state["ema"].items():
            self.ema[key].copy_(value)
