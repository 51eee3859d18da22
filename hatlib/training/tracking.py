"""What a training tells: the log, which a resumed run continues to the byte; trackers; progress on the screen."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hatlib.data import TrainingPatches
from hatlib.errors import HatlibError
from hatlib.training.config import Config, flatten

__all__ = ["Tracker", "introduction"]

LOG, TIMING = "log.jsonl", "timing.jsonl"


class Tracker:
    """Writes on the main process, and does nothing on others.

    `log.jsonl` holds what the training computed and nothing of the clock: a run that was killed and resumed writes
    the same bytes as one that was not. Times, throughput and memory are in `timing.jsonl`.

    Args:
        config: of the run.
        accelerator: whose trackers get all values too.
        batch: patches per update.
        start: update that the run goes on from.
        position: length of the log at that update, in bytes; what lies behind is cut off.
    """

    def __init__(self, config: Config, accelerator: Accelerator, *, batch: int, start: int = 0, position: int = 0):
        self.folder, self.updates = config.folder, config.train.updates
        self.accelerator, self.batch = accelerator, batch
        self.main = accelerator.is_main_process
        self.done = self.before = start
        self.clock = self.lap = time.perf_counter()
        self.seconds = 0.0  # spent in updates, without validation
        self.bar = None
        if config.log.trackers:
            values = flatten(config.model_dump(mode="json"))
            values = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items()}
            accelerator.init_trackers(config.name, values)
        if not self.main:
            return
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=self.updates, completed=start)
            self.bar.start()
        with self._append(LOG) as log:
            log.truncate(position)

    @property
    def position(self) -> int:
        """Length of the log in bytes."""
        return (self.folder / LOG).stat().st_size if self.main else 0

    def say(self, text: str) -> None:
        """A line for people."""
        if self.main:
            print(text, file=sys.stdout, flush=True)

    def step(self, update: int) -> None:
        """An update is done."""
        now = time.perf_counter()
        self.seconds, self.lap, self.done = self.seconds + now - self.lap, now, update
        if self.bar is not None:
            self.bar.update(self.task, completed=update, description=self._pace())

    def exclude_elapsed(self) -> None:
        """What took time since the last update was not training."""
        self.lap = time.perf_counter()

    def row(self, update: int, values: Mapping[str, Any]) -> None:
        """A line of the log, and the same to the trackers."""
        scalars = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        for data, metrics in values.get("val", {}).items():
            scalars.update({f"{data}/{name}": value for name, value in metrics.items()})
        self.accelerator.log(scalars, step=update)
        if not self.main:
            return
        self._write(LOG, {"update": update, **values})
        if "loss" in values:
            rate = self._rate()
            timing = {"seconds_per_update": rate, "patches_per_second": self.batch / rate, "memory": self._memory()}
            self._write(TIMING, {"update": update, "time": round(time.time(), 1), **timing})
            skipped = f", {values['skipped']} skipped" if values.get("skipped") else ""
            self.say(
                f"update {update}/{self.updates}: loss {values['loss']:.5f}, lr {values['lr']:.3g}{skipped}; "
                f"{self._pace()}"
            )

    def close(self) -> None:
        """Ends progress and trackers."""
        if self.bar is not None:
            self.bar.stop()
        self.accelerator.end_training()

    def _rate(self) -> float:
        """Seconds per update."""
        return self.seconds / max(1, self.done - self.before)

    def _pace(self) -> str:
        rate = self._rate()
        left = rate * (self.updates - self.done)
        return (
            f"{rate:.3g} s/update, {self.batch / max(rate, 1e-9):.3g} patches/s, {_duration(left)} left, "
            f"{self._memory() / 2**30:.2f} GiB"
        )

    def _memory(self) -> int:
        """Peak memory in bytes: the GPU's, or that of this process."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        try:
            import resource
        except ImportError:  # Windows
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _append(self, name: str) -> Any:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return (self.folder / name).open("a", encoding="utf-8")
        except OSError as error:
            raise HatlibError(f"Cannot write to '{self.folder}': {error.strerror or error}.") from error

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            with self._append(name) as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise HatlibError(f"Cannot write to '{self.folder / name}': {error.strerror or error}.") from error


def introduction(
    config: Config, facts: Mapping[str, Any], origin: str, world: int, patches: TrainingPatches, found: Path | None
) -> str:
    """What is about to happen."""
    train, batch = config.train, facts["patches per update"]
    passes = train.updates * batch / len(patches)
    lines = [
        f"{config.name}: {config.model.name}, {facts['parameters of the model']:,} parameters, "
        + (f"going on from {found}" if found else f"starting from {origin}"),
        f"{len(patches):,} images of {config.data.hr}"
        + (f", {patches.skipped} smaller than a patch left out" if patches.skipped else "")
        + (f", {len(patches.pairs.unreadable)} unreadable left out" if patches.pairs.unreadable else ""),
        f"{batch} patches per update ({train.batch} per process x {world} processes x {train.accumulation} accumulated)"
        f", {train.updates:,} updates, {passes:,.1f} passes through the data",
    ]
    if config.recipe_batch not in (None, batch):
        advice = f"The recipe was made for {config.recipe_batch} patches per update, and this run has {batch}."
        steps, rest = divmod(config.recipe_batch, train.batch * world)
        if steps and not rest:
            advice += f" train.accumulation={steps} gives {config.recipe_batch}."
        lines.append(advice)
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    """'3 h 05 min'."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h" if days else f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
