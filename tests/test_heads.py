"""A head from outside hatlib: its layers belong to the model, and everything that uses a model works with it."""

import copy
import importlib
import pickle

import pytest
import timm
import torch
from conftest import randomize, relative_error, tiny_overrides
from torch import nn
from torch.nn import functional as F

import hatlib
from hatlib import HatlibError
from hatlib.blocks import Head, strips
from hatlib.inference import Upscaler
from hatlib.models import RestorationModel


@hatlib.register_head("far")
class FarHead(Head):
    """Names, a parameter and buffers of its own, and a reach of 9 input pixels."""

    halo = 9
    last_conv = None

    def __init__(self, dim, out_chans, scale, num_feat=64, gain=1.0):
        super().__init__(dim, out_chans, scale, num_feat)
        self.far_mix = nn.Conv2d(dim, num_feat, 19, padding=9)
        self.far_out = nn.Sequential(nn.Conv2d(num_feat, out_chans * scale**2, 1), nn.PixelShuffle(scale))
        self.far_gain = nn.Parameter(torch.full((out_chans, 1, 1), gain))
        self.register_buffer("far_offset", torch.full((out_chans, 1, 1), 0.25))
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self):
        self.register_buffer("far_sign", torch.ones(1, device=self.far_gain.device), persistent=False)

    def forward(self, x):
        return self.far_sign * self.far_gain * self.far_out(torch.tanh(self.far_mix(x))) + self.far_offset


@hatlib.register_head("global")
class GlobalHead(FarHead):
    """Depends on the whole map."""

    halo = None

    def forward(self, x):
        return super().forward(x) * x.mean((1, 2, 3), keepdim=True)


def tiny(upsampler="far", **changes):
    model = hatlib.create_model("hat_t_x2", **{**tiny_overrides("hat_t_x2"), "upsampler": upsampler, **changes})
    return randomize(model).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 21, 27)


def test_names_have_no_prefix():
    names = tiny().state_dict().keys()
    assert {"far_mix.weight", "far_out.0.bias", "far_gain", "far_offset"} <= names
    assert "far_sign" not in names and not any("head" in name for name in names)
    assert len(list(tiny().parameters())) == len({id(p) for p in tiny().parameters()})
    assert "far_gain" in dict(tiny().named_parameters()) and "far_sign" in dict(tiny().named_buffers())


@pytest.mark.parametrize("upsampler", ["far", "global"])
def test_strips_change_nothing(upsampler, image, monkeypatch):
    model = tiny(upsampler).double()
    x = image.double()
    expected = model(x).detach()
    monkeypatch.setattr(strips, "HALO_STRIP_BYTES", 1)
    with torch.inference_mode():
        assert relative_error(model(x), expected) < 1e-12


def test_a_halo_that_is_too_small_shows(image, monkeypatch):
    """So that the test above can fail."""
    monkeypatch.setattr(FarHead, "halo", 3)
    monkeypatch.setattr(strips, "HALO_STRIP_BYTES", 1)
    model = tiny()
    with torch.inference_mode():
        wrong = model(image)
    assert relative_error(wrong, model(image).detach()) > 1e-5


@pytest.mark.parametrize("upsampler", ["far", "global"])
@pytest.mark.parametrize("window", [(0, 0, 9, 7), (38, 30, 16, 12), (20, 17, 1, 1)])
def test_the_window_of_an_attribution(upsampler, window, image):
    model = tiny(upsampler).double()
    x = image.double().requires_grad_()
    left, top, width, height = window
    whole = model(x)[:, :, top : top + height, left : left + width]
    (expected,) = torch.autograd.grad(whole.square().sum(), x)
    part = model.forward_window(x, left, top, width, height)
    (gradient,) = torch.autograd.grad(part.square().sum(), x)
    assert relative_error(part, whole) < 1e-12 and relative_error(gradient, expected) < 1e-12


