"""Parts of a network exchanged through its constructor, and what is known of where arguments come from."""

from functools import partial

import pytest
import timm.layers
import torch
from conftest import randomize, relative_error, tiny_overrides
from torch import nn

import hatlib
from hatlib import HatlibError, blocks, detection, networks
from hatlib.checkpoint import write_state_dict
from hatlib.hub import PretrainedModel
from hatlib.models import HAT, RestorationModel, SwinIR
from hatlib.registry import Registry, attentions, heads


def tiny(name="hat_t_x2", **changes):
    return hatlib.create_model(name, **{**tiny_overrides(name), **changes})


class Mean(nn.Module):
    """An attention: each pixel becomes the mean of its window."""

    def __init__(self, dim, num_heads, window_size, shift_size, gain=1.0):
        super().__init__()
        self.window_size, self.gain = window_size, gain

    def forward(self, x):
        windows = blocks.window_partition(x, self.window_size)
        return blocks.window_reverse(
            self.gain * windows.mean(1, keepdim=True).expand_as(windows), self.window_size, *x.shape[1:3]
        )


attentions.add("mean", Mean)


@pytest.mark.parametrize("name", ["hat_t_x2", "swinir_s_x2"])
@pytest.mark.parametrize("spec", ["mean", {"mean": {"gain": 0.5}}, Mean, partial(Mean, gain=0.5)], ids=str)
def test_attention(name, spec):
    model = tiny(name, attn_layer=spec)
    attention = model.layers[0].residual_group.blocks[1].attn
    assert isinstance(attention, Mean) and attention.window_size == model.window_size
    assert attention.gain == (1.0 if spec in ("mean", Mean) else 0.5)
    model(torch.rand(1, 3, 9, 11)).sum().backward()


@pytest.mark.parametrize("option", [dict(qkv_bias=False), dict(qk_scale=0.5), dict(attn_drop_rate=0.1)], ids=str)
def test_options_of_the_built_in_attention(option):
    with pytest.raises(HatlibError, match="belongs to the attention 'window'"):
        tiny(attn_layer="mean", **option)


def test_options_reach_the_built_in_attention_through_its_spec():
    model = tiny(attn_layer={"window": {"qkv_bias": False}})
    assert model.layers[0].residual_group.blocks[0].attn.qkv.bias is None
    with pytest.raises(HatlibError, match="The attention 'window' has no option 'qkv_bais'. Did you mean qkv_bias"):
        tiny(attn_layer={"window": {"qkv_bais": False}})


