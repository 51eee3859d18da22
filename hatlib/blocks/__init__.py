"""Reusable blocks. They depend on torch, timm.layers and einops, and not on models."""

from hatlib.blocks.attention import ChannelAttention, OverlapCrossAttention, WindowAttention
from hatlib.blocks.group import ResidualGroup, channels_first, residual_conv, run_block
from hatlib.blocks.hat import CAB, HAB, OCAB, RHAG
from hatlib.blocks.heads import (
    Head,
    NearestConvHead,
    PixelShuffleConvHead,
    PixelShuffleDirectHead,
    PixelShuffleHead,
    PixelShuffleUpsample,
    SameSizeHead,
)
from hatlib.blocks.rcab import RCAB, ResBlock
from hatlib.blocks.softmax_attention import attend
from hatlib.blocks.swin import RSTB, STL
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
    "RCAB",
    "RHAG",
    "RSTB",
    "STL",
    "ChannelAttention",
    "Head",
    "NearestConvHead",
    "OverlapCrossAttention",
    "PixelShuffleConvHead",
    "PixelShuffleDirectHead",
    "PixelShuffleHead",
    "PixelShuffleUpsample",
    "ResBlock",
    "ResidualGroup",
    "SameSizeHead",
    "WindowAttention",
    "attend",
    "channels_first",
    "overlap_relative_position_index",
    "overlap_window_partition",
    "overlap_window_size",
    "pad_to_multiple",
    "relative_position_index",
    "residual_conv",
    "run_block",
    "window_partition",
    "window_reverse",
]
