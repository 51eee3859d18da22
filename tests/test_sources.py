"""Every model source, in Python and in every command; and sources that are wrong."""

import shutil
import sys

import pytest
import torch
from conftest import randomize, tiny_overrides
from PIL import Image
from torch import nn

import hatlib
from hatlib import HatlibError
from hatlib.checkpoint import write_state_dict
from hatlib.cli import main
from hatlib.hub.resolve import resolve
from hatlib.models import HAT, Bicubic

MODULE = """
import hatlib
def tiny(**options):
    return hatlib.load("saved", **options)
def silent():
    import torch
    return torch.nn.Upsample(scale_factor=2)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a model in every form, and two images."""
    folder = tmp_path_factory.mktemp("sources")
    overrides = {**tiny_overrides("hat_t_x2"), "img_range": 1.0}
    model = randomize(hatlib.create_model("hat_t_x2", **overrides), std=0.02).eval()
    model.save_pretrained(folder / "saved")
    write_state_dict(model.state_dict(), folder / "weights.pth")
    shutil.copy(folder / "saved" / "model.safetensors", folder / "weights.safetensors")
    (folder / "my_source.py").write_text(MODULE)
    (folder / "photos").mkdir()
    for name in ("a", "b"):
        pixels = torch.randint(256, (36, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / "photos" / f"{name}.png")
    size = torch.export.Dim.DYNAMIC
    example = (torch.rand(1, 3, 17, 21),)
    torch.onnx.export(
        model, example, folder / "model.onnx", dynamo=True, dynamic_shapes=({2: size, 3: size},), verbose=False
    )
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder, and the module of its functions forgotten afterwards."""
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    sys.modules.pop("my_source", None)


TRAINABLE = ["hat_t_x2", "hat_t_x2.photos_cc0", "saved", "local-dir:saved", "weights.pth", "weights.safetensors"]
SOURCES = [*TRAINABLE, "model.onnx", "my_source:tiny", "bicubic"]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not record")


@pytest.mark.parametrize("source", SOURCES)
def test_load(folder, source):
    before = list(sys.path)
    model = hatlib.load(source, scale=2)
    assert model.upscale == 2 and not model.training and sys.path == before
    assert model(torch.rand(1, 3, 9, 11)).shape == (1, 3, 18, 22)


@pytest.mark.parametrize("source", SOURCES)
def test_commands_that_run_models(folder, source, capsys):
    scale = ["--scale", "2"] if source == "bicubic" else []
    assert main(["upscale", "photos/a.png", "-o", "out.png", "--model", source, *scale]) == 0
    assert Image.open("out.png").size == (80, 72)
    assert main(["evaluate", source, "--data", "photos", *scale]) == 0
    if source != "model.onnx":  # no gradients
        assert main(["lam", "photos/a.png", "--lr", "--model", source, "--fold", "1", *scale]) == 0
    if source not in ("model.onnx", "bicubic"):  # no feature maps
        assert main(["features", "photos/a.png", "--model", source, *scale]) == 0
    assert capsys.readouterr().err.replace("note:", "").count("hatlib:") == 0


@pytest.mark.parametrize("source", SOURCES)
def test_convert(folder, source, capsys):
    code = main(["convert", source, "converted.safetensors"])
    error = capsys.readouterr().err
    if source in ("model.onnx", "bicubic"):
        assert code == 1 and error.count("\n") == 1
    else:
        assert code == 0, error
        assert isinstance(hatlib.load("converted.safetensors"), HAT)


@pytest.mark.parametrize("source", TRAINABLE)
def test_finetune(folder, source):
    arguments = ["--updates", "1", "--patch", "8", "--batch", "1", "--device", "cpu", "-o", "run"]
    assert main(["finetune", "--hr", "photos", "--model", source, *arguments]) == 0
    assert hatlib.load("run/model").upscale == 2


@pytest.mark.parametrize("name", ["hat_t_x2", "my_source:tiny"])
@pytest.mark.parametrize("init", [None, "saved", "weights.safetensors", "local-dir:saved"])
def test_recipes(folder, name, init):
    from hatlib.training import load_config, train

    args = tiny_overrides("hat_t_x2") if name == "hat_t_x2" else {}
    data = {"hr": "photos", "patch": 8}
    content = {"name": "x", "out": "run", "device": "cpu", "data": data, "train": {"updates": 1, "batch": 1}}
    train(load_config({**content, "model": {"name": name, "args": args, "init": init}}))
    assert hatlib.load("run/model").upscale == 2


def test_a_size_with_a_scale():
    assert hatlib.load("hat_t", scale=4).upscale == 4
    assert hatlib.load("hat_t.photos_cc0", scale=2).upscale == 2
    with pytest.raises(HatlibError, match="'hat_t' has the scales 2, 4: name one, as in 'hat_t_x2'"):
        hatlib.load("hat_t")
    with pytest.raises(HatlibError, match="'hat_t' has the scales 2, 4, not 3"):
        hatlib.load("hat_t", scale=3)


def test_a_network(folder):
    model = hatlib.load("saved").train()
    assert hatlib.load(model) is model and not model.training
    assert hatlib.load(model, dtype=torch.float64).conv_first.weight.dtype == torch.float64
    with pytest.raises(HatlibError, match="in_chans= does not apply to the network HAT"):
        hatlib.load(model, in_chans=1)
    with pytest.raises(HatlibError, match="Upsample does not declare its scale; set its attribute `upscale`"):
        hatlib.load(nn.Upsample(scale_factor=2), scale=2)


def test_bicubic_is_differentiable():
    x = torch.rand(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    y = hatlib.load("bicubic", scale=3)(x)
    assert isinstance(hatlib.load("bicubic", scale=3), Bicubic) and y.shape == (1, 2, 15, 21)
    y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_options(folder):
    assert hatlib.load("weights.safetensors", dtype="auto").conv_first.weight.dtype == torch.float32
    assert hatlib.load("saved", dtype=torch.float16).conv_first.weight.dtype == torch.float16
    assert hatlib.load("saved", in_chans=1)(torch.rand(1, 1, 5, 6)).shape == (1, 1, 10, 12)
    for source in ("saved", "weights.safetensors", "hat_t_x2"):
        with pytest.warns(UserWarning, match="has scale 2: the head for scale 3 is new and untrained"):
            assert hatlib.load(source, upscale=3)(torch.rand(1, 3, 5, 6)).shape == (1, 3, 15, 18)
    with pytest.warns(UserWarning, match="scale 3"):
        assert HAT.from_pretrained("saved", upscale=3).upscale == 3


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("hat_tt_x2", {}, "Unknown model 'hat_tt_x2'. Did you mean hat_t_x2"),
        ("none.pth", {}, "There is no weight file 'none.pth'"),
        ("none.onnx", {}, "There is no file 'none.onnx'"),
        ("photos", {}, "'photos' is not a saved model: there is no config.json in the folder"),
        ("local-dir:none", {}, "There is no folder 'none'"),
        ("org/repo", {}, "There is no file or folder 'org/repo'. A repository of the Hub is 'hf-hub:org/repo'"),
        ("hat_s_x8", {}, "There are no pretrained weights for hat_s_x8"),
        ("saved", {"scale": 4}, "'saved' has scale 2, got scale=4; upscale=4 gives it a new head"),
        ("bicubic", {}, "Bicubic interpolation has no scale of its own: pass scale= (--scale in commands)"),
        ("model.onnx", {"dtype": torch.float16}, "dtype= does not apply to the ONNX model 'model.onnx'"),
        ("model.onnx", {"in_chans": 1}, "in_chans= does not apply to the ONNX model 'model.onnx'"),
        ("saved", {"ema": True}, "'saved' holds one set of weights; leave ema (--ema, --no-ema) out"),
        ("my_source:nothing", {}, "The module 'my_source' has no function 'nothing'"),
        ("no_source:tiny", {}, "'no_source:tiny' cannot be imported"),
        ("saved", {"in_chanz": 1}, "has no option 'in_chanz'. Did you mean in_chans"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) and len(value) < 20 else "",
)
def test_wrong_sources(folder, capsys, source, options, message):
    with pytest.raises(HatlibError) as error:
        hatlib.load(source, **options)
    assert message in str(error.value)
    if options and options.keys() != {"scale"}:
        return
    scale = ["--scale", str(options["scale"])] if options else []
    for command in (
        ["upscale", "photos/a.png", "-o", "out.png", "--model", source, *scale],
        ["evaluate", source, "--data", "photos", *scale],
        ["lam", "photos/a.png", "--lr", "--model", source, *scale],
        ["features", "photos/a.png", "--model", source, *scale],
        *([] if scale else [["convert", source, "out.pth"], ["finetune", "--hr", "photos", "--model", source]]),
    ):
        assert main(command) == 1, command
        said = capsys.readouterr().err
        assert said.startswith("hatlib: ") and said.count("\n") == 1, said
        assert scale or source == "bicubic" or message in said, (command, said)
    assert not any((folder / name).exists() for name in ("out.png", "out.pth", "runs"))


def test_from_pretrained_names_the_right_loader(folder):
    for source, words in (("bicubic", "hatlib.load"), ("model.onnx", "hatlib.load"), ("my_source:tiny", "hatlib.load")):
        with pytest.raises(HatlibError, match=words):
            HAT.from_pretrained(source)
    with pytest.raises(HatlibError, match="is a HAT, not a RCAN; load it with HAT.from_pretrained or hatlib.load"):
        hatlib.models.RCAN.from_pretrained("saved")


def test_labels():
    assert resolve("hat_t_x4.photos_cc0").label == "hat_t_x4.photos_cc0" and resolve("bicubic").kind == "bicubic"
    assert (
        resolve("hf-hub:org/repo@main").place == "org/repo@main" and resolve("org/repo", repository=True).kind == "hub"
    )
