"""Base classes of the networks: range, padding and cropping of images; stem, groups, tail and head; timm's protocol."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hatlib.blocks import Head, pad_to_multiple, residual_conv, run_block, strips
from hatlib.errors import HatlibError
from hatlib.hub import PretrainedModel
from hatlib.models._adapt import adapt_channels, default_mean
from hatlib.models._timm import TimmProtocol, crop
from hatlib.registry import heads

__all__ = ["ImageModel", "RestorationModel"]


class ImageModel(PretrainedModel):
    """A network from images to images: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Images are float RGB in [0, 1] of any height and width; the output is not clamped. This class checks, pads and
    normalizes the input, and crops and denormalizes the output. A subclass implements `reconstruct`.

    Args:
        upscale: output size over input size.
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        img_range: factor by which the image is multiplied inside.
        mean: subtracted from the input and added to the output, one value per channel; DIV2K's RGB mean for three
            channels and zero for others if None. Nothing is added where `out_chans` differs from `in_chans`.
        multiple: images are padded to sides that are a multiple of this.

    Raises:
        HatlibError: for arguments that do not go together.
    """

    num_classes = 0  # timm reads it from every model
    mean: Tensor

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        *,
        out_chans: int | None = None,
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        multiple: int = 1,
    ):
        super().__init__()
        if in_chans < 1 or (out_chans is not None and out_chans < 1):
            raise HatlibError(f"in_chans={in_chans} and out_chans={out_chans} must be 1 or more.")
        if not isinstance(upscale, int) or upscale < 1:
            raise HatlibError(f"upscale={upscale!r} must be a whole number, 1 or more.")
        mean = default_mean(in_chans) if mean is None else mean
        if len(mean) != in_chans:
            raise HatlibError(f"mean has {len(mean)} values for in_chans={in_chans} channels; give one per channel.")
        self.upscale = upscale
        self.in_chans = in_chans
        self.out_chans = out_chans or in_chans
        self.img_range = img_range
        self.mean_values = tuple(float(value) for value in mean)
        self.multiple = multiple
        self.init_non_persistent_buffers()

    def set_mean(self, mean: Sequence[float]) -> None:
        """Changes the mean that is subtracted from the input and added to the output, one value per input channel."""
        self.mean_values = tuple(float(value) for value in mean)
        self._update_arguments(mean=self.mean_values)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the buffers that no checkpoint holds (the hook that timm and transformers call)."""
        parameter = next(self.parameters(), torch.empty(0))
        mean = torch.tensor(self.mean_values, device=parameter.device, dtype=parameter.dtype)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The network itself, for a padded and normalized image.

        (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W); H and W are multiples of `multiple`.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = self.denormalize(self.reconstruct(self.prepare(x)))
        return crop(y, *(side * self.upscale for side in size))

    def prepare(self, x: Tensor) -> Tensor:
        """Checks, pads and normalizes an image: (B, in_chans, H, W) -> (B, in_chans, H', W')."""
        if not torch.compiler.is_compiling():
            if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape:
                raise HatlibError(
                    f"The model takes images (B, {self.in_chans}, H, W) with H, W >= 1, got {tuple(x.shape)}."
                )
            if not x.is_floating_point():
                raise HatlibError(f"The model takes float images in [0, 1], got {x.dtype}; convert and divide first.")
        x = (pad_to_multiple(x, self.multiple) - self.mean) * self.img_range
        # Channels last throughout: window attention then works on the same memory without a copy. A traced graph finds
        # its own layout, and asking for one would tie the graph to sizes.
        return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)

    def denormalize(self, y: Tensor) -> Tensor:
        """Undoes the normalization of `prepare` on an output."""
        y = y / self.img_range
        return y + self.mean if self.in_chans == self.out_chans else y


