"""Training a typing network on crops of cells, and measuring it on others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.crops import augmented, balanced
from ..data.typed import TypedCells
from ..errors import LeukoError
from ..models.typer import Typer
from .ema import ModelEMA

WEIGHT_DECAY, SMOOTHING, CLIP, EMA, WARMUP = 0.02, 0.1, 5.0, 0.99, 0.15
REPLAYED = 80  # cells per type whose features are kept


def to_batch(crops: np.ndarray, device: torch.device) -> Tensor:
    """Crops [N, S, S, 3] uint8 RGB as a network takes them: [N, 3, S, S] in 0..1."""
    return torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255


def train_typer(
    net: Typer, cells: TypedCells, *, steps: int, batch: int, lr: float, seed: int, device: torch.device
) -> Typer:
    """Train a network for ``steps`` steps of AdamW with one cycle of the learning rate, on cells drawn so that centres
    and types are equally frequent, and return the running mean of its weights. The same seed, cells and machine give
    the same weights. Raises LeukoError where the loss is not finite."""
    torch.manual_seed(seed)
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=WARMUP)
    ema = ModelEMA(net, EMA)
    labels, weights = np.array(cells.labels), balanced(cells.labels, cells.centres, len(cells.types))
    total = 0.0
    with tqdm(range(steps), "typing network", unit="step") as bar:
        for step in bar:
            rng = np.random.default_rng([seed, step])
            drawn = rng.choice(len(labels), batch, p=weights)
            crops = np.stack([augmented(cells.crops[i], net.side, rng) for i in drawn])
            target = torch.from_numpy(labels[drawn]).to(device)
            loss = F.cross_entropy(net(to_batch(crops, device)), target, label_smoothing=SMOOTHING)
            if not torch.isfinite(loss):
                raise LeukoError(f"the loss of the typing network is not finite at step {step + 1}; lower --lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            ema.update()
            total = loss.item() if not step else 0.98 * total + 0.02 * loss.item()
            bar.set_postfix(loss=f"{total:.3f}")
    return ema.module.eval()


def middle(crop: np.ndarray, side: int) -> np.ndarray:
    """What a typing network sees of a crop that is ``MARGIN`` times as wide: [side, side, 3]."""
    start = (len(crop) - side) // 2
    return crop[start : start + side, start : start + side]


@torch.no_grad()
def features_of(net: Typer, crops: np.ndarray, device: torch.device) -> Tensor:
    """What the last layer sees of crops [N, S, S, 3]: [N, F] on the CPU."""
    parts = [net.features(to_batch(crops[i : i + 64], device)).cpu() for i in range(0, len(crops), 64)]
    return torch.cat(parts) if parts else torch.zeros(0, net.last.in_features)


def replay(net: Typer, cells: TypedCells, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Features and labels of up to ``REPLAYED`` cells per type, centres equally often, for ``leuko adapt``."""
    rng, labels = np.random.default_rng([seed, 1]), np.array(cells.labels)
    weights = balanced(cells.labels, cells.centres, len(cells.types))
    chosen: list[int] = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        number = min(REPLAYED, len(mine))
        chosen += rng.choice(mine, number, replace=False, p=weights[mine] / weights[mine].sum()).tolist()
    crops = np.stack([middle(cells.crops[i], net.side) for i in chosen])
    features = features_of(net, crops, device)
    return {"features": features.half(), "labels": torch.from_numpy(labels[chosen])}


@dataclass(frozen=True)
class TypingResult:
    """How cells of a centre were typed: ``confusion`` [types, types + 1], rows true types, the last column none."""

    confusion: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, logits: np.ndarray, number: int) -> TypingResult:
        """From labels [N] and logits [N, number + 1] of cells; those of none are left out."""
        confusion = np.zeros((number, number + 1), dtype=np.int64)
        is_cell = labels < number
        np.add.at(confusion, (labels[is_cell], logits[is_cell].argmax(1)), 1)
        return cls(confusion)

    @property
    def cells(self) -> int:
        """The number of cells."""
        return int(self.confusion.sum())

    @property
    def right(self) -> float:
        """The share of cells with their own type."""
        return float(np.trace(self.confusion)) / self.cells if self.cells else float("nan")

    @property
    def kappa(self) -> float:
        """Cohen's kappa: the agreement beyond that of chance."""
        if not self.cells:
            return float("nan")
        shares = self.confusion / self.cells
        by_chance = float((shares.sum(1) * shares.sum(0)[:-1]).sum())
        return (self.right - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0


def measure(net: Typer, cells: TypedCells, device: torch.device) -> dict[str, TypingResult]:
    """How a network types the cells of each centre."""
    crops = np.stack([middle(crop, net.side) for crop in cells.crops])
    with torch.inference_mode():
        logits = net.last(features_of(net, crops, device).to(device)).cpu().numpy()
    labels, centres = np.array(cells.labels), np.array(cells.centres)
    return {
        name: TypingResult.of(labels[centres == c], logits[centres == c], len(cells.types))
        for c, name in enumerate(cells.names)
    }
