"""Checkpoints of a training: folders named by the update, whole or not there.

The state of a checkpoint is written under a temporary name and renamed when all of it is on the disk, so a process that
is killed at any moment leaves the previous checkpoint as the newest one.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from hatlib.atomic import atomic_path, remove_stale
from hatlib.errors import HatlibError, first_line
from hatlib.training.config import Config, flatten

__all__ = [
    "check_resumable",
    "checkpoint_to_resume",
    "find_checkpoints",
    "load_checkpoint",
    "prune",
    "random_state",
    "save_checkpoint",
    "set_random_state",
]

FORMAT = 1
STATE = "state.pt"

RESUMABLE_CHANGES = {
    *("out", "note", "recipe_batch", "device", "data.workers", "data.cache"),
    # Where the images are: their number, names and sizes are compared instead.
    *("data.hr", "data.lr", "data.files"),
    # What only matters at the start of a run, and what changes results in the last digits alone.
    *("model.init", "model.interpolate", "model.compile", "model.compile_backend", "train.max_skipped"),
    # How patches are divided into steps: the patches per update are compared instead.
    *("train.batch", "train.accumulation"),
}
"""Settings that may change on resume, in addition to the sections `val`, `save` and `log`."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest first."""
    return sorted((path for path in _folders(folder) if (path / STATE).is_file()), key=update_of, reverse=True)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _remove_if_incomplete(checkpoint: Path) -> None:
    """Removes a folder that a killed process left without its state, unless it holds anything else."""
    remove_stale(checkpoint)
    with contextlib.suppress(OSError):  # not there, or not empty
        checkpoint.rmdir()


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def save_checkpoint(folder: Path, update: int, state: Mapping[str, Any]) -> Path:
    """Writes `checkpoint-UPDATE`; one of this update that exists is left as it is, being the same.

    Raises:
        HatlibError: If it can't be written; nothing is left of it, and older ones are as they were.
    """
    target = folder / f"checkpoint-{update:06d}"
    if (target / STATE).is_file():
        return target
    try:
        for incomplete in _folders(folder):
            _remove_if_incomplete(incomplete)
        target.mkdir(parents=True, exist_ok=True)
        with atomic_path(target / STATE) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, "update": update, **state}, file)
    except (HatlibError, OSError, RuntimeError) as error:
        _remove_if_incomplete(target)
        older = find_checkpoints(folder)
        kept = f"the last one is '{older[0]}'" if older else "there is none yet"
        raise HatlibError(
            f"The checkpoint '{target}' can't be written ({_reason(error)}); {kept}. Make room and go on with "
            "--resume auto."
        ) from error
    return target


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, its tensors on the CPU.

    Raises:
        HatlibError: If there is none, or it is damaged.
    """
    file = path / STATE
    if not file.is_file():
        raise HatlibError(f"'{path}' is no checkpoint: there is no {STATE} in it. --resume auto takes the newest one.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise HatlibError(f"The checkpoint '{path}' is damaged: {first_line(error)}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise HatlibError(f"'{path}' is not a checkpoint of this version of hatlib.")
    return state


def checkpoint_to_resume(folder: Path, resume: str | None) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from, and its content; None and nothing to begin.

    Args:
        folder: of the run.
        resume: 'auto' for the newest whole one, if there is one; or its path. None refuses a folder that has some.

    Raises:
        HatlibError: If there is none, or it is damaged; 'auto' takes the one before it then.
    """
    existing = find_checkpoints(folder)
    if resume is None:
        if existing:
            raise HatlibError(
                f"'{folder}' holds a run that has come to update {update_of(existing[0])}: go on with "
                "--resume auto, or choose another folder with out=..."
            )
        return None, {}
    if resume != "auto":
        return Path(resume), load_checkpoint(Path(resume))
    for path in existing:
        try:
            return path, load_checkpoint(path)
        except HatlibError as error:
            if path == existing[-1]:
                raise
            warnings.warn(f"{error} Taking the one before it.", stacklevel=2)
    return None, {}


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all checkpoints but the last `keep` ones and that of update `best`."""
    for path in find_checkpoints(folder)[keep:]:
        if update_of(path) != best:
            (path / STATE).unlink()  # first, so that nothing takes a half-removed folder for a checkpoint
            shutil.rmtree(path, ignore_errors=True)


def check_resumable(config: Config, facts: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    """Refuses to go on with another training than the one that was stopped.

    Args:
        config: what is asked for.
        facts: what is known beyond it: the model's parameters, the images, the patches per update.
        state: the checkpoint's content.
        path: where that is.

    Raises:
        HatlibError: If they differ, saying how.
    """
    try:  # with the defaults of keys that it did not know yet
        before = flatten(Config.model_validate(state["config"]).model_dump(mode="json"))
    except ValidationError as error:
        raise HatlibError(f"The checkpoint '{path}' is of another version of hatlib, with other keys.") from error
    now = flatten(config.model_dump(mode="json"))
    free = RESUMABLE_CHANGES | (set() if config.train.schedule == "cosine" else {"train.updates"})
    keys = [k for k in now if k not in free and k.split(".")[0] not in ("val", "save", "log")]
    changes = [f"{k} was {before.get(k)!r} and is {now[k]!r}" for k in keys if before.get(k) != now[k]]
    known = state["facts"]
    changes += [f"{k} was {known[k]} and is {v}" for k, v in facts.items() if k in known and known[k] != v]
    if changes:
        raise HatlibError(
            f"The run can't go on from '{path}', because it would be another one: {'; '.join(changes)}. Take back the "
            "change, or start a new run (out=...) with model.init=... from its weights."
        )


def random_state() -> dict[str, Any]:
    """The states of the random generators of this process."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest)}
    state["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts the random generators of this process where `random_state` found them."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _reason(error: BaseException) -> str:
    while not isinstance(error, OSError) and error.__context__ is not None:  # torch hides the system's error in its own
        error = error.__context__
    return getattr(error, "strerror", None) or first_line(error)
