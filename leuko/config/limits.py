"""What all options share: the limits of their numbers, beside its default in a field, and their check."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from ..errors import LeukoError

POSITIONAL = {"positional": True}  # metadata of an option that is given by its place on the command line
MOST = 2**31 - 1  # of any number that an option takes
MAX_PIXELS = 80  # megapixels of an image that is read: its decoding then takes at most 1 GB
MOST_SIDE = 8192  # pixels to which the longer side of an image is scaled
MOST_DETECTIONS = 10_000  # that --max-detections may ask for


class Limits(NamedTuple):
    """The numbers that an option takes: from ``least``, or only ``above`` it, to ``most``, or only ``below`` it; and 0,
    where ``or_zero`` gives that a meaning of its own."""

    least: float = -MOST
    most: float = MOST
    above: bool = False
    below: bool = False
    or_zero: bool = False

    def allow(self, number: float) -> bool:
        """Whether the option takes a number; never nan."""
        is_end = (self.above and number == self.least) or (self.below and number == self.most)
        return (self.least <= number <= self.most and not is_end) or (self.or_zero and number == 0)

    def __str__(self) -> str:
        low, high = "above" if self.above else "from", "to below" if self.below else "to"
        return f"{low} {self.least:,} {high} {self.most:,}{', or 0' if self.or_zero else ''}"


def limited(default: Any, *limits: float, **more: bool) -> Any:
    """An option, a number or a list of numbers, with its :class:`Limits`."""
    return field(default=default, metadata={"limits": Limits(*limits, **more)})


SIZES = (64, MOST_SIDE)  # limits of --imgsz
SEEDS = (0, MOST)
SHARE = (0, 1)
DETECTIONS = (1, MOST_DETECTIONS)
PIXELS = (1, 1000)
WORKERS = (-1, 256)


@dataclass
class Options:
    """The options of a command. LeukoError that names the flag where a number is out of its limits, or a text holds a
    zero byte, as no name of a file can."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            for item in value if isinstance(value, list | tuple) else [value]:
                _check(each, item)


def _check(option: Field, value: object) -> None:
    limits = option.metadata.get("limits", Limits())
    if isinstance(value, str) and "\0" in value:
        raise LeukoError(f"{flag(option.name)} {value:.40}: holds a zero byte; write it anew")
    if isinstance(value, int | float) and not limits.allow(value):
        raise LeukoError(f"{flag(option.name)} {value!r:.40}: give a number {limits}")


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return "--" + name.replace("_", "-")
