"""Which image each draw of a training takes: known beforehand for every draw, so a run can stop and go on anywhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from hatlib.data.datasets import TrainingPatches
from hatlib.errors import HatlibError

__all__ = ["EndlessSampler", "training_loader"]


class EndlessSampler(Sampler[tuple[int, int]]):
    """Draws images forever, each once per pass, in a new order each pass; yields (index, draw).

    Image and order are a pure function of the seed and the draw. Handed on to the data set, the draw seeds the
    augmentation too; so a training that is resumed at draw n, on any number of workers or processes, sees what it
    would have seen. Accelerate shards the batches: process k of n takes batches k, k + n, ...

    Args:
        length: number of images.
        seed: of the order.
        start: the first draw: 0, or the number of samples that a resumed run has seen.

    Raises:
        HatlibError: If there are no images, or `seed` or `start` is negative.
    """

    def __init__(self, length: int, seed: int = 0, start: int = 0):
        if length < 1 or seed < 0 or start < 0:
            raise HatlibError(f"A sampler needs images, and seed and start from 0 up, not {length}, {seed}, {start}.")
        self.length, self.seed, self.start = length, seed, start
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def index(self, draw: int) -> int:
        """The image of a draw."""
        epoch, position = divmod(draw, self.length)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return int(self._order[1][position])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.start
        while True:
            yield self.index(draw), draw
            draw += 1


def training_loader(
    patches: TrainingPatches, batch_size: int, *, seed: int = 0, start: int = 0, workers: int = 0, **kwargs: Any
) -> DataLoader:
    """An endless loader of batches that are a function of the seed and their number, whatever the workers.

    Workers are started afresh ('forkserver'), because libvips does not survive a fork; a script must therefore keep
    what it does under `if __name__ == "__main__":`. They leave Ctrl-C and SIGTERM to their parent, and end with it,
    also if it is killed.

    Args:
        patches: the data.
        batch_size: patches per batch.
        seed: of the order.
        start: the first draw, see `EndlessSampler`.
        workers: processes that read ahead; 0 reads in this one.
        **kwargs: those of `torch.utils.data.DataLoader`.
    """
    if workers:
        context = "forkserver" if os.name == "posix" else "spawn"
        kwargs = {"multiprocessing_context": context, "worker_init_fn": exit_with_parent, **kwargs}
    sampler = EndlessSampler(len(patches), seed, start)
    return DataLoader(patches, batch_size, sampler=sampler, num_workers=workers, **kwargs)


def exit_with_parent(worker: int) -> None:
    """Ties a worker to the process that reads from it.

    A terminal sends Ctrl-C to all processes, and a batch system SIGTERM, but the parent still needs its workers to
    finish what it does. That the parent was killed, PyTorch notices by the number of a process' parent, which here is
    the fork server: the workers, and with them the server, would stay forever.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
