"""SwinIR equals spandrel's independent implementation when it has the same weights."""

import random

import pytest
import torch
from conftest import randomize, relative_error
from spandrel import ModelLoader
from spandrel.architectures.SwinIR import SwinIR as SpandrelSwinIR

import hatlib
from hatlib import load
from hatlib.models import SwinIR

SMALL = dict(
    embed_dim=24,
    depths=(2, 2),
    num_heads=(2, 3),
    window_size=8,
    mlp_ratio=2.0,
    upsampler="pixelshuffle",
    upscale=2,
    drop_path_rate=0.0,
)


def spandrel_swinir(**config):
    window = config.get("window_size", 8)
    return SpandrelSwinIR(**{"img_size": (126 if window == 7 else 64) // window * window, **config})


def pair(dtype=torch.float64, **config):
    """Spandrel's network and ours with the same random weights."""
    torch.manual_seed(0)
    theirs = randomize(spandrel_swinir(**config)).to(dtype).eval()
    ours = SwinIR(**config).to(dtype).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    return theirs, ours


# Millions, as published.
PUBLISHED = {
    "swinir_m_x2": 11.752,
    "swinir_m_x3": 11.937,
    "swinir_m_x4": 11.900,
    "swinir_m_x8": 12.048,
    "swinir_s_x2": 0.910,
    "swinir_s_x3": 0.918,
    "swinir_s_x4": 0.930,
    "swinir_m_real_x2": 11.679,
    "swinir_m_real_x4": 11.716,
    "swinir_l_real_x4": 28.013,
    "swinir_m_denoise_gray_x1": 11.498,
    "swinir_m_denoise_color_x1": 11.504,
    "swinir_m_jpeg_gray_x1": 11.486,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = hatlib.create_model(name)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f}" == f"{PUBLISHED[name]:.3f}"


@pytest.mark.parametrize("name", [n for n in hatlib.list_models("swinir_*") if "_s_" in n or n.endswith("gray_x1")])
def test_full_size(name):
    """The registered network has the arguments that its name promises; one of each is enough at this size."""
    info = hatlib.model_info(name)
    defaults = dict(window_size=8, mlp_ratio=2.0, upsampler="pixelshuffle", drop_path_rate=0.0)
    torch.manual_seed(0)
    theirs = randomize(spandrel_swinir(**{**defaults, **info.model_args}), std=0.02).eval()
    ours = hatlib.create_model(name).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    x = torch.rand(1, ours.in_chans, 17, 12)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) <= 1e-5


CONFIGURATIONS = [
    dict(),
    *(dict(upscale=scale) for scale in (1, 3, 4, 8)),
    *(dict(upsampler="pixelshuffledirect", upscale=scale) for scale in (2, 3, 4)),
    *(dict(upsampler="nearest+conv", upscale=scale, resi_connection="3conv") for scale in (2, 4, 8)),
    dict(upsampler="", upscale=1),
    dict(upsampler="", upscale=1, in_chans=1, resi_connection="3conv"),
    dict(upsampler="", upscale=1, in_chans=1, window_size=7, img_range=255.0),
    dict(upsampler="", upscale=1, window_size=7, img_range=255.0),
    dict(window_size=7, in_chans=4, resi_connection="3conv"),
    dict(qkv_bias=False, qk_scale=0.3, patch_norm=False),
    dict(depths=(1, 3), mlp_ratio=1.5, window_size=4),
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_small_configurations(config, dtype, limit):
    config = {**SMALL, **config}
    theirs, ours = pair(dtype, **config)
    # Spandrel's head has 64 channels, which float64 takes long for.
    height, width = (19, 10) if config["upscale"] <= 2 else (9, 6)
    x = torch.rand(2, config.get("in_chans", 3), height, width, dtype=dtype)
    for train in (False, True):  # with drop_path 0 training computes the same
        theirs.train(train), ours.train(train)
        with torch.no_grad():
            assert relative_error(ours(x), theirs(x)) <= limit


@pytest.mark.parametrize("config", [dict(), dict(upsampler="nearest+conv", resi_connection="3conv", window_size=7)])
def test_gradients(config):
    theirs, ours = pair(**{**SMALL, **config})
    x = torch.rand(2, 3, 24, 17, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, image in zip((theirs, ours), inputs, strict=True):
        model.train()(image).square().mean().backward()
    assert relative_error(inputs[1].grad, inputs[0].grad) <= 1e-6
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, expected[name].grad) <= 1e-6, name


# Weight files of unknown make, and the published layout in spandrel.


def random_config(seed):
    """A random SwinIR as spandrel's class takes it."""
    draw = random.Random(seed)
    groups = draw.randint(1, 3)
    upsampler = draw.choice(["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""])
    scales = {"": [1], "nearest+conv": [2, 4, 8], "pixelshuffledirect": [2, 3, 4], "pixelshuffle": [1, 2, 3, 4, 8]}
    window = draw.choice([4, 7, 8, 16])
    return dict(
        in_chans=draw.choice([1, 3, 4]),
        embed_dim=draw.choice([12, 24, 36]),
        depths=(2, *(draw.randint(1, 3) for _ in range(groups - 1))),
        num_heads=tuple(draw.choice([1, 2, 3, 4]) for _ in range(groups)),
        window_size=window,
        mlp_ratio=draw.choice([1.0, 1.5, 2.0, 4.0]),
        resi_connection=draw.choice(["1conv", "3conv"]),
        upsampler=upsampler,
        upscale=draw.choice(scales[upsampler]),
        img_range=255.0 if window == 7 else 1.0,  # as spandrel guesses
    )


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize("seed", range(10))
def test_random_hyper_parameters(seed, tmp_path):
    config = random_config(seed)
    torch.manual_seed(seed)
    theirs = randomize(spandrel_swinir(**config), seed).eval()
    torch.save({"params": theirs.state_dict()}, tmp_path / "w.pth")
    ours = load(tmp_path / "w.pth", img_range=config["img_range"])
    assert isinstance(ours, SwinIR) and not ours.training
    assert {name: ours.config["model_args"][name] for name in config} == config
    x = torch.rand(1, config["in_chans"], 2 * config["window_size"], 3 * config["window_size"])
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-5

    torch.save(ours.published_state_dict(), tmp_path / "published.pth")
    assert theirs.state_dict().keys() == ours.published_state_dict().keys()
    descriptor = ModelLoader().load_from_file(tmp_path / "published.pth")
    assert (descriptor.architecture.id, descriptor.scale) == ("SwinIR", config["upscale"])
    with torch.no_grad():
        assert relative_error(descriptor.model.eval()(x), ours(x)) < 1e-5
    for name, value in theirs.state_dict().items():
        if name.endswith("relative_position_index"):
            assert torch.equal(ours.published_state_dict()[name], value)


def test_what_weights_do_not_tell_is_the_plain_value(tmp_path):
    """Not that of the arch through which a network of no known size is built; JPEG's is the nearest one here."""
    torch.save(SwinIR(**{**SMALL, "upsampler": "", "upscale": 1}).state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="img_range=1.0, mean=None, qk_scale=None"):
        assert load(tmp_path / "w.pth").img_range == 1.0
    with torch.device("meta"):
        weights = hatlib.create_model("swinir_m_jpeg_gray_x1").state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in weights.items()}, tmp_path / "jpeg.pth")
    with pytest.warns(UserWarning, match="img_range=255.0"):
        assert load(tmp_path / "jpeg.pth").img_range == 255.0


@pytest.mark.parametrize("name, side", [("swinir_m_x2", 64), ("swinir_m_jpeg_gray_x1", 126)])
def test_published_masks_are_the_authors(name, side):
    """Of the size that the published networks were trained with, so that the authors' code takes the file."""
    tiny = dict(embed_dim=12, depths=(2,), num_heads=(2,))
    ours = hatlib.create_model(name, **tiny)
    theirs = spandrel_swinir(
        **{**hatlib.model_info(name).model_args, "window_size": ours.window_size, "img_size": side, **tiny}
    )
    masks = {n: v for n, v in theirs.state_dict().items() if n.endswith("attn_mask")}
    assert masks
    assert all(torch.equal(ours.published_state_dict()[n], v) for n, v in masks.items())


@pytest.mark.parametrize("name", hatlib.list_models("swinir_*"))
def test_registered_archs_are_known_by_name(name):
    with torch.device("meta"):
        model = hatlib.create_model(name)
    cls, arguments = hatlib.detection.detect(model.state_dict())
    assert hatlib.detection.find_arch(cls, arguments) == (name, True)
    assert model.config["architecture"] == name


def test_published_configuration_can_be_pasted():
    """The keys of a BasicSR `network_g` section, `type` left out."""
    section = dict(upscale=2, in_chans=1, img_size=64, window_size=7, img_range=255.0, depths=[1], embed_dim=30)
    section |= dict(num_heads=[6], mlp_ratio=3, upsampler="nearest+conv", resi_connection="3conv")
    arguments = SwinIR(**section).config["model_args"]
    del section["img_size"]  # which only the masks of the published code needed
    assert {name: arguments[name] for name in section} == {**section, "depths": (1,), "num_heads": (6,)}