def test_tiles(image):
    """Tiles of the Upscaler with enough overlap change nothing but what channel attention sees."""
    out = Upscaler(tiny())(image)
    assert out.shape == (2, 3, 42, 54)


def test_a_replaced_layer_is_used(image):
    model = tiny()
    before = model(image)
    model.far_mix = nn.Conv2d(12, 8, 3, padding=1)
    assert not torch.allclose(model(image), before)
    del model.far_gain
    model.far_gain = nn.Parameter(torch.zeros(3, 1, 1))
    expected = model.denormalize(model.far_offset.expand(2, 3, 42, 54))
    assert torch.allclose(model(image), expected, atol=1e-6)


def test_loading_replaces_what_the_head_uses(image):
    one, other = tiny(), randomize(tiny(), seed=1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(image), other(image))
    other.load_state_dict({k: torch.zeros_like(v) for k, v in one.state_dict().items()}, assign=True)
    assert not torch.equal(one(image), other(image))
    assert other.double()(image.double()).dtype == torch.float64


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(copied, image):
    model = tiny()
    expected = model(image).detach()
    other = copied(model)
    assert torch.equal(other(image), expected)
    with torch.no_grad():
        other.far_gain.zero_()
    assert not torch.equal(other(image), expected) and torch.equal(model(image), expected)


def test_functional_call(image):
    model = tiny()
    changed = {**dict(model.named_parameters()), "far_gain": torch.zeros(3, 1, 1)}
    out = torch.func.functional_call(model, changed, (image,))
    assert torch.allclose(out, model.denormalize(model.far_offset.expand_as(out)), atol=1e-6)


def test_training_mode_reaches_the_head():
    model = tiny()
    assert not model.head.training
    assert model.train().head.training and not model.eval().head.training


def test_compile_and_export(image):
    model = tiny()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_error(compiled(image), model(image)) < 1e-6
    exported = torch.export.export(model, (image,)).module()
    assert relative_error(exported(image), model(image)) < 1e-6


def test_onnx(image, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, size = tiny(), torch.export.Dim.DYNAMIC
    file = tmp_path / "far.onnx"
    shapes = ({2: size, 3: size},)
    torch.onnx.export(model, (torch.rand(1, 3, 17, 21),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = image[:1]
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), model(x).detach()) < 1e-5


def test_meta_device(image):
    model = tiny()
    with torch.device("meta"):
        empty = hatlib.create_model("hat_t_x2", **{**tiny_overrides("hat_t_x2"), "upsampler": "far"})
    empty.load_state_dict(model.state_dict(), assign=True)
    for module in empty.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    assert torch.equal(empty.eval()(image), model(image))


@pytest.mark.parametrize("options", [{}, {"gain": 0.5}], ids=str)
def test_three_libraries_load_it(options, image, tmp_path):
    model = tiny({"far": options} if options else "far")
    model.save_pretrained(tmp_path)
    assert model.config["model_args"]["upsampler"] == ({"far": options} if options else "far")
    loaded = [
        hatlib.models.HAT.from_pretrained(tmp_path),
        hatlib.load(tmp_path / "model.safetensors"),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(),
    ]
    expected = model(image)
    for other in loaded:
        assert torch.allclose(other(image), expected, atol=1e-6)
    pytest.importorskip("transformers")
    importlib.import_module("hatlib.integrations.transformers")
    from transformers import AutoModelForImageToImage

    other = AutoModelForImageToImage.from_pretrained(tmp_path)
    assert torch.allclose(other(image).reconstruction, expected, atol=1e-6)


def test_distributed(image, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = tiny().train()
        parallel = nn.parallel.DistributedDataParallel(model)
        F.l1_loss(parallel(image), torch.rand(2, 3, 42, 54)).backward()
        assert model.far_gain.grad.abs().sum() > 0 and model.far_mix.weight.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel_is_refused():
    with pytest.raises(HatlibError, match="use DistributedDataParallel"):
        tiny()._replicate_for_data_parallel()


def test_another_head(image):
    model = tiny()
    model.reset_upsampler(3, "pixelshuffledirect")
    assert not any("far" in name for name in model.state_dict())
    assert model(image).shape == (2, 3, 63, 81)
    assert (model.config["model_args"]["upsampler"], model.config["model_args"]["upscale"]) == ("pixelshuffledirect", 3)
    model.reset_upsampler(2, {"far": {"gain": 2.0}})
    assert model.far_gain.detach().unique() == 2 and model(image).shape == (2, 3, 42, 54)


def test_a_class_and_an_object(image):
    for spec in (GlobalHead, GlobalHead(12, 3, 2, 8)):
        assert tiny(spec)(image).shape == (2, 3, 42, 54)
    assert tiny(GlobalHead).config["model_args"]["upsampler"] == "global"
    with pytest.raises(HatlibError, match="cannot be written to config.json"):
        _ = tiny(GlobalHead(12, 3, 2, 8)).config


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fra", "Unknown head 'fra'. Did you mean far"),
        ({"far": {"gian": 1}}, "The head 'far' has no option 'gian'. Did you mean gain"),
        ({"far": 1}, "Write the head with options as"),
        (nn.Conv2d, "Conv2d is not a head; derive it from hatlib.blocks.Head"),
        (nn.Identity(), "is not a head; derive it"),
        (3, "Give the head as a name"),
    ],
    ids=str,
)
def test_wrong_specs(spec, message):
    with pytest.raises(HatlibError, match=message):
        tiny(spec)


