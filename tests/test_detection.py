"""Weight files of unknown make: what is detected, what is warned of, what is left to spandrel."""

import random
import warnings

import pytest
import torch
from conftest import randomize, relative_error, tiny_overrides
from spandrel import ModelLoader
from spandrel.architectures.HAT import HAT as SpandrelHAT

import hatlib
from hatlib import HatlibError, load
from hatlib.checkpoint import load_weights, read_state_dict, write_state_dict
from hatlib.detection import detect
from hatlib.engines.foreign import ForeignModel
from hatlib.models import HAT
from hatlib.models.detect import expansion_ratio, reduction_ratio

TINY = tiny_overrides("hat_x2")


def random_config(seed):
    """A random HAT as spandrel's class takes it; ratios that divide the width, so that they are told exactly."""
    draw = random.Random(seed)
    groups = draw.randint(1, 3)
    embed_dim = draw.choice([12, 24, 36])
    window, overlap = draw.choice([(8, 0.25), (8, 0.5), (8, 1.0), (4, 0.5), (16, 0.5), (16, 0.25), (6, 1.0), (7, 0.3)])
    return dict(
        in_chans=draw.choice([1, 3, 4]),
        embed_dim=embed_dim,
        depths=tuple(draw.randint(1, 3) for _ in range(groups)),
        num_heads=tuple(draw.choice([1, 2, 3, 4]) for _ in range(groups)),
        window_size=window,
        compress_ratio=draw.choice([1, 2, 3, 4, 6]),
        squeeze_factor=draw.choice([2, 3, 4, 12]),
        overlap_ratio=overlap,
        mlp_ratio=draw.choice([1.0, 1.5, 2.0, 4.0]),
        qkv_bias=draw.random() < 0.7,
        patch_norm=draw.random() < 0.7,
        resi_connection=draw.choice(["1conv", "identity"]),
        upscale=draw.choice([1, 2, 3, 4, 8]),
        num_feat=draw.choice([8, 16, 24]),
    )


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize("seed", range(20))
def test_random_hyper_parameters(seed, tmp_path):
    config = random_config(seed)
    torch.manual_seed(seed)
    theirs = randomize(SpandrelHAT(img_size=64, **config), seed).eval()
    torch.save({"params_ema": theirs.state_dict()}, tmp_path / "w.pth")
    ours = load(tmp_path / "w.pth")
    found = ours.config["model_args"]
    window = config["window_size"]
    assert int(found.pop("overlap_ratio") * window) == int(config.pop("overlap_ratio") * window)
    assert {name: found[name] for name in config} == config and not ours.training
    x = torch.rand(1, config["in_chans"], 2 * window, 3 * window)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-5

    # Our published layout, in spandrel.
    torch.save(ours.published_state_dict(), tmp_path / "published.pth")
    descriptor = ModelLoader().load_from_file(tmp_path / "published.pth")
    assert (descriptor.architecture.id, descriptor.scale) == ("HAT", config["upscale"])
    with torch.no_grad():
        assert relative_error(descriptor.model.eval()(x), ours(x)) < 1e-5
    assert theirs.state_dict().keys() == ours.published_state_dict().keys()


