"""Published weights of HAT: the table that the registry and timm read."""

from typing import Any

from hatlib.models._weights import on_benchmarks as _on
from hatlib.networks import Weights

__all__ = ["WEIGHTS"]

_DF2K = "DF2K (DIV2K and Flickr2K)"
_IMAGENET = f"ImageNet, then {_DF2K}"
_REAL = f"{_DF2K} and OST, degraded as in Real-ESRGAN"
_MIRROR = "https://github.com/TensoRaws/ccrestoration/releases/download/model_zoo"


def _published(file: str, mirrored_as: str, sha256: str, **facts: Any) -> Weights:
    """One of the HAT authors' files, which they keep on Google Drive, at a mirror that serves the same bytes."""
    return Weights(
        file=file,
        url=f"{_MIRROR}/{mirrored_as}",
        sha256=sha256,
        origin="https://github.com/XPixelGroup/HAT (Chen et al.; Google Drive folder linked there)",
        license="none stated for the weights; the authors' code is Apache-2.0",
        **facts,
    )


def _tiny(file: str, sha256: str, **facts: Any) -> Weights:
    """A file of this package."""
    return Weights(
        file=file,
        sha256=sha256,
        origin="hatlib, trained as in docs/shipped_models.md",
        license="Apache-2.0",
        note="trained on one CPU core; meant for trying the library, not for best results",
        **facts,
    )


