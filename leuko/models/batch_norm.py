"""BatchNorm that learns from a batch which several processes share, or from nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import ranks


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics, in training, are those of all ranks' maps; an empty batch changes none."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> BatchNorm:
        """In place of another, with its parameters and, in timm, its activation."""
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        own.__dict__.update(norm.__dict__)
        return own

    def forward(self, x: Tensor) -> Tensor:
        usual = not self.training or (ranks.place()[1] == 1 and len(x))
        x = super().forward(x) if usual else self._over_ranks(x.float()).to(x.dtype)
        return self.act(x) if hasattr(self, "act") else x

    def _over_ranks(self, x: Tensor) -> Tensor:
        def shaped(value: Tensor) -> Tensor:
            return value[:, None, None]

        cells = ranks.total(x.new_tensor(x[:, 0].numel()))
        mean = ranks.total(x.sum((0, 2, 3))) / cells.clamp(min=1)
        centred = x - shaped(mean)
        var = ranks.total(centred.square().sum((0, 2, 3))) / cells.clamp(min=1)
        with torch.no_grad():
            momentum = self.momentum * (cells > 0)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * cells / (cells - 1).clamp(min=1), momentum)
            self.num_batches_tracked += cells > 0
        return centred * shaped((var + self.eps).rsqrt() * self.weight) + shaped(self.bias)


def over_ranks(network: nn.Module) -> None:
    """Let each BatchNorm that follows the batches, in place, follow those of all ranks."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child.training and not isinstance(child, BatchNorm):
                setattr(parent, name, BatchNorm.of(child))
