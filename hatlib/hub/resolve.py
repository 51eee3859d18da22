"""Model sources: what a name, repository, directory, file or function refers to, decided in one place.

`hatlib.load`, `from_pretrained`, every command and every recipe key take a source in these words:

| source | what |
|---|---|
| `hat_x4`, `hat_x4.real_gan` | a registered name, with or without the tag of its weights |
| `hat` | a size without its scale, where the scale is given in another way |
| `hf-hub:org/repo`, `hf-hub:org/repo@revision` | a repository of the Hub |
| `local-dir:path`, `path` | a saved directory |
| `file.safetensors`, `.pth`, `.pt`, `.ckpt`, `.bin` | a weight file |
| `file.onnx` | an ONNX model |
| `package.module:function` | a function that returns a network |
| `bicubic` | bicubic interpolation |
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hatlib.checkpoint import WEIGHT_SUFFIXES, sha256
from hatlib.errors import HatlibError
from hatlib.hub.arguments import CONFIG_NAME
from hatlib.hub.download import fetch_weights
from hatlib.hub.repository import download_model, split_revision, weights_file
from hatlib.networks import Weights, model_info, networks, split_name

__all__ = ["BICUBIC", "Source", "import_function", "published_weights", "resolve", "weights_path"]

BICUBIC = "bicubic"

Kind = Literal["name", "hub", "directory", "file", "onnx", "function", "bicubic"]


@dataclass(frozen=True)
class Source:
    """A model source whose kind is known.

    Attributes:
        kind: what the source is.
        text: the source as it was written, for messages.
        place: the registered name, repository, path or 'module:function'.
    """

    kind: Kind
    text: str
    place: str

    @property
    def label(self) -> str:
        """A short name for tables and file names."""
        if self.kind in ("file", "onnx"):
            return Path(self.place).stem
        return self.text


def resolve(source: str | os.PathLike, *, scale: int | None = None, repository: bool = False) -> Source:
    """Decides what a model source refers to, without loading anything.

    Args:
        source: see the table above.
        scale: scale of a size that is given without one, for example 4 with 'hat'.
        repository: take 'org/repo' as a repository of the Hub, as `from_pretrained` does.

    Raises:
        HatlibError: if there is no such model; the message says how to write the source.
    """
    text = os.fspath(source)
    prefix, _, rest = text.partition(":")
    path = Path(text)
    if prefix == "hf-hub":
        return Source("hub", text, rest)
    if prefix == "local-dir":
        return _directory(text, Path(rest))
    if text == BICUBIC:
        return Source("bicubic", text, text)
    if path.is_dir():
        return _directory(text, path)
    if path.suffix.lower() in (*WEIGHT_SUFFIXES, ".onnx") or path.is_file():
        if not path.is_file():
            raise HatlibError(f"There is no {'' if path.suffix.lower() == '.onnx' else 'weight '}file {text!r}.")
        return Source("onnx" if path.suffix.lower() == ".onnx" else "file", text, text)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return Source("function", text, text)
    if repository and "/" in text:
        return Source("hub", text, text)
    return Source("name", text, _name(text, scale))


def _directory(text: str, path: Path) -> Source:
    if not path.is_dir():
        raise HatlibError(f"There is no folder {str(path)!r}.")
    if not (path / CONFIG_NAME).is_file():
        raise HatlibError(f"{text!r} is not a saved model: there is no {CONFIG_NAME} in the folder.")
    return Source("directory", text, str(path))


def _name(text: str, scale: int | None) -> str:
    """The registered name, of the given scale if the text is a size alone."""
    size, tag = split_name(text)
    infos = [networks.get(name) for name in networks.names()]
    siblings = next((info.siblings for info in infos if info.size == size and info.arch != size), None)
    if siblings is None or size in networks:
        if "/" in text or os.sep in text:
            raise HatlibError(f"There is no file or folder {text!r}. A repository of the Hub is 'hf-hub:{text}'.")
        return model_info(text).name
    scales = ", ".join(map(str, siblings))
    if scale is None:
        raise HatlibError(f"{text!r} has the scales {scales}: name one, as in {next(iter(siblings.values())).arch!r}.")
    if scale not in siblings:
        raise HatlibError(f"{text!r} has the scales {scales}, not {scale}.")
    return f"{siblings[scale].arch}.{tag}" if tag else siblings[scale].arch


def weights_path(source: Source) -> Path:
    """The weight file of a name, repository, directory or file; downloaded if needed.

    Raises:
        HatlibError: if the source has no weight file.
    """
    if source.kind == "name":
        weights = model_info(source.place).weights
        if weights is None:
            raise HatlibError(f"There are no pretrained weights for {source.place}; name a weight file.")
        return fetch_weights(weights)
    if source.kind == "hub":
        return weights_file(download_model(*split_revision(source.place)))
    if source.kind == "directory":
        return weights_file(Path(source.place))
    if source.kind == "file":
        return Path(source.place)
    raise HatlibError(f"{source.text!r} has no weight file; take a name, a saved directory or a weight file.")


def published_weights(source: Source) -> Weights | None:
    """The entry of the tables of published weights that a name or a weight file belongs to, or None."""
    if source.kind == "name":
        return model_info(source.place).weights
    if source.kind != "file":
        return None
    digest = sha256(source.place)
    known = (w for name in networks.names() for w in networks.get(name).tags.values())
    return next((weights for weights in known if weights.sha256 == digest), None)


def import_function(place: str) -> Callable[..., Any]:
    """Returns the function 'package.module:function'; the module may be in the current folder.

    Raises:
        HatlibError: if the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = place.partition(":")
    try:
        with _current_folder():
            function = importlib.import_module(module_name)
        for part in function_name.split("."):
            function = getattr(function, part)
    except ModuleNotFoundError as error:
        raise HatlibError(f"{place!r} cannot be imported: {error}.") from error
    except AttributeError as error:
        raise HatlibError(f"The module {module_name!r} has no function {function_name!r}.") from error
    if not callable(function):
        raise HatlibError(f"{place!r} is not a function that returns a network.")
    return function


@contextmanager
def _current_folder() -> Iterator[None]:
    """Makes modules in the current folder importable within the block."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
