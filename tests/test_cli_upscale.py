"""The command line as a user meets it: results, exit codes, one sentence per error, nothing left behind."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn

from hatlib import create_model
from hatlib.cli import main
from hatlib.imageio import read_image
from hatlib.inference import Upscaler


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


def photo(path, mode="RGB", size=(20, 14)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), np.uint8)
    PILImage.fromarray(pixels).convert(mode).save(path)
    return path


def one_sentence(captured, *words):
    """The whole of stderr is one line for the user."""
    assert captured.err.startswith("hatlib: ") and captured.err.count("\n") == 1 and captured.err.endswith(".\n")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err


def test_one_file_beside_the_input(tmp_path, upscale, checkpoint, capsys):
    photo(tmp_path / "my photo ä.png")
    assert upscale(tmp_path / "my photo ä.png") == 0
    out = tmp_path / "my photo ä_x4.png"
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(os.listdir(tmp_path)) == ["my photo ä.png", "my photo ä_x4.png"]
    model = create_model("hat_t_x4", checkpoint_path=checkpoint)
    expected = Upscaler(model)(read_image(tmp_path / "my photo ä.png").pixels)
    assert np.array_equal(read_image(out).pixels, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_kind_is_kept(tmp_path, upscale, mode):
    photo(tmp_path / "a.png", mode)
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.tif") == 0
    image = read_image(tmp_path / "b.tif")
    assert image.mode == mode and image.pixels.shape[:2] == (56, 80)


def test_tiles_and_output_folder(tmp_path, upscale):
    photo(tmp_path / "a.jpg", size=(70, 40))
    (tmp_path / "out").mkdir()
    assert upscale(tmp_path / "a.jpg", "-o", tmp_path / "out", "--tile", 32) == 0
    assert read_image(tmp_path / "out" / "a_x4.png").pixels.shape == (160, 280, 3)


def test_existing_output_needs_overwrite(tmp_path, upscale, capsys):
    photo(tmp_path / "a.png")
    (tmp_path / "a_x4.png").write_bytes(b"mine")
    assert upscale(tmp_path / "a.png") == 1
    one_sentence(capsys.readouterr(), "a_x4.png", "--overwrite")
    assert (tmp_path / "a_x4.png").read_bytes() == b"mine"
    assert upscale(tmp_path / "a.png", "--overwrite") == 0
    assert read_image(tmp_path / "a_x4.png").pixels.shape == (56, 80, 3)


def test_output_equal_to_input_is_refused(tmp_path, upscale, capsys):
    before = photo(tmp_path / "a.png").read_bytes()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    for output in ("a.png", "link.png", "../" + tmp_path.name + "/a.png"):
        assert upscale(tmp_path / "a.png", "-o", tmp_path / output, "--overwrite") == 1
        one_sentence(capsys.readouterr(), "the input itself")
    assert (tmp_path / "a.png").read_bytes() == before


def bad_inputs(folder):
    photo(folder / "whole.png", size=(64, 64))
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:4000])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    PILImage.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")


@pytest.mark.parametrize(
    "name, words",
    [
        ("truncated.png", "truncated or corrupt"),
        ("text.png", "not an image"),
        ("empty.png", "empty"),
        ("cmyk.jpg", "cmyk"),
        ("missing.png", "no file or folder"),
    ],
)
def test_bad_file_is_one_sentence(tmp_path, upscale, capsys, name, words):
    bad_inputs(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert upscale(tmp_path / name) == 1
    captured = capsys.readouterr()
    one_sentence(captured, name, words)
    assert captured.out == "" and sorted(os.listdir(tmp_path)) == before


def test_folder_with_bad_files_among_good(tmp_path, upscale, capsys):
    source = tmp_path / "in"
    source.mkdir()
    bad_inputs(source)
    photo(source / "a.png", "RGBA")
    photo(source / "z.jpg")
    photo(source / "whole.webp")
    photo(source / ".hidden.png")
    (source / "notes.txt").write_text("no image")
    (source / "sub").mkdir()
    assert upscale(source) == 1
    captured = capsys.readouterr()
    out = tmp_path / "in_x4"
    assert captured.out.splitlines() == [str(out / f"{name}_x4.png") for name in ("a", "whole", "z")]
    assert sorted(os.listdir(out)) == ["a_x4.png", "whole_x4.png", "z_x4.png"]
    note, *lines = captured.err.splitlines()
    assert note.startswith("note: ") and "z.jpg" in note and "hat_x4.real_gan" in note
    assert lines[0] == "5 of 8 images failed:" and len(lines) == 6
    for name in ("cmyk.jpg", "empty.png", "text.png", "truncated.png", "whole.webp"):
        assert sum(name in line for line in lines[1:]) == 1
    assert "Traceback" not in captured.err

    # Again: what is done is skipped, what failed fails again, and with the bad ones gone all is well.
    assert upscale(source) == 1
    assert "3 of 8 skipped" in capsys.readouterr().err
    for name in ("cmyk.jpg", "empty.png", "text.png", "truncated.png", "whole.webp"):
        (source / name).unlink()
    assert upscale(source, "-o", tmp_path / "new" / "deep") == 0
    assert len(os.listdir(tmp_path / "new" / "deep")) == 3


def test_folder_without_images(tmp_path, upscale, capsys):
    assert upscale(tmp_path) == 1
    one_sentence(capsys.readouterr(), "holds no images")


@pytest.mark.parametrize("output", ["nowhere/out.png", "file/out.png", "out.xyz", "out", "folder.png"])
def test_unwritable_output(tmp_path, upscale, capsys, output):
    photo(tmp_path / "a.png")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "a_x4.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    assert upscale(tmp_path / "a.png", "-o", tmp_path / output) == 1
    one_sentence(capsys.readouterr(), "Cannot write")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("output", ["file", "file/deeper"])
def test_unwritable_output_folder(tmp_path, upscale, capsys, output):
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "file").write_text("x")
    assert upscale(tmp_path / "in", "-o", tmp_path / output) == 1
    one_sentence(capsys.readouterr(), "file")
    assert (tmp_path / "file").read_text() == "x"


def test_format_that_can_not_hold_the_image(tmp_path, upscale, capsys):
    photo(tmp_path / "a.png", "RGBA")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.jpg") == 1
    one_sentence(capsys.readouterr(), "transparency")
    assert os.listdir(tmp_path) == ["a.png"]


def test_unknown_model(tmp_path, capsys):
    photo(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "--model", "hat_tt_x4"]) == 1
    one_sentence(capsys.readouterr(), "hat_tt_x4", "hat_t_x4")


class Payload:
    def __reduce__(self):
        return os.system, ("touch payload-ran",)


@pytest.mark.parametrize("kind", ["foreign", "code", "text", "missing"])
def test_bad_checkpoint(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a.png")
    file = tmp_path / "weights.pth"
    if kind == "foreign":
        torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)).state_dict(), file)
    elif kind == "code":
        file.write_bytes(pickle.dumps({"params": Payload()}))
    elif kind == "text":
        file.write_text("not weights")
    before = sorted(os.listdir(tmp_path))
    assert main(["upscale", "a.png", "--checkpoint", str(file)]) == 1
    one_sentence(capsys.readouterr(), "weights.pth")
    assert sorted(os.listdir(tmp_path)) == before


def test_bad_device_and_tile(tmp_path, upscale, capsys):
    photo(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "--device", "nonsense") == 1
    one_sentence(capsys.readouterr(), "nonsense")
    for tile in (-1, 8):
        assert upscale(tmp_path / "a.png", "--tile", tile) == 1
        one_sentence(capsys.readouterr(), "ile")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (torch.OutOfMemoryError, 1), (MemoryError, 1)])
def test_interruption_and_memory_leave_nothing(tmp_path, upscale, capsys, monkeypatch, error, code):
    def stop(*args, **kwargs):
        raise error

    photo(tmp_path / "a.png")
    monkeypatch.setattr(Upscaler, "__call__", stop)
    assert upscale(tmp_path / "a.png") == code
    assert capsys.readouterr().err.startswith("hatlib: interrupted" if code == 130 else "hatlib: Not enough memory")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_lost_in_a_callback_still_stops(tmp_path, upscale, capsys, monkeypatch, signum):
    """A C library drops what its callbacks raise: the signal must stop the run nevertheless, between two images."""

    def drop(self, pixels, progress):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
            time.sleep(5)
        return pixels

    (tmp_path / "in").mkdir()
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.png")
    monkeypatch.setattr(Upscaler, "__call__", drop)
    before = signal.getsignal(signum)
    assert upscale(tmp_path / "in") == 128 + signum
    captured = capsys.readouterr()
    assert captured.err == "hatlib: interrupted\n" and captured.out.count("\n") == 1
    assert os.listdir(tmp_path / "in_x4") == ["a_x4.png"]
    assert signal.getsignal(signum) == before


def test_bug_in_a_tile_is_not_hidden(tmp_path, upscale, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    photo(tmp_path / "a.png")
    monkeypatch.setattr(Upscaler, "__call__", broken)
    assert upscale(tmp_path / "a.png") == 1
    one_sentence(capsys.readouterr(), f"Cannot upscale '{tmp_path / 'a.png'}': ZeroDivisionError.")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("args", [[], ["upscale"], ["nothing"], ["upscale", "a.png", "--tile", "many"]])
def test_usage_errors(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2 and "usage: hatlib" in capsys.readouterr().err


def test_models(capsys):
    assert main(["models", "hat_t*"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["model", "scale", "task", "parameters", "weights", "package", "or", "license"]
    found = {row[0]: row for row in rows[1:]}
    assert set(found) == {"hat_t_x2", "hat_t_x4", "hat_t_x2.photos_cc0", "hat_t_x4.photos_cc0"}
    assert found["hat_t_x4"][-1] == "hatlib" and found["hat_t_x4.photos_cc0"][-1] == "Apache-2.0"
    parameters = sum(p.numel() for p in create_model("hat_t_x4").parameters())
    assert found["hat_t_x4"][1] == "x4" and found["hat_t_x4"][3] == f"{parameters:,}"
    assert main(["models", "zzz*"]) == 1
    one_sentence(capsys.readouterr(), "zzz*")


def test_list(capsys):
    assert main(["list", "heads"]) == 0
    assert "'nearest+conv'        hatlib" in capsys.readouterr().out
    assert main(["list", "attentions", "win*"]) == 0
    assert capsys.readouterr().out.split() == ["attention", "package", "'window'", "hatlib"]
    assert main(["list", "head"]) == 1
    one_sentence(capsys.readouterr(), "Did you mean heads")


def test_as_a_process(tmp_path, checkpoint):
    """The module entry: exit codes and streams of a real process."""
    photo(tmp_path / "a.png")
    command = [sys.executable, "-m", "hatlib", "upscale", "--model", "hat_t_x4"]
    command += ["--checkpoint", checkpoint, "--device", "cpu"]
    done = subprocess.run([*command, "a.png"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a_x4.png\n", "")
    done = subprocess.run([*command, "a.png"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1


def test_heavy_imports_wait_for_the_command():
    """The parser alone imports nothing that reads images or makes progress bars."""
    code = "import sys; import hatlib; before = set(sys.modules); import hatlib.cli; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.split(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert new == {"hatlib"}
