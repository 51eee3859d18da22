"""With the same weights, RCAN equals spandrel's implementation, and EDSR its published arithmetic written out here.

Both in the layout of their authors and in BasicSR's, with the 1x1 convolutions for the mean as they were made, and as
training may have left them.
"""

import re
import warnings

import pytest
import torch
from conftest import randomize, relative_error
from spandrel import ModelLoader
from spandrel.architectures.RCAN import RCAN as SpandrelRCAN
from torch.nn import functional as F

import hatlib
from hatlib import HatlibError, load
from hatlib.checkpoint import load_weights
from hatlib.engines.foreign import ForeignModel
from hatlib.models import EDSR, RCAN

MEAN = (0.4488, 0.4371, 0.4040)
SMALL_RCAN = dict(num_feat=16, num_group=2, num_block=3, squeeze_factor=4)
SMALL_EDSR = dict(num_feat=16, num_block=3)

PUBLISHED_RCAN = {2: 15_444_667, 3: 15_629_307, 4: 15_592_379, 8: 15_740_091}
# Millions, as published; with the two convolutions for the mean, of 9 weights and 3 biases each.
PUBLISHED_EDSR = {
    "edsr_m": {2: "1.37", 3: "1.55", 4: "1.52"},
    "edsr": {2: "40.7", 3: "43.7", 4: "43.1"},
}


@pytest.mark.parametrize("scale", PUBLISHED_RCAN)
def test_parameter_counts_of_rcan(scale):
    with torch.device("meta"):
        model = hatlib.create_model(f"rcan_x{scale}")
    assert sum(p.numel() for p in model.parameters()) + 2 * (9 + 3) == PUBLISHED_RCAN[scale]


@pytest.mark.parametrize("name", PUBLISHED_EDSR)
def test_parameter_counts_of_edsr(name):
    for scale, published in PUBLISHED_EDSR[name].items():
        with torch.device("meta"):
            model = hatlib.create_model(f"{name}_x{scale}")
        count = sum(p.numel() for p in model.parameters()) + 2 * (9 + 3)
        assert f"{count / 1e6:.{len(published) - published.index('.') - 1}f}" == published


# The published arithmetic.


def spandrel_rcan(config, trained_mean=False, dtype=torch.float64, std=0.05, **more):
    """Spandrel's network with random weights, from our arguments; its means as they were made, or changed as well."""
    names = dict(upscale="scale", num_feat="n_feats", num_group="n_resgroups", num_block="n_resblocks")
    names["squeeze_factor"] = "reduction"
    torch.manual_seed(0)
    model = SpandrelRCAN(**{names[name]: value for name, value in config.items()}, **more)
    kept = {n: p.clone() for n, p in model.named_parameters() if "mean" in n}
    randomize(model, std=std)
    if not trained_mean:
        model.load_state_dict({**model.state_dict(), **kept})
    return model.to(dtype).eval()


