"""Models by name."""

from pathlib import Path
from typing import Any

from torch import nn

from hatlib.checkpoint import load_weights
from hatlib.errors import HatlibError
from hatlib.hub import load_saved
from hatlib.registry import build

__all__ = ["create_model"]


def create_model(
    name: str, pretrained: bool = False, *, checkpoint_path: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Builds a registered or a saved model.

    Args:
        name: `arch`, or `arch.tag` to name the weights: 'hat_s_x4', 'hat_x4.real_gan'; or a saved model, as a
            repository of the Hub, 'hf-hub:org/repo' or 'hf-hub:org/repo@revision', or a directory, 'local-dir:path'.
        pretrained: load the weights: those of the tag, of the arch's default tag, or those that were saved.
        checkpoint_path: a weight file to load instead (.pth, .safetensors, ...; see `hatlib.checkpoint`).
        **kwargs: constructor arguments that differ from the arch's, for example `in_chans=1`, to which weights are
            adapted; None means not given.

    Raises:
        HatlibError: if the name, an argument or a file is not right; the message says what to do.
    """
    if pretrained and checkpoint_path:
        raise HatlibError("Give either pretrained=True or checkpoint_path=..., not both: each brings its own weights.")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    saved = name.startswith(("hf-hub:", "local-dir:"))
    model = load_saved(name, pretrained, **kwargs) if saved else build(name, pretrained, **kwargs)
    if checkpoint_path:
        load_weights(model, checkpoint_path, adapt=bool(kwargs.keys() & {"in_chans", "out_chans"}))
    return model
