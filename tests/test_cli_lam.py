"""`hatlib lam`: figures, tables, folders, and what goes wrong."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import hatlib
from hatlib.analysis import draw_lam, lam
from hatlib.analysis.comparison import load_input, mean_ranks
from hatlib.analysis.figure import lam_figure
from hatlib.cli import main
from hatlib.data import imresize, read_rgb
from hatlib.imageio import read_image
from hatlib.models import Bicubic

NETWORKS = """
import torch
from torch import nn

class Enlarge(nn.Module):
    def __init__(self, width, upscale=2):
        super().__init__()
        self.upscale = upscale
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, width, padding=width // 2)
    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), scale_factor=2, mode="bicubic")

def narrow():
    return Enlarge(1)

def wide():
    return Enlarge(9)

def silent():
    model = Enlarge(1)
    del model.upscale
    return model

class Picky(Enlarge):
    def forward(self, x):
        if x.shape[2] == 21:
            raise RuntimeError("no kernel for this size\\nthe second line")
        return super().forward(x)

def picky():
    return Picky(3)

def liar():
    return Enlarge(1, upscale=3)
"""


def picture(path, height=40, width=48, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, height // 4, width // 4), np.uint8)
    pixels = imresize(torch.from_numpy(coarse), size=(height, width)).permute(1, 2, 0).numpy()
    PILImage.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images in Four, and a module of networks in the current folder."""
    for i, name in enumerate(["ant", "bee", "cat", "sub/ant"]):
        picture(tmp_path / "Four" / f"{name}.png", 41 if i == 2 else 40, seed=i)
    (tmp_path / "lam_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("lam_networks", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def run(image, *arguments, models=("narrow", "wide")):
    chosen = [part for name in models for part in ("--model", f"lam_networks:{name}")]
    return main(["lam", str(image), "--device", "cpu", "--fold", "6", *chosen, *map(str, arguments)])


def test_one_image(folder, capsys):
    assert run("Four/ant.png", "--window", "30,10,12", "-o", "out.png", "--json", "out.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "out.png" and lines[0].startswith("| model") and len(lines) == 5
    content = json.loads(Path("out.json").read_text())
    assert content["scale"] == 2 and content["rule"] == "reference" and len(content["images"]) == 1
    (row,) = content["images"]
    assert row["image"] == "ant.png" and row["input"] == [20, 24] and row["errors"] == []
    hr = read_rgb("Four/ant.png")
    import lam_networks

    for name in ("narrow", "wide"):
        expected = lam(getattr(lam_networks, name)(), imresize(hr, 0.5), tuple(row["window"]), fold=6)
        figures = row["models"][f"lam_networks:{name}"]
        assert figures["di"] == expected.di and figures["completeness"] == expected.completeness
        assert f"{expected.di:.2f}" in next(line for line in lines if name in line)
    assert row["models"]["lam_networks:wide"]["di"] > row["models"]["lam_networks:narrow"]["di"]


def test_window_is_in_output_pixels(folder):
    """A window beyond the input's own size, and none: the middle."""
    assert run("Four/ant.png", "--window", "0,30,10", "--json", "a.json") == 0
    assert run("Four/ant.png", "--json", "b.json") == 0
    windows = [json.loads(Path(f"{name}.json").read_text())["images"][0]["window"] for name in "ab"]
    assert windows == [[0, 30, 10], [16, 12, 16]]


def test_lr_and_crop(folder):
    whole = load_input("Four/ant.png", 2, (10, 22, 6), is_lr=True)
    assert whole.hr is None and torch.equal(whole.lr, read_rgb("Four/ant.png")) and whole.window == (10, 22, 6)
    part = load_input("Four/ant.png", 2, (10, 32, 6), is_lr=True, crop=16)
    # The middle of the window is input pixel (6, 17): columns from 0, as far left as it goes, and rows from 17 - 8.
    assert torch.equal(part.lr, whole.lr[:, 9:25, :16]) and part.window == (10, 32 - 2 * 9, 6)
    made = load_input("Four/ant.png", 2, (32, 20, 8), crop=12)
    hr = read_rgb("Four/ant.png")
    assert torch.equal(made.hr, hr[:, 12:36, 24:48]) and torch.equal(made.lr, imresize(made.hr, 0.5))
    x, y, side = made.window
    assert torch.equal(made.hr[:, y : y + side, x : x + side], hr[:, 20:28, 32:40]) and made.origin == (12, 6)
    # A window nearly as large as the part, whose middle rounds away from it.
    assert load_input("Four/ant.png", 2, (5, 3, 15), crop=8).origin == (2, 1)
    with pytest.raises(hatlib.HatlibError, match="no room for a window of 16"):
        load_input("Four/ant.png", 2, (5, 3, 16), crop=8)
    assert run("Four/ant.png", "--lr", "--crop", 16, "-o", "lr.png", models=["wide"]) == 0
    assert read_image("lr.png").pixels.shape[2] == 3
    assert run("Four/ant.png", "--window", "32,20,8", "--crop", 12, "--json", "out.json", models=["wide"]) == 0
    content = json.loads(Path("out.json").read_text())
    (row,) = content["images"]
    assert content["crop"] == 12 and not content["lr"]
    assert (row["window"], row["origin"], row["input"]) == ([32, 20, 8], [12, 6], [12, 12])


def test_folder(folder, capsys):
    assert run("Four", "-o", "out.csv", "--json", "out.json") == 0
    captured = capsys.readouterr()
    assert captured.out == "out.csv\n" and captured.err == ""
    rows = list(csv.DictReader(Path("out.csv").open()))
    names = ["ant.png", "bee.png", "cat.png", "sub/ant.png"]
    assert [row["image"] for row in rows] == [*names, "mean", "mean rank"]
    for model in ("lam_networks:narrow", "lam_networks:wide"):
        indices = [float(row[model]) for row in rows[:4]]
        assert len(set(indices)) == 4 and float(rows[4][model]) == pytest.approx(sum(indices) / 4, abs=1e-4)
        kept = [row["models"][model]["di"] for row in json.loads(Path("out.json").read_text())["images"]]
        assert indices == pytest.approx(kept, abs=1e-4)
    ranks = [float(rows[5][f"lam_networks:{m}"]) for m in ("narrow", "wide")]
    assert ranks == [2, 1]
    assert run("Four") == 0  # and to standard output
    assert capsys.readouterr().out == Path("out.csv").read_text()


def test_folder_of_different_sizes(folder, capsys):
    picture(Path("Four/dog.png"), 60, 60)
    assert run("Four", models=["narrow"]) == 0
    assert "--crop makes them alike" in capsys.readouterr().err
    assert run("Four", "--crop", 20, models=["narrow"]) == 0
    assert capsys.readouterr().err == ""


def test_folder_with_failures(folder, capsys):
    """The others are done; a network that raises is as bad as a file that can't be read."""
    file = Path("Four/bee.png")
    file.write_bytes(file.read_bytes()[:-150])
    picture(Path("Four/cat.png"), 42)
    assert run("Four", "-o", "out.csv", "--scale", 2, "--json", "out.json", models=["wide", "picky"]) == 1
    captured = capsys.readouterr()
    sizes, *errors = captured.err.splitlines()
    assert "differ in size" in sizes  # that of cat.png, which one network did
    assert errors[0] == "2 of 4 images failed:" and "bee.png" in errors[1]
    assert errors[2] == "  lam_networks:picky fails on 'Four/cat.png': RuntimeError: no kernel for this size."
    assert [r["image"] for r in csv.DictReader(Path("out.csv").open())][:2] == ["ant.png", "cat.png"]
    images = json.loads(Path("out.json").read_text())["images"]
    assert [len(row["errors"]) for row in images] == [0, 1, 1, 0]
    # What the other network makes of the image is kept, and the means are over the images that both have.
    assert [sorted(row["models"]) for row in images][1:3] == [[], ["lam_networks:wide"]]
    rows = {row.pop("image"): row for row in csv.DictReader(Path("out.csv").open())}
    assert rows["cat.png"]["lam_networks:picky"] == "" and float(rows["cat.png"]["lam_networks:wide"]) > 0
    wide = [float(rows[name]["lam_networks:wide"]) for name in ("ant.png", "sub/ant.png")]
    assert float(rows["mean"]["lam_networks:wide"]) == pytest.approx(sum(wide) / 2, abs=1e-4)


def test_one_of_two_networks_fails(folder, capsys):
    """The figure shows the other; a network that fails on every image has no column."""
    picture(Path("cat.png"), 42)
    assert run("cat.png", "-o", "out.png", models=["picky", "wide"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("1 of 1 images failed:") and "picky fails on 'cat.png'" in captured.err
    assert captured.out.splitlines()[-1] == "out.png" and Path("out.png").exists()
    Path("Five").mkdir()
    Path("cat.png").rename("Five/cat.png")
    assert run("Five", models=["picky", "wide"]) == 1
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows[0] == ["image", "lam_networks:wide"] and [row[0] for row in rows[1:]] == [
        "cat.png",
        "mean",
        "mean rank",
    ]


def test_mean_ranks():
    assert mean_ranks([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0]]) == [1.5, 3.0, 1.5]
    assert mean_ranks([[2.0, 2.0, 1.0]]) == [1.5, 1.5, 3.0]


def test_bicubic_and_the_shipped_model(folder, capsys):
    picture(Path("photo.png"), 64, 64)
    assert (
        main(["lam", "photo.png", "--fold", "2", "--device", "cpu", "--model", "hat_t_x4", "--model", "bicubic"]) == 0
    )
    out = capsys.readouterr().out
    assert "bicubic" in out and "hat_t_x4" in out
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(Bicubic(3)(x), imresize(x, 3))


def test_figure(tmp_path):
    """A row for the image and one for each network, with the window; results of different windows are refused."""
    image = torch.zeros(3, 16, 16)
    image[:, 5:9, 6:10] = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = lam(Bicubic(2), image, (10, 10, 8), fold=3)
    assert len(lam_figure({"bicubic": result}).axes) == 8
    original = imresize(image, 2).clamp(0, 1)
    axes = lam_figure({"bicubic": result, "again": result}, original, alpha=0.25).axes
    captions = [panel.get_xlabel().split("\n") for panel in axes]
    assert captions[0] == ["original", "window 8x8 at 10, 10"] and captions[1] == ["input, 16x16"]
    for row, name in ((4, "bicubic"), (8, "again")):
        assert captions[row] == [f"{name}, attribution", f"diffusion index {result.di:.2f}"]
        assert captions[row + 3] == [f"{name}, close-up"] and len(captions) == 12
    for i, panel in enumerate(axes):
        (frame,) = panel.patches
        assert frame.get_bbox().bounds == (10, 10, 8, 8) and panel.images[0].get_extent() == [0, 32, 32, 0]
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        if i in (2, 3, 7, 11):  # close-ups
            assert left < 10 and right > 18 and top < 10 and bottom > 18 and right - left == bottom - top < 32
        else:
            assert (left, right, bottom, top) == (0, 32, 32, 0)
    shown = [torch.as_tensor(panel.images[0].get_array()).permute(2, 0, 1) for panel in axes]
    gray = imresize(image, 2).clamp(0, 1).mul(255).round().byte()
    for i, expected in ((0, gray), (1, image.mul(255).round().byte()), (7, result.sr.clamp(0, 1).mul(255).round())):
        assert torch.equal(shown[i], expected.byte())
    assert torch.equal(shown[3], shown[0]) and torch.equal(shown[2], shown[1]) and torch.equal(shown[11], shown[7])
    assert (shown[4][0] == 255).all() and torch.equal(shown[4][1], ((1 - result.map) * 255).round().byte())
    y, x = divmod(int(result.map.argmax()), 16)
    assert shown[4][:, y, x].tolist() == [255, 0, 0] and (shown[4][:, 0] == 255).all()
    over = shown[5][:, 2 * y, 2 * x].float()  # three quarters red
    assert over[0] - over[1] == pytest.approx(0.75 * 255, abs=1) and not torch.equal(shown[5], shown[6])
    draw_lam(tmp_path / "one.png", {"bicubic": result}, original)
    assert read_image(tmp_path / "one.png").pixels.std() > 20
    other = lam(Bicubic(2), image, (10, 12, 8), fold=3)
    for bad, words in (({"a": result, "b": other}, "one image, window and scale"), ({}, "nothing to draw")):
        with pytest.raises(hatlib.HatlibError, match=words):
            draw_lam(tmp_path / "no.png", bad)
    with pytest.raises(hatlib.HatlibError, match="original"):
        draw_lam(tmp_path / "no.png", {"a": result}, torch.rand(3, 30, 32))
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize(
    "arguments, models, words",
    [
        (
            ["Four/ant.png", "--window", "40,0,16"],
            ["wide"],
            "40,0,16 (x, y, size) in output pixels does not lie within",
        ),
        (["Four/ant.png", "--crop", "7"], ["wide"], "have no room for a window"),
        (["Four/ant.png", "--crop", "8"], ["wide"], "fewer than the blur's kernel of 9x9"),
        (["Four/ant.png", "--kernel", "41"], ["wide"], "fewer than the blur's kernel of 41x41"),
        (["Four/ant.png", "--crop", "21"], ["wide"], "24x20 input pixels, fewer than the 21x21"),
        (["Four/ant.png", "--kernel", "4"], ["wide"], "odd"),
        (["Four", "--kernel", "4"], ["wide"], "odd"),
        (["Four", "--sigma", "0"], ["wide"], "above 0"),
        (["Four/ant.png", "--scale", "3"], ["wide"], "wide is x2, and --scale 3"),
        (["Four/ant.png", "--scale", "3"], ["silent"], "enlarges by 2, and not by 3"),
        (["Four/ant.png"], ["liar"], "enlarges by 2, and not by 3"),
        (["Four/ant.png"], ["silent"], "does not declare its scale"),
        (["Four/ant.png", "--crop", "0"], ["wide"], "--crop"),
        (["Four/ant.png", "--alpha", "2"], ["wide"], "--alpha"),
        (["Four/ant.png", "--device", "toaster"], ["wide"], "Cannot use the device 'toaster'"),
        (["Four/ant.png", "-o", "out.txt"], ["wide"], "out.txt"),
        (["Four/ant.png", "-o", "none/out.png"], ["wide"], "none"),
        (["Four/ant.png", "-o", "Four/ant.png"], ["wide"], "an input"),
        (["Four", "--json", "Four/ant.png"], ["wide"], "an input"),
        (["Four/ant.png", "-o", "out.png", "--json", "./out.png"], ["wide"], "another output"),
        (["Four/ant.png", "--json", "empty"], ["wide"], "it is a folder"),
        (["Four", "-o", "out.png"], ["wide"], "out.csv"),
        (["Five"], ["wide"], "no file or folder 'Five'"),
        (["empty"], ["wide"], "no images"),
        (["lam_networks.py"], ["wide"], "not an image"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, models, words):
    (folder / "empty").mkdir()
    before = sorted(os.listdir(folder))
    kept = Path("Four/ant.png").read_bytes()
    assert run(arguments[0], *arguments[1:], models=models) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hatlib: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == before and Path("Four/ant.png").read_bytes() == kept


def test_wrong_usage(folder, capsys):
    for window in ("1,2", "a,b,c", "1,2,3,4", "0,-1,16", "1,2,0"):
        with pytest.raises(SystemExit) as stop:
            run("Four/ant.png", "--window", window)
        assert stop.value.code == 2 and f"three whole numbers X,Y,SIZE, from 0 and 1 on, not '{window}'" in (
            capsys.readouterr().err
        )
