"""The example of a plugin in the docs, installed and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hatlib

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "plugin"

USE = """
import json, sys, warnings
import torch, hatlib, timm
assert "plainnet" not in sys.modules, "importing hatlib must not import plugins"
folder = sys.argv[1]
model = hatlib.create_model("plainnet_x2", depth=3).eval()      # the unknown name imports the plugin
names = hatlib.list_models(family="plainnet")
x = torch.rand(1, 3, 7, 9)
expected = model(x)
model.save_pretrained(folder)
torch.save({"params": model.state_dict()}, folder + "/weights.pth")
from hatlib.models import RestorationModel
warnings.simplefilter("error")
import hatlib.integrations.transformers
from transformers import AutoModelForImageToImage
loaded = [
    RestorationModel.from_pretrained(folder),
    timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    hatlib.load_checkpoint(folder + "/weights.pth"),
    timm.create_model("plainnet_x2", depth=3, checkpoint_path=folder + "/model.safetensors").eval(),
]
close = lambda out: torch.allclose(out, expected, atol=1e-6)
equal = [close(m(x)) for m in loaded]
equal.append(close(AutoModelForImageToImage.from_pretrained(folder)(x).reconstruction))
gray = RestorationModel.from_pretrained(folder, in_chans=1)(x[:, :1])
print(json.dumps([names, equal, list(expected.shape), list(gray.shape), model.config["architecture"]]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment's variables in which the plugin is installed beside hatlib."""
    target = tmp_path_factory.mktemp("plugin")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(EXAMPLE)], check=True)
    root = str(Path(hatlib.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), root]), "OMP_NUM_THREADS": "1"}


def test_the_example_is_short():
    assert sum(len(p.read_text().splitlines()) for p in EXAMPLE.iterdir() if p.is_file()) < 100


def test_everything_works_with_it(installed, tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, "-W", "ignore", "-c", USE, str(tmp_path / "saved")]
    result = subprocess.run(command, env=installed, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names, equal, shape, gray, arch = json.loads(result.stdout.splitlines()[-1])
    assert names == ["plainnet_x2", "plainnet_x4"] and arch == "plainnet_x2"
    assert equal == [True] * 5
    assert shape == [1, 3, 14, 18] and gray == [1, 1, 14, 18]


def test_command_line(installed, tmp_path):
    from PIL import Image

    Image.new("RGB", (12, 10), (200, 100, 50)).save(tmp_path / "in.png")
    code = "import hatlib; hatlib.create_model('plainnet_x2').save_pretrained('saved')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=installed, cwd=tmp_path, check=True)
    hatlib_command = [sys.executable, "-W", "ignore", "-m", "hatlib"]
    for arguments in (
        ["models", "plainnet*"],
        ["convert", "saved", "weights.pth"],
        ["upscale", "in.png", "-o", "out.png", "--model", "plainnet_x2", "--checkpoint", "weights.pth"],
        ["upscale", "in.png", "-o", "again.png", "--model", "local-dir:saved"],
    ):
        result = subprocess.run(
            [*hatlib_command, *arguments], env=installed, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        if arguments[0] == "models":
            assert "plainnet_x2" in result.stdout and "plainnet_x4" in result.stdout
    assert Image.open(tmp_path / "out.png").size == (24, 20)
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_a_plugin_that_is_broken_harms_nobody(tmp_path):
    (tmp_path / "broken_net.py").write_text("raise RuntimeError('on purpose')")
    info = tmp_path / "broken_net-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-net\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hatlib.models]\nbroken = broken_net\n")
    code = "import hatlib; print(hatlib.list_models('hat_t*'))"
    root = str(Path(hatlib.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "hat_t_x2" in result.stdout
    assert "The hatlib plugin 'broken_net' could not be imported: on purpose" in result.stderr
