"""Packages from outside hatlib, installed and run: the example of the docs, other kinds of parts, and broken ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hatlib

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "plugin"
ROOT = str(Path(hatlib.__file__).parent.parent)


def run(code: str, *arguments: str, folder: Path, packages: Path) -> subprocess.CompletedProcess:
    """Runs Python code in a process of its own in which the packages are installed."""
    path = os.pathsep.join([str(packages), ROOT])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def install(target: Path, **modules: str) -> Path:
    """Installs modules as packages that announce them to hatlib."""
    for name, code in modules.items():
        (target / f"{name}.py").write_text(code)
        info = target / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[hatlib.plugins]\n{name} = {name}\n")
    return target


@pytest.fixture(scope="module")
def plainnet(tmp_path_factory):
    """The folder in which the example of the docs is installed, by pip."""
    target = tmp_path_factory.mktemp("plugin")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(EXAMPLE)], check=True)
    return target


def test_the_example_is_short():
    assert len((EXAMPLE / "plainnet.py").read_text().splitlines()) <= 40


LIBRARIES = """
import sys, warnings
warnings.simplefilter("error")
import timm, hatlib, torch
first = timm.create_model("plainnet_x2", depth=3)               # at the first call, without another import
folder, x = sys.argv[1], torch.rand(1, 3, 7, 9)
model = hatlib.create_model("plainnet_x2", depth=3, img_range=2.0).eval()
assert hatlib.list_models(family="plainnet") == ["plainnet_x2", "plainnet_x4"]
assert model.config["architecture"] == "plainnet_x2" and model.config["model_args"]["img_range"] == 2.0
assert model.config["model_args"]["num_feat"] == 64              # a default of the base class
model.save_pretrained(folder)
from hatlib.models import RestorationModel
import hatlib.integrations.transformers
from transformers import AutoModelForImageToImage
for other in (
    RestorationModel.from_pretrained(folder),
    timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    hatlib.load(folder + "/model.safetensors"),
    timm.create_model("plainnet_x2", depth=3, img_range=2.0, checkpoint_path=folder + "/model.safetensors").eval(),
):
    assert torch.allclose(other(x), model(x), atol=1e-6)
other = AutoModelForImageToImage.from_pretrained(folder)
assert torch.allclose(other(x).reconstruction, model(x), atol=1e-6)
assert RestorationModel.from_pretrained(folder, in_chans=1)(x[:, :1]).shape == (1, 1, 14, 18)
assert hatlib.create_model("plainnet_x4").num_features == 24
"""

SAVED = """
import sys, timm, hatlib                                         # a fresh process that names no model
print(type(timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True)).__name__)
"""


def test_libraries(plainnet, tmp_path):
    pytest.importorskip("transformers")
    for code, printed in ((LIBRARIES, ""), (SAVED, "PlainNet\n")):
        done = run(code, tmp_path / "saved", folder=tmp_path, packages=plainnet)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr


COMMANDS = """
import json, sys
from hatlib.cli import main
from hatlib.training import main as train
codes = {}
for line in [
    "list models plainnet*",
    "upscale in.png -o by_name.png --model plainnet_x2 --checkpoint saved/model.safetensors",
    "convert saved weights.pth",
    "upscale in.png -o by_file.png --model plainnet_x2 --checkpoint weights.pth",
    "upscale in.png -o by_folder.png --model local-dir:saved",
    "evaluate saved --data photos",
    "lam in.png --lr --model saved --fold 3",
    "features in.png --model saved --window 4",
    "finetune --hr photos --model saved --updates 1 --patch 8 --batch 1 -o run",
]:
    codes[line] = main(line.split())