class PostNorm(nn.Module):
    """A whole block, for what an attention alone cannot express."""

    def __init__(self, dim, num_heads, window_size, shift_size, drop_path):
        super().__init__()
        self.attn = blocks.WindowAttention(dim, num_heads, window_size=window_size, shift_size=shift_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return x + self.norm(self.attn(x))


@pytest.mark.parametrize("name", ["hat_t_x2", "swinir_s_x2"])
def test_whole_blocks(name, tmp_path):
    model = tiny(name, block_layer=PostNorm)
    chain = model.layers[1].residual_group.blocks
    assert [type(block) for block in chain] == [PostNorm] * 2
    assert [block.attn.shift_size for block in chain] == [0, model.window_size // 2]
    model(torch.rand(1, 3, 9, 11)).sum().backward()
    with pytest.raises(HatlibError, match="block_layer=.*cannot be written to config.json.*derive a network"):
        model.save_pretrained(tmp_path)


def test_other_parts():
    class Overlap(nn.Identity):
        def __init__(self, dim, num_heads, window_size):
            super().__init__()

    model = tiny(
        overlap_layer=Overlap,
        conv_layer=lambda dim: nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
        mlp_layer=timm.layers.GluMlp,
        act_layer="silu",
        norm_layer="rmsnorm",
    ).eval()
    group = model.layers[0].residual_group
    assert isinstance(group.overlap_attn, Overlap) and isinstance(group.blocks[0].conv_block, nn.Conv2d)
    assert isinstance(group.blocks[0].mlp.act, nn.SiLU) and type(model.norm).__name__ == "RmsNorm"
    x = torch.rand(1, 3, 9, 11)
    with torch.inference_mode():
        assert relative_error(model(x), model(x).clone()) == 0
    with pytest.raises(HatlibError, match="timm has no norm layer 'layernrom'"):
        tiny(norm_layer="layernrom")


def test_a_mlp_that_mixes_pixels_is_not_cut_into_strips(monkeypatch):
    class ConvMlp(nn.Module):
        def __init__(self, dim, hidden, act_layer, drop=0.0):
            super().__init__()
            self.conv = nn.Conv2d(dim, dim, 3, padding=1)

        def forward(self, x):
            return blocks.channels_first(self.conv, x)

    monkeypatch.setattr(blocks.strips, "STRIP_BYTES", 1)
    model = randomize(tiny(mlp_layer=ConvMlp)).double().eval()
    x = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    expected = model(x).detach()
    with torch.inference_mode():
        assert relative_error(model(x), expected) < 1e-12


def test_named_parts_are_saved(tmp_path):
    parts = dict(
        norm_layer="rmsnorm", act_layer=nn.SiLU, mlp_layer=timm.layers.GluMlp, attn_layer={"mean": {"gain": 2.0}}
    )
    model = tiny(**parts).eval()
    model.save_pretrained(tmp_path)
    saved = model.config["model_args"]
    assert (saved["act_layer"], saved["mlp_layer"]) == ("torch.nn.SiLU", "timm.layers.GluMlp")
    x = torch.rand(1, 3, 9, 11)
    assert torch.equal(HAT.from_pretrained(tmp_path)(x), model(x))
    assert hatlib.load(tmp_path / "model.safetensors").provenance.recorded["norm_layer"] == "rmsnorm"


@pytest.mark.parametrize("cls", [HAT, SwinIR, blocks.HAB, blocks.OCAB, blocks.STL, blocks.WindowAttention])
def test_arguments_after_the_first_two_are_keywords(cls):
    with pytest.raises(TypeError, match="positional"):
        cls(2, 3, 8)


def test_gradient_checkpointing_of_plain_groups():
    """Groups that do not checkpoint themselves are checkpointed as a whole, and the gradients are the same."""

    class Plain(RestorationModel):
        def __init__(self, upscale=2, dim=8, **common):
            super().__init__(upscale, dim, **common)
            self.layers = nn.ModuleList(blocks.RCAB(dim, 4) for _ in range(2))

    model = Plain(use_checkpoint=True, img_range=255.0)
    assert model.grad_checkpointing
    calls = []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.rand(1, 3, 9, 11)
    gradients = []
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(calls) == 3 and torch.allclose(*gradients)


# Arguments of a subclass.


class Inner(PretrainedModel):
    def __init__(self, upscale=2, in_chans=3, *, width=4, depth=5):
        super().__init__()
        self.layer = nn.Conv2d(in_chans, width, 1)


class Outer(Inner):
    def __init__(self, upscale=2, *, flag=True, **common):
        super().__init__(upscale, depth=7, **common)


def test_defaults_of_the_base_class_are_kept():
    assert Outer(width=6)._arguments == {"upscale": 2, "flag": True, "width": 6, "in_chans": 3}
    again = Outer(**Outer(width=6).config["model_args"])
    assert again.layer.out_channels == 6 and (again.upscale, again.in_chans, again.out_chans) == (2, 3, 3)


def test_the_contract_of_a_registered_class():
    class NoScale(PretrainedModel):
        def __init__(self, in_chans=3):
            super().__init__()

    with pytest.raises(HatlibError, match="NoScale of the model 'noscale_x2' needs a constructor parameter upscale="):

        @hatlib.register_model(NoScale)
        def noscale_x2(pretrained=False, **kwargs): ...

    assert "noscale_x2" not in networks.networks


def test_a_network_without_groups():
    class Empty(RestorationModel):
        def __init__(self, upscale=2, dim=8, **common):
            super().__init__(upscale, dim, **common)

    with pytest.raises(HatlibError, match="Empty has no groups"):
        Empty()


# Detection and provenance.


def test_two_families_that_claim_the_same_weights(monkeypatch):
    """The better explanation wins, and a tie is an error."""

    class Twin(HAT):
        pass

    monkeypatch.setattr(detection, "_detectors", dict(detection._detectors))
    weights = tiny().state_dict()
    detect_hat = detection._detectors[HAT]
    hatlib.register_detector(Twin)(lambda weights: {**detect_hat(weights), "mlp_ratio": 3.0})
    assert detection.detect(weights)[0] is HAT
    hatlib.register_detector(Twin)(detect_hat)
    with pytest.raises(HatlibError, match="fit HAT and Twin equally well"):
        detection.detect(weights)


def test_provenance(tmp_path):
    model = tiny(img_range=2.0)
    write_state_dict(model.state_dict(), tmp_path / "bare.pth")
    with pytest.warns(UserWarning, match="does not record conv_scale, mean, qk_scale"):
        loaded = hatlib.load(tmp_path / "bare.pth", img_range=2.0)
    provenance = loaded.provenance
    assert not provenance.recorded and provenance.overridden == {"img_range": 2.0}
    assert provenance.detected["embed_dim"] == 12 and provenance.assumed["conv_scale"] == 0.01
    model.save_pretrained(tmp_path)
    provenance = hatlib.load(tmp_path / "model.safetensors").provenance
    assert provenance.recorded["img_range"] == 2.0 and not (provenance.detected or provenance.assumed)


def test_reading_weights_that_do_not_fit_leaves_the_model_as_it_was(tmp_path):
    gray = tiny(in_chans=1)
    weights = {name: value for name, value in gray.state_dict().items() if "layers.0" not in name}
    write_state_dict(weights, tmp_path / "part.pth")
    model = tiny()
    before = {"mean": model.mean.clone(), **{n: v.clone() for n, v in model.state_dict().items()}}
    config = model.config
    with pytest.raises(HatlibError, match="does not fit"):
        hatlib.checkpoint.load_weights(model, tmp_path / "part.pth", adapt=True)
    assert model.config == config
    after = {"mean": model.mean, **model.state_dict()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


# The registry.


def test_registry():
    registry = Registry("flavor")
    registry.add("sweet", dict)
    assert registry.create("sweet", a=1) == {"a": 1}
    assert registry.create({"sweet": {"b": 2}}, a=1) == {"a": 1, "b": 2}
    assert registry.create({"sweet": None}, a=1) == {"a": 1}
    assert (
        registry.create(dict, a=1) == {"a": 1} and registry.name_of(dict) == "sweet" and registry.name_of(set) is None
    )
    with pytest.raises(HatlibError, match="Unknown flavor 'swet'. Did you mean sweet"):
        registry.get("swet")
    with pytest.raises(HatlibError, match="The flavor 'sweet' of elsewhere is already registered by builtins"):
        registry.add("sweet", set, owner="elsewhere")


def test_heads_are_listed_with_their_owner():
    assert heads.owner("pixelshuffle") == "hatlib.blocks.heads" and "pixelshuffle" in heads


# What a review found.


def test_a_subclass_and_its_parts_keep_the_weights_that_they_set():
    class Zero(HAT):
        def __init__(self, upscale=2, in_chans=3, **options):
            super().__init__(upscale, in_chans, **options)
            nn.init.zeros_(self.layers[0].residual_group.blocks[0].attn.proj.weight)

    class Constant(Mean):
        def __init__(self, **context):
            super().__init__(**context)
            self.linear = nn.Linear(2, 2)
            nn.init.constant_(self.linear.bias, 3.0)

    assert not Zero(**tiny_overrides("hat_t_x2")).layers[0].residual_group.blocks[0].attn.proj.weight.any()
    attention = tiny(attn_layer=Constant).layers[0].residual_group.blocks[0].attn
    assert (attention.linear.bias == 3).all()


def test_linear_layers_start_as_published():
    for name, module in tiny("hat_s_x2").named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std() < 0.03 and not module.bias.any(), name


def test_a_replaced_drop_path_is_used_in_strips():
    class Tenth(nn.Module):
        def forward(self, x):
            return 0.1 * x

    block = randomize(blocks.STL(12, 2, window_size=4)).double().eval()
    block.drop_path = Tenth()
    x = torch.rand(1, 8, 8, 12, dtype=torch.float64)
    expected = block(x).detach()
    with torch.inference_mode():
        assert relative_error(block(x), expected) < 1e-12


@pytest.mark.parametrize("upsampler", [{"pixelshuffle": {"scale": 3}}, {"pixelshuffle": {"num_feat": 3}}], ids=str)
def test_options_that_the_network_passes(upsampler):
    with pytest.raises(HatlibError, match="from the network; leave it out"):
        tiny(upsampler=upsampler)
    with pytest.raises(HatlibError, match="from the network; leave it out"):
        tiny(attn_layer={"window": {"window_size": 4}})
    with pytest.raises(HatlibError, match="an object, which the blocks would share"):
        tiny(attn_layer=blocks.WindowAttention(12, 2, window_size=8))


def test_none_means_not_given():
    model = HAT.from_pretrained("hat_t_x4", in_chans=None, img_range=None, upscale=None)
    assert (model.in_chans, model.img_range, model.upscale) == (3, 1.0, 4)


def test_a_detected_mean_is_used_for_other_channels(tmp_path):
    model = randomize(hatlib.create_model("edsr_m_x2", num_feat=8, num_block=2, mean=(0.0,) * 3, img_range=1.0)).eval()
    torch.save(model.published_state_dict(), tmp_path / "edsr.pth")
    gray = hatlib.load(tmp_path / "edsr.pth", in_chans=1, res_scale=1.0)
    x = torch.rand(1, 1, 20, 20)
    expected = model(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    assert gray.mean_values == (0.0,)
    assert relative_error(gray(x)[:, :, 8:-8, 8:-8], expected[:, :, 8:-8, 8:-8]) < 1e-5


def test_defaults_of_a_class_hold_for_its_names(monkeypatch):
    class Gray(RestorationModel):
        def __init__(self, upscale=2, in_chans=1, **common):
            super().__init__(upscale, 8, in_chans=in_chans, **common)
            self.layers = nn.ModuleList([nn.Identity()])

    monkeypatch.setattr(networks.networks, "_parts", dict(networks.networks._parts))

    @hatlib.register_model(Gray)
    def graynet_x2(pretrained=False, **kwargs):
        return hatlib.models.build_model("graynet_x2", pretrained, **kwargs)

    assert hatlib.create_model("graynet_x2").in_chans == 1
    assert hatlib.create_model("graynet_x2", in_chans=3).in_chans == 3


def test_options_with_layers_are_saved_and_copied(tmp_path):
    class Norm(Mean):
        def __init__(self, norm=nn.LayerNorm, **context):
            super().__init__(**context)
            self.norm = norm(12)

    if "normed" not in attentions:
        attentions.add("normed", Norm)
    spec = {"normed": {"norm": nn.RMSNorm}}
    model = tiny(attn_layer=spec)
    spec["normed"]["norm"] = nn.Identity
    model.save_pretrained(tmp_path)
    loaded = HAT.from_pretrained(tmp_path)
    assert isinstance(loaded.layers[0].residual_group.blocks[0].attn.norm, nn.RMSNorm)


def test_saved_models_keep_the_arch_that_they_are(monkeypatch, tmp_path):
    """An arch that sets an argument which the saved arguments lack is another network."""

    class Ranged(RestorationModel):
        def __init__(self, upscale=2, dim=8, **common):
            super().__init__(upscale, dim, **{"img_range": 255.0, **common})
            self.layers = nn.ModuleList([nn.Identity()])

    monkeypatch.setattr(networks.networks, "_parts", dict(networks.networks._parts))

    @hatlib.register_model(Ranged, dict(img_range=1.0))
    def rr_x2(pretrained=False, **kwargs):
        return hatlib.models.build_model("rr_x2", pretrained, **kwargs)

    @hatlib.register_model(Ranged)
    def rr_base_x2(pretrained=False, **kwargs):
        return hatlib.models.build_model("rr_base_x2", pretrained, **kwargs)

    model = hatlib.create_model("rr_base_x2")
    model.save_pretrained(tmp_path)
    assert model.config["architecture"] == "rr_base_x2"
    assert hatlib.load(tmp_path).img_range == 255.0


def test_a_network_from_pretrained_model_alone(tmp_path):
    model = Inner()
    model.save_pretrained(tmp_path)
    assert model.published_state_dict().keys() == model.state_dict().keys()
    assert hatlib.checkpoint.load_weights(Inner(), tmp_path / "model.safetensors").complete
    model.gradient_checkpointing_disable()
    with pytest.raises(HatlibError, match="Inner does not support gradient checkpointing"):
        model.gradient_checkpointing_enable()
    with pytest.raises(HatlibError, match="has no head that upscale= could replace"):
        Inner.from_pretrained(tmp_path, upscale=4)


def test_pretrained_weights_of_another_network():
    with pytest.raises(HatlibError, match="does not fit HAT"):
        hatlib.create_model("hat_t_x4", pretrained=True, attn_layer="mean")


def test_a_head_of_another_shape():
    class Small(blocks.Head):
        def forward(self, x):
            return x[:, :1]

    with pytest.raises(HatlibError, match="The head Small returned"):
        tiny(upsampler=Small)(torch.rand(1, 3, 5, 6))


def test_an_entry_point_of_another_scale(monkeypatch):
    monkeypatch.setattr(networks.networks, "_parts", dict(networks.networks._parts))

    @hatlib.register_model(HAT)
    def copied_x4(pretrained=False, **kwargs):
        return hatlib.models.build_model("hat_t_x2", pretrained, **kwargs)

    with pytest.raises(HatlibError, match="copied_x4 returned a network of scale 2, not 4"):
        hatlib.create_model("copied_x4")
