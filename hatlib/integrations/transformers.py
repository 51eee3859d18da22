"""hatlib's models in transformers (the extra `transformers`): import this module, and the Auto classes know them.

    import hatlib.integrations.transformers
    from transformers import AutoImageProcessor, AutoModelForImageToImage

    model = AutoModelForImageToImage.from_pretrained("org/repo")    # what `save_pretrained` or `push_to_hub` wrote
    processor = AutoImageProcessor.from_pretrained("org/repo")
    restored = model(**processor(image, return_tensors="pt")).reconstruction

Saved by transformers, a model still loads in hatlib and timm: parameter names stay without a prefix.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageToImage, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.modeling_outputs import ImageSuperResolutionOutput

from hatlib.errors import HatlibError
from hatlib.hub import MODEL_TYPE, PretrainedModel, build_from_config
from hatlib.hub.arguments import decode

__all__ = ["HatlibConfig", "HatlibForImageSuperResolution"]


class HatlibConfig(PretrainedConfig):
    """The config.json of a saved model.

    Args:
        architecture: registered name.
        model_args: constructor arguments.
        **kwargs: the rest of config.json, kept as it is.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, architecture: str | None = None, model_args: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        super().__init__(**kwargs)

    @classmethod
    def from_model(cls, model: PretrainedModel) -> "HatlibConfig":
        """The configuration of a model of ours."""
        return cls(**{key: value for key, value in model.config.items() if key != "model_type"})

    @property
    def upscale(self) -> int:
        """Output size over input size."""
        return self.model_args.get("upscale", 1)


class HatlibForImageSuperResolution(PreTrainedModel):
    """Any registered model as one of transformers.

    Args:
        config: says which.
    """

    config_class = HatlibConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RHAG", "RSTB", "ResidualGroup"]

    def __init__(self, config: HatlibConfig):
        super().__init__(config)
        if not config.architecture:
            raise HatlibError("config.json names no registered architecture; load it with its own class in hatlib.")
        arguments = {name: decode(value) for name, value in config.model_args.items()}
        self.model = build_from_config({"architecture": config.architecture, "model_args": arguments})
        self.post_init()

    @classmethod
    def from_model(cls, model: PretrainedModel) -> "HatlibForImageSuperResolution":
        """Wraps a model of ours, weights and all."""
        wrapped = cls(HatlibConfig.from_model(model))
        wrapped.model.load_state_dict(model.state_dict())
        return wrapped

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageSuperResolutionOutput | tuple[Tensor, ...]:
        """(B, in_chans, H, W) in [0, 1] -> `reconstruction`, (B, out_chans, upscale * H, upscale * W).

        Args:
            pixel_values: the images.
            labels: the images as they should come out; then `loss` is the mean absolute error, the paper's loss.
            return_dict: False gives a tuple.
            **kwargs: for other models.
        """
        reconstruction = self.model(pixel_values)
        loss = None if labels is None else nn.functional.l1_loss(reconstruction, labels)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (reconstruction,) if loss is None else (loss, reconstruction)
        return ImageSuperResolutionOutput(loss=loss, reconstruction=reconstruction)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, with the parameter names that hatlib and timm know."""
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
        super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # The model was initialized when it was made. What no file holds has to be computed again, because transformers
        # makes models on the meta device.
        if hasattr(module, "init_non_persistent_buffers"):
            with torch.no_grad():
                module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.model.set_grad_checkpointing(enable)


AutoConfig.register(MODEL_TYPE, HatlibConfig, exist_ok=True)
AutoModelForImageToImage.register(HatlibConfig, HatlibForImageSuperResolution, exist_ok=True)
register_checkpoint_conversion_mapping(MODEL_TYPE, [PrefixChange(prefix_to_add="model")], overwrite=True)