def edsr_weights(upscale, num_feat, num_block, seed=0, dtype=torch.float64, std=0.05, trained_mean=False):
    """Random weights under the names of EDSR-PyTorch."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def conv(name, out_chans, in_chans, kernel=3):
        for suffix, shape in (("weight", (out_chans, in_chans, kernel, kernel)), ("bias", (out_chans,))):
            weights[f"{name}.{suffix}"] = std * torch.randn(shape, generator=generator).to(dtype)

    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        conv(name, 3, 3, 1)
        if not trained_mean:
            weights = {n: 0 * v if n.startswith(name) else v for n, v in weights.items()}
        weights[f"{name}.weight"] += torch.eye(3, dtype=dtype)[:, :, None, None]
        weights[f"{name}.bias"] += sign * 255 * torch.tensor(MEAN, dtype=dtype)
    conv("head.0", num_feat, 3)
    for block in range(num_block):
        conv(f"body.{block}.body.0", num_feat, num_feat)
        conv(f"body.{block}.body.2", num_feat, num_feat)
    conv(f"body.{num_block}", num_feat, num_feat)
    factors = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[upscale]
    for i, factor in enumerate(factors):
        conv(f"tail.0.{2 * i}", factor**2 * num_feat, num_feat)
    conv("tail.1", 3, num_feat)
    return weights


def edsr(weights, image, res_scale, num_block):
    """EDSR's arithmetic (section 3.2 and figure 3), of an image in [0, 255]."""

    def conv(name, x):
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    shallow = x = conv("head.0", conv("sub_mean", image))
    for block in range(num_block):
        x = x + res_scale * conv(f"body.{block}.body.2", F.relu(conv(f"body.{block}.body.0", x)))
    x = conv(f"body.{num_block}", x) + shallow
    i = 0
    while f"tail.0.{i}.weight" in weights:
        factor = {4: 2, 9: 3}[len(weights[f"tail.0.{i}.weight"]) // x.shape[1]]
        x = F.pixel_shuffle(conv(f"tail.0.{i}", x), factor)
        i += 2
    return conv("add_mean", conv("tail.1", x))


def ours_of(cls, state_dict, **config):
    """Our network with published weights, and what they tell of the mean."""
    told = hatlib.detection._detectors[cls](state_dict)
    model = cls(**{**{k: told[k] for k in ("mean", "img_range") if k in told}, **config}).to(torch.float64)
    model.load_state_dict(cls.convert_state_dict(dict(state_dict)))
    return model.eval()


LIMITS = pytest.mark.parametrize(
    "dtype, limit", [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["float64", "float32"]
)


@LIMITS
@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
def test_rcan(upscale, dtype, limit):
    config = dict(upscale=upscale, **SMALL_RCAN)
    theirs = spandrel_rcan(config, dtype=dtype)
    ours = ours_of(RCAN, theirs.state_dict(), **config).to(dtype)
    x = torch.rand(2, 3, 13, 10, dtype=dtype)
    for train in (False, True):
        theirs.train(train), ours.train(train)
        with torch.no_grad():
            assert relative_error(ours(x), theirs(x.clone())) <= limit


def test_rcan_without_normalization():
    config = dict(upscale=2, **SMALL_RCAN)
    theirs = spandrel_rcan(config, norm=False)
    ours = ours_of(RCAN, theirs.state_dict(), **config)
    assert (ours.img_range, ours.mean_values) == (1.0, (0.0, 0.0, 0.0))
    x = torch.rand(1, 3, 13, 10, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x.clone())) <= 1e-6
    assert ours.published_state_dict().keys() == theirs.state_dict().keys()


def test_full_size_rcan():
    theirs = spandrel_rcan(dict(upscale=3), dtype=torch.float32, std=0.005)
    ours = hatlib.create_model("rcan_x3").eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    x = torch.rand(1, 3, 9, 14)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x.clone())) <= 1e-5


@LIMITS
@pytest.mark.parametrize("upscale, res_scale", [(1, 1.0), (2, 1.0), (3, 0.1), (4, 0.1), (8, 1.0)])
def test_edsr(upscale, res_scale, dtype, limit):
    config = dict(upscale=upscale, **SMALL_EDSR)
    weights = edsr_weights(**config, dtype=dtype)
    ours = ours_of(EDSR, weights, res_scale=res_scale, **config).to(dtype)
    x = torch.rand(2, 3, 13, 10, dtype=dtype)
    for train in (False, True):
        with torch.no_grad():
            assert relative_error(ours.train(train)(x), edsr(weights, 255 * x, res_scale, 3) / 255) <= limit


@pytest.mark.parametrize("name, res_scale, num_block", [("edsr_m_x3", 1.0, 16), ("edsr_x2", 0.1, 32)])
def test_full_size_edsr(name, res_scale, num_block):
    ours = hatlib.create_model(name).eval()
    config = dict(upscale=ours.upscale, num_feat=ours.num_feat, num_block=num_block)
    weights = edsr_weights(**config, dtype=torch.float32, std=0.02)
    ours.load_state_dict(ours.convert_state_dict(weights))
    x = torch.rand(1, 3, 7, 5)
    with torch.inference_mode():
        assert relative_error(ours(x), edsr(weights, 255 * x, res_scale, num_block) / 255) <= 1e-5


def test_gradients_of_rcan():
    config = dict(upscale=2, **SMALL_RCAN)
    theirs = spandrel_rcan(config)
    ours = ours_of(RCAN, theirs.state_dict(), **config)
    x = torch.rand(2, 3, 11, 8, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    theirs.train()(inputs[0] * 1).square().mean().backward()
    ours.train()(inputs[1]).square().mean().backward()
    assert relative_error(inputs[1].grad, inputs[0].grad) <= 1e-6
    gradients = {n: p.grad for n, p in theirs.named_parameters() if "mean" not in n}
    expected = RCAN.convert_state_dict(gradients)
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, expected[name]) <= 1e-6, name


