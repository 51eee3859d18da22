"""Every recipe that ships starts: two updates on tiny data with a shrunk model, which validates and saves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_overrides
from PIL import Image

import hatlib
from hatlib.training import load_config, recipe_names, train
from hatlib.training.config import recipes_folder
from hatlib.training.schedule import learning_rate

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (48, 56, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_starts(name, photos, tmp_path):
    config = load_config(name)
    arch = config.model.name
    tiny = tiny_overrides(arch)
    overrides = [
        f"data.hr={photos}",
        "data.lr=null",
        "data.patch=8",
        "data.workers=0",
        "train.updates=2",
        "train.batch=1",
        "train.milestones=[]",
        "train.warmup=0",
        f"val.folders=[{photos}]",
        f"out={tmp_path / 'run'}",
        f"model.args={yaml.safe_dump({**config.model.args, **tiny}, default_flow_style=True)}",
    ]
    if init := config.model.init:  # what another recipe makes, runs/ARCH.TAG/model, or published weights
        source = init.split("/")[1] if "/" in init else init
        assert source in recipe_names() or hatlib.model_info(source).weights is not None
        torch.manual_seed(1)
        hatlib.create_model(source.split(".")[0], **tiny).save_pretrained(tmp_path / "init")
        overrides.append(f"model.init={tmp_path / 'init'}")
    outcome = train(load_config(name, overrides))
    assert outcome.update == 2
    assert (outcome.folder / "checkpoint-000002").is_dir()
    assert outcome.metrics[photos.name]["psnr"] > 3
    loaded = hatlib.create_model(f"local-dir:{outcome.model}", pretrained=True)
    assert loaded.upscale == hatlib.model_info(arch).scale
    assert name in (outcome.model / "README.md").read_text()


# Number of the recipe in the published table, updates, learning rate, last milestone, validation.
PUBLISHED = {
    **{f"{arch}_x{s}.imagenet": (800_000, 2e-4, 750_000, 10_000) for arch in ("hat", "hat_l") for s in (2, 3, 4)},
    **{
        f"{arch}_x{s}.imagenet_ft_df2k": (250_000, 1e-5, 240_000, 5_000) for arch in ("hat", "hat_l") for s in (2, 3, 4)
    },
    **{f"hat_s_x{s}.df2k": (500_000, 2e-4, 475_000, 20_000) for s in (2, 3)},
    **{f"hat_x{s}.df2k": (500_000, 2e-4, 475_000, 5_000) for s in (2, 3)},
    "hat_s_x4.df2k_from_x2": (250_000, 1e-4, 240_000, 20_000),
    "hat_x4.df2k_from_x2": (250_000, 1e-4, 240_000, 5_000),
}


def test_published_rows_are_all_there():
    assert len(PUBLISHED) == 18
    assert set(PUBLISHED) <= set(recipe_names())
    for name, (updates, rate, milestone, every) in PUBLISHED.items():
        config = load_config(name)
        train_ = config.train
        assert config.name == name and config.recipe_batch == 32
        assert (train_.updates, train_.lr, train_.milestones[-1], config.val.every) == (updates, rate, milestone, every)
        assert train_.batch * 8 == 32 and config.data.patch == 64 and train_.ema == 0.999 and train_.warmup == 0
        assert learning_rate(train_, updates) == pytest.approx(rate * 0.5 ** len(train_.milestones))
        # Weights that ship under this name were made by this recipe.
        tag = name.partition(".")[2]
        if tag != "imagenet":
            assert hatlib.model_info(name).name == name


@pytest.mark.slow
def test_recipes_are_found_in_a_wheel(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, stdout=-3
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed"], check=True)
    code = "from hatlib.training import main; import sys; sys.exit(main(['hat_s_x2.df2k', '--print-config']))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert yaml.safe_load(result.stdout)["train"]["updates"] == 500_000
    assert (tmp_path / "installed" / "hatlib" / "recipes" / "accelerate" / "one_node.yaml").is_file()


def test_accelerate_configurations_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((recipes_folder() / "accelerate").glob("*.yaml"))
    assert {"cpu", "one_gpu", "one_node", "several_nodes"} <= {file.stem for file in files}
    for file in files:
        assert load_config_from_file(str(file)).num_processes >= 1
