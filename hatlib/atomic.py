"""Files that are whole under their name or not there, and the clearing up after processes that were killed.

A file is written under a temporary name beside its place, which its writer keeps locked. The system drops a lock with
its process, however that ended, so a temporary file that can be locked is nobody's, and is removed by the next run.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hatlib.errors import HatlibError

try:
    import fcntl
except ImportError:  # Windows: an open file can't be removed there, which serves as the lock
    fcntl = None

__all__ = ["atomic_path", "remove_stale", "write_text"]

_PREFIX, _SUFFIX = ".hatlib-", ".part"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it if the block succeeds and removed if it does not.

    Raises:
        HatlibError: if the file system refuses.
    """
    path = path.resolve()  # write through a symlink instead of replacing it
    try:
        temporary, owner = _create(path.parent)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())  # or a power failure could leave the name without the bytes
            if fcntl is None:
                owner.close()  # Windows renames no open file
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            owner.close()
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise HatlibError(f"Cannot write '{path}': {error.strerror or error}.") from error


def remove_stale(folder: Path) -> None:
    """Removes temporary files in a folder that were left by killed processes, and none of a living one."""
    for stale in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            with stale.open("rb") as file:
                if fcntl is None or _lock(file, wait=False):
                    stale.unlink()
        except OSError:  # of a living process on Windows, of another user, or gone meanwhile
            continue


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically.

    Raises:
        HatlibError: if the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, on systems that can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _create(folder: Path) -> tuple[Path, BinaryIO]:
    """A new locked file: its path, and the handle that holds the lock."""
    while True:
        # A short name of its own: the suffix and 200 characters of the user's must not exceed the system's limit.
        path = folder / f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
        file = path.open("xb")
        if fcntl is None:
            return path, file
        _lock(file, wait=True)
        # Between the creation and the lock another process may have taken it for a stale one.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return path, file
        file.close()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Locks an open file; False if another handle has it. File systems without locks count as having locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return wait  # no locks here: write anyway, remove nothing
    return True