codes["train"] = train("config.yaml --resume auto".split())
print(json.dumps(codes))
"""

CONFIG = """
name: plain
out: trained
device: cpu
model: {name: plainnet_x2, args: {dim: 8}}
data: {hr: photos, patch: 8}
train: {updates: 1, batch: 1, milestones: []}
"""


def test_every_command(plainnet, tmp_path):
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for name in ("in.png", "photos/a.png", "photos/b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / "config.yaml").write_text(CONFIG)
    code = "import hatlib; hatlib.create_model('plainnet_x2').save_pretrained('saved')\n" + COMMANDS
    done = run(code, folder=tmp_path, packages=plainnet)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {0}, done.stdout + done.stderr
    assert "plainnet_x4" in done.stdout and " plainnet\n" in done.stdout
    pictures = [(tmp_path / f"by_{name}.png").read_bytes() for name in ("name", "file", "folder")]
    assert pictures[0] == pictures[1] == pictures[2]
    assert Image.open(tmp_path / "by_name.png").size == (128, 96)
    assert (tmp_path / "trained" / "model" / "config.json").is_file()


PARTS = '''
import torch
from torch import nn
import hatlib
from hatlib.blocks import Head

@hatlib.register_head("soft")
class SoftHead(Head):
    halo = 1
    last_conv = None

    def __init__(self, dim, out_chans, scale, num_feat=64):
        super().__init__(dim, out_chans, scale, num_feat)
        self.soft = nn.Conv2d(dim, out_chans, 3, padding=1)

    def forward(self, x):
        return nn.functional.interpolate(self.soft(x), scale_factor=self.scale, mode="nearest")

@hatlib.register_attention("pooled")
class Pooled(nn.Module):
    """Attends to the mean of the window."""

    def __init__(self, dim, num_heads, window_size, shift_size, strength=1.0):
        super().__init__()
        self.window_size, self.strength = window_size, strength
        self.value = nn.Linear(dim, dim)

    def forward(self, x):
        pooled = nn.functional.avg_pool2d(self.value(x).permute(0, 3, 1, 2), self.window_size)
        return self.strength * pooled.repeat_interleave(self.window_size, 2).repeat_interleave(
            self.window_size, 3
        ).permute(0, 2, 3, 1)
'''

USE_PARTS = """
import sys, torch, timm, hatlib
parts = dict(upsampler="soft", attn_layer={"pooled": {"strength": 0.5}}, drop_path_rate=0.0)
model = hatlib.create_model("hat_t_x4", **parts)
x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 64, 64)
torch.manual_seed(0)
optimizer = torch.optim.Adam(model.parameters(), 1e-4)
losses = []
for _ in range(8):
    loss = (model(x) - y).abs().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
model.eval().save_pretrained(sys.argv[1])
assert model.config["model_args"]["attn_layer"] == {"pooled": {"strength": 0.5}}
for other in (
    hatlib.models.HAT.from_pretrained(sys.argv[1]),
    hatlib.load(sys.argv[1] + "/model.safetensors"),
    timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval(),
):
    assert torch.allclose(other(x), model(x), atol=1e-6)
exported = torch.export.export(model, (torch.rand(1, 3, 20, 33),)).module()
assert torch.allclose(exported(x[:1, :, :20, :].repeat(1, 1, 2, 3)[:, :, :20, :33]),
                      model(x[:1, :, :20, :].repeat(1, 1, 2, 3)[:, :, :20, :33]), atol=1e-5)
try:
    hatlib.create_model("hat_t_x4", attn_layer="pooled", qkv_bias=False)
except hatlib.HatlibError as error:
    print(error)
"""


def test_parts_of_a_package(tmp_path):
    (packages := tmp_path / "packages").mkdir()
    install(packages, stranger=PARTS)
    done = run(USE_PARTS, tmp_path / "saved", folder=tmp_path, packages=packages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("qkv_bias=False belongs to the attention 'window'; give options of another attention")


def test_broken_and_clashing_packages_harm_nobody(tmp_path):
    (packages := tmp_path / "packages").mkdir()
    clash = "import hatlib\n@hatlib.register_head('pixelshuffle')\nclass Mine: pass\n"
    second = "import hatlib\n@hatlib.register_attention('pooled')\ndef mine(**options): pass\n"
    install(packages, a_broken="raise RuntimeError('on purpose')", b_clash=clash, stranger=PARTS, z_second=second)
    code = "import hatlib; print(type(hatlib.create_model('hat_t_x2', attn_layer='pooled')).__name__)"
    done = run(code, folder=tmp_path, packages=packages)
    assert (done.returncode, done.stdout) == (0, "HAT\n"), done.stderr
    warned = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert len(warned) == 3
    for message in (
        "The hatlib plugin 'a_broken' could not be imported: on purpose.",
        "The head 'pixelshuffle' of b_clash is already registered by hatlib.blocks.heads; choose another name.",
        "The attention 'pooled' of z_second is already registered by stranger; choose another name.",
    ):
        assert message in done.stderr
