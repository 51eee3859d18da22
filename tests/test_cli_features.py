"""`hatlib features`: ratios, figures, and what goes wrong."""

import json
import os
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from PIL import Image as PILImage

from hatlib import create_model
from hatlib.analysis import blocking_ratio, draw_features, feature_maps
from hatlib.cli import main
from hatlib.data import read_rgb
from hatlib.imageio import read_image

NETWORKS = """
import torch
from torch import nn
import hatlib

def swin():
    torch.manual_seed(0)
    args = dict(embed_dim=12, depths=[2, 2], num_heads=[2, 2], num_feat=8)
    return hatlib.create_model("swinir_s_x2", **args)

def rcan():
    torch.manual_seed(0)
    return hatlib.create_model("rcan_x2", num_feat=8, num_group=2, num_block=1, squeeze_factor=4)

def plain():
    model = nn.Conv2d(3, 3, 1)
    model.upscale, model.window_size = 2, 8
    return model

def silent():
    return nn.Conv2d(3, 3, 1)

class Picky(nn.Module):
    upscale, window_size = 2, 8
    def forward_intermediates(self, x, **kwargs):
        if x.shape[2] == 36:
            raise RuntimeError("no kernel for this size\\nthe second line")
        return [x]

def picky():
    return Picky()

class Broken(Picky):
    def forward_intermediates(self, x, **kwargs):
        return [x / 0]

def broken():
    return Broken()

class Hungry(Picky):
    def forward_intermediates(self, x, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

def hungry():
    return Hungry()
"""


