"""Models that FSDP2 divides among processes: whole again for the averaged weights and the checkpoints.

Without FSDP2 these functions do what their name says and no more. With it, all processes must call them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

__all__ = ["load_optimizer_state", "optimizer_state", "update_average", "whole", "whole_state"]


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts that other processes hold."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model."""
    return {name: whole(value) for name, value in model.state_dict().items()}


def update_average(ema: ModelEmaV3, model: nn.Module, update: int) -> None:
    """Moves averaged weights, which each process holds whole, towards a model's."""
    weights = whole_state(model)
    ema.update(SimpleNamespace(state_dict=lambda: weights), step=update)  # all that timm asks of a model


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer of the model; by names of parameters with FSDP2, else by their numbers."""
    if not _is_sharded(model):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Takes back what `optimizer_state` gave."""
    if not _is_sharded(model):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(model, optimizer, dict(state), options=StateDictOptions(full_state_dict=True))


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
