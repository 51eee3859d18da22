"""What all restoration networks share: normalize, pad, trunk, head, crop; and timm's protocol for them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hatlib.blocks import create_head, pad_to_multiple
from hatlib.blocks.strips import HALO_STRIP_BYTES, apply_in_strips
from hatlib.errors import HatlibError
from hatlib.hub import PretrainedModel
from hatlib.models._adapt import adapt_channels, default_mean

__all__ = ["RestorationModel", "crop"]

# A pixel of the output depends on features less than three pixels away, whatever the head and the scale.
HEAD_HALO = 3


class RestorationModel(PretrainedModel):
    """A network that maps images to images: (B, in_chans, H, W) -> (B, out_chans, upscale * H, upscale * W).

    Images are float RGB in [0, 1], of any height and width from 1 up; the output is not clamped.

    A subclass builds `conv_first`, `layers` (the groups), `conv_after_body` and the head (`reset_upsampler`), and says
    in `to_trunk` and `from_trunk` what layout its groups work in.

    Args:
        upscale: output size over input size.
        in_chans: channels of the input.
        out_chans: channels of the output; as many as the input if None.
        img_range: factor by which the image is multiplied inside.
        mean: subtracted from the input and added to the output, one value a channel; by default DIV2K's mean for
            three channels and zero for others. Nothing is added where `out_chans` differs from `in_chans`.
        multiple: the trunk takes sides that are a multiple of this.
    """

    num_classes = 0  # timm asks every model
    # Measured in eager inference: feature maps that are alive at once in the trunk, at most, and maps of the head's
    # largest size.
    trunk_maps, head_maps = 9.0, 2.5
    grad_checkpointing = False

    def __init__(
        self,
        *,
        upscale: int,
        in_chans: int,
        out_chans: int | None,
        img_range: float,
        mean: Sequence[float] | None,
        multiple: int,
    ):
        super().__init__()
        if in_chans < 1 or (out_chans is not None and out_chans < 1):
            raise HatlibError(f"in_chans={in_chans} and out_chans={out_chans} must be 1 or more.")
        if not isinstance(upscale, int) or upscale < 1:
            raise HatlibError(f"upscale={upscale!r} must be a whole number, 1 or more.")
        if mean is None:
            mean = default_mean(in_chans)
        if len(mean) != in_chans:
            raise HatlibError(f"mean has {len(mean)} values for in_chans={in_chans} channels; give one a channel.")
        self.upscale = upscale
        self.in_chans = in_chans
        self.out_chans = out_chans or in_chans
        self.img_range = img_range
        self.mean_values = tuple(float(value) for value in mean)
        self.multiple = multiple
        self.init_non_persistent_buffers()

    def set_mean(self, mean: Sequence[float]) -> None:
        """Changes what is subtracted from the input and added to the output, one value a channel of the input."""
        self.mean_values = tuple(float(value) for value in mean)
        self._update_arguments(mean=self.mean_values)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Computes the buffers that no checkpoint holds (the hook that timm and transformers call)."""
        parameter = next(self.parameters(), torch.empty(0))
        mean = torch.tensor(self.mean_values, device=parameter.device, dtype=parameter.dtype)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)

    # What a subclass adds.

    def to_trunk(self, x: Tensor) -> Tensor:
        """From the first convolution's (B, C, H, W) to what the groups take."""
        return x

    def from_trunk(self, x: Tensor) -> Tensor:
        """From what the groups give to (B, C, H, W), normalized as the end of the trunk is."""
        return x

    def run_group(self, group: nn.Module, x: Tensor) -> Tensor:
        """group(x); where groups are single blocks, the place to checkpoint them."""
        return group(x)

    def group_output(self, x: Tensor) -> Tensor:
        """From what one group gives to (B, C, H, W), for `forward_intermediates`."""
        return x

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published key layouts of the family to ours."""
        return state_dict

    @classmethod
    def infer_from_layout(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments of those in `unrecoverable_args` that a published layout tells all the same."""
        return {}

    def published_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The model's weights, or those given in our layout, in the published layout."""
        return self.state_dict() if state_dict is None else state_dict

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights in our layout with the first and last convolution fitted to this model's channel counts.

        The model takes over the mean that belongs to them, unless it was given one.
        """
        return adapt_channels(self, state_dict, (getattr(self, "pretrained_model_args", None) or {}).get("mean"))

    # The way of an image.

    def forward(self, x: Tensor) -> Tensor:
        size, x = x.shape[-2:], self.prepare(x)
        return crop(self.reconstruct(self.trunk(x), x), *(side * self.upscale for side in size))

    def forward_window(self, x: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
        """forward(x)[:, :, top : top + height, left : left + width], with no more of the head than that takes.

        The trunk sees the whole image. It spares the most where gradients of a small window are wanted.

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
        features = self.trunk(x)
        rows, columns = (
            slice(max(0, start // self.upscale - HEAD_HALO), -(-(start + size) // self.upscale) + HEAD_HALO)
            for start, size in ((top, height), (left, width))
        )
        out = self.reconstruct(features[:, :, rows, columns], x[:, :, rows, columns])
        top, left = top - rows.start * self.upscale, left - columns.start * self.upscale
        return out[:, :, top : top + height, left : left + width]

    def reconstruct(self, features: Tensor, x: Tensor) -> Tensor:
        """From the trunk's features of a prepared image, and the image, to the output, still padded."""
        out = self.forward_head(features)
        if self.head_type.residual and self.in_chans == self.out_chans:
            out = out + x
        out = out / self.img_range
        return out + self.mean if self.in_chans == self.out_chans else out

    def prepare(self, x: Tensor) -> Tensor:
        """Checks, pads and normalizes an image (B, in_chans, H, W)."""
        if not torch.compiler.is_compiling():
            if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape:
                raise HatlibError(
                    f"The model takes images (B, {self.in_chans}, H, W) with H, W >= 1, not {tuple(x.shape)}."
                )
            if not x.is_floating_point():
                raise HatlibError(f"The model takes float images in [0, 1], not {x.dtype}; convert and divide first.")
        x = pad_to_multiple(x, self.multiple)
        x = (x - self.mean) * self.img_range
        # Channels last all the way: the groups of window attention then work on the same memory without a copy. A
        # traced graph finds its own layout, and asking for one would tie it to sizes.
        return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)

    def trunk(
        self, x: Tensor, intermediates: dict[int, Tensor | None] | None = None, stop_early: bool = False
    ) -> Tensor:
        """Deep features of a prepared image, (B, C, H, W); fills the groups' outputs into `intermediates`."""
        shallow = self.conv_first(x)
        x = self.to_trunk(shallow)
        for i, group in enumerate(self.layers):
            x = self.run_group(group, x)
            if intermediates is not None and i in intermediates:
                intermediates[i] = self.group_output(x)
                if stop_early and i == max(intermediates):
                    return intermediates[i]
        return self.conv_after_body(self.from_trunk(x)) + shallow

    def forward_features(self, x: Tensor) -> Tensor:
        """Features before the head: (B, in_chans, H, W) -> (B, num_features, H, W)."""
        height, width = x.shape[-2:]
        return crop(self.trunk(self.prepare(x)), height, width)

    def forward_head(self, x: Tensor) -> Tensor:
        """From features to the image, still normalized: (B, num_features, H, W) -> (B, out_chans, s * H, s * W)."""
        # The head's layers are children of the model, under their published names; its class says how they follow.
        return apply_in_strips(
            self, lambda part: self.head_type.forward(self, part), x, self.upscale, HEAD_HALO, self.head_width
        )

    def peak_memory(self, height: int, width: int, batch: int = 1) -> int:
        """Bytes that eager inference takes at its peak above the model, for images (batch, in_chans, height, width).

        Good to 25 % from about 128x128 on, on the CPU; a GPU's allocator wastes less.
        """
        itemsize = self.conv_first.weight.itemsize
        pixels = batch * math.prod(-(-side // self.multiple) * self.multiple for side in (height, width))
        feature_map = pixels * self.num_features * itemsize
        large = pixels * self.head_width * itemsize  # the head's largest temporary, in strips
        large /= math.ceil(large / HALO_STRIP_BYTES)
        image = pixels * self.out_chans * self.upscale**2 * itemsize
        trunk = self.trunk_maps * feature_map * _waste(feature_map)
        head = self.head_maps * large * _waste(large) + (2 * feature_map + image) * _waste(feature_map)
        return round(max(trunk, head))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the groups, each (B, num_features, H, W) at input size, as timm's protocol has it.

        Args:
            x: image, (B, in_chans, H, W).
            indices: the last n groups if a number, all if None, or the groups to take.
            norm: apply the trunk's last norm to each.
            stop_early: leave out the groups after the last one taken; implies `intermediates_only`.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: give the list alone, without the features.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise HatlibError(f"output_fmt={output_fmt!r} is not known; it is 'NCHW' or 'NHWC'.")
        height, width = x.shape[-2:]
        taken, _ = feature_take_indices(len(self.layers), indices)
        outputs: dict[int, Tensor | None] = dict.fromkeys(sorted(taken))
        features = self.trunk(self.prepare(x), outputs, stop_early)[:, :, :height, :width]
        maps = [outputs[i][:, :, :height, :width] for i in outputs]
        if norm and isinstance(getattr(self, "norm", None), nn.Module):
            maps = [self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for y in maps]
        if output_fmt == "NHWC":
            maps = [y.permute(0, 2, 3, 1) for y in maps]
        return maps if intermediates_only or stop_early else (features, maps)

    # timm's protocol, where it is about structure.

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry a group, for timm's `features_only`."""
        return [dict(num_chs=self.num_features, reduction=1, module=f"layers.{i}") for i in range(len(self.layers))]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the groups after the last one in `indices`, and the head: what `forward_intermediates` can spare."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm and hasattr(self, "norm"):
            self.norm = nn.Identity()
        if prune_head:
            self._remove_head()
        return taken

    def reset_upsampler(self, scale: int, upsampler: str | None = None) -> None:
        """Gives the network a new, untrained head.

        Args:
            scale: the new output size over input size.
            upsampler: kind of head, see `hatlib.blocks.create_head`; the present one if None.
        """
        upsampler = self.upsampler if upsampler is None else upsampler
        head = create_head(upsampler, self.num_features, self.out_chans, scale, self.num_feat)
        weight = self.conv_first.weight
        self._remove_head()
        for name, child in head.named_children():
            self.add_module(name, child.to(weight.device, weight.dtype))
        self.head_type, self.head_width, self.upsampler, self.upscale = type(head), head.width, upsampler, scale
        self._update_arguments(upsampler=upsampler, upscale=scale)

    def get_head(self) -> nn.ModuleDict:
        """The layers of the head, by name."""
        return nn.ModuleDict({name: getattr(self, name) for name in self._head_names()})

    def _head_names(self) -> list[str]:
        names = [name for name, _ in self.named_children()]
        return [n for n in names if n in ("conv_before_upsample", "upsample", "conv_hr", "conv_last") or "conv_up" in n]

    def _remove_head(self) -> None:
        for name in self._head_names():
            delattr(self, name)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: each block's activations are computed again in the backward pass."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone (beside biases and norms)."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that divide the parameters into stem, groups (or blocks) and head, for layer-wise learning rates."""
        block = r"^layers\.(\d+)\.residual_group\.blocks\.(\d+)"
        blocks = [(r"^layers\.(\d+)", None)] if coarse else [(block, None), (r"^layers\.(\d+)", (98,))]
        # What matches nothing, the head, counts as the last group.
        return dict(stem=r"^(?:conv_first|patch_embed)\b", blocks=[*blocks, (r"^(?:norm|conv_after_body)\b", (99999,))])


def _waste(size: float) -> float:
    """How much the C library's allocator takes for tensors of `size` bytes: it maps those from 32 MiB on one by one."""
    return 1.0 if size >= 32 * 2**20 else 1.25


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The top left of (B, C, H, W)."""
    if not torch.compiler.is_compiling():
        return x[:, :, :height, :width]
    # By index, because a slice ties the graph to whether anything is cut off.
    x = x.index_select(2, torch.arange(height, device=x.device))
    return x.index_select(3, torch.arange(width, device=x.device))
