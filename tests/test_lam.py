"""Local attribution maps: equal to the formulas, complete, harmless to the model; diffusion index and density."""

import math

import numpy as np
import pytest
import torch
from conftest import randomize, relative_error, tiny_overrides
from scipy.stats import gaussian_kde
from torch import nn
from torch.nn import functional as F

import hatlib
from hatlib import HatlibError
from hatlib.analysis import density, diffusion_index, gini, lam


class Stranger(nn.Module):
    """A network that has nothing to do with ours: global channel attention, and flat where its input is."""

    def __init__(self, channels=3, scale=3, mode="bilinear"):
        super().__init__()
        self.scale = scale
        self.mode = mode
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        self.gate = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.norm(torch.tanh(self.mix(x))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return F.interpolate(x, scale_factor=self.scale, mode=self.mode)


def ours(name, **more):
    return hatlib.create_model(name, **{**tiny_overrides(name), **more})


def hat(**more):
    return ours("hat_s_x2", **more)


def swinir():
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2, upscale=2, upsampler="pixelshuffle"
    )


def rcan():
    """Which multiplies its input in place."""
    from spandrel.architectures.RCAN import RCAN

    return RCAN(scale=2, n_resgroups=1, n_resblocks=2, n_feats=8, reduction=4)


NETWORKS = {
    "hat": (hat, 3),
    "gray hat": (lambda: hat(in_chans=1), 1),
    "swinir": (lambda: ours("swinir_m_x2"), 3),
    "rcan": (lambda: ours("rcan_x2"), 3),
    "edsr": (lambda: ours("edsr_x2"), 3),
    "spandrel's swinir": (swinir, 3),
    "spandrel's rcan": (rcan, 3),
    "stranger": (Stranger, 3),
    "gray stranger": (lambda: Stranger(1, 1), 1),
}


