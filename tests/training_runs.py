"""What the tests of training share: a small configuration, and trainings in processes of their own that get killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import tiny_overrides
from PIL import Image

from hatlib.training import Config, load_config
from hatlib.training.checkpointing import load_checkpoint

ROOT = Path(__file__).parent.parent


TINY = {**tiny_overrides("hat_t_x2"), "depths": (2,), "num_heads": (2,)}


def write_photos(folder: Path, count: int = 3, side: int = 40) -> Path:
    """Smooth random images, as PNG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((side + 8, side + 2 * i), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def content(photos: Path, out: Path, **changes) -> dict:
    """A configuration; changes are 'section.key' -> value."""
    values = {
        "model.args": {**TINY, "drop_path_rate": 0.3},
        "model.name": "hat_t_x2",
        "data.hr": str(photos),
        "data.patch": 8,
        "train.updates": 6,
        "train.batch": 2,
        "train.lr": 1e-3,
        "val.folders": [str(photos)],
        "val.every": 1000,
        "val.samples": 0,
        "save.every": 1000,
        "log.every": 1,
        "out": str(out),
        "name": "small",
        **changes,
    }
    result: dict = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = value
    return result


def small(photos: Path, out: Path, **changes) -> Config:
    """The same as a `Config`."""
    return load_config(content(photos, out, **changes))


def write_config(file: Path, photos: Path, out: Path, **changes) -> str:
    """The same as a file; gives its path."""
    plain = json.loads(json.dumps(content(photos, out, **changes)))  # YAML has no tuples
    file.write_text(yaml.safe_dump(plain))
    return str(file)


# A training that kills itself as `kill -9` does: when it comes to an update, or in the middle of writing a checkpoint.
KILLED = """
import os, signal, sys
import hatlib.training.checkpointing as checkpoint, hatlib.training.loop as loop
from hatlib.training import main

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    at, writing, argv = int(sys.argv[1]), sys.argv[2] == "writing", sys.argv[3:]
    rate, save = loop.learning_rate, checkpoint.torch.save
    def learning_rate(config, update):
        if update == at and not writing:
            kill()
        return rate(config, update)
    def half(state, file, **options):
        if writing and isinstance(state, dict) and state.get("update") == at:
            file.write(b"PK half of it")
            file.flush()
            kill()
        save(state, file, **options)
    loop.learning_rate, checkpoint.torch.save = learning_rate, half
    sys.exit(main(argv))
"""


def run(folder: Path, *args: str, processes: int = 1, code: str | None = None, check: bool = True):
    """Runs recipes/pretrain.py, or `code`, in processes of their own; gives the finished process."""
    script = ROOT / "recipes" / "pretrain.py"
    if code is not None:
        script = folder / "script.py"
        script.write_text(code)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--rdzv-backend", "c10d"]
        launcher += ["--rdzv-endpoint", "localhost:0", "--tee", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launcher, str(script), *args], env=env, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs between two checkpoints, to the bit, but for the configuration, which has paths."""
    first, second = load_checkpoint(one), load_checkpoint(other)
    assert len(first.pop("config")) == len(second.pop("config"))
    return list(_differences(first, second, ""))


def _differences(a, b, name):
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _differences(a[key], b[key], f"{name}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{name}/{i}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield name
    elif a != b:
        yield name
