"""Saving, loading and sharing models: one directory that hatlib, timm and transformers load.

A saved directory holds `config.json`, `model.safetensors`, `preprocessor_config.json` (for transformers' image
processor) and the model card `README.md`.
"""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hatlib.atomic import write_text
from hatlib.checkpoint import load_detected, load_state_dict, read_state_dict, write_state_dict
from hatlib.detection import find_arch
from hatlib.errors import HatlibError
from hatlib.hub.arguments import CONFIG_NAME, capture_arguments, encode, read_config
from hatlib.hub.card import ModelFacts, write_card
from hatlib.hub.repository import WEIGHTS_NAME, download_model, split_revision, upload_model, weights_file
from hatlib.hub.resolve import Source, resolve
from hatlib.networks import build, build_saved, model_info, timm_cfg
from hatlib.registry import constructor_parameters
from hatlib.version import __version__

__all__ = ["PretrainedModel", "build_from_config", "load_saved", "load_source"]

FORMAT_VERSION = 1
MODEL_TYPE, TRANSFORMERS_CLASS = "hatlib", "HatlibForImageSuperResolution"
_PROCESSOR = {"image_processor_type": "Swin2SRImageProcessor", "do_rescale": True, "do_pad": False}

Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """A network that keeps its constructor arguments, and so can be saved, loaded and shared.

    The constructor of a subclass takes `upscale=` and `in_chans=`; commands and recipes read the attributes `upscale`,
    `in_chans` and `out_chans`, which are set from the arguments unless the constructor sets them. Arguments must be
    numbers, strings, tuples, registered parts, or classes of torch.nn and timm.layers for the model to be saved.

    Attributes:
        unrecoverable_args: constructor arguments that change the result and that weights do not reveal.
        training_only_args: constructor arguments that change training alone, or nothing.
        tiny_args: constructor arguments of a network small enough for tests.
        citation: BibTeX, for the model card.
    """

    unrecoverable_args: tuple[str, ...] = ()
    training_only_args: tuple[str, ...] = ()
    tiny_args: Mapping[str, Any] = {}
    citation = ""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = capture_arguments(cls.__init__)

    def post_init(self) -> None:
        """Runs once after the outermost constructor; a subclass that overrides it calls `super().post_init()` first."""
        for name, default in (("upscale", 1), ("in_chans", 3)):
            if not hasattr(self, name):
                setattr(self, name, self._arguments.get(name, default))
        if not hasattr(self, "out_chans"):
            self.out_chans = self._arguments.get("out_chans") or self.in_chans

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json, JSON-safe: constructor arguments, class, arch, versions."""
        arguments = {name: encode(value, name) for name, value in self._arguments.items()}
        arch, _ = self.arch_of(arguments)
        return {
            "format_version": FORMAT_VERSION,
            "model_type": MODEL_TYPE,
            "architectures": (TRANSFORMERS_CLASS,),
            **({"architecture": arch} if arch else {}),
            "hatlib_class": f"{type(self).__module__}.{type(self).__qualname__}",
            "hatlib_version": __version__,
            "num_features": getattr(self, "num_features", 0),
            "model_args": arguments,
            "pretrained_cfg": timm_cfg(in_chans=arguments.get("in_chans", 3)),
            # transformers looks for it here where it takes a directory for one of timm's.
            "image_processor_type": _PROCESSOR["image_processor_type"],
        }

    def _update_arguments(self, **changes: Any) -> None:
        """Updates the kept arguments after a change to the model, so that its configuration stays correct."""
        building = "_capturing" in self.__dict__  # what the constructor was not given, it sets again by itself
        known = self._arguments if building else constructor_parameters(type(self))
        self._arguments.update({name: value for name, value in changes.items() if name in known})

    def arch_of(self, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The registered arch to build this network with, and whether it is that arch without changes."""
        arch, same = find_arch(type(self), arguments, self.training_only_args, complete=True)
        if not same and (own := (getattr(self, "pretrained_cfg", None) or {}).get("architecture")):
            fits = arch == "" or own.endswith(f"_x{arguments.get('upscale')}")
            return (own if fits else arch), False
        return arch, same

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts weights in a published key layout of the family to our layout."""
        return state_dict

    @classmethod
    def infer_from_layout(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of `unrecoverable_args` that shapes cannot reveal but a published layout does."""
        return {}

    def published_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The model's weights, or the given ones in our layout, in the published layout."""
        return self.state_dict() if state_dict is None else state_dict

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training; a network that supports gradient checkpointing overrides it.

        Raises:
            HatlibError: if the network does not support it.
        """
        if enable:
            raise HatlibError(f"{type(self).__name__} does not support gradient checkpointing; leave it out.")

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Enables gradient checkpointing, under the name that transformers and accelerate use."""
        self.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Disables gradient checkpointing."""
        self.set_grad_checkpointing(False)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path,
        *,
        revision: str | None = None,
        strict: bool = True,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **overrides: Any,
    ) -> Model:
        """Loads a model of this class with its weights, in eval mode.

        Args:
            source: a registered name ('hat_x4.real_gan'), a repository of the Hub ('org/repo', 'org/repo@revision'), a
                saved directory or a weight file.
            revision: branch, tag or commit of the repository.
            strict: refuse weights that are not exactly the model's; otherwise what is skipped is logged.
            dtype: type of the weights; float32 if None, as saved if 'auto'.
            device: where to put it.
            **overrides: constructor arguments that differ from the saved ones. Another `in_chans` or `out_chans` adapts
                the first and last convolution; another `upscale` gives a new, untrained head and a warning.

        Raises:
            HatlibError: if there is no such model, it is of another class, or anything in it does not fit.
        """
        resolved = resolve(source, repository=True)
        model, saved_dtype = load_source(cls, resolved, revision=revision, strict=strict, overrides=overrides)
        if dtype == "auto":
            dtype = saved_dtype
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        facts: ModelFacts | None = None,
        repo_id: str | None = None,
    ) -> None:
        """Writes a directory that `from_pretrained`, timm ('local-dir:') and transformers load.

        Args:
            directory: made if it does not exist. Each file appears under its name when it is whole.
            state_dict: weights to save instead of the model's own, for example averaged ones.
            is_main_process: on other processes nothing is written.
            facts: what the card says beside what the model knows. A card that a user has changed is left alone.
            repo_id: the repository that the card's snippet loads from, if not the directory.

        Raises:
            HatlibError: if the configuration can't be held by JSON, the weights are not the model's, or writing fails.
        """
        if not is_main_process:
            return
        directory, config = Path(directory), self.config
        state_dict = self.state_dict() if state_dict is None else dict(state_dict)
        if odd := sorted(state_dict.keys() ^ self.state_dict().keys()):
            raise HatlibError(f"The given state_dict has not the parameters of {type(self).__name__}: {odd[0]!r}, ...")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            header = {key: config[key] for key in ("architecture", "model_args") if key in config}
            write_state_dict(state_dict, directory / WEIGHTS_NAME, header)
            write_card(self, directory, facts or ModelFacts(), repo_id)
            write_text(directory / "preprocessor_config.json", json.dumps(_PROCESSOR, indent=2) + "\n")
            write_text(directory / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise HatlibError(f"Cannot save to {str(directory)!r}: {error}.") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        facts: ModelFacts | None = None,
    ) -> str:
        """Saves the model to a repository of the Hub, which is made if it does not exist; gives the commit's URL.

        A card there that somebody has written or changed is kept. Arguments as in `save_pretrained` and `HfApi`.

        Raises:
            HatlibError: if the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload_model(
                repo_id,
                lambda path: self.save_pretrained(path, state_dict=state_dict, facts=facts, repo_id=repo_id),
                Path(folder),
                revision=revision,
                token=token,
                private=private,
                commit_message=commit_message or f"Upload {type(self).__name__}",
            )