def test_a_name_that_the_model_uses():
    class Clash(FarHead):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.conv_first = nn.Conv2d(1, 1, 1)

    with pytest.raises(HatlibError, match="'conv_first' of the head Clash is a name of the model; rename it"):
        tiny(Clash)


def test_a_layer_of_the_network_with_a_name_of_the_head():
    class Clash(RestorationModel):
        def __init__(self, upscale=2, dim=8, **common):
            super().__init__(upscale, dim, **common)
            self.layers = nn.ModuleList([nn.Identity()])
            self.upsample = nn.Identity()

    with pytest.raises(HatlibError, match="Clash sets 'upsample', a name of its head PixelShuffleHead; rename it"):
        Clash()


def test_a_subclass_that_sets_its_head_is_saved_and_loaded():
    class Own(RestorationModel):
        def __init__(self, upscale=2, dim=8, **common):
            super().__init__(upscale, dim, upsampler="pixelshuffledirect", **common)
            self.layers = nn.ModuleList([nn.Identity()])

    assert "upsampler" not in Own(num_feat=8).config["model_args"]
    assert Own(**Own(num_feat=8).config["model_args"]).num_feat == 8


def test_inference_restores_the_mode_of_the_head(image):
    model = tiny().train()
    Upscaler(model)(image)
    assert model.training and model.head.training


def test_channels_that_cannot_be_fitted(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(HatlibError, match="FarHead has no last convolution"):
        hatlib.models.HAT.from_pretrained(tmp_path, in_chans=1)


def test_head_objects_belong_to_one_model():
    head = FarHead(12, 3, 2, 8)
    model = tiny(head)
    with pytest.raises(HatlibError, match="belongs to a model already"):
        tiny(head)
    with pytest.raises(HatlibError, match="belongs to a model already"):
        model.reset_upsampler(2)
    assert model(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)
    with pytest.raises(HatlibError, match="has scale 4, not 2"):
        tiny(FarHead(12, 3, 4, 8))


def test_a_refused_head_leaves_the_old_one():
    class Clash(FarHead):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.conv_first = nn.Conv2d(1, 1, 1)

    model = tiny()
    with pytest.raises(HatlibError, match="is a name of the model"):
        model.reset_upsampler(2, Clash)
    assert model(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)
