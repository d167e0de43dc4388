"""The learning rate at each step: linear warm-up, then two drops to a tenth."""

from __future__ import annotations

from collections.abc import Callable

DROPS = (8 / 12, 11 / 12)  # of all epochs, as in the field's 12-epoch schedule; 11 and 15 of 16
WARMUP_START = 0.001

Schedule = Callable[[int], float]


def step_schedule(base: float, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> Schedule:
    """The learning rate of a step (0-based, over all epochs): from ``base`` / 1000 to ``base`` over the warm-up, and a
    tenth after each drop."""

    def learning_rate(step: int) -> float:
        epoch = step // steps_per_epoch
        rate = base * 0.1 ** sum(epoch >= round(drop * epochs) for drop in DROPS)
        warmup_steps = warmup_epochs * steps_per_epoch
        if step < warmup_steps:
            rate *= WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
        return rate

    return learning_rate
