"""The blocks of SwinIR: STL and RSTB (arXiv 2108.10257, section 3.2)."""

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hatlib.blocks import strips
from hatlib.blocks.attention import create_attention
from hatlib.blocks.group import Layer, ResidualGroup, create_mlp, find_layer, residual_conv, shifted_blocks
from hatlib.blocks.strips import cpu_strips

__all__ = ["RSTB", "STL"]


class STL(nn.Module):
    """Swin transformer layer: X = X + (S)W-MSA(norm1(X)), then X = X + MLP(norm2(X)).

    Swin Transformer, arXiv 2103.14030; SwinIR, section 3.2, equation 9. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        shift_size: 0 for W-MSA, window_size // 2 for SW-MSA.
        mlp_ratio: width of the MLP over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 if None.
        drop: dropout in the MLP and after the built-in attention.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth of the attention and the MLP.
        attn_layer: as in HAB.
        mlp_layer: as in HAB.
        act_layer: as in HAB.
        norm_layer: as in HAB.

    Example:
        >>> import torch
        >>> from hatlib.blocks import STL
        >>> STL(32, 2, window_size=8, shift_size=4)(torch.rand(1, 16, 24, 32)).shape
        torch.Size([1, 16, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 8,
        shift_size: int = 0,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        attn_layer: Any = "window",
        mlp_layer: Callable[..., nn.Module] = Mlp,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = nn.LayerNorm,
    ):
        super().__init__()
        norm = find_layer(norm_layer, "norm")
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
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = create_mlp(mlp_layer, dim, mlp_ratio, act_layer, drop=drop)

    @cpu_strips(strips.swin_layer)
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class RSTB(ResidualGroup):
    """Residual Swin transformer block: X + conv(STL(... STL(X))). SwinIR, section 3.2, equation 7.

    Every second STL shifts its windows by half. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        depth: number of STLs.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        drop_path: stochastic depth of the blocks, one rate for all or one for each.
        resi_connection: convolution before the skip, '1conv', '3conv' or 'identity'.
        block_layer: called with `dim=, num_heads=, window_size=, shift_size=, drop_path=` for each block; STL, or
            `functools.partial(STL, ...)` to set its options.

    Example:
        >>> import torch
        >>> from hatlib.blocks import RSTB
        >>> RSTB(32, 2, num_heads=2)(torch.rand(1, 16, 24, 32)).shape
        torch.Size([1, 16, 24, 32])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        num_heads: int,
        window_size: int = 8,
        drop_path: float | Sequence[float] = 0.0,
        resi_connection: str = "1conv",
        block_layer: Callable[..., nn.Module] = STL,
    ):
        super().__init__(
            shifted_blocks(block_layer, dim, depth, num_heads, window_size, drop_path),
            residual_conv(dim, resi_connection),
        )
