"""What the processes that train one batch together agree on. Where a process is alone, nothing is exchanged.

Of W processes ("ranks"), rank r holds the images r, r + W, r + 2W ... of a batch; losses and gradients are averaged
over ranks. All ranks call each of these functions equally often and in the same order, those without a cell, too.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4096  # random numbers are drawn in multiples of it


def place() -> tuple[int, int]:
    """The rank of this process, and the number of ranks; (0, 1) where it is alone."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(_: object, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient.contiguous())


def total(value: Tensor) -> Tensor:
    """The sum over ranks, through which gradients flow."""
    return _Total.apply(value) if place()[1] > 1 else value


def mean(value: Tensor) -> Tensor:
    """The mean over ranks."""
    ranks = place()[1]
    return total(value) / ranks if ranks > 1 else value


def normaliser(number: Tensor | float, device: torch.device, least: float = 1.0) -> Tensor | float:
    """What a rank divides a sum of its losses by, so that the mean over ranks is the sum over the whole batch, divided
    by the total of ``number`` (of positives, for example) or by ``least``, where that is more."""
    ranks = place()[1]
    if ranks == 1:
        return number.clamp(min=least) if isinstance(number, Tensor) else max(number, least)
    return total(torch.as_tensor(number, dtype=torch.float32, device=device)).clamp(min=least) / ranks


def largest(*numbers: int) -> tuple[int, ...]:
    """Each number's maximum over ranks. They are exchanged on the CPU, so that no GPU is waited for."""
    if place()[1] == 1:
        return numbers
    dist.all_reduce(value := torch.tensor(numbers), dist.ReduceOp.MAX)
    return tuple(value.tolist())


def smallest(keys: Tensor, number: int) -> Tensor:
    """Indices of those keys [R] that are among the ``number`` smallest of all ranks."""
    order = keys.argsort()[:number]
    ranks = place()[1]
    if ranks == 1:
        return order
    padded = F.pad(keys[order], (0, number - len(order)), value=torch.inf)
    dist.all_gather(gathered := [torch.empty_like(padded) for _ in range(ranks)], padded)
    return order[keys[order] <= torch.cat(gathered).sort().values[number - 1]]


def random(rows: int, columns: int, device: torch.device) -> Tensor:
    """Random numbers in 0..1 for each of this rank's images: [rows, columns]. What an image gets depends on its place
    in the batch, not on the number of ranks, nor on how many columns are padding; the seed comes from torch's own
    generator, which each step seeds alike on all ranks."""
    rank, ranks = place()
    start, generator = int(torch.randint(2**62, ())), torch.Generator(device)
    whole = -(-columns // BLOCK) * BLOCK
    drawn = []
    for i in range(rank, rows * ranks, ranks):  # one by one: a GPU draws other numbers where they are more
        drawn.append(torch.rand(whole, generator=generator.manual_seed(start + i), device=device)[:columns])
    return torch.stack(drawn)
