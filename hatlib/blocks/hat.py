"""The blocks of HAT: CAB, HAB, OCAB and RHAG (arXiv 2205.04437, section 3.2)."""

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hatlib.blocks import strips
from hatlib.blocks.attention import ChannelAttention, OverlapCrossAttention, create_attention, inner_width
from hatlib.blocks.group import (
    Layer,
    ResidualGroup,
    channels_first,
    create_mlp,
    find_layer,
    residual_conv,
    shifted_blocks,
)
from hatlib.blocks.strips import cpu_strips

__all__ = ["CAB", "HAB", "OCAB", "RHAG"]


class CAB(nn.Module):
    """Channel attention block: two 3x3 convolutions around a bottleneck, then channel attention; no skip inside.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        num_feat: channels C.
        compress_ratio: the paper's beta; C / beta is the width between the convolutions.
        squeeze_factor: reduction inside the channel attention.

    Example:
        >>> import torch
        >>> from hatlib.blocks import CAB
        >>> CAB(48, compress_ratio=3, squeeze_factor=12)(torch.rand(1, 48, 9, 7)).shape
        torch.Size([1, 48, 9, 7])
    """

    def __init__(self, num_feat: int, compress_ratio: float = 3, *, squeeze_factor: float = 30):
        super().__init__()
        inner = inner_width(num_feat, compress_ratio, "compress_ratio")
        self.cab = nn.Sequential(
            nn.Conv2d(num_feat, inner, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(inner, num_feat, 3, 1, 1),
            ChannelAttention(num_feat, squeeze_factor, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x)


class HAB(nn.Module):
    """Hybrid attention block: window attention, a channel attention block in parallel, and an MLP.

    With Y = norm1(X): X = X + (S)W-MSA(Y) + alpha CAB(Y), then X = X + MLP(norm2(X)). HAT, section 3.2.2, equation 3.
    The CAB sees the whole map, unshifted. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        shift_size: 0 for W-MSA, window_size // 2 for SW-MSA.
        compress_ratio: the paper's beta (see CAB).
        squeeze_factor: reduction of the channel attention.
        conv_scale: the paper's alpha, weight of the CAB.
        mlp_ratio: width of the MLP over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 if None.
        drop: dropout in the MLP and after the built-in attention.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth of the attention and the MLP; the CAB is never dropped.
        attn_layer: the attention: a registered name, `{name: options}`, or a class (see `register_attention`).
            `qkv_bias`, `qk_scale` and `attn_drop` belong to the built-in 'window'.
        conv_layer: called with `dim` in place of CAB; a module of (B, C, H, W) that does not write to its input.
        mlp_layer: called as timm's `Mlp`: (dim, hidden width, act_layer=, drop=); a module of (B, H, W, C).
        act_layer: activation of the MLP, a class or a name of timm.
        norm_layer: called with `dim`, a class or a name of timm.

    Example:
        >>> import torch
        >>> from hatlib.blocks import HAB
        >>> HAB(32, 2, window_size=8, shift_size=4, squeeze_factor=8)(torch.rand(1, 16, 24, 32)).shape
        torch.Size([1, 16, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 16,
        shift_size: int = 0,
        compress_ratio: float = 3,
        squeeze_factor: float = 30,
        conv_scale: float = 0.01,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        attn_layer: Any = "window",
        conv_layer: Callable[..., nn.Module] | None = None,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = nn.LayerNorm,
    ):
        super().__init__()
        norm = find_layer(norm_layer, "norm")
        self.conv_scale = conv_scale
        self.norm1 = norm(dim)
        self.attn = create_attention(
            attn_layer,
            dim=dim,
            num_heads=num_heads,
            window_size=window_size,
            shift_size=shift_size,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=drop,
        )
        self.conv_block = conv_layer(dim) if conv_layer else CAB(dim, compress_ratio, squeeze_factor=squeeze_factor)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = create_mlp(mlp_layer, dim, mlp_ratio, act_layer, drop=drop)

    @cpu_strips(strips.hybrid_attention_block)
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.attn(y)) + self.conv_scale * channels_first(self.conv_block, y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OCAB(OverlapCrossAttention):
    """Overlapping cross-attention block: X = X + OCA(norm1(X)), then X = X + MLP(norm2(X)). HAT, section 3.2.3.

    No shift and no stochastic depth. A subclass of the attention, because the published parameter names of the
    attention have no prefix in the block. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of the query window in pixels; H and W are multiples of it.
        overlap_ratio: the paper's gamma; the key/value window is (1 + gamma) times as wide.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 if None.
        mlp_ratio: width of the MLP over C.
        mlp_layer: as in HAB.
        act_layer: as in HAB.
        norm_layer: as in HAB.

    Example:
        >>> import torch
        >>> from hatlib.blocks import OCAB
        >>> OCAB(32, 2, window_size=8)(torch.rand(1, 16, 24, 32)).shape
        torch.Size([1, 16, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 16,
        overlap_ratio: float = 0.5,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        mlp_ratio: float = 2.0,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = nn.LayerNorm,
    ):
        super().__init__(
            dim,
            num_heads,
            window_size=window_size,
            overlap_ratio=overlap_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
        )
        norm = find_layer(norm_layer, "norm")
        self.norm1 = norm(dim)
        self.norm2 = norm(dim)
        self.mlp = create_mlp(mlp_layer, dim, mlp_ratio, act_layer)

    @cpu_strips(strips.overlapping_cross_attention_block)
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RHAG(ResidualGroup):
    """Residual hybrid attention group: X + conv(OCAB(HAB(... HAB(X)))). HAT, section 3.2.1.

    Every second HAB shifts its windows by half. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        depth: number of HABs.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        drop_path: stochastic depth of the blocks, one rate for all or one for each.
        resi_connection: convolution before the skip, '1conv', '3conv' or 'identity'.
        block_layer: called with `dim=, num_heads=, window_size=, shift_size=, drop_path=` for each block; HAB, or
            `functools.partial(HAB, ...)` to set its options.
        overlap_layer: called with `dim=, num_heads=, window_size=` for the last block; OCAB if not given.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from hatlib.blocks import HAB, RHAG
        >>> group = RHAG(32, 2, num_heads=2, window_size=8, block_layer=partial(HAB, squeeze_factor=8))
        >>> group(torch.rand(1, 16, 24, 32)).shape
        torch.Size([1, 16, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        num_heads: int,
        window_size: int = 16,
        drop_path: float | Sequence[float] = 0.0,
        resi_connection: str = "1conv",
        block_layer: Callable[..., nn.Module] = HAB,
        overlap_layer: Callable[..., nn.Module] = OCAB,
    ):
        super().__init__(
            shifted_blocks(block_layer, dim, depth, num_heads, window_size, drop_path),
            residual_conv(dim, resi_connection),
            overlap_layer(dim=dim, num_heads=num_heads, window_size=window_size),
        )