def test_gradients_of_edsr():
    weights = {n: w.requires_grad_() for n, w in edsr_weights(2, **SMALL_EDSR).items()}
    ours = ours_of(EDSR, {n: w.detach() for n, w in weights.items()}, upscale=2, res_scale=0.1, **SMALL_EDSR)
    x = torch.rand(2, 3, 11, 8, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    (edsr(weights, 255 * inputs[0], 0.1, 3) / 255).square().mean().backward()
    ours.train()(inputs[1]).square().mean().backward()
    assert relative_error(inputs[1].grad, inputs[0].grad) <= 1e-6
    expected = EDSR.convert_state_dict({n: w.grad for n, w in weights.items() if "mean" not in n})
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, expected[name]) <= 1e-6, name


# Key layouts.


def as_basicsr(name):
    """A name of the authors' layout in BasicSR's, by rules written here."""
    rules = [
        (r"^head\.0\.", "conv_first."),
        (r"^tail\.0\.", "upsample."),
        (r"^tail\.1\.", "conv_last."),
        (r"^body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0", r"body.\1.residual_group.\2.rcab.3.attention.1"),
        (r"^body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2", r"body.\1.residual_group.\2.rcab.3.attention.3"),
        (r"^body\.(\d+)\.body\.(\d+)\.body\.", r"body.\1.residual_group.\2.rcab."),
        (r"^body\.(\d+)\.body\.3\.(weight|bias)$", r"body.\1.conv.\2"),  # behind three blocks
        (r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
        (r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
        (r"^body\.\d+\.(weight|bias)$", r"conv_after_body.\1"),
    ]
    for pattern, replacement in rules:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(name)


def published_files(cls):
    """Weights in the authors' layout, with the arguments that make their network; and in BasicSR's."""
    if cls is RCAN:
        config = dict(upscale=4, **SMALL_RCAN)
        original = spandrel_rcan(config, dtype=torch.float32).state_dict()
    else:
        config = dict(upscale=4, **SMALL_EDSR)
        original = edsr_weights(**config, dtype=torch.float32)
    return config, original, {as_basicsr(n): v for n, v in original.items() if "mean" not in n}


@pytest.mark.parametrize("cls", [RCAN, EDSR])
def test_all_layouts_load(cls, tmp_path):
    config, original, basicsr = published_files(cls)
    x = torch.rand(1, 3, 9, 7)
    outs = []
    for name, content, untold in (
        ("original", original, "res_scale:"),
        ("basicsr", {"params_ema": basicsr}, "img_range, mean, res_scale:"),
        ("basicsr_bare", basicsr, "img_range, mean, res_scale:"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.warns(UserWarning, match=f"does not record {untold}"):
            model = load(tmp_path / f"{name}.pth")
        assert isinstance(model, cls)
        assert {k: model.config["model_args"][k] for k in config} == config
        with torch.inference_mode():
            outs.append(model(x))
        given = cls(**config)
        assert load_weights(given, tmp_path / f"{name}.pth").complete
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in given.state_dict().items())
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    # There and back.
    published = model.published_state_dict()
    assert published.keys() == original.keys() and all(torch.equal(published[n], v) for n, v in original.items())
    assert cls.keys.write(model.state_dict(), "basicsr").keys() == basicsr.keys()
    assert cls.convert_state_dict(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize("seed", range(10))
def test_random_rcan(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)

    def draw(*values):
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    config = dict(upscale=draw(2, 3, 4, 8), num_feat=draw(8, 12, 32), num_group=draw(1, 2, 4), num_block=draw(1, 2, 5))
    config["squeeze_factor"] = draw(1, 2, 4)
    theirs = spandrel_rcan(config, dtype=torch.float32)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = load(tmp_path / "w.pth")
    assert {k: ours.config["model_args"][k] for k in config} == config
    assert ours.img_range == 255.0
    x = torch.rand(1, 3, 8, 11)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x.clone())) < 1e-5

    published = ours.published_state_dict()
    assert published.keys() == theirs.state_dict().keys()
    torch.save(published, tmp_path / "published.pth")
    descriptor = ModelLoader().load_from_file(tmp_path / "published.pth")
    assert (descriptor.architecture.id, descriptor.scale) == ("RCAN", config["upscale"])
    with torch.no_grad():
        assert relative_error(descriptor.model.eval()(x.clone()), ours(x)) < 1e-5


@pytest.mark.parametrize("option", [dict(kernel_size=5), dict(unshuffle_mod=True)], ids=str)
def test_other_kinds_of_rcan_are_left_to_spandrel(option, tmp_path):
    theirs = spandrel_rcan(dict(upscale=2, **SMALL_RCAN), dtype=torch.float32, **option)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = load(tmp_path / "w.pth")
    assert isinstance(ours, ForeignModel) and ours.architecture == "RCAN"


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize("cls", [RCAN, EDSR])
@pytest.mark.parametrize("upsampler, upscale", [("pixelshuffle", 2), ("pixelshuffledirect", 3), ("nearest+conv", 4)])
def test_other_heads(cls, upsampler, upscale, tmp_path):
    small = SMALL_RCAN if cls is RCAN else SMALL_EDSR
    model = randomize(cls(upscale=upscale, upsampler=upsampler, **small)).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    again = load(tmp_path / "w.pth")
    assert again.config == model.config
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_trained_mean_shifts_are_left_to_spandrel(tmp_path):
    theirs = spandrel_rcan(dict(upscale=2, **SMALL_RCAN), trained_mean=True, dtype=torch.float32)
    torch.save(theirs.state_dict(), tmp_path / "rcan.pth")
    ours = load(tmp_path / "rcan.pth")
    assert isinstance(ours, ForeignModel) and ours.architecture == "RCAN"
    x = torch.rand(1, 3, 8, 11)
    with torch.no_grad():
        assert relative_error(ours(x.clone()), theirs(x.clone())) < 1e-5
    with pytest.raises(HatlibError, match="sub_mean and add_mean were trained"):
        load_weights(RCAN(upscale=2, **SMALL_RCAN), tmp_path / "rcan.pth")
    torch.save(edsr_weights(2, **SMALL_EDSR, trained_mean=True), tmp_path / "edsr.pth")
    with pytest.raises(HatlibError, match="no architecture that hatlib or spandrel knows"):
        load(tmp_path / "edsr.pth")


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize(
    "img_range, mean", [(1.0, None), (16.0, None), (100.0, (0.0, 0.0, 0.0)), (1.0, (0.0, 0.0, 0.0))]
)
def test_published_layout_of_other_ranges(img_range, mean, tmp_path):
    """The 1x1 convolutions of the layout carry them: what is read again computes the same."""
    model = randomize(EDSR(upscale=2, img_range=img_range, mean=mean, **SMALL_EDSR)).double().eval()
    torch.save(model.published_state_dict(), tmp_path / "w.pth")
    again = load(tmp_path / "w.pth").double().eval()
    x = torch.rand(1, 3, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(again(x), model(x)) <= 1e-5
    with pytest.raises(HatlibError, match="cannot hold img_range=100"):
        EDSR(upscale=2, img_range=100.0, out_chans=1, **SMALL_EDSR).published_state_dict()


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(num_block=0), "has no groups"),
        (dict(upscale=5), "powers of 2, not 5"),
        (dict(upscale=1, upsampler=""), "take that"),
    ],
)
def test_options_that_do_not_go_together(option, message):
    with pytest.raises(HatlibError, match=message):
        EDSR(**{**SMALL_EDSR, **option})


