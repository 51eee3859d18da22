"""Many images: names, patterns, scales, formats, repetition, several processes, and being killed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from test_cli_upscale import one_sentence, photo

from hatlib import create_model, model_info
from hatlib.cli import main
from hatlib.cli import pipeline as pipeline_module
from hatlib.cli.plan import plan
from hatlib.cli.upscale import model_of_scale
from hatlib.errors import HatlibError
from hatlib.imageio import read_image


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Weights for hat_t_x4, made here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "hat_t_x4.pth"
    torch.save({"params_ema": create_model("hat_t_x4").state_dict()}, path)
    return str(path)


@pytest.fixture
def upscale(checkpoint):
    return lambda *args: main(
        ["upscale", "--model", "hat_t_x4", "--checkpoint", checkpoint, "--device", "cpu", *map(str, args)]
    )


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_folders_keep_relative_names(tmp_path, upscale):
    for name in ("a.png", "b/a.jpg", "b/c d/ö.webp", ".hidden/x.png", "b/.x.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "notes.txt").write_text("x")
    assert upscale(tmp_path / "in") == 0
    assert tree(tmp_path / "in_x4") == ["a_x4.png", "b/a_x4.png", "b/c d/ö_x4.png"]
    # Inside the folder itself: results are no inputs, neither now nor the next time.
    out = tmp_path / "in" / "large"
    for skipped in (False, True):
        assert upscale(tmp_path / "in", "-o", out, *([] if skipped else ["--jobs", 1])) == 0
        assert tree(out) == ["a_x4.png", "b/a_x4.png", "b/c d/ö_x4.png"]


def test_results_beside_their_inputs_are_no_inputs(tmp_path, upscale, capsys):
    for name in "ab":
        photo(tmp_path / f"{name}.png")
    for _ in range(2):
        assert upscale(tmp_path / "a.png", tmp_path / "*.png", "-o", tmp_path) == 0
        assert tree(tmp_path) == ["a.png", "a_x4.png", "b.png", "b_x4.png"]
    assert "2 of 2 skipped" in capsys.readouterr().err


def test_patterns(tmp_path, upscale, capsys, monkeypatch):
    for name in ("x/1/a.png", "x/2/a.png", "x/2/b.jpg", "x/[c].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(tmp_path / name)
    assert upscale(tmp_path / "x" / "**" / "a.png", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["1/a_x4.png", "2/a_x4.png"]
    monkeypatch.chdir(tmp_path)
    assert upscale("x/*/*.jpg") == 0
    assert (tmp_path / "x" / "2" / "b_x4.png").is_file()
    assert upscale("x/[c].png") == 0  # a file of that name comes before the pattern
    assert (tmp_path / "x" / "[c]_x4.png").is_file()
    capsys.readouterr()
    assert upscale("x/*.tif") == 1
    one_sentence(capsys.readouterr(), "holds no images")


def test_format_suffix_and_quality(tmp_path, upscale, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.tif", "d.WEBP"):
        photo(folder / name)
    assert upscale(folder, "--format", "same", "-o", tmp_path / "same", "--suffix", "_{model}_{scale}") == 0
    assert tree(tmp_path / "same") == [
        f"{name}_hat_t_x4_4{end}" for name, end in [("a", ".png"), ("b", ".jpg"), ("c", ".tif"), ("d", ".WEBP")]
    ]
    sizes = []
    for quality in (20, 95):
        assert upscale(folder / "a.png", "--format", "jpeg", "--quality", quality, "--overwrite") == 0
        sizes.append((folder / "a_x4.jpg").stat().st_size)
        with PILImage.open(folder / "a_x4.jpg") as pil:
            assert pil.format == "JPEG"
    assert sizes[0] < sizes[1] / 2
    capsys.readouterr()
    for wrong, word in [
        (["--suffix", "{nothing}"], "--suffix"),
        (["--suffix", "a/b"], "--suffix"),
        (["--quality", 0], "--quality"),
        (["--jobs", 0], "--jobs"),
        (["--scale", 0], "--scale"),
        (["--scale", "nan"], "--scale"),
        (["--scale", 5], "--scale"),
        (["--format", "jpeg", "-o", tmp_path / "x.png"], "--format"),
        (["--suffix", "", "-o", folder], "input itself"),
    ]:
        assert upscale(folder / "a.png", *wrong) == 1
        one_sentence(capsys.readouterr(), word)


def test_names_that_collide(tmp_path, upscale, capsys):
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "a.webp")
    assert upscale(tmp_path / "in") == 1
    assert "would both become" in capsys.readouterr().err and tree(tmp_path / "in_x4") == ["a_x4.png"]


@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_scale_in_between(tmp_path, upscale, mode):
    if mode == "I;16":
        PILImage.fromarray(np.linspace(0, 65535, 280).reshape(14, 20).astype(np.uint16)).save(tmp_path / "a.png")
    else:
        photo(tmp_path / "a.png", mode)
    assert upscale(tmp_path / "a.png") == 0
    assert upscale(tmp_path / "a.png", "--scale", 2.5) == 0
    whole, between = read_image(tmp_path / "a_x4.png"), read_image(tmp_path / "a_x2.5.png")
    assert between.pixels.shape[:2] == (35, 50) and between.mode == whole.mode and between.bits == whole.bits
    blocks = torch.from_numpy(whole.pixels.astype(np.float32)).permute(2, 0, 1)[None]
    reduced = torch.nn.functional.interpolate(blocks, (35, 50), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(between.pixels - reduced.numpy()).mean() < 0.02 * (2**whole.bits)


def test_scale_picks_the_model():
    assert model_of_scale("hat_s_x4", 2) == "hat_s_x2" and model_of_scale("hat_s_x4", 2.1) == "hat_s_x3"
    assert model_of_scale("hat_x4.real_gan", 2) == "hat_x4.real_gan"  # no other scale has these weights
    assert model_info(model_of_scale("hat_l_x2", 4)).scale == 4
    with pytest.raises(HatlibError, match="up to x"):
        model_of_scale("hat_s_x4", 9)


def test_awkward_names(tmp_path, upscale, capsys):
    for name in ("n" * 200, "名前 with spaces", "ä" * 100, "-dash", "%d {scale}"):
        photo(tmp_path / f"{name}.png")
        assert upscale(tmp_path / f"{name}.png") == 0
        assert (tmp_path / f"{name}_x4.png").is_file()
    photo(tmp_path / ("n" * 250 + ".png"))
    capsys.readouterr()
    assert upscale(tmp_path / ("n" * 250 + ".png")) == 1
    one_sentence(capsys.readouterr(), "Cannot write", "too long")


def test_symlinks(tmp_path, upscale):
    photo(tmp_path / "real.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert upscale(tmp_path / "in") == 0
    assert tree(tmp_path / "in_x4") == ["link_x4.png"]


READ_ONLY = next((p for p in (Path("/proc"), Path("/sys")) if p.is_dir() and not os.access(p / "x", os.W_OK)), None)


@pytest.mark.skipif(READ_ONLY is None, reason="no folder that nobody can write to")
def test_read_only_target(tmp_path, upscale, capsys):
    photo(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "-o", READ_ONLY / "out.png") == 1
    one_sentence(capsys.readouterr(), "Cannot write", "out.png")
    assert upscale(tmp_path / "a.png", tmp_path / "a.png", "-o", READ_ONLY / "new") == 1
    one_sentence(capsys.readouterr(), "Cannot make the folder")


def test_large_results_are_streamed(tmp_path, upscale, monkeypatch):
    photo(tmp_path / "a.png", "RGBA", (70, 90))
    assert upscale(tmp_path / "a.png", "--tile", 32) == 0
    monkeypatch.setattr(pipeline_module, "STREAMED_PIXELS", 1000)
    monkeypatch.setattr(pipeline_module.Pipeline, "_resized", None)  # not the way of images in memory
    assert upscale(tmp_path / "a.png", "--tile", 32, "-o", tmp_path / "b.tif") == 0
    a, b = read_image(tmp_path / "a_x4.png").pixels, read_image(tmp_path / "b.tif").pixels
    shown = a[..., 3:] > 8
    assert (np.abs(a.astype(int) - b) * shown).mean() < 1


def test_options_reach_the_upscaler(tmp_path, upscale):
    photo(tmp_path / "a.png", size=(50, 40))
    results = {}
    for name, options in {
        "plain": [],
        "ensemble": ["--self-ensemble"],
        "half": ["--dtype", "bfloat16"],
        "tiles": ["--tile", 32, "--overlap", 0],
        "auto": ["--tile", "auto", "--batch", 2],
    }.items():
        assert upscale(tmp_path / "a.png", "-o", tmp_path / f"{name}.png", *options) == 0
        results[name] = read_image(tmp_path / f"{name}.png").pixels
    assert np.array_equal(results["auto"], results["plain"])  # the whole image fits
    for name in ("ensemble", "half", "tiles"):
        assert not np.array_equal(results[name], results["plain"])
        assert np.abs(results[name].astype(int) - results["plain"]).mean() < 20


def test_checkpoints_are_detected(tmp_path, checkpoint, capsys):
    photo(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "--checkpoint", checkpoint, "--device", "cpu"]) == 0
    assert capsys.readouterr().err.startswith("note: ")
    by_name = ["--model", "hat_t_x4", "-o", str(tmp_path / "b.png")]
    assert main(["upscale", str(tmp_path / "a.png"), "--checkpoint", checkpoint, "--device", "cpu", *by_name]) == 0
    assert np.array_equal(read_image(tmp_path / "a_x4.png").pixels, read_image(tmp_path / "b.png").pixels)


def test_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    from test_runner import export

    photo(tmp_path / "a.png")
    export(tmp_path / "triple.onnx")
    assert main(["upscale", str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / "triple.onnx")]) == 0
    expected = read_image(tmp_path / "a.png").pixels.repeat(3, 0).repeat(3, 1)
    assert np.array_equal(read_image(tmp_path / "a_x3.png").pixels, expected)


def test_a_model_that_raises_on_one_image(tmp_path, monkeypatch, capsys):
    """As foreign and ONNX models may; the other images are done."""

    class Picky(torch.nn.Upsample):
        upscale = 2

        def forward(self, x):
            if x.shape[3] == 9:
                raise RuntimeError("no kernel for this size\nthe second line")
            return super().forward(x)

    monkeypatch.setattr("hatlib.cli.upscale._load", lambda args: (Picky(scale_factor=2), "picky", ""))
    (tmp_path / "in").mkdir()
    for name, width in {"a": 8, "b": 9, "c": 10}.items():
        photo(tmp_path / "in" / f"{name}.png", size=(width, 8))
    assert main(["upscale", str(tmp_path / "in"), "--device", "cpu"]) == 1
    failed = f"Cannot upscale '{tmp_path / 'in' / 'b.png'}': RuntimeError: no kernel for this size."
    assert capsys.readouterr().err == f"1 of 3 images failed:\n  {failed}\n"
    assert tree(tmp_path / "in_x2") == ["a_x2.png", "c_x2.png"]
    assert main(["upscale", str(tmp_path / "in" / "b.png"), "--device", "cpu"]) == 1
    one_sentence(capsys.readouterr(), failed)


def test_shares_are_a_partition(tmp_path):
    for index in range(11):
        photo(tmp_path / f"{index}.png", size=(4, 4))
    name, whole = (lambda path: f"{path.stem}_x.png"), [str(tmp_path)]
    everything, _ = plan(whole, tmp_path / "out", name, "_x")
    seen = []
    for rank in range(3):
        tasks, skipped = plan(whole, tmp_path / "out", name, "_x", share=(rank, 3))
        assert skipped == 0
        seen += tasks
        (tmp_path / "out" / tasks[0].target.name).write_bytes(b"done")  # what one has finished shifts no other's share
        assert plan(whole, tmp_path / "out", name, "_x", share=(rank, 3))[1] == 1
    assert sorted(seen) == sorted(everything) and len(everything) == 11


def test_several_processes_share_a_folder(tmp_path, checkpoint):
    (tmp_path / "in").mkdir()
    for index in range(5):
        photo(tmp_path / "in" / f"{index}.png")
    command = [sys.executable, "-m", "hatlib", "upscale", "in", "--model", "hat_t_x4", "--checkpoint", checkpoint]
    environments = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"} for rank in range(2)]
    running = [
        subprocess.Popen(
            [*command, "--device", "cpu"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        for environment in environments
    ]
    printed = [process.communicate(timeout=300)[0].splitlines() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(map(len, printed)) == [2, 3] and len({Path(p).name for part in printed for p in part}) == 5


def test_leftovers_of_the_killed_go_and_those_of_the_living_stay(tmp_path, upscale):
    (tmp_path / "in_x4").mkdir()
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in_x4" / ".hatlib-0.part").write_bytes(b"half")
    code = (
        "import sys; from pathlib import Path; from hatlib.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as part: print(part, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in_x4" / "b.png")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        part = Path(other.stdout.readline().strip())
        assert upscale(tmp_path / "in") == 0
        assert tree(tmp_path / "in_x4") == sorted([part.name, "a_x4.png"])
        other.kill()
    assert part.exists()
    assert upscale(tmp_path / "in", "--overwrite") == 0
    assert tree(tmp_path / "in_x4") == ["a_x4.png"]


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(tmp_path, checkpoint):
    """Killed twenty times, each time a little later, a folder of 40 images ends as if nothing had happened."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (24 + index, 40, 3), np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{index}.png")
    command = [sys.executable, "-m", "hatlib", "upscale", str(folder), "--model", "hat_t_x4", "--device", "cpu"]
    command += ["--checkpoint", checkpoint, "--tile", "32"]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    rng = random.Random(0)
    out = tmp_path / "killed"
    for round in range(20):
        with subprocess.Popen([*command, "-o", str(out)], stdout=subprocess.PIPE, text=True) as process:
            if round % 4:  # within an image, some of them later; else while starting
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        for path in out.glob("*.png"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    subprocess.run([*command, "-o", str(out)], check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "whole") and len(tree(out)) == 40
    for name in tree(out):
        digests = {hashlib.sha256((root / name).read_bytes()).hexdigest() for root in (out, tmp_path / "whole")}
        assert len(digests) == 1
