"""The running mean of the weights during training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ModelEMA(nn.Module):
    """Exponential moving average of a model's parameters and buffers, in ``module``.

    The decay rises to ``decay`` as (1 + n) / (10 + n) over the updates n, so that a short training does not keep its
    first weights: at .999 and 770 updates, a constant decay would leave 46 % of them. (torch's ``AveragedModel`` sends
    its count to the GPU at each update, where a decay that depends on it is waited for.)
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay
        self.register_buffer("n_averaged", torch.tensor(0))  # it stays on the CPU
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        self._means = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]  # of BatchNorm

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights, after a step of the optimiser: two kernels, whatever their number."""
        n = int(self.n_averaged)
        (means, values), counters = zip(*self._means, strict=True), self._counters
        if n:
            torch._foreach_lerp_(means, values, 1 - min(self.decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(means, values)
        if counters:
            torch._foreach_copy_(*zip(*counters, strict=True))
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