# By arch.tag; the first tag of an arch is its default.
WEIGHTS: dict[str, Weights] = {
    "hat_t_x2.photos_cc0": _tiny(
        "hat_t_x2.safetensors",
        "aa79dfc3f964440836a1054388b42ff16a12785b80b2f12943f969fcf598b2a3",
        training_data="86 CC0 photos",
        metrics=_on(36.87, 32.54, None, None, None),
    ),
    "hat_t_x4.photos_cc0": _tiny(
        "hat_t_x4.safetensors",
        "e1b3e2d2b933068314afaed63ce367510a83ae29b70affb93f84f8505cc71863",
        training_data="99 CC0 photos",
        metrics=_on(30.96, 27.76, None, None, None),
    ),
    "hat_s_x2.df2k": _published(
        "HAT-S_SRx2.pth",
        "HAT_S_2x.pth",
        "3e249a901c2aed6b82548875e21847ef6c015a40c814237a7a0abb10c69d5ddf",
        training_data=_DF2K,
        metrics=_on(None, None, None, 34.31, None),
    ),
    "hat_s_x3.df2k": _published(
        "HAT-S_SRx3.pth",
        "HAT_S_3x.pth",
        "3733345caeb2b6cb0a7514d634b143f318e2441faf32316195a47e4cda67669e",
        training_data=_DF2K,
        metrics=_on(None, None, None, 30.15, None),
    ),
    "hat_s_x4.df2k_from_x2": _published(
        "HAT-S_SRx4.pth",
        "HAT_S_4x.pth",
        "a92f81bd2c0c1aaa371a6e4d6cac69e749fde2e36196885ee47a4a3667542c9a",
        training_data=f"{_DF2K}, starting from the x2 weights",
        size=81089561,
        metrics=_on(32.92, 29.15, 27.97, 27.87, 32.35),
    ),
    "hat_x2.imagenet_ft_df2k": _published(
        "HAT_SRx2_ImageNet-pretrain.pth",
        "HAT_ImageNet_pretrain_2x.pth",
        "82ebd911263bcc886fbef46b30cf97b92a932a27a3cba30163d4577afb09b9d7",
        training_data=_IMAGENET,
        metrics=_on(38.73, 35.13, 32.69, 34.81, 40.71),
    ),
    "hat_x2.df2k": _published(
        "HAT_SRx2.pth",
        "HAT_2x.pth",
        "35e9409849016ab2bfc0c549639ea4f1d4d5b2bdd75f856a925e124dd05670d0",
        training_data=_DF2K,
        metrics=_on(38.63, 34.86, 32.62, 34.45, 40.26),
    ),
    "hat_x3.imagenet_ft_df2k": _published(
        "HAT_SRx3_ImageNet-pretrain.pth",
        "HAT_ImageNet_pretrain_3x.pth",
        "8469db903d464497f94419587054c9e83dff994edc409d563ab8f5a503767be8",
        training_data=_IMAGENET,
        metrics=_on(35.16, 31.33, 29.59, 30.70, 35.84),
    ),
    "hat_x3.df2k": _published(
        "HAT_SRx3.pth",
        "HAT_3x.pth",
        "453c90b94d494d041c8bff2d222987af311f07b4a09b4dafbd9ab6492f15206c",
        training_data=_DF2K,
        metrics=_on(35.07, 31.08, 29.54, 30.23, 35.53),
    ),
    "hat_x4.imagenet_ft_df2k": _published(
        "HAT_SRx4_ImageNet-pretrain.pth",
        "HAT_ImageNet_pretrain_4x.pth",
        "4ee053c42461187846dc0e93aa5abd34591c0725a8e044a59000e92ee215e833",
        training_data=_IMAGENET,
        size=85137601,
        metrics=_on(33.18, 29.38, 28.05, 28.37, 32.87),
    ),
    "hat_x4.df2k_from_x2": _published(
        "HAT_SRx4.pth",
        "HAT_4x.pth",
        "02dabea478aa5902a7170ad89350124e691bd89c91356f24b3267022622dc030",
        training_data=f"{_DF2K}, starting from the x2 weights",
        metrics=_on(33.04, 29.23, 28.00, 27.97, 32.48),
        ssim=_on(0.9056, 0.7973, 0.7517, 0.8368, 0.9292),
    ),
    "hat_x4.real_gan": _published(
        "Real_HAT_GAN_SRx4.pth",
        "HAT_Real_GAN_4x.pth",
        "f5b1e3bbbb05147ca2beefcc715279cb647d7976cbda67d62ea7e6e20d5ffcc7",
        training_data=_REAL,
        degradation="real",
        gan=True,
        size=170277017,
        note="For photos as they come: noise, blur and JPEG artifacts; trained with a GAN, so details are invented.",
    ),
    "hat_x4.real_gan_sharper": _published(
        "Real_HAT_GAN_SRx4_sharper.pth",
        "HAT_Real_GAN_sharper_4x.pth",
        "5800b67136006eb8cab3b4ed7c8d73b6a195bb18e6cc709b674f9aa069c00271",
        training_data=_REAL,
        degradation="real",
        gan=True,
        note="As real_gan, trained for sharper details.",
    ),
    "hat_l_x2.imagenet_ft_df2k": _published(
        "HAT-L_SRx2_ImageNet-pretrain.pth",
        "HAT_L_ImageNet_pretrain_2x.pth",
        "2818c7ca8d72ec4cc5f31c93203d55252a662dd35cda34ce1a69661f97dcd38f",
        training_data=_IMAGENET,
        metrics=_on(38.91, 35.29, 32.74, 35.09, 41.01),
    ),
    "hat_l_x3.imagenet_ft_df2k": _published(
        "HAT-L_SRx3_ImageNet-pretrain.pth",
        "HAT_L_ImageNet_pretrain_3x.pth",
        "78af181bedf1e805fd7517d3738bc5824f7ebdc477fc9f757b708bcf49ad4e3d",
        training_data=_IMAGENET,
        metrics=_on(35.28, 31.47, 29.63, 30.92, 36.02),
    ),
    "hat_l_x4.imagenet_ft_df2k": _published(
        "HAT-L_SRx4_ImageNet-pretrain.pth",
        "HAT_L_ImageNet_pretrain_4x.pth",
        "5992bd38522f2b8faf11ea4bd8ee08de92465bb66892166576999afc36d60043",
        training_data=_IMAGENET,
        size=165774123,
        metrics=_on(33.30, 29.47, 28.09, 28.60, 33.09),
        ssim=_on(0.9083, 0.8015, 0.7551, 0.8498, 0.9335),
    ),
}
