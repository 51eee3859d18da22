"""The networks that are compared: ours, and independent implementations with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import hatlib


@dataclass(frozen=True)
class Case:
    """One architecture: how to build ours and theirs, either of which may be missing."""

    title: str
    ours: Callable[[], nn.Module] | None
    theirs: Callable[[], nn.Module] | None


def spandrel_hat(embed_dim: int, compress_ratio: int, squeeze_factor: int) -> nn.Module:
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=64,
        upscale=4,
        embed_dim=embed_dim,
        depths=(6,) * 6,
        num_heads=(6,) * 6,
        window_size=16,
        compress_ratio=compress_ratio,
        squeeze_factor=squeeze_factor,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
    )


def spandrel_swinir_m() -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=64,
        upscale=4,
        embed_dim=180,
        depths=(6,) * 6,
        num_heads=(6,) * 6,
        window_size=8,
        mlp_ratio=2.0,
        upsampler="pixelshuffle",
        drop_path_rate=0.0,
    )


def spandrel_rcan() -> nn.Module:
    from spandrel.architectures.RCAN import RCAN

    network = RCAN(scale=4, n_resgroups=10, n_resblocks=20, n_feats=64)

    class Cloning(nn.Module):  # spandrel's RCAN scales its input in place
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x.clone())

    return Cloning()


def transformers_swin2sr() -> nn.Module:
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Swin2SRForImageSuperResolution(Swin2SRConfig(upscale=4, num_channels=3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x).reconstruction

    return Image()


CASES = {
    "hat_s_x4": Case(
        "HAT-S x4 (spandrel)",
        lambda: hatlib.create_model("hat_s_x4", drop_path_rate=0.0),
        lambda: spandrel_hat(144, 24, 24),
    ),
    "hat_x4": Case(
        "HAT x4 (spandrel)",
        lambda: hatlib.create_model("hat_x4", drop_path_rate=0.0),
        lambda: spandrel_hat(180, 3, 30),
    ),
    "hat_t_x4": Case("HAT-T x4", lambda: hatlib.create_model("hat_t_x4", drop_path_rate=0.0), None),
    "swinir_m_x4": Case(
        "SwinIR-M x4 (spandrel)",
        lambda: hatlib.create_model("swinir_m_x4", drop_path_rate=0.0),
        spandrel_swinir_m,
    ),
    "rcan_x4": Case("RCAN x4 (spandrel)", lambda: hatlib.create_model("rcan_x4"), spandrel_rcan),
    "swin2sr_x4": Case("Swin2SR x4 (transformers)", None, transformers_swin2sr),
}


def build(name: str, side: str) -> nn.Module:
    """One side, 'ours' or 'theirs', of a case, in eval mode; ours with the weights of theirs where both exist."""
    case = CASES[name]
    torch.manual_seed(0)
    if side == "theirs":
        return case.theirs().eval()
    model = case.ours().eval()
    if case.theirs:
        torch.manual_seed(0)
        weights = case.theirs().state_dict()
        weights = {name.removeprefix("network."): value for name, value in weights.items()}
        model.load_state_dict(model.convert_state_dict(weights))
    return model
