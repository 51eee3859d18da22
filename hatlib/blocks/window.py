"""Window partition, relative-position indices and the kinds of shifted windows, as pure functions.

Maps are (B, H, W, C); H and W are multiples of the window. One window holds N = window_size ** 2 tokens in row order.
"""

import torch
from einops import rearrange
from torch import Tensor

from hatlib.errors import HatlibError

__all__ = [
    "check_window_multiple",
    "cyclic_shift",
    "overlap_relative_position_index",
    "overlap_window_partition",
    "overlap_window_size",
    "pad_to_multiple",
    "relative_position_index",
    "shifted_window_mask",
    "shifted_window_regions",
    "split_window_kinds",
    "window_kinds",
    "window_partition",
    "window_reverse",
]

# What the published networks add to the logit of a pair of tokens that only the cyclic shift made adjacent.
SHIFT_PENALTY = -100.0


def check_window_multiple(x: Tensor, window_size: int) -> None:
    """Raises HatlibError unless height and width of `x` (B, H, W, C) are multiples of the window.

    Silent while a graph is traced: there the size is symbolic and the model has padded it.
    """
    if torch.compiler.is_compiling():
        return
    if x.ndim != 4 or x.shape[1] % window_size or x.shape[2] % window_size:
        raise HatlibError(
            f"A block with window_size={window_size} takes (B, H, W, C) with H and W multiples of {window_size}, "
            f"not {tuple(x.shape)}; pad the image first (hatlib.blocks.pad_to_multiple does it)."
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pads an image (B, C, H, W) at the right and bottom to multiples of `multiple`, by reflection.

    An image smaller than the padding is reflected as far as it goes; then its first row or column is repeated. The
    pixels are picked by index without a branch on the size, so one exported graph serves every size.
    """
    for dim in (-2, -1):
        size = x.shape[dim]
        index = torch.arange((size + multiple - 1) // multiple * multiple, device=x.device)
        # 0 ... size - 1, then back from size - 2, at 0 the latest.
        index = torch.minimum(index, (2 * (size - 1) - index).clamp(min=0))
        x = x.index_select(dim, index)
    return x


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts (B, H, W, C) into windows, (B * H/w * W/w, w * w, C), rows of windows first."""
    return rearrange(x, "b (nh h) (nw w) c -> (b nh nw) (h w) c", h=window_size, w=window_size)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Puts windows (B * H/w * W/w, w * w, C) back together: (B, H, W, C). The inverse of `window_partition`."""
    nh, nw = height // window_size, width // window_size
    return rearrange(windows, "(b nh nw) (h w) c -> b (nh h) (nw w) c", nh=nh, nw=nw, h=window_size, w=window_size)


def overlap_window_size(window_size: int, overlap_ratio: float) -> int:
    """Side of the key/value window, (1 + gamma) * window (HAT, section 3.2.3, equation 8).

    Raises:
        HatlibError: if the extra width is odd or negative, so that the window can't lie in the middle of it.
    """
    extra = int(window_size * overlap_ratio)
    if extra < 0 or extra % 2:
        raise HatlibError(
            f"overlap_ratio={overlap_ratio} widens window_size={window_size} by {extra} pixels; "
            "it must be an even number, zero or more (0.5 fits every window that is a multiple of 4)."
        )
    return window_size + extra


def overlap_window_partition(x: Tensor, window_size: int, overlap_size: int) -> Tensor:
    """Cuts a map padded by (o - w) / 2 all around into overlapping windows, one around each window of the map.

    (B, H + o - w, W + o - w, C) -> (B * H/w * W/w, o * o, C). HAT pads with zeros (section 3.2.3).
    """
    x = x.unfold(1, overlap_size, window_size).unfold(2, overlap_size, window_size)
    return rearrange(x, "b nh nw c h w -> (b nh nw) (h w) c")


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of query and key in one window: (N, N), values in [0, (2w - 1)^2).

    The offset is query minus key, as in Swin.
    """
    y, x = _coordinates(window_size)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window_size - 1) * (2 * window_size - 1) + dx + window_size - 1


def overlap_relative_position_index(window_size: int, overlap_size: int) -> Tensor:
    """Row of the bias table for each query in a window and key in its overlapping window: (w * w, o * o).

    The offset is key minus query. The published index shifts it by w - o + 1, which makes most entries negative and
    counts on them to wrap around the (w + o - 1)^2 rows; here they are wrapped already, so that the published weights
    mean the same in `gather` and in exported graphs.
    """
    side = window_size + overlap_size - 1
    (qy, qx), (ky, kx) = _coordinates(window_size), _coordinates(overlap_size)
    offset = window_size - overlap_size + 1
    dy, dx = ky[None, :] - qy[:, None] + offset, kx[None, :] - qx[:, None] + offset
    return (dy * side + dx) % side**2


def cyclic_shift(x: Tensor, distance: int) -> Tensor:
    """Moves a map (B, H, W, C) cyclically up and to the left, or back if the distance is negative."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x.roll((-distance, -distance), (1, 2))
    out = torch.empty_like(x)  # in one pass, where `roll` takes one for each dimension
    ends = [(slice(distance, None), slice(None, -distance)), (slice(None, distance), slice(-distance, None))]
    for rows_from, rows_to in ends:
        for columns_from, columns_to in ends:
            out[:, rows_to, columns_to] = x[:, rows_from, columns_from]
    return out


def shifted_window_regions(window_size: int, shift_size: int) -> Tensor:
    """Which tokens of a cyclically shifted window belong together, for the four kinds of windows: (4, N).

    A token may attend to those with its own number. Kinds, as in `window_kinds`: 0 inside the map (one region),
    1 at the right edge and 2 at the bottom edge (two regions, divided where the map wraps), 3 the corner (four).
    """
    y, x = _coordinates(window_size)
    wrapped_y, wrapped_x = (y >= window_size - shift_size).int(), (x >= window_size - shift_size).int()
    return torch.stack([torch.zeros_like(wrapped_x), wrapped_x, 2 * wrapped_y, 2 * wrapped_y + wrapped_x])


def shifted_window_mask(regions: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask of each kind of shifted window: regions (4, N) -> (4, N, N).

    Pairs of tokens that only the cyclic shift made adjacent get `SHIFT_PENALTY`, all others 0.
    """
    return (regions[:, :, None] != regions[:, None, :]).to(dtype) * SHIFT_PENALTY


def split_window_kinds(x: Tensor, window_size: int) -> list[Tensor]:
    """Views of the four kinds of windows of a shifted map (B, H, W, C), in the order of `window_kinds`.

    The last row and the last column of windows divide the map. A view may be empty.
    """
    height, width = x.shape[1] - window_size, x.shape[2] - window_size
    upper, lower = x.split([height, window_size], 1)
    return [*upper.split([width, window_size], 2), *lower.split([width, window_size], 2)]


def window_kinds(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Kind of each window of a shifted map with `rows` x `columns` windows: (rows, columns), see above."""
    bottom = torch.arange(rows, device=device) == rows - 1
    right = torch.arange(columns, device=device) == columns - 1
    return 2 * bottom.long()[:, None] + right.long()[None, :]


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each token of a square window, each (size * size,)."""
    token = torch.arange(size * size)
    return token // size, token % size