def test_weights_of_another_mean_warn(tmp_path):
    """A model that exists keeps its own mean, and a warning says that the weights were trained with another one."""
    weights = edsr_weights(2, **SMALL_EDSR, dtype=torch.float32)
    torch.save(weights, tmp_path / "same.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(EDSR(upscale=2, **SMALL_EDSR), tmp_path / "same.pth")
    weights["sub_mean.bias"] -= 5
    weights["add_mean.bias"] += 5
    torch.save(weights, tmp_path / "other.pth")
    with pytest.warns(UserWarning, match="mean=.*hatlib.load"):
        load_weights(EDSR(upscale=2, **SMALL_EDSR), tmp_path / "other.pth")


@pytest.mark.parametrize("name", [*hatlib.list_models("rcan_*"), *hatlib.list_models("edsr_*")])
def test_registered_archs_are_known_by_name(name):
    with torch.device("meta"):
        model = hatlib.create_model(name)
    cls, arguments = hatlib.detection.detect(model.state_dict())
    assert hatlib.detection.find_arch(cls, arguments) == (name, True)
    assert model.config["architecture"] == name


@pytest.mark.parametrize("cls, more", [(RCAN, dict(num_group=2, squeeze_factor=4)), (EDSR, {})])
def test_published_configuration_can_be_pasted(cls, more):
    """The keys of a BasicSR `network_g` section, `type` left out."""
    section = dict(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=2, upscale=2, res_scale=1, img_range=255.0)
    model = cls(**section, rgb_mean=[0.4488, 0.4371, 0.4040], **more)
    assert (model.in_chans, model.out_chans, model.img_range) == (3, 3, 255.0)
    other = cls(**{**section, "num_in_ch": 1, "num_out_ch": 2}, **more)
    assert other(torch.rand(1, 1, 4, 5)).shape == (1, 2, 8, 10)
    assert type(other)(**other.config["model_args"]).config == other.config
