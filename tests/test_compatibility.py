"""Files that an earlier version wrote load and give the same images; tests/data/compat/README.md says what they are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import hatlib
from hatlib.models import EDSR, HAT, RCAN, SwinIR
from hatlib.training import load_config, train

FOLDER = Path(__file__).parent / "data" / "compat"
with np.load(FOLDER / "expected.npz") as file:
    EXPECTED = {key: torch.from_numpy(file[key]) for key in file.files}

CLASSES = {"hat": HAT, "swinir": SwinIR, "swinir_jpeg": SwinIR, "swinir_real": SwinIR, "rcan": RCAN, "edsr": EDSR}
# The arguments that a .pth does not record and that are not the usual ones. The published layout of RCAN and EDSR tells
# the mean and the range of the image.
UNTOLD = {
    ("hat", "weights.pth"): dict(conv_scale=0.5, mean=(0.2, 0.3, 0.4)),
    ("hat", "published.pth"): dict(conv_scale=0.5, mean=(0.2, 0.3, 0.4)),
    ("swinir_jpeg", "weights.pth"): dict(img_range=255.0),
    ("swinir_jpeg", "published.pth"): dict(img_range=255.0),
    ("swinir_real", "weights.pth"): dict(qk_scale=0.2),
    ("swinir_real", "published.pth"): dict(qk_scale=0.2),
    ("rcan", "weights.pth"): dict(res_scale=0.5, mean=(0.1, 0.2, 0.3)),
    ("rcan", "published.pth"): dict(res_scale=0.5),
    ("edsr", "weights.pth"): dict(img_range=1.0),
}


def check(model: torch.nn.Module, name: str, output: str = "output") -> None:
    """The model gives the stored output, to the precision that another processor may have."""
    with torch.inference_mode():
        actual = model.eval()(EXPECTED[f"{name}/input"])
    actual = actual if isinstance(actual, torch.Tensor) else actual.reconstruction
    torch.testing.assert_close(actual, EXPECTED[f"{name}/{output}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_saved_directory(name):
    saved = FOLDER / name / "saved"
    check(hatlib.create_model(f"local-dir:{saved}", pretrained=True), name)
    check(CLASSES[name].from_pretrained(saved), name)


@pytest.mark.parametrize("name", CLASSES)
def test_saved_directory_in_timm(name):
    check(timm.create_model(f"local-dir:{FOLDER / name / 'saved'}", pretrained=True), name)


@pytest.mark.parametrize("name", CLASSES)
def test_saved_directory_in_transformers(name):
    transformers = pytest.importorskip("transformers")
    import hatlib.integrations.transformers  # noqa: F401

    auto = transformers.AutoModelForImageToImage
    check(auto.from_pretrained(FOLDER / name / "saved", dtype=torch.float32), name)


@pytest.mark.parametrize("name", CLASSES)
def test_weights_with_a_header(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* does not record")  # it tells every argument
        check(hatlib.load(FOLDER / name / "weights.safetensors"), name)


@pytest.mark.filterwarnings("ignore:.* does not record")
@pytest.mark.parametrize("file", ["weights.pth", "published.pth"])
@pytest.mark.parametrize("name", CLASSES)
def test_weights_without_a_header(name, file):
    check(hatlib.load(FOLDER / name / file, **UNTOLD.get((name, file), {})), name)


def read_training(name: str, work: Path) -> tuple[Path, dict]:
    """A checkpoint of two updates, and its configuration, with images of the names and sizes that it was trained on."""
    checkpoint = FOLDER / name / "checkpoint-000002"
    config = torch.load(checkpoint / "state.pt", weights_only=True)["config"]
    noise = work / "noise"
    noise.mkdir()
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (32, 36, 3), dtype=np.uint8)
        Image.fromarray(image).save(noise / f"{i}.png")
    return checkpoint, {**config, "out": str(work / "run"), "data": {**config["data"], "hr": str(noise)}}


@pytest.mark.filterwarnings("ignore:.* does not record")
@pytest.mark.parametrize("name", ["hat", "edsr"])
def test_training_starts_from_a_checkpoint(name, tmp_path):
    checkpoint, config = read_training(name, tmp_path)
    init = str(checkpoint / "state.pt")
    check(hatlib.load(init, **config["model"]["args"]), name, "trained")
    # One update that is too small for float32: what the training leaves is what it started from.
    train_less = {**config["train"], "updates": 1, "lr": 1e-12}
    outcome = train(load_config({**config, "model": {**config["model"], "init": init}, "train": train_less}))
    check(CLASSES[name].from_pretrained(outcome.model), name, "trained")


@pytest.mark.parametrize("name", ["hat", "edsr"])
def test_training_goes_on_from_a_checkpoint(name, tmp_path):
    checkpoint, config = read_training(name, tmp_path)
    averaged = torch.load(checkpoint / "state.pt", weights_only=True)["ema"]
    # Nothing is left to do at first but to write the averaged weights.
    outcome = train(load_config(config), resume=str(checkpoint))
    written = CLASSES[name].from_pretrained(outcome.model).state_dict()
    assert outcome.update == 2 and written.keys() == averaged.keys()
    assert all(torch.equal(written[key], averaged[key]) for key in averaged)
    more = {**config, "out": str(tmp_path / "more"), "train": {**config["train"], "updates": 3}}
    assert train(load_config(more), resume=str(checkpoint)).update == 3
