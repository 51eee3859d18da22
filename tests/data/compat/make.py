"""Writes the fixtures of this folder; run with hatlib as of commit 3e932be, and never with a later one.

    git worktree add old 3e932be && python3.11 -m venv venv && venv/bin/pip install ./old
    OMP_NUM_THREADS=1 venv/bin/python make.py FOLDER

FOLDER must not exist yet: fixtures are added, and never replaced. README.md says what they are.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import hatlib
from hatlib.cli import main as command
from hatlib.training import load_config, train

# The published layout of SwinIR holds masks of img_size.
WINDOW = dict(embed_dim=4, num_feat=2, window_size=4, depths=(2,), num_heads=(2,))
SWINIR = {**WINDOW, "img_size": 8}


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        arch: registered name.
        args: constructor arguments beyond the family's `tiny_overrides`. Some are not the arch's and change no shape:
            only a file that tells them gives the right output.
        seed: chosen, as `std` is, so that every parameter matters to the output: no ReLU is dead, and no branch is
            too faint beside its skip.
        std: how far parameters are moved away from their initial values.
        dtype: of the weights.
        training: arguments that are changed for a training; None for no training.
    """

    arch: str
    args: dict[str, Any]
    seed: int
    std: float
    dtype: torch.dtype = torch.float32
    training: dict[str, Any] | None = None


CASES = {
    "hat": Case(
        "hat_t_x2",
        {**WINDOW, "squeeze_factor": 2, "compress_ratio": 2, "conv_scale": 0.5, "mean": (0.2, 0.3, 0.4)},
        seed=12,
        std=0.2,
        training={"depths": (1,)},
    ),
    "swinir": Case("swinir_s_x2", SWINIR, seed=8, std=0.15),
    "swinir_jpeg": Case("swinir_m_jpeg_gray_x1", {**SWINIR, "num_heads": (4,)}, seed=17, std=0.3),
    "swinir_real": Case(
        "swinir_l_real_x4",
        {**SWINIR, "depths": (1, 1), "num_heads": (1, 2), "qk_scale": 0.2},
        seed=19,
        std=0.3,
        dtype=torch.float16,
    ),
    "rcan": Case(
        "rcan_x2",
        dict(num_feat=4, num_block=1, squeeze_factor=2, res_scale=0.5, mean=(0.1, 0.2, 0.3)),
        seed=3,
        std=0.15,
    ),
    "edsr": Case("edsr_m_x3", dict(num_feat=3, num_block=1, img_range=1.0), seed=18, std=0.1, training={}),
}


@torch.no_grad()
def network(case: Case, args: dict[str, Any]) -> torch.nn.Module:
    """The network of a case, with all parameters moved away from their initial values."""
    torch.manual_seed(case.seed)
    model = hatlib.create_model(case.arch, **args)
    generator = torch.Generator().manual_seed(case.seed)
    for parameter in model.parameters():
        parameter += case.std * torch.randn(parameter.shape, generator=generator)
    return model.to(case.dtype).eval()


def write_noise(folder: Path) -> None:
    """Three images to train on; the test makes the same, of which a checkpoint knows the names and sizes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 36, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def trained(arch: str, args: dict[str, Any], work: Path) -> Path:
    """The checkpoint after two updates, so large that they move all weights away from where they start."""
    write_noise(work / "noise")
    with contextlib.chdir(work):  # the checkpoint holds the paths
        config = {
            "name": "compat",
            "out": "run",
            "device": "cpu",
            "model": {"name": arch, "args": args},
            "data": {"hr": "noise", "patch": 8},
            "train": {"updates": 2, "batch": 2, "lr": 0.05, "schedule": "constant"},
        }
        train(load_config(config))
    return work / "run" / "checkpoint-000002"


def write_case(name: str, folder: Path, expected: dict[str, np.ndarray]) -> None:
    """Writes all files of one network, and adds its input and outputs to `expected`."""
    case = CASES[name]
    args = {**sys.modules[hatlib.model_info(case.arch).module].tiny_overrides, **case.args}
    model = network(case, args)
    saved = folder / "saved"
    model.save_pretrained(saved)
    files = {"weights.safetensors": [], "weights.pth": [], "published.pth": ["--layout", "published"]}
    for file, options in files.items():
        if command(["convert", *options, str(saved), str(folder / file)]):
            raise SystemExit(f"{file} of {name} was not written")
    x = torch.rand(1, model.in_chans, 5, 7, generator=torch.Generator().manual_seed(case.seed))
    # The output is that of the loaded weights: a model that was in half precision has a rounded mean too.
    loaded = hatlib.create_model(f"local-dir:{saved}", pretrained=True).eval()
    expected[f"{name}/input"], expected[f"{name}/output"] = x.numpy(), output(loaded, x)
    if case.training is not None:
        args.update(case.training)
        with tempfile.TemporaryDirectory() as work:
            checkpoint = trained(case.arch, args, Path(work))
            shutil.copytree(checkpoint, folder / checkpoint.name)
        model = hatlib.load_checkpoint(folder / checkpoint.name / "state.pt", **args)
        expected[f"{name}/trained"] = output(model, x)


@torch.inference_mode()
def output(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """What the model makes of x."""
    return model(x).numpy()


def main() -> None:
    """Writes everything into the folder that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    package, folder = Path(hatlib.__file__).parent, Path(sys.argv[1]).absolute()
    if not (package / "factory.py").is_file():  # it has another name since
        raise SystemExit(f"{package} is not hatlib as of commit 3e932be")
    os.makedirs(folder)
    expected: dict[str, np.ndarray] = {}
    for name in CASES:
        write_case(name, folder / name, expected)
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main()
