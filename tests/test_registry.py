"""Names, listing, plugins, and the shape of the package."""

import json
import subprocess
import sys
import types

import pytest
import timm
import torch

import hatlib
from hatlib import HatlibError


def test_names_of_the_contract():
    names = hatlib.list_models()
    assert names == [
        *(f"edsr_{size}x{s}" for size in ("m_", "") for s in (2, 3, 4)),
        *(f"hat_{size}_x{s}" for size in ("l", "s") for s in (1, 2, 3, 4, 8)),
        "hat_t_x2",
        "hat_t_x4",
        *(f"hat_x{s}" for s in (1, 2, 3, 4, 8)),
        *(f"rcan_x{s}" for s in (2, 3, 4, 8)),
        "swinir_l_real_x4",
        *(f"swinir_m_{task}_{kind}_x1" for task in ("denoise", "jpeg") for kind in ("color", "gray")),
        "swinir_m_real_x2",
        "swinir_m_real_x4",
        *(f"swinir_m_x{s}" for s in (2, 3, 4, 8)),
        *(f"swinir_s_x{s}" for s in (2, 3, 4)),
    ]
    assert all(timm.is_model(n) for n in names)


def test_filters():
    assert hatlib.list_models("hat_?_x4") == ["hat_l_x4", "hat_s_x4", "hat_t_x4"]
    assert hatlib.list_models(scale=3, family="hat") == ["hat_l_x3", "hat_s_x3", "hat_x3"]
    assert hatlib.list_models(task="denoise_gray") == ["swinir_m_denoise_gray_x1"]
    assert hatlib.list_models(task="real") == ["swinir_l_real_x4", "swinir_m_real_x2", "swinir_m_real_x4"]
    assert {hatlib.model_info(name).task for name in hatlib.list_models("rcan_*")} == {"sr"}


@pytest.mark.parametrize("name, near", [("hat_s_x5", "hat_s_x4"), ("hats_x4", "hat_s_x4"), ("HAT_x4", "hat_x4")])
def test_unknown_names_list_near_ones(name, near):
    for call in (hatlib.create_model, hatlib.model_info):
        with pytest.raises(HatlibError, match=f"Unknown model '{name}'.*{near}"):
            call(name)


def test_unknown_tags_and_missing_weights():
    with pytest.raises(HatlibError, match="no weights tagged 'nonsense'; its tags are imagenet_ft_df2k, df2k_from_x2"):
        hatlib.create_model("hat_x4.nonsense")
    with pytest.raises(HatlibError, match="no pretrained weights for hat_x8"):
        hatlib.create_model("hat_x8", pretrained=True)


def test_a_repository_without_its_prefix():
    with pytest.raises(HatlibError, match="'hf-hub:org/repo'"):
        hatlib.create_model("org/repo")


def test_unknown_options_list_near_ones():
    with pytest.raises(HatlibError, match="no option 'window'.*window_size"):
        hatlib.create_model("hat_t_x2", window=8)


def test_none_means_not_given():
    assert hatlib.create_model("hat_t_x2", window_size=None).window_size == 16


def test_upscale_that_contradicts_the_name():
    with pytest.raises(HatlibError, match="take one of hat_s_x1, hat_s_x2, hat_s_x3"):
        hatlib.create_model("hat_s_x4", upscale=2)
    with pytest.raises(HatlibError, match="scale 4"):
        timm.create_model("hat_s_x4", upscale=2)


def test_a_model_of_ones_own(monkeypatch):
    """A downstream module registers a network; it is in both registries at once."""
    module = types.ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)

    def nearest_x3(pretrained=False, **kwargs):
        return torch.nn.Upsample(scale_factor=3)

    nearest_x3.__module__ = "my_package"
    hatlib.register_model(nearest_x3)
    try:
        info = hatlib.model_info("nearest_x3")
        assert (info.scale, info.family, info.task) == (3, "nearest", "sr")
        for create in (hatlib.create_model, timm.create_model):
            assert create("nearest_x3")(torch.rand(1, 3, 4, 4)).shape == (1, 3, 12, 12)
    finally:
        hatlib.networks.networks._parts.pop("nearest_x3")


def test_a_name_without_a_scale_is_refused():
    def nameless(pretrained=False):
        return torch.nn.Identity()

    with pytest.raises(HatlibError, match="does not end in its scale"):
        hatlib.register_model(nameless)


def test_public_names():
    """So that none vanishes unnoticed."""
    assert sorted(hatlib.__all__) == [
        "HatlibError",
        "ModelInfo",
        "Weights",
        "__version__",
        "create_model",
        "list_models",
        "load",
        "model_info",
        "models",
        "register_attention",
        "register_detector",
        "register_head",
        "register_model",
    ]
    assert all(hasattr(hatlib, name) for name in hatlib.__all__)


def test_import_is_light():
    code = (
        "import sys, json, timm; before = set(sys.modules); import hatlib;"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(result.stdout)) - sys.stdlib_module_names <= {"hatlib", "einops"}