@pytest.mark.parametrize(
    "option",
    [
        dict(upsampler="pixelshuffledirect", upscale=3),
        dict(upsampler="pixelshuffledirect", upscale=2, out_chans=1),
        dict(upsampler="nearest+conv", upscale=4),
        dict(upsampler="pixelshuffle+conv", upscale=3),
        dict(upsampler="", upscale=1),
        dict(resi_connection="3conv"),
        dict(out_chans=1),
        dict(upscale=16),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*does not record")
def test_what_only_we_have(option, tmp_path):
    model = randomize(HAT(**{"upscale": 2, **TINY, **option})).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    again = load(tmp_path / "w.pth")
    unused = {"num_feat"} if option.get("upsampler") in ("pixelshuffle+conv", "pixelshuffledirect", "") else set()
    differing = {k for k, v in again.config["model_args"].items() if v != model.config["model_args"][k]}
    assert differing <= unused
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert relative_error(again(x), model(x)) < 1e-6


def test_index_buffers_are_not_needed():
    state_dict = HAT(upscale=2, **TINY).state_dict()
    assert not any("index" in name for name in state_dict)
    cls, arguments = detect(state_dict)
    assert cls is HAT and arguments["window_size"] == 8 and arguments["overlap_ratio"] == 0.5


@pytest.mark.parametrize("name", hatlib.list_models("hat_*"))
def test_registered_archs_are_known_by_name(name, tmp_path):
    with torch.device("meta"):
        model = hatlib.create_model(name)
    cls, arguments = detect(model.state_dict())
    assert hatlib.detection.find_arch(cls, arguments) == (name, True)
    assert model.config["architecture"] == name


def test_ratios():
    for width in range(1, 40):
        for inner in range(1, width + 1):
            assert int(width // reduction_ratio(width, inner)) == inner
        for product in range(1, 3 * width):
            assert int(width * expansion_ratio(width, product)) == product
    assert (reduction_ratio(180, 60), reduction_ratio(180, 6), expansion_ratio(16, 8)) == (3, 30, 0.5)


# What weights can't tell.


def test_one_warning_about_what_weights_cannot_tell(tmp_path):
    model = HAT(upscale=2, conv_scale=0.5, img_range=255.0, **TINY)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning) as caught:
        guessed = load(tmp_path / "w.pth")
    assert len(caught) == 1
    for part in ("conv_scale=0.01", "img_range=1.0", "mean", "pass them to hatlib.load"):
        assert part in str(caught[0].message)
    assert guessed.config["model_args"]["conv_scale"] == 0.01
    with pytest.warns(UserWarning, match="does not record mean, qk_scale:"):
        told = load(tmp_path / "w.pth", conv_scale=0.5, img_range=255.0)
    assert told.img_range == 255.0


def test_no_warning_where_nothing_is_guessed(tmp_path, monkeypatch):
    model = randomize(HAT(upscale=2, conv_scale=0.5, **TINY)).eval()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "model.safetensors").config == model.config
        load(tmp_path / "w.pth", conv_scale=0.5, img_range=1.0, mean=None, qk_scale=None)
        monkeypatch.setattr("hatlib.checkpoint.known_hashes", lambda: {hatlib.checkpoint.sha256(tmp_path / "w.pth")})
        load(tmp_path / "w.pth")


# Files that are not what they seem, and averaged weights.


@pytest.mark.filterwarnings("ignore:.*does not record")
def test_averaged_weights_or_the_others(tmp_path):
    plain, ema = (randomize(HAT(upscale=2, **TINY), seed).state_dict() for seed in (1, 2))
    torch.save({"params": plain, "params_ema": ema}, tmp_path / "both.pth")
    for choice, expected in ((None, ema), (True, ema), (False, plain)):
        weights = load(tmp_path / "both.pth", ema=choice).state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for kept, choice in (("params", True), ("params_ema", False)):
        torch.save({kept: plain}, tmp_path / "one.pth")
        with pytest.raises(HatlibError, match="averaged weights"):
            read_state_dict(tmp_path / "one.pth", ema=choice)


def test_damaged_weights_of_a_known_family(tmp_path):
    state_dict = HAT(upscale=2, **TINY).state_dict()
    del state_dict["norm.weight"]
    torch.save(state_dict, tmp_path / "w.pth")
    with pytest.raises(HatlibError, match=r"1 keys missing \(norm.weight\)"):
        load(tmp_path / "w.pth")


def test_absolute_positions_are_refused(tmp_path):
    state_dict = {**HAT(upscale=2, **TINY).state_dict(), "absolute_pos_embed": torch.zeros(1, 64, 12)}
    torch.save(state_dict, tmp_path / "w.pth")
    with pytest.raises(HatlibError, match="ape=True"):
        load(tmp_path / "w.pth")


def test_partial_load_from_another_scale(tmp_path, caplog):
    x2, x4 = randomize(HAT(upscale=2, **TINY), 1), HAT(upscale=4, **TINY)
    write_state_dict(x2.state_dict(), tmp_path / "x2.safetensors")
    with pytest.raises(HatlibError, match=r"2 keys missing \(upsample.2.weight.*strict=False"):
        load_weights(x4, tmp_path / "x2.safetensors")
    before = x4.upsample[2].weight.clone()
    report = load_weights(x4, tmp_path / "x2.safetensors", strict=False)
    assert set(report.missing) == {"upsample.2.weight", "upsample.2.bias"} and not report.complete
    assert "2 keys missing" in str(report) and "upsample.2" in caplog.text
    assert torch.equal(x4.upsample[2].weight, before)
    assert torch.equal(x4.conv_last.weight, x2.conv_last.weight)
    report = load_weights(HAT(upscale=3, **TINY), tmp_path / "x2.safetensors", strict=False)
    assert set(report.mismatched) == {"upsample.0.weight", "upsample.0.bias"}


def test_nothing_in_common_is_no_partial_load(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(HatlibError, match="does not fit HAT"):
        load_weights(HAT(upscale=2, **TINY), tmp_path / "w.pth", strict=False)


# Foreign architectures.


@pytest.fixture
def foreign(tmp_path):
    from spandrel.architectures.SPAN import SPAN

    model = randomize(SPAN(num_in_ch=3, num_out_ch=3, upscale=2, feature_channels=16), std=0.02).eval()
    torch.save({"params": model.state_dict()}, tmp_path / "span.pth")
    return model, tmp_path / "span.pth"


def test_foreign_architecture(foreign):
    theirs, path = foreign
    ours = load(path)
    assert isinstance(ours, ForeignModel) and ours.architecture == "SPAN"
    assert (ours.upscale, ours.in_chans, ours.out_chans, ours.training) == (2, 3, 3, False)
    x = torch.rand(2, 3, 17, 9, requires_grad=True)
    out = ours(x)
    assert relative_error(out, theirs(x)) < 1e-6
    out.sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(HatlibError, match=r"\(B, 3, H, W\)"):
        ours(torch.rand(1, 1, 8, 8))
    with pytest.raises(HatlibError, match="hatlib.load loads it if spandrel knows"):
        HAT.from_pretrained(path)
    with pytest.raises(HatlibError, match="takes no window_size"):
        load(path, window_size=8)


def test_foreign_network_that_needs_a_multiple(tmp_path):
    from spandrel.architectures.DAT import DAT

    config = dict(embed_dim=32, split_size=[4, 4], depth=[1], num_heads=[2], expansion_factor=2.0, upscale=2)
    theirs = randomize(DAT(img_size=16, img_range=1.0, resi_connection="1conv", upsampler="pixelshuffle", **config))
    torch.save(theirs.state_dict(), tmp_path / "dat.pth")
    ours = load(tmp_path / "dat.pth")
    with torch.no_grad():
        for size in ((19, 34), (3, 5), (1, 1)):
            assert ours(torch.rand(1, 3, *size)).shape[2:] == (2 * size[0], 2 * size[1])


def test_nobody_knows_it(tmp_path, monkeypatch):
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(HatlibError, match="no architecture that hatlib or spandrel knows"):
        load(tmp_path / "w.pth")
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(HatlibError, match="install the extra 'spandrel'"):
        load(tmp_path / "w.pth")
