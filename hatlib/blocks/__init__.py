"""Reusable blocks. They know torch, timm.layers and einops, and nothing of models."""

from hatlib.blocks.attention import ChannelAttention, OverlapCrossAttention, WindowAttention
from hatlib.blocks.hat import CAB, HAB, OCAB, RHAG, AttentionGroup, residual_conv
from hatlib.blocks.softmax_attention import attend
from hatlib.blocks.upsample import (
    NearestConvHead,
    PixelShuffleDirectHead,
    PixelShuffleHead,
    PixelShuffleUpsample,
    SameSizeHead,
    create_head,
)
from hatlib.blocks.window import (
    overlap_relative_position_index,
    overlap_window_partition,
    overlap_window_size,
    pad_to_multiple,
    relative_position_index,
    window_partition,
    window_reverse,
)

__all__ = [
    "CAB",
    "HAB",
    "OCAB",
    "RHAG",
    "AttentionGroup",
    "ChannelAttention",
    "NearestConvHead",
    "OverlapCrossAttention",
    "PixelShuffleDirectHead",
    "PixelShuffleHead",
    "PixelShuffleUpsample",
    "SameSizeHead",
    "WindowAttention",
    "attend",
    "create_head",
    "overlap_relative_position_index",
    "overlap_window_partition",
    "overlap_window_size",
    "pad_to_multiple",
    "relative_position_index",
    "residual_conv",
    "window_partition",
    "window_reverse",
]
