"""leuko's own training loop: one epoch after another, each validated, saved whole, and resumable bit for bit.

The seed and the place in the run (epoch, step) determine all randomness, so no random state has to be saved: a run that
is killed goes on from ``resume.pt``, repeats what came after it, and ends in the same weights.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from inspect import signature
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from tqdm import tqdm

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.training import TrainingImages, TrainingLoader
from ..data.transforms.compose import read_steps
from ..data.workers import worker_count
from ..errors import LeukoError
from ..models import DetectionModel, batch_norm
from ..models.base import param_groups
from ..ops import ranks
from ..report import pictures
from . import distributed
from .ema import ModelEMA
from .network import autocast
from .run import Run
from .schedule import step_schedule
from .state import Progress
from .stop import Stop


class Loop:
    """What a training consists of beside its data on disk and its progress: images, optimiser, schedule, scaler and EMA
    for a model. ``network`` is the model in the forward pass, which several processes may share.

    ``fresh``: the model starts a new training, not from trained weights, so that the scale of its features is measured.
    """

    def __init__(
        self, options: TrainOptions, model: DetectionModel, train_set: Dataset, device: torch.device, fresh: bool
    ):
        be_deterministic(options.deterministic and device.type == "cuda")
        self.model = model.to(device)
        if options.channels_last:
            (model.backbone if device.type == "cpu" else model).to(memory_format=torch.channels_last)
        steps = read_steps(options.augment)
        images = TrainingImages(train_set, options.imgsz, steps, options.seed, options.cache, options.repeat_factor)
        if fresh and model.wants_normalized_features:
            batch = next(TrainingLoader(images, options.batch).epoch(0))
            model.backbone.init_scale(model.preprocess(batch.images)[0])
        sgd = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
        self.optimizer = SGD(param_groups(model), **sgd)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        self.ema = ModelEMA(model, options.ema) if options.ema else None
        is_gpu, workers = device.type == "cuda", worker_count(options.workers)
        self.loader = TrainingLoader(images, options.batch, workers, pinned=is_gpu, share=ranks.place())
        self.schedule = step_schedule(options.lr, len(self.loader), options.epochs, options.warmup)
        self.network = parallel(model)

    def _parts(self) -> dict[str, object]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"ema": self.ema} if self.ema else {})

    def state_dict(self) -> dict[str, dict]:
        """What ``resume.pt`` holds beside the progress."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict, path: Path) -> None:
        """Go on from the content of ``path``; LeukoError where it is of another model."""
        for name, part in self._parts().items():
            try:
                if part is self.optimizer:
                    check_optimizer(self.optimizer, state[name])
                part.load_state_dict(state[name])
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as e:
                reason = (str(e).splitlines() or [""])[-1].strip()[:200]
                raise LeukoError(
                    f"{path}: the state of another model, or of an older leuko ({name}: {reason}); restore this run's "
                    f"own file, or start a new run with --weights {path.parent}"
                ) from e


def check_optimizer(own: SGD, state: dict) -> None:
    """Raise ValueError where a stored state has other settings than the optimiser, but learning rates, or buffers of
    other shapes than its parameters: torch would take both over."""
    for i, (old, new) in enumerate(zip(state["param_groups"], own.state_dict()["param_groups"], strict=True)):
        if odd := sorted(key for key in {*old, *new} - {"lr"} if key not in old or old[key] != new.get(key)):
            raise ValueError(f"param_groups[{i}] has another {odd[0]}")
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    for i, kept in state["state"].items():
        if kept.keys() != {"momentum_buffer"} or kept["momentum_buffer"].shape != parameters[i].shape:
            raise ValueError(f"state {i} is no momentum of its parameter")


