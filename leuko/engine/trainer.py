"""Training: one epoch after another, each validated, saved whole, and resumable bit for bit.

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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TrainOptions
from ..data import loading
from ..data.augment import STANDARD
from ..data.sample import Dataset
from ..errors import LeukoError
from ..metrics import coco
from ..models import DetectionModel
from ..report import pictures, plots, run
from . import checkpoint, inference
from .schedule import learning_rate

MEASURES = ("mAP", "mAP50", "mAP75", "mAR")


@dataclass
class Progress:
    """Where a run is: ``epoch`` complete epochs, ``batch`` batches of the next, and what they gave so far."""

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of each loss term over the batches of this epoch
    seconds: float = 0.0
    best: float = -1.0
    rows: list[dict] = field(default_factory=list)  # of results.csv


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


class Trainer:
    """A model, its data and its optimiser, in a run folder."""

    def __init__(
        self, options: TrainOptions, folder: Path, model: DetectionModel, train_set: Dataset, val_set: Dataset
    ):
        self.options, self.folder, self.train_set, self.val_set = options, folder, train_set, val_set
        self.device = inference.choose_device(options.device)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self.model = model.to(device=self.device)
        if options.channels_last:
            in_layout = model.backbone if self.device.type == "cpu" else model
            in_layout.to(memory_format=torch.channels_last)
        steps = STANDARD if options.augment else ()
        self.items = loading.TrainingItems(train_set, options.imgsz, steps, options.seed, options.cache == "ram")
        self.workers = loading.default_workers() if options.workers < 0 else options.workers
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == "fp16")
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if options.ema else {}
        self.progress = Progress()
        self.best_evaluation: coco.Evaluation | None = None
        self.batches = math.ceil(len(train_set) / options.batch)

    def calibrate(self) -> None:
        """Let the backbone measure what it needs to on the first batch."""
        items = next(iter(loading.training_batches(self.items, 0, self.options.batch)))
        batch, _ = self.model.preprocess([inference.to_unit(item["image"], self.device) for item in items])
        self.model.backbone.calibrate(batch)
        if self.ema:
            self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}

    # ------------------------------------------------------------------ the run

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
        batches = loading.training_batches(
            self.items, progress.epoch, options.batch, start=progress.batch, workers=self.workers
        )
        saved = started = time.perf_counter()
        with tqdm(total=len(self.train_set), initial=progress.batch * options.batch, desc=title, unit="image") as bar:
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

    def step(self, items: list[loading.Item]) -> dict[str, float]:
        """One batch: losses, gradients, and the optimiser's step when enough batches are summed; loss terms by name."""
        options, progress = self.options, self.progress
        at = progress.epoch * self.batches + progress.batch
        torch.manual_seed((options.seed << 32) + at)
        rate = learning_rate(options.lr, at, self.batches, options.epochs, options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        images = [inference.to_unit(item["image"], self.device) for item in items]
        targets = [{k: item[k].to(self.device) for k in ("boxes", "labels")} for item in items]
        precision = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.amp]
        with torch.autocast(self.device.type, dtype=precision, enabled=options.amp != "none"):
            losses = self.model(images, targets)
        total = sum(losses.values())
        terms = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(sum(terms.values())):
            self.stop_diverged(at, items, terms)
        self.scaler.scale(total / options.accumulate).backward()
        last = progress.batch + 1 == self.batches
        if (progress.batch + 1) % options.accumulate == 0 or last:
            if options.clip:
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

    def stop_diverged(self, at: int, items: list[loading.Item], terms: dict[str, float]) -> None:
        """Raise LeukoError with the step, the images and the loss terms."""
        images = [str(self.train_set.samples[item["index"]].image) for item in items]
        run.log(self.folder, "diverged", step=at, images=images, losses={k: str(v) for k, v in terms.items()})
        listed = ", ".join(f"{k} {v:.4g}" for k, v in terms.items())
        raise LeukoError(
            f"{self.folder}: the loss is not finite at step {at} (epoch {self.progress.epoch + 1}): {listed}; images "
            f"{', '.join(images)}; lower --lr, keep --clip on, or look at these images"
        )

    # ------------------------------------------------------------------ the end of an epoch

    def finish_epoch(self, terms: dict[str, float]) -> None:
        """Validate, then save: weights first, then the state that counts, then what is drawn from it."""
        progress = self.progress
        evaluation, predictions = self.evaluate()
        measures = {name: getattr(evaluation, name) for name in MEASURES}
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        row = {
            "epoch": progress.epoch,
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": round(progress.seconds, 1),
        }
        row |= {f"loss/{name}": value for name, value in terms.items()}
        row |= {f"val/{name}": value for name, value in measures.items()}
        progress.rows.append(row)
        progress.seconds = 0.0
        score = -1.0 if math.isnan(evaluation.mAP) else evaluation.mAP
        about = {"epoch": progress.epoch, "val": measures}
        checkpoint.save_weights(self.weights("last"), self.model, self.state(), self.train_set.types, **about)
        if score > progress.best or not self.weights("best").exists():
            progress.best = score
            checkpoint.save_weights(self.weights("best"), self.model, self.state(), self.train_set.types, **about)
            run.write_evaluation(self.folder, evaluation, coco.to_coco_results(self.val_set, predictions), **about)
            plots.write_image(self.folder / "val_predictions.jpg", pictures.truth_and_found(self.val_set, predictions))
            self.best_evaluation = evaluation
        self.save_state()
        self.write_results()
        run.log(self.folder, "epoch", **row)
        print(
            f"epoch {progress.epoch}: loss {sum(terms.values()):.3f}  "
            + "  ".join(f"{name} {value:.3f}" for name, value in measures.items())
        )

    def evaluate(self) -> tuple[coco.Evaluation, list[dict]]:
        """Validate the weights that would be saved (the running mean, if there is one)."""
        model = self.model
        if self.ema:
            own = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(self.ema)
        prepared = inference.prepared(model, self.device)
        if self.ema:
            model.load_state_dict(own)
        found = inference.predict(prepared, self.val_set, self.device, workers=self.workers, title="validating").found
        return coco.evaluate(self.val_set, found), found

    def write_results(self) -> None:
        """results.csv and its picture, from the rows that the state holds."""
        run.write_csv(self.folder / "results.csv", self.progress.rows)
        plots.training_curves(self.progress.rows, self.folder / "results.png")

    # ------------------------------------------------------------------ state

    def weights(self, name: str) -> Path:
        """Path of the run's weights ``"best"`` or ``"last"``."""
        return self.folder / "weights" / f"{name}.safetensors"

    def state(self) -> dict[str, Tensor]:
        """The weights that are validated and saved."""
        return self.ema or self.model.state_dict()

    def save_state(self) -> None:
        """Write ``resume.pt``."""
        checkpoint.save_resume(
            self.folder / "resume.pt",
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": self.ema,
                "progress": asdict(self.progress),
                "images": [str(s.image.name) for s in self.train_set.samples],
                "types": self.train_set.types,
            },
        )

    def load_state(self) -> None:
        """Go on from ``resume.pt``; LeukoError if the data is no longer what the run began with."""
        path = self.folder / "resume.pt"
        state = checkpoint.load_resume(path)
        if state["types"] != self.train_set.types:
            raise LeukoError(
                f"{path}: the run's types are {state['types']}, the data's {self.train_set.types}; mend --data"
            )
        if state["images"] != [str(s.image.name) for s in self.train_set.samples]:
            raise LeukoError(
                f"{path}: the training images are not those the run began with ({len(state['images'])} then, "
                f"{len(self.train_set)} now); start a new run with --weights {self.folder}"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            for key, value in state["ema"].items():
                self.ema[key].copy_(value)
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            reason = str(e).splitlines()[-1].strip()
            raise LeukoError(f"{path}: the state of another model ({reason}); restore this run's own file") from e
