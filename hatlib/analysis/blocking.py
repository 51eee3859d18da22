"""Blocking artifacts: how much of a window grid shows in a map of features (HAT, section 3.1 and figure 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hatlib.errors import HatlibError

__all__ = ["Blocking", "blocking_ratio"]


@dataclass(frozen=True)
class Blocking:
    """The ratio of the differences across the lines of a grid to all others, for every place of the grid.

    Attributes:
        profile: the ratio for the grid moved by 0, 1, ..., window - 1 pixels; 1 means that nothing shows.
    """

    profile: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """That of the borders of the windows."""
        return self.profile[0]

    @property
    def half(self) -> float:
        """That of the grid moved by half a window, where the borders of shifted windows are."""
        return self.profile[len(self.profile) // 2]

    @property
    def control(self) -> float:
        """The mean over all other places of the grid, where no network has borders: what an image has by itself."""
        others = [v for i, v in enumerate(self.profile) if i not in (0, len(self.profile) // 2)]
        return sum(others) / len(others)


def blocking_ratio(features: Tensor, window: int) -> Blocking:
    """Mean |forward difference| across the borders of windows over the mean inside of them.

    Rows, columns and channels count alike. The windows start at the top left, as those of SwinIR and HAT do.

    Args:
        features: map of features, or an image.
        window: side of the windows in pixels.

    Shape: (..., H, W)

    Raises:
        HatlibError: if the window has fewer than three pixels, the map fewer than two windows a side, or no
            differences.
    """
    if window < 3:
        raise HatlibError(f"A window of {window} pixels has no place for control grids; it takes 3 or more.")
    if features.ndim < 2 or min(features.shape[-2:]) < 2 * window:
        raise HatlibError(f"A map of {tuple(features.shape)} has fewer than two windows of {window}x{window} a side.")
    x = features.detach().cpu().double()  # not every device has float64
    sums, counts = torch.zeros(2, window, dtype=torch.float64)
    for dim in (-2, -1):
        # For each row or column its mean difference to the next; number k lies before pixel k + 1.
        differences = x.diff(dim=dim).abs().movedim(dim, 0).flatten(1)
        place = torch.arange(1, len(differences) + 1) % window
        sums.index_add_(0, place, differences.sum(1))
        counts += torch.bincount(place, minlength=window) * differences.shape[1]
    if sums.sum() == 0:
        raise HatlibError("The map is the same everywhere: there are no differences to compare.")
    inside = (sums.sum() - sums) / (counts.sum() - counts)
    return Blocking(tuple((sums / counts / inside).tolist()))