class RestorationModel(TimmProtocol, ImageModel):
    """Stem, groups, tail and head: head(conv_after_body(layers(conv_first(x))) + conv_first(x)).

    A subclass fills `self.layers` with its groups, and states in `layout` what they take and return. The base class
    builds the rest. What follows the constructor of the subclass (checks, gradient checkpointing) runs
    once, after the outermost constructor. Parts initialize their own weights.

    Args:
        upscale: output size over input size.
        dim: channels of the features.
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        img_range: factor by which the image is multiplied inside.
        mean: see `ImageModel`.
        multiple: images are padded to sides that are a multiple of this, for example the window size.
        upsampler: the head: a registered name, `{name: options}`, a subclass of `hatlib.blocks.Head`, or an instance.
        num_feat: channels inside the head, where the head has a choice.
        resi_connection: kind of `conv_after_body`, see `hatlib.blocks.residual_conv`.
        use_checkpoint: enables gradient checkpointing, as `set_grad_checkpointing()` does.

    Raises:
        HatlibError: for arguments that do not go together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hatlib.blocks import RCAB
        >>> from hatlib.models import RestorationModel
        >>> class PlainNet(RestorationModel):
        ...     def __init__(self, upscale=2, dim=16, *, depth=2, **common):
        ...         super().__init__(upscale, dim, **common)
        ...         self.layers = nn.ModuleList(RCAB(dim, 4) for _ in range(depth))
        >>> PlainNet(img_range=255.0)(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 18, 14])
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    # Measured in eager inference on a CPU: feature maps that are alive at once in the trunk, at most, and maps of the
    # head's largest size.
    trunk_maps, head_maps = 9.0, 2.5
    grad_checkpointing = False
    layers: nn.ModuleList
    head: Head

    def __init__(
        self,
        upscale: int = 4,
        dim: int = 64,
        *,
        in_chans: int = 3,
        out_chans: int | None = None,
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        multiple: int = 1,
        upsampler: Any = "pixelshuffle",
        num_feat: int = 64,
        resi_connection: str = "1conv",
        use_checkpoint: bool = False,
    ):
        super().__init__(upscale, in_chans, out_chans=out_chans, img_range=img_range, mean=mean, multiple=multiple)
        self.num_features = dim
        self.head_hidden_size = self.num_feat = num_feat
        self._use_checkpoint = use_checkpoint
        self.conv_first = nn.Conv2d(in_chans, dim, 3, 1, 1)
        self.conv_after_body = residual_conv(dim, resi_connection)
        self.reset_upsampler(upscale, "" if upsampler is None else upsampler)

    def post_init(self) -> None:
        super().post_init()
        name = type(self).__name__
        if self.layout not in ("NCHW", "NHWC"):
            raise HatlibError(f"layout={self.layout!r} of {name} is not known; it is 'NCHW' or 'NHWC'.")
        built = self.__dict__.pop("_built")  # the parts of the head, as `reset_upsampler` added them
        if taken := [part for part in built if getattr(self, part, None) is not built[part]]:
            raise HatlibError(f"{name} sets {taken[0]!r}, a name of its head {type(self.head).__name__}; rename it.")
        if not isinstance(self.__dict__["_modules"].get("layers"), nn.ModuleList) or not len(self.layers):
            raise HatlibError(
                f"{name} has no groups: its constructor must set self.layers to a non-empty nn.ModuleList."
            )
        # The order in which an image passes, for `print(model)`.
        for module in ("norm", "conv_after_body", *self.head_modules):
            if module in self._modules:
                self._modules[module] = self._modules.pop(module)
        if self._use_checkpoint:
            self.set_grad_checkpointing()

    # The path of an image.

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.run_head(self.trunk(x), x)

    def trunk(self, x: Tensor) -> Tensor:
        """Deep features of a prepared image: (B, in_chans, H, W) -> (B, num_features, H, W)."""
        shallow = self.conv_first(x)
        x = self.begin_trunk(self.from_nchw(shallow))
        for group in self.layers:
            x = self.run_group(group, x)
        return self.conv_after_body(self.to_nchw(self.end_trunk(x))) + shallow

    def run_group(self, group: nn.Module, x: Tensor) -> Tensor:
        """group(x); a group that does not checkpoint its own blocks is checkpointed as a whole."""
        checkpointing = self.grad_checkpointing and not any(hasattr(m, "grad_checkpointing") for m in group.modules())
        return run_block(group, x, checkpointing)

    def begin_trunk(self, x: Tensor) -> Tensor:
        """What happens to shallow features before the first group, in the layout of the groups."""
        return x

    def end_trunk(self, x: Tensor) -> Tensor:
        """What happens to features after the last group, in the layout of the groups."""
        return x

    def from_nchw(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) in the layout of the groups."""
        return x if self.layout == "NCHW" else x.permute(0, 2, 3, 1)

    def to_nchw(self, x: Tensor) -> Tensor:
        """Features in the layout of the groups as (B, C, H, W)."""
        return x if self.layout == "NCHW" else x.permute(0, 3, 1, 2)

    def run_head(self, features: Tensor, x: Tensor) -> Tensor:
        """From the features of a prepared image x to the output, still normalized."""
        y = self.forward_head(features)
        expected = (self.out_chans, features.shape[2] * self.upscale, features.shape[3] * self.upscale)
        if not torch.compiler.is_compiling() and tuple(y.shape[1:]) != expected:
            raise HatlibError(f"The head {type(self.head).__name__} returned {tuple(y.shape)}, not (B, *{expected}).")
        return y + x if self.head.residual and self.in_chans == self.out_chans else y

    def forward_head(self, x: Tensor) -> Tensor:
        """From features to the image, still normalized: (B, num_features, H, W) -> (B, out_chans, s * H, s * W)."""
        return strips.head(self.head, x) if strips.use_strips(self, x) else self.head(x)

    def forward_window(self, x: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
        """forward(x)[:, :, top : top + height, left : left + width], with no more of the head than that needs.

        The trunk processes the whole image. This saves most where gradients of a small window are wanted.

        Args:
            x: image, (B, in_chans, H, W).
            left: first column of the window, in pixels of the output; the window lies within the output.
            top: first row of the window.
            width: columns of the window.
            height: rows of the window.

        Returns:
            (B, out_chans, height, width)
        """
        x = self.prepare(x)
        features, scale, halo = self.trunk(x), self.upscale, self.head.halo
        if halo is None:
            rows, columns = slice(0, x.shape[2]), slice(0, x.shape[3])
        else:
            rows, columns = (
                slice(max(0, start // scale - halo), -(-(start + size) // scale) + halo)
                for start, size in ((top, height), (left, width))
            )
        y = self.denormalize(self.run_head(features[:, :, rows, columns], x[:, :, rows, columns]))
        top, left = top - rows.start * scale, left - columns.start * scale
        return y[:, :, top : top + height, left : left + width]

    # The head, whose layers belong to the model.

    def reset_upsampler(self, scale: int, upsampler: Any = None) -> None:
        """Gives the network a new, untrained head.

        The published names of the head's layers have no prefix, so the model takes over the modules, parameters and
        buffers of the head. The head keeps using them through the model's own dictionaries, where a layer that is
        replaced is found too. The head itself is not a child of the model.

        Args:
            scale: the new output size over input size.
            upsampler: the head, as in the constructor; the present one if None.

        Raises:
            HatlibError: if there is no such head, or one of its names is taken.
        """
        upsampler = self.upsampler if upsampler is None else upsampler
        if isinstance(upsampler, type) and not issubclass(upsampler, Head):
            raise HatlibError(f"upsampler={upsampler.__name__} is not a head; derive it from hatlib.blocks.Head.")
        if getattr(upsampler, "attached", False):
            raise HatlibError(
                f"The head {type(upsampler).__name__} belongs to a model already; pass its class or name."
            )
        head = heads.create(
            upsampler, dim=self.num_features, out_chans=self.out_chans, scale=scale, num_feat=self.num_feat
        )
        if not isinstance(head, Head):
            raise HatlibError(f"upsampler={upsampler!r} is not a head; derive it from hatlib.blocks.Head.")
        if head.scale != scale:
            raise HatlibError(f"The head {type(head).__name__} has scale {head.scale}, not {scale}.")
        weight = self.conv_first.weight
        head.to(weight.device, weight.dtype).train(self.training)
        names = (*head._modules, *head._parameters, *head._buffers)
        if taken := [name for name in names if hasattr(self, name) and name not in getattr(self, "head_names", ())]:
            raise HatlibError(f"{taken[0]!r} of the head {type(head).__name__} is a name of the model; rename it.")
        if "head" in self.__dict__:
            self._remove_head()
        self.head_modules, self.head_names = tuple(head._modules), names
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table].update(head.__dict__[table])
        self._non_persistent_buffers_set |= head._non_persistent_buffers_set
        for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            head.__dict__[table] = self.__dict__[table]
        # Not children: the parameters would be listed twice.
        self.__dict__["head"], head.attached = head, True
        self.__dict__["upsampler"], self.upscale = upsampler, scale
        self._update_arguments(upsampler=upsampler, upscale=scale)
        if "_capturing" in self.__dict__:  # during construction
            self.__dict__["_built"] = {name: getattr(self, name) for name in names}

    def init_non_persistent_buffers(self) -> None:
        """Computes the buffers that no checkpoint holds, those of the head included."""
        super().init_non_persistent_buffers()
        if "head" in self.__dict__:
            self.head.init_non_persistent_buffers()

    def get_head(self) -> nn.ModuleDict:
        """The layers of the head, by name."""
        return nn.ModuleDict({name: getattr(self, name) for name in self.head_modules})

    def _remove_head(self) -> None:
        for name in self.head_names:
            if hasattr(self, name):
                delattr(self, name)
        self.head_modules = self.head_names = ()

    def train(self, mode: bool = True) -> "RestorationModel":
        """Sets training mode on the network and its head, which is not a child."""
        super().train(mode)
        if "head" in self.__dict__:
            self.head.training = mode
        return self

    def _replicate_for_data_parallel(self) -> Any:
        raise HatlibError("nn.DataParallel cannot copy the head of a model; use DistributedDataParallel (torchrun).")

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], source_mean: Sequence[float] | None = None
    ) -> tuple[dict[str, Tensor], tuple[float, ...] | None]:
        """Weights in our layout with the first and last convolution fitted to this model's channel counts.

        Args:
            state_dict: the weights, which are left as they are.
            source_mean: mean of the network that was trained; the published one if None.

        Returns:
            The fitted weights, and the mean that belongs to them if the model was not given one (else None).

        Raises:
            HatlibError: if the head has no convolution that can be fitted.
        """
        return adapt_channels(self, state_dict, source_mean)
