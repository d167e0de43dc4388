"""A training in its run folder: what it learns from, where it is, the end of an epoch, and the state on disk.

The loop itself is leuko's own (``engine/train.py``) or Ultralytics' (``baselines/ultralytics.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..errors import LeukoError
from ..io import write_csv
from ..metrics import coco
from ..metrics.counting import one_type
from ..report import pictures, plots, run
from . import checkpoint, distributed, thresholds
from .evaluate import evaluate
from .metadata import CELL
from .network import Network
from .state import Labels, Progress, labels_of, save_state
from .tiling import cell_sides

MEASURES = ("mAP", "mAP50", "mAP75", "mAR")
SHOWN_SCORE = 0.3  # of a cell in the picture of an epoch


@dataclass
class Run:
    """A training: its folder, options and data, and its progress."""

    folder: Path
    options: TrainOptions
    train_set: Dataset
    val_set: Dataset
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    best_evaluation: coco.Evaluation | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.progress.is_finished(self.options.epochs)

    @cached_property
    def labels(self) -> dict[str, Labels]:
        """What the state keeps of the data, by split."""
        return {"train": labels_of(self.train_set), "val": labels_of(self.val_set)}

    # ------------------------------------------------------------ the end of an epoch

    def end_epoch(
        self,
        prepared: Network,
        recipe: dict,
        weights: Mapping[str, Tensor],
        losses: dict[str, float],
        learning_rate: float,
        state: dict,
    ) -> Progress:
        """Validate, then save: weights and results first, and last the state, with which the epoch counts: a run that
        is killed before it goes through all of this again. Returns the progress.

        Args:
            prepared: the model for inference, with the weights that are saved.
            recipe: what builds the model again.
            weights: the weights that are saved, by name.
            losses: the mean of each loss term over the epoch.
            learning_rate: of the last step.
            state: what the loop needs to go on (see :meth:`save_state`).
        """
        progress, options = self.progress, self.options
        batch = options.batch if self.device.type == "cuda" else 1  # more at once are no faster on a CPU
        evaluation, predictions = evaluate(prepared, self.val_set, batch=batch, workers=options.workers)
        measures = {name: getattr(evaluation, name) for name in MEASURES}
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        row = {"epoch": progress.epoch, "lr": learning_rate, "seconds": round(progress.seconds, 1)}
        row |= {f"loss/{name}": value for name, value in losses.items()}
        row |= {f"val/{name}": value for name, value in measures.items()}
        progress.rows.append(row)
        progress.seconds = 0.0
        about = {"epoch": progress.epoch, "val": measures}
        about[CELL] = cell_sides(self.train_set, options.imgsz)
        if threshold := thresholds.find(self.val_set, predictions):
            about["counting"] = thresholds.of_model(threshold, [options.imgsz], options.data, self.val_set.split)
        types = self.train_set.types
        checkpoint.save_weights(self.weights("last"), recipe, weights, types, **about)
        score = -1.0 if math.isnan(measures[options.best_by]) else measures[options.best_by]
        if score > progress.best or not self.weights("best").exists():
            progress.best, progress.best_epoch = score, progress.epoch
            checkpoint.save_weights(self.weights("best"), recipe, weights, types, **about)
            run.write_evaluation(self.folder, evaluation, coco.to_coco_results(self.val_set, predictions), **about)
            cells = [one_type(p, len(types)).above(SHOWN_SCORE) for p in predictions]
            note = f"one type per cell, score >= {SHOWN_SCORE}"
            sheet = pictures.gt_and_predictions(self.val_set, cells, note)
            pictures.write_image(self.folder / "val_predictions.jpg", sheet)
            self.best_evaluation = evaluation
        without = progress.epoch - max(progress.best_epoch, progress.extended_at)
        progress.stopped = options.epochs if 0 < options.patience <= without else 0
        self.write_results()
        self.save_state(state)
        run.log(self.folder, "epoch", **row)
        self._log_tensorboard(row)
        listed = "  ".join(f"{name} {value:.3f}" for name, value in measures.items())
        print(f"epoch {progress.epoch}: loss {sum(losses.values()):.3f}  {listed}")
        if progress.stopped:
            print(f"stopped early: {options.best_by} has not improved for {options.patience} epochs")
        return progress

    def write_results(self) -> None:
        """results.csv and its picture, from the rows that the state will hold."""
        write_csv(self.folder / "results.csv", self.progress.rows)
        plots.training_curves(self.progress.rows, self.folder / "results.png")

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

    # ------------------------------------------------------------ files

    def weights(self, name: str) -> Path:
        """Path of the run's weights ``"best"`` or ``"last"``."""
        return self.folder / "weights" / f"{name}.safetensors"

    def save_state(self, state: dict) -> None:
        """Write ``resume.pt``: the loop's own ``state`` (tensors, numbers, strings, lists, dicts) and the progress."""
        save_state(self.folder / "resume.pt", state, self.progress, self.train_set.types, self.labels)