def be_deterministic(wholly: bool) -> None:
    """Choose cuDNN's reproducible convolutions; ``wholly``, all of a GPU's operators."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if wholly:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it starts
        torch.use_deterministic_algorithms(True)


def parallel(model: nn.Module) -> nn.Module:
    """The model, or what stands for it in the forward pass so that all ranks have the mean of their gradients."""
    if ranks.place()[1] == 1:
        return model
    batch_norm.over_ranks(model)
    known = signature(DistributedDataParallel).parameters
    each_step = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    how = {each_step: False, "gradient_as_bucket_view": True}  # all ranks have the same buffers
    return DistributedDataParallel(model, **how)


def fit(run: Run, loop: Loop) -> None:
    """Train to the run's last epoch. Ctrl-C and SIGTERM save the state and raise KeyboardInterrupt. Raises LeukoError
    for what the user can fix."""

    def save() -> None:
        if distributed.leads():
            with stop.held(at_all_costs=True):
                run.save_state(loop.state_dict())

    def end_epoch(losses: dict[str, float]) -> Progress:
        averaged = loop.ema.module if loop.ema else loop.model
        run.end_epoch(averaged, losses, loop.optimizer.param_groups[0]["lr"])
        save()
        return run.progress

    with Stop() as stop:
        with stop.held():
            save()  # before the run's args.yaml, so that whatever has that can be resumed
            distributed.led(run.begin)
        if distributed.leads() and not run.progress.epoch and not run.progress.batch:
            _draw_batches(run, loop.loader.images)
        while not run.progress.is_finished(run.options.epochs):
            with stop.held():
                losses = train_one_epoch(loop, run, stop, save)
                save()
            run.progress = distributed.led(end_epoch, losses)


def train_one_epoch(loop: Loop, run: Run, stop: Stop, save: Callable[[], None]) -> dict[str, float]:
    """Go through the rest of the epoch's batches; returns the mean of each loss term over the epoch.

    Returns early, between two steps of the optimiser, once ``stop`` is requested; calls ``save`` every
    ``options.save_minutes``.
    """
    options, progress = run.options, run.progress
    loader, optimizer, scaler = loop.loader, loop.optimizer, loop.scaler
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loop.network.train()
    saved = started = time.perf_counter()
    title = f"epoch {progress.epoch + 1}/{options.epochs}"
    with tqdm(total=len(loader.images), initial=loader.bounds[progress.batch], desc=title, unit="image") as bar:
        for batch in loader.epoch(progress.epoch, start=progress.batch):
            step = progress.epoch * len(loader) + progress.batch
            # Random numbers of a step depend on the run's seed and on nothing else that came before.
            torch.manual_seed(int(np.random.SeedSequence((options.seed, step)).generate_state(1)[0]))
            for group in optimizer.param_groups:
                group["lr"] = loop.schedule(step) * group["lr_multiplier"]
            with autocast(run.device, options.amp):
                losses = loop.network(batch.images, batch.targets)
            on_their_way = ToHost(ranks.mean(torch.stack([*losses.values()]).detach()))
            scaler.scale(sum(losses.values()) / options.accumulate).backward()
            # Read only now: a GPU that has finished the forward pass is busy with the backward pass meanwhile.
            terms = dict(zip(losses, on_their_way.read(), strict=True))
            if not math.isfinite(sum(terms.values())):
                run.stop_diverged(step, loader.paths(progress.epoch, progress.batch), terms)

            progress.batch += 1
            whole_step = progress.batch % options.accumulate == 0
            if whole_step or progress.batch == len(loader):
                if math.isfinite(options.clip):
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, options.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if loop.ema is not None:
                    loop.ema.update()

            progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in terms.items()}
            bar.update(loader.bounds[progress.batch] - loader.bounds[progress.batch - 1])
            bar.set_postfix(loss=f"{sum(terms.values()):.3f}", lr=f"{optimizer.param_groups[0]['lr']:.2g}")
            now = time.perf_counter()
            progress.seconds, started = progress.seconds + now - started, now
            if not whole_step:
                continue  # gradients are waiting for more batches, and a state holds none
            if stop.requested():
                break
            if now - saved > options.save_minutes * 60:
                save()
                saved = now
    return {name: total / len(loader) for name, total in progress.sums.items()}


class ToHost:
    """Numbers [N] on their way from the device to the host, which is not waited for before they are read."""

    def __init__(self, values: torch.Tensor):
        self.values = values.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def read(self) -> list[float]:
        """The numbers, as soon as what the device was given before them is done."""
        if self.arrived:
            self.arrived.synchronize()
        return self.values.tolist()


def _draw_batches(run: Run, images: TrainingImages) -> None:
    """Two batches as the model sees them, ``train_batch0.jpg`` and ``train_batch1.jpg``."""
    for i, batch in enumerate(islice(TrainingLoader(images, min(run.options.batch, 16)).epoch(0), 2)):
        pictures.write_image(run.folder / f"train_batch{i}.jpg", pictures.batch(batch, run.train_set.types))