def load_saved(source: str, pretrained: bool = False, **overrides: Any) -> nn.Module:
    """What `create_model` does with 'hf-hub:org/repo[@revision]' and 'local-dir:path'; weights if `pretrained`."""
    resolved = resolve(source)
    if pretrained:
        return load_source(PretrainedModel, resolved, overrides=overrides)[0]
    folder = Path(resolved.place)
    if resolved.kind == "hub":
        folder = download_model(*split_revision(resolved.place), with_weights=False)
    return _load_folder(PretrainedModel, folder, True, overrides, with_weights=False)[0]


def build_from_config(
    config: Mapping[str, Any], cls: type[nn.Module] | None = None, overrides: Mapping[str, Any] | None = None
) -> nn.Module:
    """Builds the network that a config.json describes, with new weights.

    Args:
        config: as `read_config` gives it.
        cls: the class to build if the configuration names no registered arch.
        overrides: constructor arguments that replace the saved ones.

    Raises:
        HatlibError: if nothing here can build it, or its arguments are not known.
    """
    saved, overrides = dict(config["model_args"]), dict(overrides or {})
    arguments = {**saved, **overrides}
    if arch := config.get("architecture"):
        try:
            model_info(arch)
        except HatlibError as error:
            raise HatlibError(f"{error} It is of {config.get('hatlib_class', 'timm')}: install what has it.") from error
        return build_saved(arch, saved, overrides)
    name = config["hatlib_class"]
    if cls is None or f"{cls.__module__}.{cls.__qualname__}" != name:
        raise HatlibError(f"The model is a {name}, which no registered arch builds; call {name}.from_pretrained.")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise HatlibError(f"{name} does not take these arguments: {error}.") from error


