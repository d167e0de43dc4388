"""A training in its run folder: what it learns from, where it is, the end of an epoch, and the state on disk.

The loop itself is leuko's own (``engine/train.py``) or Ultralytics' (``baselines/ultralytics.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..config import TrainOptions
from ..data import training
from ..data.dataset import Dataset
from ..data.tools.builder import write_warnings
from ..detections import Detections
from ..errors import LeukoError
from ..io import remove_unfinished, write_csv, write_json, write_yaml
from ..metrics import coco
from ..metrics.counting import one_type
from ..models import DetectionModel
from ..report import pictures, plots, run
from . import checkpoint, distributed, thresholds
from .environment import environment
from .evaluate import evaluate
from .metadata import CELL
from .network import Network
from .state import Described, Progress, described, save_state
from .tiling import cell_sides

MEASURES = ("mAP", "mAP50", "mAP75", "mAR")


@dataclass
class Run:
    """A training: its folder, options and data, and its progress."""

    folder: Path
    options: TrainOptions
    train_set: Dataset
    val_set: Dataset
    device: torch.device
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def data(self) -> Described:
        """What the state keeps of the data."""
        return described(self.train_set, self.val_set)

    def begin(self) -> None:
        """Write what the run is, and print what it is about to learn from. With ``args.yaml`` it can be resumed."""
        options, train_set, val_set = self.options, self.train_set, self.val_set
        remove_unfinished(self.folder)
        write_yaml(self.folder / "args.yaml", asdict(options))
        about = environment(self.device)
        write_json(self.folder / "environment.json", about)
        write_warnings(self.folder, {dataset.split: dataset for dataset in (train_set, val_set)})
        plots.label_statistics(train_set, self.folder / "labels.png")
        if self.device.type == "cuda":
            print(f"on {about['gpu']}: float32 products in TF32, --amp {options.amp}")
        cells = self._by_type(train_set.counts())
        both = f"training on {len(train_set)} images ({cells}), validating on {len(val_set)}"
        print(f"{both}; results go to {self.folder}")
        if options.repeat_factor:
            factors = training.repeat_factors(train_set, options.repeat_factor)
            shown = self._by_type(np.round(training.cells_per_epoch(train_set, factors)))
            print(f"repeat factor: {factors.sum():.0f} images per epoch instead of {len(factors)} ({shown})")
        if options.type_weights != "none":
            print(f"type weights: {self._by_type(np.round(training.loss_weights(train_set), 2))}")
        run.log(self.folder, "start", epoch=self.progress.epoch, batch=self.progress.batch, images=len(train_set))

    def _by_type(self, numbers: Sequence[float]) -> str:
        return ", ".join(f"{t} {n:.10g}" for t, n in zip(self.train_set.types, numbers, strict=True))

    def end_epoch(self, model: DetectionModel, losses: dict[str, float], learning_rate: float) -> Progress:
        """Validate a model, and save its weights and results; returns the progress. The epoch counts once the state,
        too, is saved: a run that is killed before goes through all of this again.

        Args:
            model: the model whose weights are saved.
            losses: the mean of each loss term over the epoch.
            learning_rate: of the last step.
        """
        progress, options = self.progress, self.options
        batch = options.batch if self.device.type == "cuda" else 1  # more at once are no faster on a CPU
        network = Network(model, self.device, options.amp)
        evaluation, predictions = evaluate(network, self.val_set, batch=batch, workers=options.workers)
        measures = {name: getattr(evaluation, name) for name in MEASURES}
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        row = {"epoch": progress.epoch, "lr": learning_rate, "seconds": round(progress.seconds, 1)}
        row |= {f"loss/{name}": value for name, value in losses.items()}
        row |= {f"val/{name}": value for name, value in measures.items()}
        progress.rows.append(row)
        progress.seconds = 0.0
        write_csv(self.folder / "results.csv", progress.rows)
        plots.training_curves(progress.rows, self.folder / "results.png")
        about = {"epoch": progress.epoch, "val": measures}
        about[CELL] = cell_sides(self.train_set, options.imgsz)
        if threshold := thresholds.find(self.val_set, predictions):
            about["counting"] = thresholds.of_model(threshold, [options.imgsz], options.data, self.val_set.split)
        saved = (model.recipe, model.state_dict(), self.train_set.types)
        score = -1.0 if math.isnan(measures[options.best_by]) else measures[options.best_by]
        if score > progress.best or not self.weights("best").exists():
            progress.best, progress.best_epoch = score, progress.epoch
            checkpoint.save_weights(self.weights("best"), *saved, **about)
            self._write_best(evaluation, predictions, threshold or thresholds.DEFAULT, about)
        without = progress.epoch - max(progress.best_epoch, progress.extended_at)
        progress.stopped = options.epochs if 0 < options.patience <= without else 0
        checkpoint.save_weights(self.weights("last"), *saved, **about, stopped=progress.stopped)
        run.log(self.folder, "epoch", **row)
        self._log_tensorboard(row)
        listed = "  ".join(f"{name} {value:.3f}" for name, value in measures.items())
        print(f"epoch {progress.epoch}: loss {sum(losses.values()):.3f}  {listed}")
        if progress.stopped:
            print(f"stopped early: {options.best_by} has not improved for {options.patience} epochs")
        return progress

    def _write_best(
        self, evaluation: coco.Evaluation, predictions: list[Detections], threshold: float, about: dict
    ) -> None:
        """The measures, the predictions and their picture of the best epoch so far."""
        run.write_evaluation(self.folder, evaluation, coco.to_coco_results(self.val_set, predictions), **about)
        cells = [one_type(p, len(self.train_set.types)).above(threshold) for p in predictions]
        sheet = pictures.gt_and_predictions(self.val_set, cells, f"one type per cell, score from {threshold:.2f}")
        pictures.write_image(self.folder / "val_predictions.jpg", sheet)

    def _log_tensorboard(self, row: dict) -> None:
        if not self.options.tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter  # of the extra loggers

        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            for name, value in row.items():
                if name != "epoch" and not math.isnan(value):
                    writer.add_scalar(name, value, row["epoch"])

    def stop_diverged(self, step: int, images: Sequence[str], losses: dict[str, float]) -> None:
        """Raise LeukoError with the step, the images and the loss terms."""
        if distributed.leads():
            run.log(self.folder, "diverged", step=step, images=images, losses={k: str(v) for k, v in losses.items()})
        listed = ", ".join(f"{k} {v:.4g}" for k, v in losses.items())
        raise LeukoError(
            f"{self.folder}: the loss is not finite at step {step} (epoch {self.progress.epoch + 1}): {listed}; images "
            f"{', '.join(images)}; lower --lr, keep --clip on, or look at these images"
        )

    def weights(self, name: str) -> Path:
        """Path of the run's weights ``"best"`` or ``"last"``."""
        return self.folder / "weights" / f"{name}.safetensors"

    def save_state(self, parts: dict) -> None:
        """Write ``resume.pt``: the loop's ``parts`` (tensors, numbers, strings, lists, dicts) and the progress."""
        save_state(self.folder / "resume.pt", parts, self.progress, self.data)
