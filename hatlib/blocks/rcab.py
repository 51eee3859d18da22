"""Residual blocks of convolutions: RCAN's RCAB (arXiv 1807.02758) and EDSR's ResBlock (arXiv 1707.02921)."""

import torch
from torch import Tensor, nn

from hatlib.blocks.attention import ChannelAttention

__all__ = ["RCAB", "ResBlock"]


class RCAB(nn.Module):
    """Residual channel attention block: x + res_scale * CA(conv(ReLU(conv(x)))). RCAN, section 3.3, equation 11.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        num_feat: channels C.
        squeeze_factor: reduction of the channel attention.
        res_scale: weight of the branch.

    Example:
        >>> import torch
        >>> from hatlib.blocks import RCAB
        >>> RCAB(32)(torch.rand(1, 32, 9, 7)).shape
        torch.Size([1, 32, 9, 7])
    """

    def __init__(self, num_feat: int, squeeze_factor: float = 16, *, res_scale: float = 1.0):
        super().__init__()
        self.res_scale = res_scale
        self.rcab = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            ChannelAttention(num_feat, squeeze_factor, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rcab(x), alpha=self.res_scale)


class ResBlock(nn.Module):
    """Residual block without normalization: x + res_scale * conv(ReLU(conv(x))). EDSR, section 3.1.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        num_feat: channels C.
        res_scale: weight of the branch; 0.1 keeps the training of wide networks stable (section 3.3).

    Example:
        >>> import torch
        >>> from hatlib.blocks import ResBlock
        >>> ResBlock(32, res_scale=0.1)(torch.rand(1, 32, 9, 7)).shape
        torch.Size([1, 32, 9, 7])
    """

    def __init__(self, num_feat: int, *, res_scale: float = 1.0):
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv2(self.act(self.conv1(x))), alpha=self.res_scale)
