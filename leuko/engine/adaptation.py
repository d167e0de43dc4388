"""A typing network for another centre: from its cells without labels, and from a few with labels.

Without labels: BatchNorm's statistics go part of the way to those of the centre's own cells (Li et al. 2018, AdaBN), of
a sample that has as many cells of each predicted type, since a centre's statistics also carry its mix of types; and the
share of each type is estimated and taken half into account. With labels: the last layer is fitted again, to them and to
cells that it has learned before (``replay``), where that is an improvement beyond chance.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics.calibration import type_shares
from ..models.typer import AT_ONCE, Typer
from .laboratory import LabelledField
from .typer_training import SMOOTHING

PER_TYPE, LEAST_PER_TYPE = 40, 3  # cells of a predicted type that statistics are taken from
LEAST_CELLS = 50  # from which on there are statistics and shares of types: with 10 or 20, types become worse
MOST_CELLS = 500  # that statistics are taken from
SHARE = 0.5  # of the way to the centre's statistics
LEAST_FIELDS = 8  # with labels, from which on the last layer is fitted: of 5, one draw in ten did harm
BEYOND_CHANCE = 0.5  # standard errors by which the log loss of labelled cells must fall
PRIOR = 0.5  # the power of the types' shares: half of what they say, for patients whose mix is another
NEW_WEIGHT, PULL = 2.0, 0.002  # of the new cells against the old, and towards the weights before


class Adapted(NamedTuple):
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
    fields: Sequence[LabelledField],
    shift: np.ndarray,
    *,
    prior: bool,
    seed: int,
) -> Adapted:
    """Adapt a network to the cells of a laboratory, ``unlabelled`` crops [N, S, S, 3] and those of labelled fields.

    ``shift`` [K] is what an earlier adaptation has shifted its logits by; it stays where there are too few cells to
    find it anew. With labels, the last layer is fitted only where that lowers the log loss of the types of fields that
    it has not learned from.
    """
    net = shift_last(net, -shift)
    pool = np.concatenate([unlabelled, *(field.crops for field in fields)])
    adapted = with_statistics(net, pool, seed)
    about = {"cells": len(pool), "labelled": 0, "statistics": 0.0 if adapted is net else SHARE}
    chances = None
    if fields:
        adapted, chances, of_labels = with_labels(net, adapted, replay, fields)
        about |= of_labels
    return with_shares(Adapted(adapted, about, shift, chances), unlabelled, prior)


def probabilities(net: Typer, crops: np.ndarray) -> np.ndarray:
    """Of crops [N, S, S, 3]: [N, K + 1] float64, the last of none."""
    features = net.features_of(crops)
    with torch.inference_mode():
        return net.last(features.to(net.mean.device)).double().softmax(1).cpu().numpy()


def is_cell(chances: np.ndarray) -> np.ndarray:
    """Which of [N, K + 1] probabilities are more of a type than of none, [N] bool: a detector's false alarms are not to
    have a say."""
    return chances[:, -1] < 0.5


# ---------------------------------------------------------------- without labels


def with_statistics(net: Typer, crops: np.ndarray, seed: int) -> Typer:
    """A copy whose BatchNorm statistics are ``SHARE`` of the way from its own to those of crops [N, S, S, 3] of a
    centre, of a sample with equally many of each predicted type; the predictions are made twice, the second time with
    the first statistics. The network itself where there are too few cells, or no statistics."""
    if len(crops) < LEAST_CELLS or not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        return net
    rng, adapted = np.random.default_rng([seed, 2]), net
    if len(crops) > MOST_CELLS:
        crops = crops[np.sort(rng.choice(len(crops), MOST_CELLS, replace=False))]
    for _ in range(2):
        chances = probabilities(adapted, crops)
        cells = np.flatnonzero(is_cell(chances))
        if len(cells) < LEAST_CELLS:
            return net
        sample = cells[_balanced_sample(chances[cells, :-1].argmax(1), rng)]
        adapted = _moved(net, crops[sample])
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


def _moved(net: Typer, crops: np.ndarray) -> Typer:
    moved = copy.deepcopy(net).eval()
    norms = [m for m in moved.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.inference_mode():
        for part in np.array_split(crops, max(1, len(crops) // AT_ONCE)):
            moved(moved.tensor(part))
    for norm, (mean, variance, momentum) in zip(norms, before, strict=True):
        norm.running_mean.lerp_(mean, 1 - SHARE)
        norm.running_var.lerp_(variance, 1 - SHARE)
        norm.momentum = momentum
        norm.eval()
    return moved


def with_shares(adapted: Adapted, unlabelled: np.ndarray, prior: bool) -> Adapted:
    """The same with logits that are shifted for the types' shares among ``unlabelled`` crops [N, S, S, 3], where these
    are enough to tell, else as before; without a ``prior``, not at all."""
    net, about, shift, chances = adapted
    known = probabilities(net, unlabelled)
    known = known[is_cell(known)]
    if not prior:
        shift = np.zeros_like(shift)
    elif len(known) >= LEAST_CELLS:
        types = known[:, :-1] / np.maximum(known[:, :-1].sum(1, keepdims=True), 1e-9)
        shares = type_shares(types)
        about = about | {"shares": [round(float(value), 3) for value in shares]}
        shift = PRIOR * np.log(shares * len(shares))
        shift = shift - shift.mean()
    if chances is not None:
        chances = chances * np.exp([*shift, 0])
        chances /= chances.sum(1, keepdims=True)
    return Adapted(shift_last(net, shift), about, shift, chances)


def shift_last(net: Typer, shift: np.ndarray) -> Typer:
    """A copy whose logits of the types are shifted by [K]."""
    shifted = copy.deepcopy(net)
    with torch.no_grad():
        shifted.last.bias[:-1] += torch.from_numpy(shift).to(shifted.last.bias)
    return shifted


# ---------------------------------------------------------------- with labels


def with_labels(
    before: Typer, net: Typer, replay: dict[str, Tensor], fields: Sequence[LabelledField]
) -> tuple[Typer, np.ndarray, dict]:
    """A network whose last layer is fitted to labelled cells, or itself where that is no improvement; the probabilities
    [N, K + 1] of these cells, each without the labels of its own field; and what was done. ``before`` is the network
    with its old statistics, to compare with."""
    crops = np.concatenate([field.crops for field in fields])
    labels = np.concatenate([field.labels for field in fields])
    field_of = np.repeat(np.arange(len(fields)), [len(field.labels) for field in fields])
    found = {"before": probabilities(before, crops), "statistics": probabilities(net, crops)}
    if len(np.unique(field_of)) >= LEAST_FIELDS:
        angles = np.concatenate([np.rot90(crops, quarters, (1, 2)) for quarters in range(4)])
        features = net.features_of(angles).reshape(4, len(labels), -1)
        found["last layer"], found["shares alone"] = left_out(net, features, labels, field_of, replay)
    losses = {name: log_losses(each, labels) for name, each in found.items()}
    about = {"labelled": len(labels), "last_layer": is_better(losses)}
    about["log_loss"] = {name: float(each.mean()) for name, each in losses.items()}
    if not about["last_layer"]:
        return net, found["statistics"], about
    fitted = copy.deepcopy(net)
    weight, bias = fit_last(net, features.flatten(0, 1), torch.from_numpy(labels).repeat(4), replay)
    with torch.no_grad():
        fitted.last.weight.copy_(weight)
        fitted.last.bias.copy_(bias)
    return fitted, found["last layer"], about


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


def left_out(
    net: Typer, features: Tensor, labels: np.ndarray, field_of: np.ndarray, replay: dict[str, Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, K + 1] of labelled cells, of which ``features`` [4, N, F] of four angles are given, without the
    labels of their field (of a tenth of the fields, where there are more than ten): by a last layer that was fitted to
    the others; and of who knows only how frequent each type is among these. A stage that does no better has learned
    nothing from the labels, or they are wrong."""
    number = net.last.out_features
    fitted, by_shares = np.zeros((len(labels), number)), np.zeros((len(labels), number - 1))
    of_types = torch.from_numpy(labels)
    for fold in _folds(field_of):
        weight, bias = fit_last(net, features[:, ~fold].flatten(0, 1), of_types[~fold].repeat(4), replay)
        fitted[fold] = (features[0, fold] @ weight.T + bias).double().softmax(1).numpy()
        counts = np.bincount(labels[~fold], minlength=number - 1) + 1
        by_shares[fold] = counts / counts.sum()
    return fitted, by_shares


def _folds(fields: np.ndarray) -> Iterator[np.ndarray]:
    names = np.unique(fields)
    for part in np.array_split(names, min(10, len(names))):
        yield np.isin(fields, part)


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
