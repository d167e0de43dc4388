"""leuko's own training loop: one epoch after another, each validated, saved whole, and resumable bit for bit.

The seed and the place in the run (epoch, step) determine all randomness, so no random state has to be saved: a run that
is killed goes on from ``resume.pt``, repeats what came after it, and ends in the same weights.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.loader import TrainingImages, TrainingItem, batch_bounds, training_batches, worker_count
from ..data.transforms.compose import read_steps
from ..errors import LeukoError
from ..models import DetectionModel
from ..models.base import param_groups
from ..report import pictures, plots
from .ema import ModelEMA
from .evaluate import prepare, to_unit
from .run import Run
from .schedule import Schedule, step_schedule

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Loop:
    """What a training consists of beside its data on disk and its progress."""

    model: DetectionModel
    images: TrainingImages
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: ModelEMA | None

    def _parts(self) -> dict[str, object]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"ema": self.ema} if self.ema else {})

    def state_dict(self) -> dict[str, dict]:
        """What ``resume.pt`` holds beside the progress."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict, path: Path) -> None:
        """Go on from the content of ``path``; LeukoError where it is of another model."""
        try:
            begun = state["optimizer"]["state"]
            buffers = {i: {"momentum_buffer": p} for i, p in enumerate(_parameters(self.optimizer)) if i in begun}
            for name, part in self._parts().items():
                own = part.state_dict()
                if part is self.optimizer:
                    own["state"] = buffers  # which it does not have before its first step
                if problem := unlike(state[name], own, name):
                    raise ValueError(problem)
                part.load_state_dict(state[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            reason = (str(e).splitlines() or [""])[-1].strip()[:200]
            raise LeukoError(
                f"{path}: the state of another model, or of an older leuko ({reason}); restore this run's own file, or "
                f"start a new run with --weights {path.parent}"
            ) from e


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def unlike(stored: object, own: object, name: str) -> str:
    """What in a stored part of a loop is not as in this one: names, shapes, kinds of values; "" where all is."""
    if isinstance(own, torch.Tensor):
        same = isinstance(stored, torch.Tensor) and (stored.shape, stored.dtype) == (own.shape, own.dtype)
        return "" if same else f"{name} is of another shape or type"
    if type(stored) is not type(own) and not (isinstance(stored, dict) and isinstance(own, dict)):
        return f"{name} is of another kind"
    if isinstance(own, dict):
        if odd := stored.keys() ^ own.keys():
            return f"{name}.{sorted(map(str, odd))[0]} is in one of them only"
        return next(filter(None, (unlike(stored[k], v, f"{name}.{k}") for k, v in own.items())), "")
    if isinstance(own, list):
        pairs = zip(stored, own, strict=True) if len(stored) == len(own) else [(None, "")]
        return next(filter(None, (unlike(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(pairs))), "")
    same = stored == own or name.endswith((".lr", ".scale", "_tracker"))  # which change with the steps
    return "" if same else f"{name} is {stored!r:.40}, not {own!r:.40}"


def set_up(options: TrainOptions, model: DetectionModel, train_set: Dataset, device: torch.device, fresh: bool) -> Loop:
    """Images, optimiser, schedule, scaler and EMA for a model.

    ``fresh``: the model starts a new training, not from trained weights, so that the scale of its features is measured.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    model.to(device)
    if options.channels_last:
        (model.backbone if device.type == "cpu" else model).to(memory_format=torch.channels_last)
    steps = read_steps(options.augment)
    images = TrainingImages(train_set, options.imgsz, steps, options.seed, options.cache, options.repeat_factor)
    if fresh and model.wants_normalized_features:
        batch = next(training_batches(images, 0, options.batch))
        model.backbone.init_scale(model.preprocess([to_unit(image, device) for image, _, _ in batch])[0])
    optimizer = SGD(param_groups(model), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    ema = ModelEMA(model, options.ema) if options.ema else None
    steps_per_epoch = len(batch_bounds(len(images), options.batch)) - 1
    schedule = step_schedule(options.lr, steps_per_epoch, options.epochs, options.warmup)
    return Loop(model, images, optimizer, schedule, scaler, ema)


def fit(run: Run, loop: Loop) -> None:
    """Train to the run's last epoch. Ctrl-C and SIGTERM save the state and raise KeyboardInterrupt. Raises LeukoError
    for what the user can fix."""
    model, ema = loop.model, loop.ema

    def save() -> None:
        with stop.held(at_all_costs=True):
            run.save_state(loop.state_dict())

    with Stop() as stop:
        save()  # so that a run killed in its first minutes can be resumed, too
        if not run.progress.epoch and not run.progress.batch:
            _draw_batches(run, loop.images)
        while not run.finished:
            with stop.held():
                losses = train_one_epoch(
                    model, loop.images, loop.optimizer, loop.schedule, loop.scaler, ema, run, stop, save
                )
                save()
            averaged = ema.module if ema else model
            learning_rate = loop.optimizer.param_groups[0]["lr"]
            prepared = prepare(averaged, run.device)
            run.end_epoch(prepared, model.recipe, averaged.state_dict(), losses, learning_rate, loop.state_dict())


def train_one_epoch(
    model: DetectionModel,
    images: TrainingImages,
    optimizer: Optimizer,
    schedule: Schedule,
    scaler: torch.amp.GradScaler,
    ema: ModelEMA | None,
    run: Run,
    stop: Stop,
    save: Callable[[], None],
) -> dict[str, float]:
    """Go through the rest of the epoch's batches; returns the mean of each loss term over the epoch.

    Returns early, between two steps of the optimiser, once ``stop`` is requested; calls ``save`` every
    ``options.save_minutes``.
    """
    options, progress = run.options, run.progress
    model.train()
    bounds = batch_bounds(len(images), options.batch)
    batches = training_batches(
        images, progress.epoch, options.batch, start=progress.batch, workers=worker_count(options.workers)
    )
    saved = started = time.perf_counter()
    title = f"epoch {progress.epoch + 1}/{options.epochs}"
    with tqdm(total=len(images), initial=bounds[progress.batch], desc=title, unit="image") as bar:
        for items in batches:
            step = progress.epoch * (len(bounds) - 1) + progress.batch
            torch.manual_seed((options.seed << 32) + step)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step) * group["lr_multiplier"]
            losses = compute_losses(model, items, options.amp, run.device)
            terms = {name: value.item() for name, value in losses.items()}
            if not math.isfinite(sum(terms.values())):
                run.stop_diverged(step, [str(images.samples[index].image) for _, _, index in items], terms)
            scaler.scale(sum(losses.values()) / options.accumulate).backward()

            progress.batch += 1
            whole_step = progress.batch % options.accumulate == 0
            if whole_step or progress.batch == len(bounds) - 1:
                if math.isfinite(options.clip):
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(_parameters(optimizer), options.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if ema is not None:
                    ema.update_parameters(model)

            progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in terms.items()}
            bar.update(len(items))
            bar.set_postfix(loss=f"{sum(terms.values()):.3f}", lr=f"{optimizer.param_groups[0]['lr']:.2g}")
            now = time.perf_counter()
            progress.seconds, started = progress.seconds + now - started, now
            if not whole_step:
                continue  # gradients are waiting for more batches, and a state holds none
            if stop.requested:
                break
            if now - saved > options.save_minutes * 60:
                save()
                saved = now
    return {name: total / (len(bounds) - 1) for name, total in progress.sums.items()}


def compute_losses(
    model: DetectionModel, items: list[TrainingItem], amp: str, device: torch.device
) -> dict[str, torch.Tensor]:
    """The scalar losses of one batch by name."""
    images = [to_unit(image, device) for image, _, _ in items]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target, _ in items]
    with torch.autocast(device.type, dtype=PRECISIONS[amp], enabled=amp != "none"):
        return model(images, targets)


def _draw_batches(run: Run, images: TrainingImages) -> None:
    """Two batches as the model sees them, ``train_batch0.jpg`` and ``train_batch1.jpg``."""
    for i, items in enumerate(islice(training_batches(images, 0, min(run.options.batch, 16)), 2)):
        plots.write_image(run.folder / f"train_batch{i}.jpg", pictures.batch(items, run.train_set.types))


# ---------------------------------------------------------------- being stopped


class Stop:
    """Ctrl-C and SIGTERM (from Slurm or Docker) during a training.

    They raise KeyboardInterrupt at once, but not where that would cut something in two: while ``held``, the first only
    sets ``requested``, and the second raises; ``at_all_costs`` (a file is being written) even that waits.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.count = 0
        self.patience = 0  # signals that are only counted

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.count > 0

    def __enter__(self) -> Stop:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # signals reach the main thread alone
            self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self, at_all_costs: bool = False) -> Iterator[None]:
        """Let the first signal wait for the end of the block; ``at_all_costs``, all of them."""
        before, self.patience = self.patience, math.inf if at_all_costs else 1
        try:
            yield
        finally:
            self.patience = before
        self._raise_if_due()

    def _note(self, *_: object) -> None:
        self.count += 1
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self.count > self.patience:
            raise KeyboardInterrupt
