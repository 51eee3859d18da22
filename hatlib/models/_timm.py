"""timm's protocol for networks with groups: features, intermediate outputs, pruning, layer-wise learning rates."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hatlib.errors import HatlibError

__all__ = ["TimmProtocol", "crop"]


class TimmProtocol:
    """Mixin of `RestorationModel` with the methods that timm calls on every model."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Features before the head: (B, in_chans, H, W) -> (B, num_features, H, W)."""
        height, width = x.shape[-2:]
        return crop(self.trunk(self.prepare(x)), height, width)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the groups, each (B, num_features, H, W) at input size, as in timm's protocol.

        Args:
            x: image, (B, in_chans, H, W).
            indices: the last n groups if a number, all if None, or the groups to take.
            norm: apply the last norm of the trunk to each.
            stop_early: leave out the groups after the last one taken; implies `intermediates_only`.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: return the list alone, without the features.

        Raises:
            HatlibError: if `output_fmt` is unknown.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise HatlibError(f"output_fmt={output_fmt!r} is not known; it is 'NCHW' or 'NHWC'.")
        height, width = x.shape[-2:]
        taken, last = feature_take_indices(len(self.layers), indices)
        shallow = self.conv_first(self.prepare(x))
        y = self.begin_trunk(self.from_nchw(shallow))
        maps = []
        for i, group in enumerate(self.layers):
            y = self.run_group(group, y)
            if i in taken:
                z = self.to_nchw(self.end_trunk(y) if norm else y)[:, :, :height, :width]
                maps.append(z if output_fmt == "NCHW" else z.permute(0, 2, 3, 1))
            if i == last and (intermediates_only or stop_early):
                return maps
        features = self.conv_after_body(self.to_nchw(self.end_trunk(y))) + shallow
        return features[:, :, :height, :width], maps

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry per group, for timm's `features_only`."""
        return [dict(num_chs=self.num_features, reduction=1, module=f"layers.{i}") for i in range(len(self.layers))]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what `forward_intermediates` does not need: the groups after the last one in `indices`, the head."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm and hasattr(self, "norm"):
            self.norm = nn.Identity()
        if prune_head:
            self._remove_head()
        return taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: the activations of each block are recomputed in the backward pass."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay (in addition to biases and norms)."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that divide the parameters into stem, groups (or blocks) and head, for layer-wise learning rates."""
        block = r"^layers\.(\d+)\.residual_group\.blocks\.(\d+)"
        blocks = [(r"^layers\.(\d+)", None)] if coarse else [(block, None), (r"^layers\.(\d+)", (98,))]
        # What matches nothing, the head, counts as the last group.
        return dict(stem=r"^(?:conv_first|patch_embed)\b", blocks=[*blocks, (r"^(?:norm|conv_after_body)\b", (99999,))])


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The top left of (B, C, H, W)."""
    if not torch.compiler.is_compiling():
        return x[:, :, :height, :width]
    # By index, because a slice ties the graph to whether anything is cut off.
    x = x.index_select(2, torch.arange(height, device=x.device))
    return x.index_select(3, torch.arange(width, device=x.device))
