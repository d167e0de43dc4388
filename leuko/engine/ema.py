"""The running mean of the weights during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEMA(AveragedModel):
    """Exponential moving average of a model's parameters and buffers, updated after each step of the optimiser.

    The decay rises to ``decay`` as (1 + n) / (10 + n) over the updates n, so that a short training does not keep its
    first weights: at .999 and 770 updates, a constant decay would leave 46 % of them.
    """

    def __init__(self, model: nn.Module, decay: float):
        def average(means: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
            if not torch.is_floating_point(means[0]):  # counters of BatchNorm
                torch._foreach_copy_(means, values)
                return
            n = int(updates)
            torch._foreach_lerp_(means, values, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(model, multi_avg_fn=average, use_buffers=True)
