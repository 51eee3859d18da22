"""SIGINT (Ctrl-C) and SIGTERM: raised in commands, collected during training.

Python raises KeyboardInterrupt at an arbitrary bytecode. When that happens inside a callback from C, such as libvips'
logging, the exception is printed and dropped and the program continues. `raise_on_signal` therefore also remembers the
signal, and `check` raises again between pieces of work.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Interrupted", "check", "collect_signals", "raise_on_signal"]

_received: list[int] = []


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the process to stop.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(*([message] if message else []))
        self.signum = signum


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raises `Interrupted` on SIGINT and SIGTERM within the block; restores the previous handlers afterwards."""
    _received.clear()
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is Interrupted else report(lost)
    try:
        with _handled_by(_raise):
            yield
    finally:
        sys.unraisablehook = report


def check() -> None:
    """Raises `Interrupted` if a signal arrived whose exception was dropped; call it between pieces of work."""
    if _received:
        raise Interrupted(_received[0])


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM are appended within the block; the second one raises at once.

    Training uses it to finish an update and write a checkpoint before it stops.
    """
    received: list[int] = []

    def note(signum: int, frame: object) -> None:
        received.append(signum)
        if len(received) > 1:
            raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}")

    with _handled_by(note):
        yield received


def _raise(signum: int, frame: object) -> NoReturn:
    _received.append(signum)
    raise Interrupted(signum)


@contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Sets a handler for SIGINT and SIGTERM within the block, in the main thread only (Python allows no other)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum, before in previous.items():
        if before != signal.SIG_IGN:  # ignored under nohup and in a shell's background: leave it so
            signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)
