"""The same directory in transformers, there and back."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import randomize, relative_error, tiny_overrides
from test_hub import UNUSUAL

import hatlib
from hatlib import HatlibError
from hatlib.models import HAT, RestorationModel

transformers = pytest.importorskip("transformers")
from hatlib.integrations.transformers import HatlibConfig, HatlibForImageSuperResolution  # noqa: E402

TINY = tiny_overrides("hat_x2")
Auto = transformers.AutoModelForImageToImage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_round_trip(arch, dtype, tmp_path):
    model = randomize(hatlib.create_model(arch, **tiny_overrides(arch))).to(dtype).eval()
    model.save_pretrained(tmp_path / "a")
    theirs = Auto.from_pretrained(tmp_path / "a")
    assert isinstance(theirs, HatlibForImageSuperResolution) and theirs.dtype == dtype
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in theirs.model.state_dict().items())
    theirs.save_pretrained(tmp_path / "b")
    back = RestorationModel.from_pretrained(tmp_path / "b", dtype="auto")
    assert back.config == model.config
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())


@pytest.mark.parametrize("option", UNUSUAL, ids=str)
def test_equal_outputs_of_all_loaders(option, tmp_path):
    model = randomize(HAT(**{**TINY, **option})).eval()
    model.save_pretrained(tmp_path / "a")
    theirs = Auto.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")
    x = torch.rand(2, model.in_chans, 16, 24)
    with torch.inference_mode():
        expected = model(x)
        assert relative_error(theirs(x).reconstruction, expected) < 1e-6
        assert relative_error(Auto.from_pretrained(tmp_path / "b")(x).reconstruction, expected) < 1e-6
        assert relative_error(HAT.from_pretrained(tmp_path / "b")(x), expected) < 1e-6
        assert (
            relative_error(timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()(x), expected) < 1e-6
        )


@pytest.fixture
def wrapped(tiny_hat):
    return HatlibForImageSuperResolution.from_model(tiny_hat).eval()


def test_a_wrapped_model_is_saved_without_prefix(wrapped, tiny_hat, tmp_path):
    wrapped.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "model.safetensors").keys() == tiny_hat.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["HatlibForImageSuperResolution"]
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert relative_error(HAT.from_pretrained(tmp_path)(x), tiny_hat(x)) < 1e-6
        assert relative_error(Auto.from_pretrained(tmp_path)(x).reconstruction, tiny_hat(x)) < 1e-6


def test_labels_give_the_loss(wrapped):
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    out = wrapped(x, labels=y)
    assert torch.equal(out.loss, (out.reconstruction - y).abs().mean())
    out.loss.backward()
    assert all(p.grad is not None for p in wrapped.parameters())
    assert wrapped(x).loss is None
    loss, image = wrapped(x, labels=y, return_dict=False)
    assert torch.equal(loss, out.loss) and len(wrapped(x, return_dict=False)) == 1 and image.shape == y.shape


def test_gradient_checkpointing(wrapped):
    wrapped.gradient_checkpointing_enable()
    assert all(layer.residual_group.grad_checkpointing for layer in wrapped.model.layers)
    wrapped.gradient_checkpointing_disable()
    assert not any(layer.residual_group.grad_checkpointing for layer in wrapped.model.layers)


def test_config():
    config = HatlibConfig.from_model(HAT(upscale=2, **TINY))
    assert config.upscale == 2 and config.architecture == "hat_x2"
    with pytest.raises(HatlibError, match="names no registered architecture"):
        HatlibForImageSuperResolution(HatlibConfig())


def test_image_processor_of_the_directory(tiny_hat, tmp_path):
    pytest.importorskip("torchvision")
    tiny_hat.save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    pixels = processor(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 9, 14)
    assert relative_error(pixels[0], torch.from_numpy(image).permute(2, 0, 1) / 255) < 1e-6