def noise(path, height=40, width=48, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images, two of them in a folder, and a module of networks in the current folder."""
    noise(tmp_path / "ant.png")
    noise(tmp_path / "Two" / "bee.png", 36, 40, seed=1)
    noise(tmp_path / "Two" / "sub" / "cat.png", seed=2)
    (tmp_path / "feature_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("feature_networks", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def run(*arguments, models=("swin",)):
    chosen = [part for name in models for part in ("--model", f"feature_networks:{name}")]
    return main(["features", "--device", "cpu", *chosen, *map(str, arguments)])


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_of_several_models_and_images(folder, capsys):
    """A file that is named twice, also within a folder, counts once."""
    files = ["ant.png", "Two/bee.png", "Two/sub/cat.png"]
    outputs = ["-o", "out.png", "--json", "out.json"]
    assert run("ant.png", "Two", "Two/bee.png", "--window", 8, *outputs, models=["swin", "rcan"]) == 0
    captured = capsys.readouterr()
    header, _, *lines, last = captured.out.splitlines()
    assert cells(header) == ["model", "group", "at borders", "at half", "elsewhere"] and last == "out.png"
    assert captured.err == "" and len(lines) == 4
    content = json.loads(Path("out.json").read_text())
    assert [row["image"] for row in content["images"]] == files
    import feature_networks

    first = {}
    for m, name in enumerate(("swin", "rcan")):
        model, label = getattr(feature_networks, name)(), f"feature_networks:{name}"
        maps = [feature_maps(model, read_rgb(file)) for file in files]
        first[label] = maps[0], 8
        assert content["means"][label]["window"] == 8
        for g in range(2):
            expected = [blocking_ratio(image[g], 8) for image in maps]
            found = [row["models"][label][g] for row in content["images"]]
            assert [f["profile"] for f in found] == [list(e.profile) for e in expected]
            assert [f["control"] for f in found] == [e.control for e in expected]
            means = [mean(getattr(e, value) for e in expected) for value in ("ratio", "half", "control")]
            kept = content["means"][label]["groups"][g]
            assert [kept[value] for value in ("ratio", "half", "control")] == pytest.approx(means)
            assert cells(lines[2 * m + g]) == [label, str(g + 1), *(f"{value:.3f}" for value in means)]
    draw_features("expected.png", first)
    assert np.array_equal(read_image("out.png").pixels, read_image("expected.png").pixels)


def test_windows_of_the_models(folder, capsys):
    assert run("ant.png", "--json", "own.json") == 0
    assert run("ant.png", "--json", "other.json", "--window", 5) == 0
    own, other = (json.loads(Path(f"{name}.json").read_text())["means"] for name in ("own", "other"))
    (own,), (other,) = own.values(), other.values()
    assert (own["window"], len(own["groups"][0]["profile"])) == (8, 8)
    assert (other["window"], len(other["groups"][0]["profile"])) == (5, 5)


def test_the_shipped_model(folder, capsys):
    """Without options: `hat_t_x4`, and no files."""
    before = sorted(os.listdir(folder))
    assert main(["features", "ant.png", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    maps = feature_maps(create_model("hat_t_x4", pretrained=True), read_rgb("ant.png"))
    expected = [blocking_ratio(features, 16) for features in maps]
    assert [cells(line)[:3] for line in lines[2:]] == [
        ["hat_t_x4", str(i), f"{blocking.ratio:.3f}"] for i, blocking in enumerate(expected, 1)
    ]
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    "arguments, models, words",
    [
        (["none.png"], ["swin"], "no file or folder 'none.png'"),
        (["empty"], ["swin"], "no images"),
        (["feature_networks.py"], ["swin"], "not an image"),
        (["ant.png", "Two", "-o", "out.png", "--json", "out.json"], ["picky"], "picky fails on 'Two/bee.png': Runtime"),
        (["ant.png", "damaged.png", "-o", "out.png"], ["swin"], "damaged.png"),
        (["small.png"], ["swin"], "swin on 'small.png': A map of (12, 15, 48) has fewer than two windows of 8x8"),
        (["flat.png"], ["picky"], "'flat.png': The map is the same everywhere"),
        (["ant.png", "--json", "out.json"], ["broken"], "'ant.png': The feature maps are not finite"),
        (["ant.png"], ["hungry"], "Not enough memory for feature_networks:hungry on 'ant.png'"),
        (["ant.png"], ["plain"], "feature_networks:plain has no feature maps"),
        (["ant.png"], ["swin", "rcan"], "rcan has no windows: set the grid to look for, for example --window 16"),
        (["ant.png", "--model", "bicubic"], ["swin"], "bicubic has no feature maps"),
        (["ant.png", "--model", "hat_t_x9"], [], "hat_t_x4"),
        (["ant.png", "--model", "hat_t_x4"], ["swin"], "hat_t_x4 is x4"),
        (["ant.png"], ["silent"], "--scale"),
        (["ant.png", "--scale", "2"], ["silent"], "silent has no feature maps"),
        (["ant.png", "--window", "2"], ["swin"], "--window must be at least 3 pixels, got 2"),
        (["ant.png", "--window", "0"], ["swin"], "--window must be at least 3 pixels, got 0"),
        (["ant.png", "--device", "toaster"], ["swin"], "Cannot use the device 'toaster'"),
        (["ant.png", "-o", "out.txt"], ["swin"], "out.txt"),
        (["ant.png", "-o", "none/out.png"], ["swin"], "no folder 'none'"),
        (["ant.png", "-o", "ant.png"], ["swin"], "an input"),
        (["Two", "--json", "Two/bee.png"], ["swin"], "an input"),
        (["ant.png", "-o", "out.png", "--json", "./out.png"], ["swin"], "another output"),
        (["ant.png", "--json", "empty"], ["swin"], "it is a folder"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, models, words):
    (folder / "empty").mkdir()
    (folder / "damaged.png").write_bytes((folder / "ant.png").read_bytes()[:-200])
    noise(folder / "small.png", 15)
    PILImage.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "flat.png")
    before = sorted(os.listdir(folder))
    kept = Path("ant.png").read_bytes()
    assert run(*arguments, models=models) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hatlib: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == before and Path("ant.png").read_bytes() == kept


def test_version(capsys):
    from hatlib.version import __version__

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"hatlib {__version__}\n"


def test_wrong_usage(capsys):
    for arguments in ([], ["ant.png", "--window", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(["features", *arguments])
        assert stop.value.code == 2
