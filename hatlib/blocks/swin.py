"""The blocks of SwinIR: STL and RSTB (arXiv 2108.10257, section 3.2)."""

from collections.abc import Callable, Sequence

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hatlib.blocks.attention import WindowAttention
from hatlib.blocks.group import AttentionGroup, residual_conv
from hatlib.blocks.strips import add_in_strips

__all__ = ["RSTB", "STL"]


class STL(nn.Module):
    """Swin transformer layer: x = x + (S)W-MSA(norm1(x)); x = x + MLP(norm2(x)).

    Swin Transformer, arXiv 2103.14030; SwinIR, section 3.2, equation 9. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        shift_size: 0 for W-MSA, window_size // 2 for SW-MSA.
        mlp_ratio: width of the MLP over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 by default.
        drop: dropout in the MLP and after the attention.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth of the attention and the MLP.
        act_layer: activation of the MLP.
        norm_layer: called with `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 8,
        shift_size: int = 0,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, shift_size, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return add_in_strips(
            self, x, lambda part: self.drop_path(self.mlp(self.norm2(part))), self.mlp.fc1.out_features
        )


class RSTB(nn.Module):
    """Residual Swin transformer block: `depth` STLs, a convolution, and a skip around it all.

    Every second STL shifts its windows by half. SwinIR, section 3.2, equation 7. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        depth: number of STLs.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        mlp_ratio: width of the MLPs over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 by default.
        drop: dropout in the MLPs and after attention.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth, one rate for all STLs or one for each.
        norm_layer: called with `dim`.
        resi_connection: what comes before the skip, '1conv', '3conv' or 'identity'.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        resi_connection: str = "1conv",
    ):
        super().__init__()
        rates = [drop_path] * depth if isinstance(drop_path, (int, float)) else drop_path
        self.residual_group = AttentionGroup(
            [
                STL(
                    dim,
                    num_heads,
                    window_size,
                    0 if i % 2 == 0 else window_size // 2,
                    mlp_ratio,
                    qkv_bias,
                    qk_scale,
                    drop,
                    attn_drop,
                    rates[i],
                    norm_layer=norm_layer,
                )
                for i in range(depth)
            ]
        )
        self.conv = residual_conv(dim, resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
