"""Models by name."""

from pathlib import Path
from typing import Any

from torch import nn

from hatlib.checkpoint import load_weights
from hatlib.errors import HatlibError
from hatlib.registry import entry_point, model_info, split_name

__all__ = ["create_model"]


def create_model(
    name: str, pretrained: bool = False, *, checkpoint_path: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Builds a registered model.

    Args:
        name: `arch`, or `arch.tag` to name the weights: 'hat_s_x4', 'hat_x4.real_gan'.
        pretrained: load the published weights of the tag, or of the arch's default tag.
        checkpoint_path: a weight file to load instead (.pth, .safetensors, ...; see `hatlib.checkpoint`).
        **kwargs: constructor arguments that differ from the arch's, for example `in_chans=1`; None means not given.

    Raises:
        HatlibError: if the name, an argument or a file is not right; the message says what to do.
    """
    if pretrained and checkpoint_path:
        raise HatlibError("Give either pretrained=True or checkpoint_path=..., not both: each brings its own weights.")
    info = model_info(name)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    tag = split_name(name)[1]
    if tag:
        kwargs.setdefault("pretrained_cfg", tag)
    model = entry_point(info.arch)(pretrained=pretrained, **kwargs)
    if checkpoint_path:
        load_weights(model, checkpoint_path)
    return model

