"""Published weight files: downloaded once, resumed where broken off, and verified before anything reads them."""

import os
from pathlib import Path
from typing import IO

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock

from hatlib.checkpoint import sha256
from hatlib.errors import HatlibError
from hatlib.networks import Weights

__all__ = ["fetch_weights", "weights_folder"]

# More than any restoration network weighs: what is larger is no weight file, and must not fill the disk.
MAX_SIZE = 2 * 1024**3


def weights_folder(weights: Weights) -> Path:
    """Where the file is kept: in the Hub's cache folder (`HF_HUB_CACHE`), by its hash."""
    return Path(constants.HF_HUB_CACHE) / "hatlib" / weights.sha256


def fetch_weights(weights: Weights) -> Path:
    """Path of a published weight file whose SHA-256 is the one on record, downloaded if it is not there yet.

    The environment variable `HATLIB_WEIGHTS_URL` replaces the place of the download: the base URL under which the files
    lie by their published names. Processes that ask for the same file at once wait for one another.

    Raises:
        HatlibError: if it can't be had; the message says where it is and what to do.
    """
    if packaged := weights.packaged_path:
        if not os.path.isfile(packaged) or sha256(packaged) != weights.sha256:
            raise HatlibError(f"{packaged!r} is not the file that was published; install hatlib again.")
        return Path(packaged)
    folder = weights_folder(weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / f"{weights.file}.lock"):
            target = folder / weights.file
            if not (target.is_file() and sha256(target) == weights.sha256):
                _download(weights, target)
            return target
    except OSError as error:
        raise HatlibError(f"Cannot keep {weights.file} in {str(folder)!r} ({error}); set HF_HUB_CACHE.") from error


def _download(weights: Weights, target: Path) -> None:
    url = weights.url
    if base := os.environ.get("HATLIB_WEIGHTS_URL"):
        url = f"{base.rstrip('/')}/{weights.file}"
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(weights, url, "HF_HUB_OFFLINE is set")
    part = target.with_name(f"{target.name}.incomplete")
    resumed = part.is_file() and part.stat().st_size > 0
    _receive(weights, url, part)
    if resumed and sha256(part) != weights.sha256:
        part.unlink()  # Its beginning may have been another file's.
        _receive(weights, url, part)
    if (found := sha256(part)) != weights.sha256:
        part.unlink()
        raise _unavailable(
            weights, url, f"the file there has the SHA-256 {found[:12]}..., not {weights.sha256[:12]}..."
        )
    os.replace(part, target)


def _receive(weights: Weights, url: str, part: Path) -> None:
    """Appends to `part` what it lacks."""
    try:
        with open(part, "ab") as file:
            size = file.tell()
            http_get(url, _Bounded(file, weights.size or MAX_SIZE), resume_size=size, displayed_filename=weights.file)
    except HatlibError as error:
        part.unlink()
        raise _unavailable(weights, url, str(error)) from error
    except Exception as error:  # The Hub's client has changed its HTTP library, and with it what it raises, twice.
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 416:  # nothing lies beyond what we have: it is whole, or not this file
            return
        if part.is_file() and part.stat().st_size == 0:
            part.unlink()
        reason = f"the server answered {status}" if status else f"{type(error).__name__}: {error}".split("\n")[0]
        raise _unavailable(weights, url, reason) from error


class _Bounded:
    """A file that refuses to grow beyond a size."""

    def __init__(self, file: IO[bytes], limit: int):
        self.limit = limit
        self.write_bytes, self.seek, self.tell, self.truncate = file.write, file.seek, file.tell, file.truncate

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.limit:
            raise HatlibError(f"the file there is larger than {self.limit} bytes")
        return self.write_bytes(data)


def _unavailable(weights: Weights, url: str, reason: str) -> HatlibError:
    return HatlibError(
        f"Could not download {weights.file} from {url} ({reason}); get it from there or from {weights.origin} and pass "
        "checkpoint_path=FILE, or let HATLIB_WEIGHTS_URL name a base URL that has it."
    )
