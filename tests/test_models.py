"""What every registered model does, on shrunk models."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from conftest import randomize, relative_error, tiny_overrides

import hatlib
from hatlib import HatlibError
from hatlib.blocks import strips
from hatlib.models import HAT

TINY = tiny_overrides("hat_x2")


@pytest.mark.parametrize("name", hatlib.list_models())
def test_every_name_builds(name):
    model = hatlib.create_model(name, **tiny_overrides(name)).eval()
    with torch.inference_mode():
        out = model(torch.rand(1, model.in_chans, 8, 9))
    assert out.shape == (1, model.out_chans, 8 * model.upscale, 9 * model.upscale)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (15, 17), (16, 16), (33, 64)], ids=str)
def test_any_size(tiny, size):
    with torch.inference_mode():
        out = tiny(torch.rand(2, tiny.in_chans, *size))
    assert out.shape == (2, tiny.out_chans, size[0] * tiny.upscale, size[1] * tiny.upscale)
    assert out.isfinite().all()


def test_images_of_a_batch_do_not_mix(tiny):
    x = torch.rand(3, tiny.in_chans, 9, 20)
    with torch.inference_mode():
        assert relative_error(tiny(x)[1:2], tiny(x[1:2])) < 1e-5


def test_any_channels(arch):
    model = hatlib.create_model(arch, in_chans=4, out_chans=2, **tiny_overrides(arch)).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 4, 9, 10)).shape == (1, 2, 9 * model.upscale, 10 * model.upscale)


def test_scale_is_that_of_the_name(arch):
    info = hatlib.model_info(arch)
    assert arch.endswith(f"_x{info.scale}")
    with pytest.raises(HatlibError, match=f"scale {info.scale}, got upscale=5"):
        hatlib.create_model(arch, upscale=5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whole_model_in_another_dtype(tiny, dtype):
    x = torch.rand(1, tiny.in_chans, 20, 17)
    with torch.inference_mode():
        expected = tiny(x)
        out = tiny.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert relative_error(out.float(), expected) < (0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(tiny, dtype):
    x = torch.rand(1, tiny.in_chans, 20, 17)
    with torch.no_grad():
        expected = tiny(x)
    with torch.autocast("cpu", dtype):
        out = tiny.train()(x)
        out.float().mean().backward()
    assert relative_error(out.float(), expected) < 0.2  # stochastic depth is on
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny.parameters())


def test_channels_last_is_the_same(tiny):
    x = torch.rand(2, tiny.in_chans, 20, 17)
    with torch.inference_mode():
        expected = tiny(x)
        out = tiny.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert relative_error(out, expected) < 1e-5


def test_compiles_to_one_graph(tiny_of_each_family):
    tiny = tiny_of_each_family
    torch._dynamo.reset()
    compiled = torch.compile(tiny, fullgraph=True, backend="eager", dynamic=True)
    for size in ((33, 50), (17, 40), (64, 64)):
        x = torch.rand(1, tiny.in_chans, *size)
        with torch.no_grad():
            assert relative_error(compiled(x), tiny(x)) < 1e-5


def test_features(tiny):
    x = torch.rand(2, tiny.in_chans, 18, 13)
    with torch.inference_mode():
        features = tiny.forward_features(x)
        final, maps = tiny.forward_intermediates(x)
        (last,) = tiny.forward_intermediates(x, indices=[len(tiny.layers) - 1], intermediates_only=True)
        (first,) = tiny.forward_intermediates(x, indices=[0], stop_early=True, output_fmt="NHWC")
        normed = tiny.forward_intermediates(x, norm=True, intermediates_only=True)
    assert features.shape == (2, tiny.num_features, 18, 13)
    assert torch.equal(features, final)
    assert len(maps) == len(tiny.feature_info) == len(tiny.layers)
    assert torch.equal(maps[-1], last)
    assert torch.equal(maps[0].permute(0, 2, 3, 1), first)
    assert torch.equal(normed[0], maps[0]) != hasattr(tiny, "norm")


def test_head_of_features_is_the_model(tiny):
    """For sizes that need no padding, forward_head(forward_features(x)) is the model before it adds the mean."""
    x = torch.rand(1, tiny.in_chans, 2 * tiny.multiple, 3 * tiny.multiple)
    with torch.inference_mode():
        out = tiny.forward_head(tiny.forward_features(x)) / tiny.img_range + tiny.mean
        out = out + (x - tiny.mean if tiny.head.residual else 0)
        assert relative_error(out, tiny(x)) < 1e-5


@pytest.mark.parametrize("window", [(0, 0, 5, 2), (9, 14, 6, 11), (3, 21, 14, 9)], ids=str)
def test_window_of_the_output(tiny, window):
    """`forward_window` is a piece of the output, at the border too, and gives its gradient."""
    left, top, width, height = (length * tiny.upscale // 2 for length in window)
    tiny, x = randomize(tiny).double(), torch.rand(2, tiny.in_chans, 18, 13, dtype=torch.float64).requires_grad_()
    whole = tiny(x)[:, :, top : top + height, left : left + width]
    piece = tiny.forward_window(x, left, top, width, height)
    assert piece.shape == whole.shape and relative_error(piece, whole) < 1e-12
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (piece, whole)]
    assert relative_error(*gradients) < 1e-12


def test_timm_builds_it_too(arch):
    torch.manual_seed(0)
    ours = hatlib.create_model(arch, **tiny_overrides(arch))
    torch.manual_seed(0)
    theirs = timm.create_model(arch, **tiny_overrides(arch))
    assert arch in timm.list_models(arch)
    assert type(theirs) is type(ours)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert theirs.pretrained_cfg["num_classes"] == 0


def test_timm_features_only(arch):
    backbone = timm.create_model(arch, features_only=True, out_indices=(0, 1), **tiny_overrides(arch)).eval()
    with torch.inference_mode():
        maps = backbone(torch.rand(1, backbone.model.in_chans, 12, 12))
    assert [m.shape[1] for m in maps] == backbone.feature_info.channels()
    assert all(m.shape[2:] == (12, 12) for m in maps)


def gradients(checkpointing, name="hat_x2", size=16, batch=1, **options):
    """What a shrunk network keeps for the backward pass, and its gradients."""
    torch.manual_seed(0)
    options = {"drop_path_rate": 0.0, **options} if "hat" in name or "swinir" in name else options
    model = randomize(hatlib.create_model(name, **{**tiny_overrides(name), **options})).train()
    model.set_grad_checkpointing(checkpointing)
    x = torch.rand(batch, 3, size, size)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = model(x)
    out.square().mean().backward()
    return sum(kept), [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    "name, more",
    [("hat_x2", {}), ("swinir_m_x2", {}), ("rcan_x2", dict(num_block=8)), ("edsr_m_x2", dict(num_block=16))],
)
def test_gradient_checkpointing_saves_activations(name, more):
    (plain, expected), (saving, actual) = (gradients(checkpointing, name, **more) for checkpointing in (False, True))
    assert saving < 0.6 * plain
    for a, b in zip(actual, expected, strict=True):  # behind a ReLU that is shut there are zeros
        assert relative_error(a, b) < 1e-5 if b.any() else not a.any()


@pytest.mark.parametrize("option", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_gradient_checkpointing_repeats_dropout(monkeypatch, option):
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    expected, actual = (
        gradients(checkpointing, size=24, batch=2, **{option: 0.5})[1] for checkpointing in (False, True)
    )
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(actual, expected, strict=True) if b.abs().max() > 0)


def test_gradient_checkpointing_with_a_frozen_stem(tiny_hat):
    """The blocks still learn where their input has no gradient."""
    tiny_hat.conv_first.requires_grad_(False), tiny_hat.patch_embed.requires_grad_(False)
    tiny_hat.train().set_grad_checkpointing()
    tiny_hat(torch.rand(1, 3, 16, 16)).mean().backward()
    assert all(p.grad is not None for p in tiny_hat.layers.parameters())


def test_reset_upsampler(tiny):
    trunk = {k: v.clone() for k, v in tiny.state_dict().items() if k.startswith("layers")}
    tiny.reset_upsampler(3, "pixelshuffle" if tiny.upsampler in ("", "nearest+conv") else None)
    with torch.inference_mode():
        assert tiny(torch.rand(1, tiny.in_chans, 10, 11)).shape == (1, tiny.out_chans, 30, 33)
    assert all(torch.equal(tiny.state_dict()[k], v) for k, v in trunk.items())
    assert set(tiny.get_head()) == {name.partition(".")[0] for name in _head_parameters(tiny)}


def _head_parameters(model):
    return [n for n, _ in model.named_parameters() if n.startswith(("conv_before", "upsample", "conv_last"))]


@pytest.mark.parametrize("coarse", [False, True])
def test_every_parameter_has_a_group(tiny, coarse):
    from timm.models._manipulate import group_parameters

    groups = group_parameters(tiny, tiny.group_matcher(coarse), reverse=True)
    assert set(groups) == {n for n, _ in tiny.named_parameters()}
    stem, tail = groups["conv_first.weight"], groups[_head_parameters(tiny)[-1]]
    assert stem == 0 and tail == max(groups.values())
    per_group = len({v for n, v in groups.items() if n.startswith("layers.0.")})
    assert (per_group > 1) == (not coarse and hasattr(tiny.layers[0], "residual_group"))  # a group, or one block


def test_no_weight_decay_names_parameters(tiny):
    names = dict(tiny.named_parameters())
    assert tiny.no_weight_decay() == {n for n in names if "bias_table" in n}
    assert bool(tiny.no_weight_decay()) == hasattr(tiny, "window_size")


def test_state_dict_holds_parameters_only(tiny):
    assert set(tiny.state_dict()) == {n for n, _ in tiny.named_parameters()}


def test_buffers_can_be_computed_again(tiny_hat):
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        expected = tiny_hat(x)
        for buffer in tiny_hat.buffers():
            buffer.zero_()
        assert not torch.equal(tiny_hat(x), expected)
        timm.models._manipulate.reinit_non_persistent_buffers(tiny_hat)
        assert torch.equal(tiny_hat(x), expected)


# What is HAT's own.


@pytest.mark.parametrize("upsampler, scale", [("pixelshuffledirect", 3), ("nearest+conv", 4), ("", 1), (None, 1)])
def test_other_heads_work(upsampler, scale):
    model = randomize(HAT(upscale=scale, upsampler=upsampler, **TINY)).eval()
    x = torch.rand(1, 3, 11, 8)
    with torch.inference_mode():
        out = model(x)
    assert out.shape == (1, 3, 11 * scale, 8 * scale)
    if not upsampler:  # a same-size head restores by adding to the image
        torch.nn.init.zeros_(model.conv_last.weight), torch.nn.init.zeros_(model.conv_last.bias)
        with torch.inference_mode():
            assert relative_error(model(x), x) < 1e-6


def test_published_configuration_can_be_pasted():
    """The keys of a BasicSR `network_g` section, `type` left out."""
    section = dict(upscale=4, in_chans=3, img_size=64, window_size=16, compress_ratio=3, squeeze_factor=30)
    section |= dict(conv_scale=0.01, overlap_ratio=0.5, img_range=1.0, depths=[1], embed_dim=60, num_heads=[6])
    section |= dict(mlp_ratio=2, upsampler="pixelshuffle", resi_connection="1conv")
    assert HAT(**section).upscale == 4


@pytest.mark.parametrize(
    "upsampler, scale",
    [("pixelshuffle", s) for s in (1, 2, 3, 8)]
    + [("pixelshuffle+conv", s) for s in (1, 3, 4)]
    + [("pixelshuffledirect", 3), ("nearest+conv", 4)],
)
def test_large_images_in_strips_change_nothing(monkeypatch, upsampler, scale):
    model = randomize(HAT(upscale=scale, upsampler=upsampler, **TINY)).double().eval()
    x = torch.rand(2, 3, 40, 23, dtype=torch.float64)
    expected = model(x).detach()
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    monkeypatch.setattr(strips, "HALO_STRIP_BYTES", 1)  # one row at a time
    with torch.inference_mode():
        assert relative_error(model(x), expected) < 1e-12


MEASURE = """
import sys, torch, hatlib
from hatlib.inference import estimate_memory
torch.set_num_threads(1)
def resident(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024
name, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = hatlib.create_model(name).eval()
with torch.inference_mode():
    model(torch.rand(1, 3, 16, 16))  # what is allocated once
    x = torch.rand(1, 3, height, width)
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = resident("VmRSS")
    model(x)
print(resident("VmHWM") - before, estimate_memory(model, height, width))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(
    "name, height, width",
    [
        ("hat_t_x4", 192, 192),
        *(
            pytest.param(name, *size, marks=pytest.mark.slow)
            for name in ("hat_t_x4", "hat_s_x4", "hat_x4", "swinir_s_x4", "swinir_m_x4", "rcan_x4", "edsr_m_x4")
            for size in ((128, 128), (300, 170), (384, 384))
        ),
    ],
)
def test_memory_is_estimated(name, height, width):
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, name, str(height), str(width)]
    measured, estimated = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 0.75 * measured <= estimated <= 1.25 * measured


