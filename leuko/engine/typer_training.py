"""Training a typing network on crops of cells, and measuring it on others."""

from __future__ import annotations

import math

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


def train_typer(net: Typer, cells: TypedCells, *, steps: int, batch: int, lr: float, seed: int) -> Typer:
    """Train a network for ``steps`` steps of AdamW with one cycle of the learning rate, on cells drawn so that centres
    and types are equally frequent, and return the running mean of its weights. The same seed, cells and machine give
    the same weights. Raises LeukoError where the loss is not finite."""
    torch.manual_seed(seed)
    net.train()
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
            target = torch.from_numpy(labels[drawn]).to(net.mean.device)
            loss = F.cross_entropy(net(net.tensor(crops)), target, label_smoothing=SMOOTHING)
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


def replay(net: Typer, cells: TypedCells, seed: int) -> dict[str, Tensor]:
    """Features and labels of up to ``REPLAYED`` cells per type, centres equally often, for ``leuko adapt``."""
    rng, labels = np.random.default_rng([seed, 1]), np.array(cells.labels)
    weights = balanced(cells.labels, cells.centres, len(cells.types))
    chosen: list[int] = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        number = min(REPLAYED, len(mine))
        chosen += rng.choice(mine, number, replace=False, p=weights[mine] / weights[mine].sum()).tolist()
    features = net.features_of(np.stack([middle(cells.crops[i], net.side) for i in chosen]))
    return {"features": features.half(), "labels": torch.from_numpy(labels[chosen])}


def measure(net: Typer, cells: TypedCells) -> dict[str, np.ndarray]:
    """How the cells of each centre are typed: a confusion matrix [types, types + 1], rows true types, the last column
    none; cells of none are left out."""
    number = len(cells.types)
    confusions = {centre: np.zeros((number, number + 1), dtype=np.int64) for centre in cells.centres}
    if not confusions:
        return {}
    features = net.features_of(np.stack([middle(crop, net.side) for crop in cells.crops]))
    with torch.inference_mode():
        given = net.last(features.to(net.mean.device)).argmax(1).tolist()
    for centre, label, of_cell in zip(cells.centres, cells.labels, given, strict=True):
        if label < number:
            confusions[centre][label, of_cell] += 1
    return confusions


def rates(confusion: np.ndarray) -> dict[str, float]:
    """Of a confusion matrix as in :func:`measure`: the number of cells, the share with their own type (``right``), and
    Cohen's ``kappa``, the agreement beyond that of chance; nan without cells."""
    number = int(confusion.sum())
    if not number:
        return {"cells": 0, "right": math.nan, "kappa": math.nan}
    right, shares = float(np.trace(confusion)) / number, confusion / number
    by_chance = float((shares.sum(1) * shares.sum(0)[:-1]).sum())
    kappa = (right - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0
    return {"cells": number, "right": right, "kappa": kappa}
