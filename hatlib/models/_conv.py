"""What EDSR and RCAN share: residual convolutions, a pixel shuffle, images in [0, 255] inside, and key layouts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from hatlib.errors import HatlibError
from hatlib.models._keys import KeyTable
from hatlib.models._mean_shift import drop_mean_shift, infer_mean_shift, with_mean_shift
from hatlib.models.base import RestorationModel
from hatlib.models.detect import detect_head

__all__ = ["BASICSR", "ORIGINAL", "ConvModel", "detect_ends"]

ORIGINAL, BASICSR = "original", "basicsr"


class ConvModel(RestorationModel):
    """First convolution, residual groups or blocks, a convolution with a skip around them, and a head.

    Args:
        upscale: output size over input size.
        in_chans: channels of the input.
        num_feat: channels of the whole network.
        layers: the groups or blocks, (B, num_feat, H, W) -> (B, num_feat, H, W).
        out_chans: channels of the output; as many as the input if None.
        num_in_ch: BasicSR's name of `in_chans`.
        num_out_ch: BasicSR's name of `out_chans`.
        mean: see `RestorationModel`.
        rgb_mean: BasicSR's name of `mean`.
        **common: as in `RestorationModel`.

    Raises:
        HatlibError: for arguments that do not go together.
    """

    # Names of the modules in our layout, the authors' (EDSR-PyTorch) and BasicSR's.
    keys: ClassVar[KeyTable]
    unrecoverable_args = ("img_range", "mean", "res_scale")
    training_only_args = ("use_checkpoint",)
    trunk_maps, head_maps = 5.0, 2.1

    def __init__(
        self,
        upscale: int,
        in_chans: int,
        *,
        num_feat: int,
        layers: Sequence[nn.Module],
        out_chans: int | None,
        num_in_ch: int | None,
        num_out_ch: int | None,
        mean: Sequence[float] | None,
        rgb_mean: Sequence[float] | None,
        **common: Any,
    ):
        in_chans, out_chans = num_in_ch or in_chans, num_out_ch or out_chans
        mean = mean if rgb_mean is None else rgb_mean
        super().__init__(
            upscale, num_feat, in_chans=in_chans, out_chans=out_chans, mean=mean, num_feat=num_feat, **common
        )
        # Only one of two names is kept, so that a change of the one is not undone by the other.
        self._update_arguments(in_chans=in_chans, out_chans=out_chans, mean=mean)
        self._update_arguments(num_in_ch=None, num_out_ch=None, rgb_mean=None)
        self.layers = nn.ModuleList(layers)

    def reset_upsampler(self, scale: int, upsampler: Any = None) -> None:
        """Gives the network a new, untrained head; see `RestorationModel`."""
        if (self.upsampler if upsampler is None else upsampler) == "":
            raise HatlibError(
                f"{type(self).__name__} has no upsampler='', whose weights could not be distinguished from those of "
                "'pixelshuffle+conv' at scale 1: take that."
            )
        super().reset_upsampler(scale, upsampler)

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts the authors' layout or BasicSR's to ours."""
        return drop_mean_shift(cls.keys.read(state_dict))

    @classmethod
    def infer_from_layout(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """`img_range` and `mean`, in the authors' layout; there, a network without convolutions for it has none."""
        in_chans = state_dict["head.0.weight"].shape[1] if "head.0.weight" in state_dict else 0
        unnormalized = dict(img_range=1.0, mean=(0.0,) * in_chans) if in_chans else {}
        return infer_mean_shift(state_dict) or unnormalized

    def published_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights in the authors' layout, with the convolutions that subtract and add the mean."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        published = self.keys.write(state_dict, ORIGINAL)
        return with_mean_shift(published, self.img_range, self.mean_values, self.in_chans == self.out_chans)


def detect_ends(published: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that the first and the last convolution tell, and what subtracts the mean.

    Args:
        published: the weights as they were read.
        state_dict: the same in our layout.
    """
    num_feat, in_chans = state_dict["conv_first.weight"].shape[:2]
    head = detect_head(state_dict, in_chans)
    head["upsampler"] = head["upsampler"] or "pixelshuffle+conv"  # the same layers at scale 1, where "" is refused
    return {"in_chans": in_chans, "num_feat": num_feat, **head, **ConvModel.infer_from_layout(published)}