def load_source(
    cls: type[nn.Module],
    source: Source,
    *,
    revision: str | None = None,
    strict: bool = True,
    ema: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, torch.dtype | None]:
    """Loads a name, repository, directory or weight file; what `from_pretrained` and `hatlib.load` share.

    Args:
        cls: the class that the model must be an instance of.
        source: from `resolve`.
        revision: branch, tag or commit of a repository.
        strict: refuse weights that are not exactly the model's.
        ema: averaged weights or the others, of a training checkpoint; see `hatlib.checkpoint.read_state_dict`.
        overrides: constructor arguments that replace those of the source. Another `upscale` gives a new, untrained head
            and a warning.

    Returns:
        The model, and the type of the saved weights.

    Raises:
        UnknownArchitectureError: if a weight file belongs to no family of hatlib.
        HatlibError: if the model is of another class, or anything in it does not fit.
    """
    arguments = dict(overrides or {})
    upscale = arguments.pop("upscale", None)
    if ema is not None and source.kind != "file":
        raise HatlibError(f"{source.text!r} holds one set of weights; leave ema (--ema, --no-ema) out.")
    if source.kind == "file":
        model, saved_dtype = load_detected(source.place, ema, strict, arguments)
    elif source.kind == "name":
        model, saved_dtype = build(source.place, pretrained=True, **arguments), None
    elif source.kind in ("hub", "directory"):
        folder = Path(source.place)
        if source.kind == "hub":
            folder = download_model(*split_revision(source.place, revision))
        model, saved_dtype = _load_folder(cls, folder, strict, arguments)
    else:
        raise HatlibError(f"{source.text!r} is not a saved model; load it with hatlib.load.")
    if not isinstance(model, cls):
        raise HatlibError(
            f"{source.text!r} is a {type(model).__name__}, not a {cls.__name__}; load it with "
            f"{type(model).__name__}.from_pretrained or hatlib.load."
        )
    if upscale is not None and upscale != getattr(model, "upscale", None):
        before = getattr(model, "upscale", None)
        if not hasattr(model, "reset_upsampler"):
            raise HatlibError(f"{type(model).__name__} of {source.text!r} has no head that upscale= could replace.")
        model.reset_upsampler(upscale)
        warnings.warn(
            f"{source.text} has scale {before}: the head for scale {upscale} is new and untrained.", stacklevel=4
        )
    return model, saved_dtype


def _load_folder(
    cls: type[nn.Module], folder: Path, strict: bool, overrides: Mapping[str, Any], with_weights: bool = True
) -> tuple[nn.Module, torch.dtype | None]:
    """The model of a saved directory, and the type of its weights."""
    config = read_config(folder)
    model = build_from_config(config, cls, overrides)
    if not with_weights:
        return model, None
    weights, mean = weights_file(folder), config["model_args"].get("mean")
    report = load_state_dict(
        model, read_state_dict(weights), str(weights), strict=strict, adapt=bool(overrides), source_mean=mean
    )
    return model, report.dtype