@pytest.mark.parametrize(
    "option",
    [
        dict(conv_scale=0.5),
        dict(img_range=255.0),
        dict(mean=(0.1, 0.2, 0.3)),
        dict(qk_scale=1.0),
        dict(overlap_ratio=0.75),
        dict(resi_connection="3conv"),
        dict(norm_layer=torch.nn.Identity),
        dict(patch_norm=False),
    ],
    ids=str,
)
def test_options_have_an_effect(option):
    torch.manual_seed(0)
    plain = randomize(HAT(upscale=2, **TINY)).eval()
    torch.manual_seed(0)
    changed = randomize(HAT(upscale=2, **TINY, **option)).eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(plain(x), changed(x), atol=1e-7)


@pytest.mark.parametrize("option", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_dropout_acts_in_training_alone(option):
    model = randomize(HAT(upscale=2, **{**TINY, "drop_path_rate": 0.0, option: 0.5}), std=0.2)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(model.train()(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(ape=True), "one input size"),
        (dict(patch_size=4), "single pixels"),
        (dict(upsampler="bilinear"), "'pixelshuffle'"),
        (dict(resi_connection="2conv"), "'1conv'"),
        (dict(upscale=5), "powers of 2, not 5"),
        (dict(upscale=0), "1 or more"),
        (dict(upsampler="", upscale=2), "must be 1, not 2"),
        (dict(upsampler="nearest+conv", upscale=3), "powers of 2"),
        (dict(overlap_ratio=0.4), "even number"),
        (dict(num_heads=(5, 5)), "num_heads=5"),
        (dict(num_heads=(2,)), "must agree"),
        (dict(compress_ratio=100), "compress_ratio=100"),
        (dict(squeeze_factor=100), "squeeze_factor=100"),
        (dict(mean=(0.5,)), "one per channel"),
        (dict(in_chans=0), "1 or more"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(option, message):
    with pytest.raises(HatlibError, match=message):
        HAT(**{"upscale": 2, **TINY, **option})


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.rand(1, 1, 8, 8), r"\(B, 3, H, W\)"),
        (torch.rand(3), r"\(B, 3, H, W\)"),
        (torch.rand(3, 8, 8), r"\(B, 3, H, W\)"),
        (torch.rand(1, 3, 0, 8), "H, W >= 1"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float images"),
    ],
)
def test_wrong_images_are_refused(tiny_hat, image, message):
    with pytest.raises(HatlibError, match=message):
        tiny_hat(image)
