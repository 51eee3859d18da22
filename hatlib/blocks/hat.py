"""The blocks of HAT: CAB, HAB, OCAB and RHAG (arXiv 2205.04437, section 3.2)."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from hatlib.blocks.attention import ChannelAttention, OverlapCrossAttention, WindowAttention, inner_width
from hatlib.blocks.group import AttentionGroup, residual_conv
from hatlib.blocks.strips import add_in_strips

__all__ = ["CAB", "HAB", "OCAB", "RHAG"]


class CAB(nn.Module):
    """Channel attention block: two 3x3 convolutions around a bottleneck, then channel attention; no skip inside.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        num_feat: channels C.
        compress_ratio: the paper's beta; C / beta is the width between the convolutions.
        squeeze_factor: reduction inside the channel attention.
    """

    def __init__(self, num_feat: int, compress_ratio: float = 3, squeeze_factor: float = 30):
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
    """Hybrid attention block: window attention and, beside it, a channel attention block; then an MLP.

    y = norm1(x);  x = x + (S)W-MSA(y) + conv_scale * CAB(y);  x = x + MLP(norm2(x)). The CAB sees the whole map,
    unshifted. (B, H, W, C) -> (B, H, W, C).

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
        qk_scale: factor of the attention logits; head width ** -0.5 by default.
        drop: dropout in the MLP and after the attention.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth of the attention and the MLP; the CAB is never dropped.
        act_layer: activation of the MLP.
        norm_layer: called with `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
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
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.conv_scale = conv_scale
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, shift_size, qkv_bias, qk_scale, attn_drop, drop)
        self.conv_block = CAB(dim, compress_ratio, squeeze_factor)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        # A contiguous (B, H, W, C) map is a channels-last (B, C, H, W) map: the convolutions take it as it is.
        conv = self.conv_block(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = torch.add(x, conv, alpha=self.conv_scale)
        x = x.add_(self.drop_path(self.attn(y)))
        return add_in_strips(
            self, x, lambda part: self.drop_path(self.mlp(self.norm2(part))), self.mlp.fc1.out_features
        )


class OCAB(OverlapCrossAttention):
    """Overlapping cross-attention block: x = x + OCA(norm1(x)); x = x + MLP(norm2(x)). No shift, no stochastic depth.

    (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        window_size: side of the query window in pixels; H and W are multiples of it.
        overlap_ratio: the paper's gamma; the key/value window is (1 + gamma) times as wide.
        num_heads: attention heads.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 by default.
        mlp_ratio: width of the MLP over C.
        act_layer: activation of the MLP.
        norm_layer: called with `dim`.
    """

    def __init__(
        self,
        dim: int,
        window_size: int = 16,
        overlap_ratio: float = 0.5,
        num_heads: int = 6,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        mlp_ratio: float = 2.0,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__(dim, window_size, overlap_ratio, num_heads, qkv_bias, qk_scale)
        self.norm1 = norm_layer(dim)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return add_in_strips(self, x, lambda part: self.mlp(self.norm2(part)), self.mlp.fc1.out_features)


class RHAG(nn.Module):
    """Residual hybrid attention group: `depth` HABs, an OCAB, a 3x3 convolution, and a skip around it all.

    Every second HAB shifts its windows by half. HAT, section 3.2.1. (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        depth: number of HABs.
        num_heads: attention heads.
        window_size: side of the window in pixels; H and W are multiples of it.
        compress_ratio: the paper's beta (see CAB).
        squeeze_factor: reduction of the channel attention.
        conv_scale: the paper's alpha (see HAB).
        overlap_ratio: the paper's gamma (see OCAB).
        mlp_ratio: width of the MLPs over C.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; head width ** -0.5 by default.
        drop: dropout in the HABs' MLPs and after their attention.
        attn_drop: dropout of the HABs' attention weights.
        drop_path: stochastic depth, one rate for all HABs or one for each.
        norm_layer: called with `dim`.
        resi_connection: what comes before the skip, '1conv', '3conv' or 'identity'.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 16,
        compress_ratio: float = 3,
        squeeze_factor: float = 30,
        conv_scale: float = 0.01,
        overlap_ratio: float = 0.5,
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
        blocks = [
            HAB(
                dim,
                num_heads,
                window_size,
                0 if i % 2 == 0 else window_size // 2,
                compress_ratio,
                squeeze_factor,
                conv_scale,
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
        overlap_attn = OCAB(
            dim, window_size, overlap_ratio, num_heads, qkv_bias, qk_scale, mlp_ratio, norm_layer=norm_layer
        )
        self.residual_group = AttentionGroup(blocks, overlap_attn)
        self.conv = residual_conv(dim, resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
