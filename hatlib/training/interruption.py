"""Ctrl-C and SIGTERM while a training runs: the update is finished and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TrainingStopped", "stop_signals"]


class TrainingStopped(KeyboardInterrupt):
    """A signal ended the training, after its state was saved; `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are added to within the block; the second one interrupts at once."""
    received: list[int] = []

    def note(signum: int, frame: object) -> None:
        received.append(signum)
        if len(received) > 1:
            raise TrainingStopped(signum)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup, or in a shell's background
            signal.signal(signum, note)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
