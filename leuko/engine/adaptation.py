"""A typing stage for another centre: from its cells without labels, and from a few with labels.

Without labels: BatchNorm's statistics go part of the way to those of the centre's own cells (Li et al. 2018, AdaBN), of
a sample that has as many cells of each predicted type, since a centre's statistics also carry its mix of types; and the
share of each type is estimated and taken half into account. With labels: the last layer is fitted again, to them and to
cells that it has learned before, where that is an improvement beyond chance.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics.calibration import type_shares
from ..models.typer import Typer
from .typer_training import SMOOTHING, features_of, to_batch

PER_TYPE, LEAST_PER_TYPE = 40, 3  # cells of a predicted type that statistics are taken from
LEAST_CELLS = 50  # from which on there are statistics and shares of types: with 10 or 20, types become worse
MOST_CELLS = 500  # that statistics are taken from
SHARE = 0.5  # of the way to the centre's statistics
LEAST_FIELDS = 8  # with labels, from which on the last layer is fitted: of 5, one draw in ten did harm
BEYOND_CHANCE = 0.5  # standard errors by which the log loss of labelled cells must fall
PRIOR = 0.5  # the power of the types' shares: half of what they say, for patients whose mix is another
NEW_WEIGHT, PULL = 2.0, 0.002  # of the new cells against the old, and towards the weights before


# ---------------------------------------------------------------- without labels


def with_statistics(net: Typer, crops: np.ndarray, share: float, seed: int, device: torch.device) -> Typer:
    """A copy whose BatchNorm statistics are ``share`` of the way from its own to those of crops [N, S, S, 3] of a
    centre, of a sample with equally many of each predicted type; the predictions are made twice, the second time with
    the first statistics."""
    if not share or len(crops) < LEAST_CELLS or not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        return net
    rng, adapted = np.random.default_rng([seed, 2]), net
    if len(crops) > MOST_CELLS:
        crops = crops[np.sort(rng.choice(len(crops), MOST_CELLS, replace=False))]
    for _ in range(2):
        chances = probabilities(adapted, crops, device)
        cells = np.flatnonzero(is_cell(chances))
        if len(cells) < LEAST_CELLS:
            return net
        sample = cells[_balanced_sample(chances[cells, :-1].argmax(1), rng)]
        adapted = _moved(net, crops[sample], share, device)
    return adapted


def _balanced_sample(predicted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of cells in random order, ``PER_TYPE`` of each predicted type that has at least ``LEAST_PER_TYPE``,
    repeated where it has fewer."""
    chosen = []
    least = min(LEAST_PER_TYPE, len(predicted) // 10 + 1, np.bincount(predicted).max())
    for label in np.unique(predicted):
        mine = np.flatnonzero(predicted == label)
        if len(mine) >= least:
            chosen.append(rng.choice(mine, PER_TYPE))
    return rng.permutation(np.concatenate(chosen))


def _moved(net: Typer, crops: np.ndarray, share: float, device: torch.device) -> Typer:
    moved = copy.deepcopy(net).eval()
    norms = [m for m in moved.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.inference_mode():
        for part in np.array_split(crops, max(1, len(crops) // 64)):
            moved(to_batch(part, device))
    for norm, (mean, variance, momentum) in zip(norms, before, strict=True):
        norm.running_mean.lerp_(mean, 1 - share)
        norm.running_var.lerp_(variance, 1 - share)
        norm.momentum = momentum
        norm.eval()
    return moved


def probabilities(net: Typer, crops: np.ndarray, device: torch.device) -> np.ndarray:
    """Of crops [N, S, S, 3]: [N, K + 1] float64, the last of none."""
    features = features_of(net, crops, device)
    with torch.inference_mode():
        return net.last(features.to(device)).double().softmax(1).cpu().numpy()


def is_cell(chances: np.ndarray) -> np.ndarray:
    """Which of [N, K + 1] probabilities are more of a type than of none, [N] bool: a detector's false alarms are not to
    have a say."""
    return chances[:, -1] < 0.5


def shift_of(chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The types' shares [K] at a centre, by the probabilities [N, K + 1] that a network gives to the centre's cells,
    and what its logits [K] are to be shifted by to take them into account."""
    types = chances[:, :-1] / np.maximum(chances[:, :-1].sum(1, keepdims=True), 1e-9)
    shares = type_shares(types)
    shift = PRIOR * np.log(shares * len(shares))
    return shares, shift - shift.mean()


def shift_last(net: Typer, shift: np.ndarray) -> Typer:
    """A copy whose logits of the types are shifted by [K]."""
    shifted = copy.deepcopy(net)
    with torch.no_grad():
        shifted.last.bias[:-1] += torch.from_numpy(shift).to(shifted.last.bias)
    return shifted


# ---------------------------------------------------------------- with labels


def turned(crops: np.ndarray) -> np.ndarray:
    """Each crop in its four right angles: [4 N, S, S, 3], all of the first angle first."""
    return np.concatenate([np.rot90(crops, quarters, (1, 2)) for quarters in range(4)])


def fit_last(net: Typer, features: Tensor, labels: Tensor, replay: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [K + 1, F] and bias [K + 1] of a last layer fitted to new cells and to those of ``replay``, near the one
    that is there."""
    old = replay["features"].float(), replay["labels"].long()
    start = net.last.weight.detach().cpu().float(), net.last.bias.detach().cpu().float()
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        parts = [
            factor * F.cross_entropy(x @ weight.T + bias, y, label_smoothing=SMOOTHING)
            for factor, (x, y) in ((1.0, old), (NEW_WEIGHT, (features, labels)))
        ]
        pull = PULL * ((weight - start[0]).square().sum() + (bias - start[1]).square().sum())
        loss = sum(parts) + pull
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def set_last(net: Typer, weight: Tensor, bias: Tensor) -> None:
    """Put a weight and a bias into the last layer."""
    with torch.no_grad():
        net.last.weight.copy_(weight)
        net.last.bias.copy_(bias)


def log_losses(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The negative log-probability of each cell's true type, [N]: by it, stages are compared."""
    return -np.log(chances[np.arange(len(labels)), labels] + 1e-6)


def is_better(losses: dict[str, np.ndarray]) -> bool:
    """Whether the fitted last layer lowers the log loss of labelled cells [N] by more than chance does, and knows more
    than how frequent each type is."""
    if "last layer" not in losses:
        return False
    fall = losses["statistics"] - losses["last layer"]
    least = BEYOND_CHANCE * fall.std() / np.sqrt(len(fall))
    return bool(fall.mean() > least) and losses["last layer"].mean() < losses["shares alone"].mean()


def left_out(net: Typer, cells: LabelledCells, replay: dict[str, Tensor], device: torch.device) -> np.ndarray:
    """Probabilities [N, K + 1] of labelled cells, each by a last layer that was fitted without the cells of its field
    (of a tenth of the fields, where there are more than ten)."""
    number = len(cells.labels)
    features = features_of(net, turned(cells.crops), device).reshape(4, number, -1)
    chances, labels = np.zeros((number, net.recipe["num_types"] + 1)), torch.from_numpy(cells.labels)
    for fold in _folds(cells.fields):
        new = features[:, ~fold].flatten(0, 1)
        weight, bias = fit_last(net, new, labels[~fold].repeat(4), replay)
        chances[fold] = (features[0, fold] @ weight.T + bias).double().softmax(1).numpy()
    return chances


def by_shares(cells: LabelledCells, number: int) -> np.ndarray:
    """Probabilities [N, number] of who knows only how frequent each type is on the other fields: a stage that does no
    better has learned nothing from the labels, or they are wrong."""
    chances = np.zeros((len(cells.labels), number))
    for fold in _folds(cells.fields):
        counts = np.bincount(cells.labels[~fold], minlength=number) + 1
        chances[fold] = counts / counts.sum()
    return chances


def _folds(fields: np.ndarray) -> Iterator[np.ndarray]:
    names = np.unique(fields)
    for part in np.array_split(names, min(10, len(names))):
        yield np.isin(fields, part)


# ---------------------------------------------------------------- both


@dataclass(frozen=True)
class LabelledCells:
    """Cells of a laboratory with their types: ``crops`` [N, S, S, 3] uint8, ``labels`` [N], and the number of the field
    of each, ``fields`` [N]."""

    crops: np.ndarray
    labels: np.ndarray
    fields: np.ndarray


@dataclass(frozen=True)
class Adapted:
    """An adapted network, what was done (``about``), by what its logits are shifted for the types' shares (``shift``
    [K]), and the ``chances`` [N, K + 1] that it gives to the labelled cells, each without the labels of its own field;
    None without labels."""

    net: Typer
    about: dict
    shift: np.ndarray
    chances: np.ndarray | None


def adapt_typer(
    net: Typer,
    replay: dict[str, Tensor],
    unlabelled: np.ndarray,
    labelled: LabelledCells | None,
    *,
    prior: bool,
    seed: int,
    device: torch.device,
    shift: np.ndarray | None = None,
    stage: Typer | None = None,
) -> Adapted:
    """Adapt a typing network to the cells of a laboratory, ``unlabelled`` crops [N, S, S, 3] and labelled ones.

    ``shift`` [K] is what an earlier adaptation has shifted its logits by; it stays where there are too few cells to
    find it anew. ``stage`` is that of :func:`with_statistics`, where it is there already. With labels, the last layer
    is fitted only where that lowers the log loss of the types of fields that it has not learned from.
    """
    if shift is None:
        shift = np.zeros(net.recipe["num_types"])
    else:
        net = shift_last(net, -shift)
    pool = unlabelled if labelled is None else np.concatenate([unlabelled, labelled.crops])
    adapted = stage or with_statistics(net, pool, SHARE, seed, device)
    about: dict = {"cells": len(pool), "labelled": 0, "statistics": 0.0 if adapted is net else SHARE}
    chances = None
    if labelled is not None:
        chances = probabilities(adapted, labelled.crops, device)
        found = {"before": probabilities(net, labelled.crops, device), "statistics": chances}
        if len(np.unique(labelled.fields)) >= LEAST_FIELDS:
            found["last layer"] = left_out(adapted, labelled, replay, device)
            found["shares alone"] = by_shares(labelled, net.recipe["num_types"])
        losses = {name: log_losses(each, labelled.labels) for name, each in found.items()}
        about["log_loss"] = {name: float(each.mean()) for name, each in losses.items()}
        about |= {"labelled": len(labelled.labels), "last_layer": is_better(losses)}
        if about["last_layer"]:
            adapted, chances = copy.deepcopy(adapted), found["last layer"]
            features = features_of(adapted, turned(labelled.crops), device)
            set_last(adapted, *fit_last(adapted, features, torch.from_numpy(labelled.labels).repeat(4), replay))
    known = probabilities(adapted, unlabelled, device)
    known = known[is_cell(known)]
    if not prior:
        shift = np.zeros_like(shift)
    elif len(known) >= LEAST_CELLS:
        shares_found, shift = shift_of(known)
        about["shares"] = [round(float(value), 3) for value in shares_found]
    if chances is not None:
        chances = chances * np.exp([*shift, 0])
        chances /= chances.sum(1, keepdims=True)
    return Adapted(shift_last(adapted, shift), about, shift, chances)
