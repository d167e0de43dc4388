"""What every training shares, whosever loop it is: its run folder, its progress, and the end of an epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..config import TrainOptions
from ..data.dataset import Dataset
from ..data.loader import default_workers
from ..errors import LeukoError
from ..io import write_csv
from ..metrics import coco
from ..models import DetectionModel
from ..report import pictures, plots, run
from . import checkpoint, evaluate

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


class Training(ABC):
    """A model and its data in a run folder. A subclass brings the loop, and says what its state is."""

    def __init__(
        self, options: TrainOptions, folder: Path, model: DetectionModel, train_set: Dataset, val_set: Dataset
    ):
        self.options, self.folder, self.train_set, self.val_set = options, folder, train_set, val_set
        self.device = evaluate.choose_device(options.device)
        self.model = model.to(device=self.device)
        self.workers = default_workers() if options.workers < 0 else options.workers
        self.progress = Progress()
        self.best_evaluation: coco.Evaluation | None = None
        self.batches = math.ceil(len(train_set) / options.batch)

    @abstractmethod
    def begin(self) -> None:
        """Let the model measure what it needs to before a new run's first step."""

    @abstractmethod
    def draw_first_batches(self) -> None:
        """Draw two batches as the model sees them, ``train_batch0.jpg`` and ``train_batch1.jpg``."""

    @abstractmethod
    def train(self) -> None:
        """Train to the last epoch, with :meth:`finish_epoch` after each. Raises KeyboardInterrupt at Ctrl-C, and
        LeukoError for what the user can mend."""

    @abstractmethod
    def prepared(self) -> DetectionModel:
        """A copy of the model with the weights that would be saved, made for inference."""

    @abstractmethod
    def learning_rate(self) -> float:
        """The learning rate of the last step."""

    @abstractmethod
    def weights_now(self) -> dict[str, Tensor]:
        """The weights that are validated and saved."""

    @abstractmethod
    def resume_state(self) -> dict:
        """What the loop needs to go on, beside the progress: tensors, numbers, strings, lists and dicts."""

    @abstractmethod
    def restore(self, state: dict) -> None:
        """Take up what :meth:`resume_state` gave; KeyError, TypeError, ValueError or RuntimeError if not fitting."""

    # ------------------------------------------------------------------ the end of an epoch

    def finish_epoch(self, terms: dict[str, float]) -> None:
        """Validate, then save: weights first, then the state that counts, then what is drawn from it.

        ``terms`` are the means of the loss terms over the epoch.
        """
        progress = self.progress
        predictions = evaluate.predict(
            self.prepared(), self.val_set, self.device, workers=self.workers, title="validating"
        ).found
        evaluation = coco.evaluate(self.val_set, predictions)
        measures = {name: getattr(evaluation, name) for name in MEASURES}
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        row = {"epoch": progress.epoch, "lr": self.learning_rate(), "seconds": round(progress.seconds, 1)}
        row |= {f"loss/{name}": value for name, value in terms.items()}
        row |= {f"val/{name}": value for name, value in measures.items()}
        progress.rows.append(row)
        progress.seconds = 0.0
        score = -1.0 if math.isnan(evaluation.mAP) else evaluation.mAP
        about = {"epoch": progress.epoch, "val": measures}
        self.save_weights("last", about)
        if score > progress.best or not self.weights("best").exists():
            progress.best = score
            self.save_weights("best", about)
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

    def write_results(self) -> None:
        """results.csv and its picture, from the rows that the state holds."""
        write_csv(self.folder / "results.csv", self.progress.rows)
        plots.training_curves(self.progress.rows, self.folder / "results.png")

    def draw_batch(self, number: int, items: list[dict]) -> None:
        """Write ``train_batchN.jpg`` of training items (see ``leuko.data.loader``)."""
        plots.write_image(self.folder / f"train_batch{number}.jpg", pictures.batch(items, self.train_set.types))

    def stop_diverged(self, at: int, images: list[str], terms: dict[str, float]) -> None:
        """Raise LeukoError with the step, the images and the loss terms."""
        run.log(self.folder, "diverged", step=at, images=images, losses={k: str(v) for k, v in terms.items()})
        listed = ", ".join(f"{k} {v:.4g}" for k, v in terms.items())
        raise LeukoError(
            f"{self.folder}: the loss is not finite at step {at} (epoch {self.progress.epoch + 1}): {listed}; images "
            f"{', '.join(images)}; lower --lr, keep --clip on, or look at these images"
        )

    # ------------------------------------------------------------------ state

    def weights(self, name: str) -> Path:
        """Path of the run's weights ``"best"`` or ``"last"``."""
        return self.folder / "weights" / f"{name}.safetensors"

    def save_weights(self, name: str, about: dict) -> None:
        """Write the weights as ``"best"`` or ``"last"``."""
        checkpoint.save_weights(self.weights(name), self.model, self.weights_now(), self.train_set.types, **about)

    def save_state(self) -> None:
        """Write ``resume.pt``."""
        common = {
            "progress": vars(self.progress),
            "images": [str(s.image.name) for s in self.train_set.samples],
            "types": self.train_set.types,
        }
        checkpoint.save_resume(self.folder / "resume.pt", {**self.resume_state(), **common})

    def load_state(self, state: dict) -> None:
        """Go on from the content of ``resume.pt``; LeukoError if the data is no longer what the run began with."""
        path = self.folder / "resume.pt"
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
            self.restore(state)
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as e:
            reason = str(e).splitlines()[-1].strip()
            raise LeukoError(
                f"{path}: the state of another model, or of an older leuko ({reason}); restore this run's own file, or "
                f"start a new run with --weights {self.folder}"
            ) from e