def picture(channels=3, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, height // 3, width // 3, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def blurred(image, sigma, side):
    """The image filtered by a kernel on the grid, pixel by pixel, mirrored at the border without repeating it."""
    r = side // 2
    kernel = np.array(
        [
            [
                1.0 * (a == b == 0) if sigma == 0 else math.exp(-(a * a + b * b) / (2 * sigma**2))
                for b in range(-r, r + 1)
            ]
            for a in range(-r, r + 1)
        ]
    )
    kernel /= kernel.sum()
    x = np.pad(image.double().numpy(), ((0, 0), (r, r), (r, r)), mode="reflect")
    _, height, width = image.shape
    rows = [kernel[a, b] * x[:, a : a + height, b : b + width] for a in range(side) for b in range(side)]
    return torch.from_numpy(sum(rows))


def detector(sr, x, y, size):
    total = 0
    for channel in sr[0]:
        dh = channel[y + 1 : y + size + 1, x : x + size] - channel[y : y + size, x : x + size]
        dw = channel[y : y + size, x + 1 : x + size + 1] - channel[y : y + size, x : x + size]
        total = total + (dh**2 + dw**2).sqrt().sum()
    return total


def plain_lam(model, image, window, sigma=1.2, fold=50, side=9, trapezoid=False):
    """Step by step, with a full backward pass for each."""
    path = [blurred(image, s, side) for s in np.linspace(sigma, 0, fold + 1)]
    gradients = []
    for point in path:
        leaf = point.to(image.dtype)[None].requires_grad_()
        detector(model(leaf * 1), *window).backward()
        gradients.append(leaf.grad[0].double())
    total = torch.zeros_like(path[0])
    for i in range(fold):
        gradient = (gradients[i] + gradients[i + 1]) / 2 if trapezoid else gradients[i + 1]
        total += gradient * fold * (path[i + 1] - path[i]) / fold
    return total


@pytest.mark.parametrize("rule", ["reference", "trapezoid"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_formulas(name, rule):
    make, channels = NETWORKS[name]
    torch.manual_seed(1)
    model = randomize(make()).eval()
    image = picture(channels, 13, 17)
    window = (5, 3, 8)
    result = lam(model, image, window, fold=12, rule=rule, batch=5)
    expected = plain_lam(model, image, window, fold=12, trapezoid=rule == "trapezoid")
    assert relative_error(result.attribution, expected) <= 1e-5
    magnitude = expected.sum(0).abs()
    assert (result.map - magnitude / magnitude.max()).abs().max() <= 1e-5 and result.map.max() == 1
    scale = getattr(model, "upscale", getattr(model, "scale", 1))
    assert result.scale == scale and result.sr.shape == (channels, 13 * scale, 17 * scale)
    assert relative_error(result.sr, model(image[None].clone())[0].detach()) <= 1e-5
    with torch.no_grad():
        ends = [detector(model(x.float()[None]), *window) for x in (image, blurred(image, 1.2, 9))]
    assert result.difference == pytest.approx((ends[0] - ends[1]).item(), rel=1e-4)
    expected_error = abs(expected.sum().item() / (ends[0] - ends[1]).item() - 1)
    assert result.completeness == pytest.approx(expected_error, abs=1e-4)
    assert result.di == diffusion_index(result.map) == 100 * (1 - result.gini)


def test_defaults_with_the_shipped_weights():
    model = hatlib.create_model("hat_t_x4", pretrained=True).eval()
    image = (picture(3, 16, 16) * 255).round() / 255
    result = lam(model, image)
    assert result.window == (24, 24, 16) and result.scale == 4 and result.gradients == 43
    assert relative_error(result.attribution, plain_lam(model, image, (24, 24, 16))) <= 1e-5


def test_completeness_of_the_trapezoid_rule():
    model = hatlib.create_model("hat_t_x4", pretrained=True)
    exact = lam(model, picture(3, 32, 32, seed=3), rule="trapezoid")
    assert exact.completeness <= 0.02 and exact.gradients == 44
    assert abs(exact.attribution.sum().item() - exact.difference) == pytest.approx(
        exact.completeness * abs(exact.difference)
    )
    rough = lam(model, picture(3, 32, 32, seed=3), fold=10)
    assert rough.completeness > 4 * exact.completeness


def test_batches_and_types_of_image_do_not_matter():
    model = randomize(Stranger()).eval().double()
    image = (picture(3, 14, 12) * 255).to(torch.uint8)
    first = lam(model, image, (6, 9, 5), fold=7, batch=1)
    for other in (image[None], image.double() / 255):
        result = lam(model, other, (6, 9, 5), fold=7, batch=3)
        assert result.image.dtype == torch.float64
        assert relative_error(result.attribution, first.attribution) <= 1e-6  # uint8 becomes float32 first
    steps = []
    lam(model, image, fold=7, batch=3, progress=lambda *step: steps.append(step))
    assert steps == [(3, 7), (6, 7), (7, 7)]


def test_flat_areas_are_no_trouble():
    """Outside the window and inside it, with a gate that sees the whole image."""
    model = randomize(Stranger(mode="nearest")).eval()
    image = torch.full((3, 24, 24), 0.4)
    image[:, 8:12, 8:12] = picture(3, 12, 12)[:, :4, :4]
    result = lam(model, image, (21, 21, 18), rule="trapezoid")
    for value in (result.map, result.attribution, torch.tensor([result.di, result.gini])):
        assert value.isfinite().all()
    assert 0 < result.di < 20 and result.completeness < 0.01
    # A root over the whole image fails, even where only its values in the window are taken.
    leaf = image[None].clone().requires_grad_()
    sr = model(leaf)[0]
    everywhere = (sr.diff(dim=1)[:, :, :-1] ** 2 + sr.diff(dim=2)[:, :-1] ** 2).sqrt()
    assert torch.autograd.grad(everywhere[:, 21:39, 21:39].sum(), leaf)[0].isnan().all()


def test_window_at_the_border():
    """Beyond the last pixel it goes on as it is: what a network with a wider output has in its window."""
    model = randomize(Stranger()).eval()
    image = picture(3, 12, 15)
    result = lam(model, image, (35, 26, 10), fold=4)
    wider = nn.ReplicationPad2d((0, 1, 0, 1))
    with torch.no_grad():
        ends = [wider(model(x.float()[None]))[0, :, 26:, 35:] for x in (image, blurred(image, 1.2, 9))]
    strengths = []
    for end in ends:
        dh, dw = end[:, 1:, :-1] - end[:, :-1, :-1], end[:, :-1, 1:] - end[:, :-1, :-1]
        strengths.append((dh**2 + dw**2).sqrt().sum().item())
    assert dh.shape == (3, 10, 10) and result.map.isfinite().all()
    assert result.difference == pytest.approx(strengths[0] - strengths[1], rel=1e-4)


def test_the_model_is_left_as_it_was():
    model = randomize(hat(drop_path_rate=0.5)).train()
    model.layers[0].eval()
    model.conv_first.weight.requires_grad_(False)
    model(torch.rand(1, 3, 16, 16)).sum().backward()
    calls = []
    model.conv_first.register_forward_hook(lambda *_: calls.append(1))
    model.conv_last.register_full_backward_hook(lambda *_: calls.append(2))

    def state():
        return (
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
            [b.sum().item() for b in model.state_dict().values()],
            [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        )

    before, image = state(), picture(3, 12, 12)
    kept = image.clone()
    first = lam(model, image, fold=5)
    assert state() == before and torch.equal(image, kept) and {1, 2} == set(calls)
    with torch.no_grad():
        assert torch.equal(lam(model, image, fold=5).map, first.map)  # and stochastic depth was off
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(lam(model, image * 1, fold=5).map, first.map)
    assert torch.equal(lam(model.eval(), image, fold=5).map, first.map)

    model.set_grad_checkpointing()
    assert relative_error(lam(model, image, fold=5).attribution, first.attribution) <= 1e-5

    class Fails(Stranger):
        def forward(self, x):
            raise RuntimeError("broken")

    broken = Fails().train()
    with pytest.raises(RuntimeError, match="broken"):
        lam(broken, image)
    assert broken.training and all(p.requires_grad for p in broken.parameters())


def hooked(model):
    model.register_forward_hook(lambda _, __, out: out.square())


def patched(model):
    forward = model.forward
    model.forward = lambda x: forward(x).square()


def silenced(model):
    model.register_full_backward_hook(lambda _, grads, __: (grads[0] * torch.linspace(0, 1, grads[0].shape[-1]),))


@pytest.mark.parametrize("change", [hooked, patched, silenced])
def test_a_changed_network_of_ours_is_taken_as_changed(change):
    """And not for the network that it was, whose output could be had at the window alone."""
    model, image = randomize(ours("edsr_x2")).eval(), picture(3, 12, 12)
    change(model)
    result = lam(model, image, (4, 4, 8), fold=6)
    assert relative_error(result.attribution, plain_lam(model, image, (4, 4, 8), fold=6)) <= 1e-5


def cut(x):
    return F.interpolate(x.detach(), scale_factor=2)


def other_factors(x):
    return F.interpolate(x, scale_factor=(2, 3))


def module(function):
    class Function(nn.Module):
        def forward(self, x):
            return function(x)

    return Function()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(window=(30, 0, 16)), "window 30,0,16 .*does not lie within the output, which has 36x36"),
        (dict(window=(0, -1, 4)), "does not lie within"),
        (dict(window=(0, 0, 0)), "does not lie within"),
        (dict(window=(1, 2)), "three whole numbers"),
        (dict(window=(1.5, 2, 8)), "three whole numbers"),
        (dict(scale=4), "enlarges by 3, and not by 4"),
        (dict(image=torch.rand(3, 12, 8)), "8x12 pixels, fewer than the blur's kernel of 9x9"),
        (dict(image=torch.rand(2, 3, 12, 12)), "one image"),
        (dict(image=torch.rand(12, 12)), "one image"),
        (dict(image=torch.full((3, 12, 12), math.nan)), "finite"),
        (dict(image=torch.zeros(3, 12, 12, dtype=torch.int64)), "int64"),
        (dict(image=torch.full((3, 12, 12), 0.5)), "choose another window"),
        (dict(sigma=0), "sigma=0"),
        (dict(fold=0), "fold=0"),
        (dict(batch=0), "batch=0"),
        (dict(kernel_size=8), "odd"),
        (dict(rule="simpson"), "'reference' or 'trapezoid'"),
        (dict(model=module(cut)), "cuts the gradient off"),
        (dict(model=module(other_factors)), "36x24 of 12x12 pixels"),
        (dict(model=module(lambda x: x[:, :, ::2])), "12x6 of 12x12 pixels"),
        (dict(model=module(lambda x: [x])), "gives list"),
        (dict(model=module(lambda x: x.mean((2, 3)))), r"gives \(1, 3\)"),
        (dict(model=module(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3) / 0)), "not finite"),
    ],
)
def test_bad_input_is_explained(change, words):
    torch.manual_seed(0)
    arguments = dict(model=randomize(Stranger()), image=picture(3, 12, 12), window=(9, 9, 10), fold=3)
    with pytest.raises(HatlibError, match=words) as caught:
        lam(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_out_of_memory_is_explained():
    def greedy(x):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(HatlibError, match="smaller image, or a smaller batch"):
        lam(module(greedy), picture())


def test_diffusion_index_of_known_maps():
    n = 4096
    assert diffusion_index(torch.ones(64, 64)) == pytest.approx(100, abs=1e-6)
    pixel = torch.zeros(64, 64)
    pixel[5, 7] = 3.0
    assert diffusion_index(pixel.numpy()[::-1]) == diffusion_index(pixel)
    # n - 1 values of 1e-7 and one of 1: a little over the 100 / n of true zeros.
    assert diffusion_index(pixel) == pytest.approx(100 / n + 100 * n * 1e-7, rel=1e-2)
    exponential = -np.log1p(-(np.arange(n) + 0.5) / n)
    assert diffusion_index(exponential) == pytest.approx(50, abs=0.1)
    assert diffusion_index(7 * exponential[::-1].copy()) == pytest.approx(diffusion_index(exponential), abs=1e-9)
    assert gini(torch.tensor([0.0, 0.0, 1.0, 1.0])) == pytest.approx(0.5, abs=1e-6)
    # All pairs, as Gini's coefficient is defined.
    x = np.random.default_rng(0).random(50)
    pairs = np.abs(x[:, None] - x).sum() / (2 * 50 * x.sum())
    assert gini(x) == pytest.approx(pairs, rel=1e-6)
    for bad in (torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), torch.empty(0)):
        with pytest.raises(HatlibError, match="none of them negative"):
            diffusion_index(bad)


@pytest.mark.parametrize("shape", [(16, 16), (13, 22)])
def test_density_is_that_of_scipy(shape):
    weights = np.random.default_rng(1).random(shape) ** 8
    weights *= np.exp(-(((np.arange(shape[0])[:, None] - 5) - (np.arange(shape[1]) - 6) * 0.7) ** 2) / 9)  # slanted
    positions = np.indices(shape).reshape(2, -1)
    expected = gaussian_kde(positions, weights=weights.ravel())(positions).reshape(shape)
    actual = density(torch.from_numpy(weights)).numpy()
    assert np.abs(actual - expected).max() <= 1e-10 * expected.max()


def test_density_of_single_pixels_and_lines():
    x = torch.zeros(9, 12)
    x[4, 3] = 2.0
    single = density(x)
    assert single.isfinite().all() and single.argmax() == 4 * 12 + 3
    x[4, 8] = 2.0
    line = density(x)
    assert line.isfinite().all() and line[4].sum() > 100 * line[[0, 8]].sum()
    for bad in (torch.zeros(4, 4), torch.ones(3, 4, 4)):
        with pytest.raises(HatlibError, match="A density is that of a map"):
            density(bad)
