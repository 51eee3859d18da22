"""Ctrl-C and SIGTERM that can't get lost.

Python raises KeyboardInterrupt wherever it happens to be. If that is a callback from C, such as libvips' logging, the
exception is printed and dropped, and the program goes on. So the signal is remembered too, and `check` raises again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_received: list[int] = []


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the process to stop; `signum` says how."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def watched() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise `Interrupted`; afterwards they do what they did before."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    _received.clear()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup, or in a shell's background
            signal.signal(signum, _stop)
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is Interrupted else report(lost)
    try:
        yield
    finally:
        sys.unraisablehook = report
        for signum, handler in before.items():
            signal.signal(signum, handler)


def check() -> None:
    """Raises `Interrupted` if a signal has come and got lost; called between pieces of work."""
    if _received:
        raise Interrupted(_received[0])


def _stop(signum: int, frame: object) -> NoReturn:
    _received.append(signum)
    raise Interrupted(signum)
