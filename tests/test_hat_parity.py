"""HAT equals spandrel's independent implementation when it has the same weights."""

import pytest
import torch
from conftest import randomize, relative_error
from spandrel.architectures.HAT import HAT as SpandrelHAT
from torch.nn import functional as F

import hatlib
from hatlib.models import HAT

SMALL = dict(
    embed_dim=24,
    depths=(2, 2),
    num_heads=(2, 3),
    window_size=8,
    compress_ratio=3,
    squeeze_factor=4,
    mlp_ratio=2.0,
    num_feat=16,
    upscale=2,
    drop_path_rate=0.0,
)


def pair(dtype=torch.float64, **config):
    """Spandrel's network and ours with the same random weights."""
    theirs = randomize(SpandrelHAT(img_size=64, **config)).to(dtype).eval()
    theirs.mean = theirs.mean.to(dtype)
    ours = HAT(**config).to(dtype).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    return theirs, ours


PUBLISHED = {
    "hat_s": (9_473_471, 9_658_111, 9_621_183, 9_768_895),
    "hat": (20_624_795, 20_809_435, 20_772_507, 20_920_219),
    "hat_l": (40_698_863, 40_883_503, 40_846_575, 40_994_287),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    for scale, count in zip((2, 3, 4, 8), PUBLISHED[name], strict=True):
        with torch.device("meta"):
            model = hatlib.create_model(f"{name}_x{scale}")
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", ["hat_t_x2", "hat_t_x4"])
def test_tiny_model_is_tiny(name):
    model = hatlib.create_model(name)
    assert sum(p.numel() for p in model.parameters()) < 520_000
    assert model.num_features // model.layers[0].residual_group.blocks[0].attn.num_heads >= 24
    assert model.num_feat <= 32


@pytest.mark.parametrize("name, upscale", [("hat_s", 2), ("hat_s", 3), ("hat_s", 4), ("hat", 4)])
def test_full_size(name, upscale):
    ours = hatlib.create_model(f"{name}_x{upscale}").eval()
    small = name == "hat_s"
    theirs = SpandrelHAT(
        img_size=64,
        embed_dim=144 if small else 180,
        depths=(6,) * 6,
        num_heads=(6,) * 6,
        window_size=16,
        compress_ratio=24 if small else 3,
        squeeze_factor=24 if small else 30,
        mlp_ratio=2.0,
        upscale=upscale,
    ).eval()
    randomize(theirs, std=0.02)
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    x = torch.rand(1, 3, 20, 33)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) <= 1e-5


@pytest.mark.parametrize(
    "config",
    [
        dict(window_size=16, overlap_ratio=0.5),
        dict(window_size=8, overlap_ratio=0.25),
        dict(window_size=8, overlap_ratio=0.75),
        dict(window_size=8, overlap_ratio=1.0),
        dict(window_size=16, overlap_ratio=1.0),
        dict(in_chans=4),
        dict(in_chans=1, upscale=3),
        dict(upscale=1),
        dict(upscale=8),
        dict(resi_connection="identity"),
        dict(qkv_bias=False, qk_scale=0.3, patch_norm=False),
        dict(img_range=255.0, conv_scale=0.3),
        dict(depths=(1, 3), mlp_ratio=1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_small_configurations(config, dtype, limit):
    config = {**SMALL, **config}
    theirs, ours = pair(dtype, **config)
    x = torch.rand(2, config.get("in_chans", 3), 35, 26, dtype=dtype)
    for train in (False, True):  # with drop_path 0 training computes the same
        theirs.train(train), ours.train(train)
        with torch.no_grad():
            assert relative_error(ours(x), theirs(x)) <= limit


def test_gradients():
    theirs, ours = pair(**SMALL)
    x = torch.rand(2, 3, 24, 17, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, image in zip((theirs, ours), inputs, strict=True):
        model.train()(image).square().mean().backward()
    assert relative_error(inputs[1].grad, inputs[0].grad) <= 1e-6
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, expected[name].grad) <= 1e-6, name


@pytest.mark.parametrize("height, width", [(9, 30), (5, 4), (1, 1), (1, 7), (8, 8)])
def test_inputs_smaller_than_the_padding(height, width):
    """Where spandrel's reflection fails: reflect as far as it goes, then repeat the first row or column."""
    theirs, ours = pair(**{**SMALL, "window_size": 16})
    x = torch.rand(1, 3, height, width, dtype=torch.float64)
    padded = F.pad(x, (0, min(-width % 16, width - 1), 0, min(-height % 16, height - 1)), mode="reflect")
    rest_h, rest_w = -padded.shape[2] % 16, -padded.shape[3] % 16
    padded = torch.cat([padded, padded[:, :, :, :1].expand(-1, -1, -1, rest_w)], 3)
    padded = torch.cat([padded, padded[:, :, :1].expand(-1, -1, rest_h, -1)], 2)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(padded)[:, :, : 2 * height, : 2 * width]) <= 1e-6
