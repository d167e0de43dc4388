"""Several processes that train or validate as one, started by torchrun: how they begin, what they share, how they end.

Rank 0 leads: it alone writes files and prints. What models agree on within a step is in ``ops.ranks``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import LeukoError
from ..ops.ranks import place

T = TypeVar("T")


def by_torchrun() -> bool:
    """Whether torchrun has started several processes, of which this is one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def leads() -> bool:
    """Whether this process is rank 0, or alone."""
    return place()[0] == 0


def own_device(name: str) -> torch.device:
    """The device of this process, where ``--device`` is ``name``: each has a GPU of its own. LeukoError where GPUs are
    too few."""
    if name != "cuda" or not by_torchrun():
        return torch.device(name)
    local, processes = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise LeukoError(
            f"--device cuda: {processes} processes, and {gpus} GPUs on this machine; start one per GPU, or give "
            "--device cpu"
        )
    return torch.device(f"cuda:{local}")


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """For the block, be one of the processes that torchrun has started, if it has."""
    if not by_torchrun():
        yield
        return
    if device.type == "cuda":
        if device.index != int(os.environ["LOCAL_RANK"]):
            raise LeukoError(f"--device {device}: each process needs a GPU of its own; give --device cuda")
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LeukoError(
            "another of the processes that torchrun has started has ended, and says why above; start them all again, a "
            "training with --resume"
        ) from error
    dist.destroy_process_group()


# ---------------------------------------------------------------- rank 0 leads, the others help

_DO, _DONE, _FAILED = range(3)


def led(function: Callable[..., T], *arguments: Any) -> T:
    """What ``function(*arguments)`` gives on rank 0, on all ranks. Rank 0 calls it; meanwhile the others do the shares
    that it gives out (:func:`shared`). Where it raises LeukoError there, the others end in silence."""
    rank, ranks = place()
    if ranks == 1:
        return function(*arguments)
    if rank == 0:
        try:
            result = function(*arguments)
        except LeukoError:
            _sent((_FAILED, None, ()))
            raise
        _sent((_DONE, None, result))
        return result
    while True:
        what, share, content = _sent(None)
        if what == _DONE:
            return content
        if what == _FAILED:
            sys.exit(2)
        dist.gather_object(_attempt(share, *content))


def shared(share: Callable[..., T], *arguments: Any) -> list[T]:
    """``share(rank, ranks, *arguments)`` of every rank, called on rank 0 within :func:`led`. Tensors go to each rank's
    own device. Raises the LeukoError of any rank."""
    ranks = place()[1]
    if ranks == 1:
        return [share(0, 1, *arguments)]
    _sent((_DO, share, arguments))
    dist.gather_object(_attempt(share, *arguments), results := [None] * ranks)
    for result in results:
        if isinstance(result, LeukoError):
            raise result
    return results


def _attempt(share: Callable[..., T], *arguments: Any) -> T | LeukoError:
    try:
        return share(*place(), *arguments)
    except LeukoError as error:
        return error


def _sent(content: Any) -> Any:
    """What rank 0 sends to the others."""
    if not leads():
        dist.broadcast_object_list(box := [None])
        return torch.load(io.BytesIO(box[0]), weights_only=False, map_location=_own_device)
    torch.save(content, file := io.BytesIO())
    dist.broadcast_object_list([file.getvalue()])
    return content


def _own_device(storage: torch.UntypedStorage, device: str) -> torch.UntypedStorage:
    return storage.cuda() if device.startswith("cuda") else storage
