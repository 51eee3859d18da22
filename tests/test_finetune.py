"""`hatlib finetune`: one command from two folders to a better model."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_overrides
from PIL import Image as PILImage

import hatlib
from hatlib.cli import main
from hatlib.data import imresize
from hatlib.training.initialization import init_as_interpolation


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of eight smooth images and their quarters, which are too dark; and a small model of x2."""
    root = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    for folder in ("hr", "lr"):
        (root / folder).mkdir()
    for i in range(8):
        small = torch.from_numpy(rng.random((1, 3, 6, 7)).astype(np.float32))
        hr = imresize(small, size=(48, 56))[0].mul(200).add(30).clamp(0, 255).byte()
        lr = imresize(hr, 0.5).double().mul(0.7).byte()
        for folder, image in (("hr", hr), ("lr", lr)):
            PILImage.fromarray(image.permute(1, 2, 0).numpy()).save(root / folder / f"{i}.png")
    torch.manual_seed(0)
    model = hatlib.create_model("hat_s_x2", **tiny_overrides("hat_s_x2"))
    init_as_interpolation(model)
    model.save_pretrained(root / "model")
    return root


@pytest.fixture
def finetune(folders, tmp_path):
    def run(*args, hr="hr", model="model", updates=30):
        fixed = ["--device", "cpu", "--batch", "2", "--patch", "8", "--learning-rate", "3e-3"]
        given = ["--hr", str(folders / hr), "--model", str(folders / model), "-o", str(tmp_path / "run")]
        return main(["finetune", *given, "--updates", str(updates), *fixed, *map(str, args)])

    return run


def test_two_folders(folders, tmp_path, finetune, capsys):
    assert finetune("--lr", folders / "lr") == 0
    said = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")] for line in said.splitlines() if "validation x2" in line]
    psnr = {cells[2]: float(cells[4]) for cells in table}
    assert list(psnr) == ["bicubic", "before", "after"] and psnr["after"] > psnr["before"] + 1
    assert f"{psnr['after'] - psnr['before']:+.2f}"[:4] in said and f"'{tmp_path / 'run' / 'model'}'" in said
    train, val = ((tmp_path / "run" / f"{part}.txt").read_text().split() for part in ("train", "val"))
    assert len(val) == 1 and sorted(train + val) == [f"{i}.png" for i in range(8)]
    with PILImage.open(tmp_path / "run" / "comparison.png") as sheet:
        assert min(sheet.size) > 200
    model = hatlib.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert model.upscale == 2 and model.embed_dim == tiny_overrides("hat_s_x2")["embed_dim"]
    assert finetune("--lr", folders / "lr") == 0  # nothing is left to do, and it says the same
    assert said.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_another_scale(tmp_path, finetune, capsys):
    assert finetune("--scale", 3, updates=2) == 0
    assert "with new, untrained upsample.0" in capsys.readouterr().out
    assert hatlib.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).upscale == 3


def test_gray(tmp_path, finetune, capsys):
    assert finetune("--gray", updates=2) == 0
    assert "fitted to 1 and 1 channels: conv_first, conv_last" in capsys.readouterr().out
    model = hatlib.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert model.in_chans == model.out_chans == 1
    again = ("-o", tmp_path / "again")
    assert finetune(*again, model=tmp_path / "run" / "model", updates=2) == 0  # a gray model takes gray images unasked


def test_weight_file_and_name(folders, tmp_path, finetune):
    file = folders / "model" / "model.safetensors"
    assert finetune(model=file, updates=1) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model_args"]["embed_dim"] == tiny_overrides("hat_s_x2")["embed_dim"]


@pytest.mark.parametrize(
    "args, options, message",
    [
        ((), dict(hr="nowhere"), "There is no folder"),
        ((), dict(model="nowhere.pth"), "There is no weight file"),
        (("--lr", "nowhere"), {}, "There is no folder"),
        (("--scale", 5), {}, "There is no HAT of scale x5"),
        (("--set", "train.updats=3"), {}, "Did you mean train.updates"),
        (("--set", "data.gray=true"), {}, "takes 3 channels"),
    ],
)
def test_bad_input(finetune, tmp_path, capsys, args, options, message):
    assert finetune(*args, **options) == 1
    assert not (tmp_path / "run" / "model").exists()
    if "train.updats=3" in args:
        assert not (tmp_path / "run").exists()
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_name_without_weights(folders, capsys):
    assert main(["finetune", "--hr", str(folders / "hr"), "--model", "hat_s_x8"]) == 1
    assert "no pretrained weights for hat_s_x8" in capsys.readouterr().err
