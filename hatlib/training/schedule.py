"""Learning rates as pure functions of the update, so that there is no scheduler whose state could be wrong."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatlib.training.config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, update: int) -> float:
    """The learning rate of an update; the first one is 1.

    During the warm-up it rises linearly to `lr`. After that it is `lr`, times `gamma` for each milestone that lies
    behind ('multistep', as torch's MultiStepLR that is stepped after each update), or half a cosine from `lr` to
    `lr_min` ('cosine'), or constant.

    Args:
        config: the section `train` of a configuration.
        update: 1 to `config.updates`.
    """
    if update <= config.warmup:
        return config.lr * update / config.warmup
    if config.schedule == "multistep":
        return config.lr * config.gamma ** bisect_left(config.milestones, update)
    if config.schedule == "cosine":
        progress = (update - 1 - config.warmup) / max(1, config.updates - config.warmup)
        return config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr
