"""Models by name and from weight files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatlib.checkpoint import UnknownArchitectureError, load_detected, load_weights, read_state_dict
from hatlib.errors import HatlibError
from hatlib.hub import load_saved
from hatlib.networks import build

__all__ = ["create_model", "load_checkpoint"]


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


def load_checkpoint(
    path: str | Path, *, ema: bool | None = None, dtype: torch.dtype | str | None = None, **overrides: Any
) -> nn.Module:
    """Builds the network that a weight file belongs to and loads the weights, in eval mode.

    The family and every constructor argument that shapes reveal are detected. Arguments that weights cannot reveal (for
    HAT conv_scale, img_range, mean and qk_scale) are read from the header of a file written by hatlib. For other files
    they take the published values, and a warning says so unless the file is a published one. A network that does not
    belong to a family of hatlib is loaded by spandrel (the extra `spandrel`) as a `hatlib.engines.ForeignModel`.

    Args:
        path: .safetensors, .pth, .pt, .ckpt or .bin.
        ema: see `hatlib.checkpoint.read_state_dict`.
        dtype: type of the weights; float32 if None, as in the file if 'auto'.
        **overrides: constructor arguments that replace the detected ones.

    Raises:
        HatlibError: if the file cannot be read, or the architecture is unknown.
    """
    try:
        model, saved_dtype = load_detected(path, ema, True, overrides)
    except UnknownArchitectureError:
        from hatlib.engines import load_foreign

        model, saved_dtype = load_foreign(read_state_dict(path, ema), str(path), overrides), None
    return model.to(dtype=saved_dtype if dtype == "auto" else dtype).eval()
