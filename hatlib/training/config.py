"""The configuration of a training: typed sections, read from YAML, with overrides such as `train.lr=1e-4`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hatlib.errors import HatlibError, first_line, similar_names

__all__ = ["Config", "format_config", "load_config", "recipe_names", "recipes_folder"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """What is trained, and from where it starts."""

    name: str = Field(description="architecture, for example hat_s_x4")
    args: dict[str, Any] = Field({}, description="constructor arguments that differ from the architecture's")
    init: str | None = Field(None, description="weights to start from: a name with its tag, a file or a saved folder")
    interpolate: bool = Field(False, description="start as interpolation rather than at random")
    grad_checkpointing: bool = Field(False, description="less memory, more time")
    channels_last: bool = Field(False, description="memory layout, faster on recent GPUs")
    compile: bool = Field(False, description="torch.compile")
    compile_backend: str = Field("inductor", description="of torch.compile")


class DataConfig(Section):
    """The training images."""

    hr: str | None = Field(None, description="folder of HR images")
    lr: str | None = Field(None, description="folder of LR images; made by MATLAB's bicubic where there is none")
    files: str | None = Field(None, description="text file that lists the images to use")
    gray: bool = Field(False, description="read images as gray, for models of one channel")
    patch: Positive = Field(64, description="side of the LR patches")
    flip: bool = Field(True, description="mirror half of the patches")
    rotate: bool = Field(True, description="turn patches by multiples of 90 degrees")
    small: Literal["skip", "enlarge"] = Field("skip", description="images smaller than a patch")
    min_std: Rate = Field(0.0, description="draw flat patches again: least standard deviation of 255")
    cache: bool = Field(False, description="keep decoded images in memory, in each process and worker")
    workers: Count = Field(0, description="processes that read ahead, per training process")


class TrainConfig(Section):
    """The optimization."""

    updates: Positive = Field(description="optimizer updates")
    batch: Positive = Field(4, description="patches per process and step")
    accumulation: Positive = Field(1, description="steps per update")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass")
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="learning rate")
    schedule: Literal["multistep", "cosine", "constant"] = Field("multistep", description="of the learning rate")
    milestones: list[Positive] = Field([], description="updates after which it is multiplied by gamma")
    gamma: Rate = Field(0.5, description="see milestones")
    lr_min: Rate = Field(0.0, description="where the cosine ends")
    warmup: Count = Field(0, description="updates in which the learning rate rises from 0")
    betas: tuple[float, float] = Field((0.9, 0.99), description="of Adam")
    weight_decay: Rate = Field(0.0, description="of Adam")
    clip: Rate = Field(0.0, description="largest norm of the gradient; 0 for no bound")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="decay of the averaged weights")
    max_skipped: Positive = Field(50, description="updates in a row without finite gradient that end the run")


class ValConfig(Section):
    """The validation."""

    folders: list[str] = Field([], description="benchmarks: folders of HR images, or such as Set5 with HR and LR")
    files: str | None = Field(None, description="text file of images of data.hr to validate on, beside the folders")
    every: Positive = Field(5000, description="updates between validations")
    tile: Positive | None = Field(None, description="largest tile, in LR pixels")
    samples: Count = Field(1, description="images of each benchmark in samples.png")


class SaveConfig(Section):
    """The checkpoints, and the model at the end."""

    every: Positive = Field(5000, description="updates between checkpoints")
    keep: Positive = Field(2, description="how many of the last ones to keep, beside the best")
    half: bool = Field(False, description="write the final model in half precision")


class LogConfig(Section):
    """What is written down."""

    every: Positive = Field(100, description="updates between lines of the log")
    trackers: list[str] = Field([], description="of Accelerate: tensorboard, wandb, ...")


class Config(Section):
    """A training."""

    name: str = Field(description="of the recipe and the weights it makes")
    out: str | None = Field(None, description="folder of the run; runs/NAME by default")
    seed: Count = Field(0, description="of the weights, crops, flips and dropout")
    device: Literal["auto", "cpu"] = Field("auto", description="'auto' takes a GPU where there is one")
    recipe_batch: Positive | None = Field(None, description="patches per update that the learning rate was made for")
    note: str = Field("", description="for the model card: what the recipe is")
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig
    val: ValConfig = ValConfig()
    save: SaveConfig = SaveConfig()
    log: LogConfig = LogConfig()

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out or f"runs/{self.name}")


def load_config(source: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        source: a YAML file, the name of a recipe that ships (`recipe_names`), or its content.
        overrides: 'section.key=value', the value in YAML.

    Raises:
        HatlibError: If there is no such file, or keys or values are not right; it names them.
    """
    content, place = (dict(source), "the configuration") if isinstance(source, Mapping) else _read(source)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise HatlibError(f"An override has the form section.key=value, not {override!r}.")
        try:
            _set(content, key.strip().split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise HatlibError(f"The value of {key!r} can't be read as YAML: {first_line(error)}.") from error
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise HatlibError(_message(error, place)) from error
    _check(config)
    return config


def format_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'lr': 1}} -> {'train.lr': 1}; `model.args` stays whole."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        result.update(
            flatten(value, f"{name}.") if isinstance(value, Mapping) and name != "model.args" else {name: value}
        )
    return result


def recipes_folder() -> Path:
    """Where the recipes are: in an installed package, or beside it in a checkout."""
    package = Path(str(resources.files("hatlib")))
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def known_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """All keys of the configuration, dotted."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from known_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _read(source: str | os.PathLike) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if not path.is_file():
        shipped = recipes_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
        if path.name != str(source) or not shipped.is_file():
            near = similar_names(path.name.removesuffix(".yaml"), recipe_names())
            raise HatlibError(f"There is no configuration '{source}', neither a file nor a recipe that ships.{near}")
        path = shipped
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HatlibError(f"'{path}' can't be read as YAML: {first_line(error)}.") from error
    if not isinstance(content, dict):
        raise HatlibError(f"'{path}' holds no configuration: it begins with `name:`, `model:`, `train:`.")
    return content, f"'{path}'"


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for i, key in enumerate(keys[:-1]):
        inner = content.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise HatlibError(f"{'.'.join(keys[: i + 1])} is a value and holds no {'.'.join(keys[i + 1 :])!r}.")
        content[key] = dict(inner or {})
        content = content[key]
    content[keys[-1]] = value


def _message(error: ValidationError, place: str) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(known_keys())
        near = similar_names(key, known) or similar_names(key.rpartition(".")[2], known)
        return f"Unknown key {key!r} in {place}.{near} --print-config shows all."
    if first["type"] == "missing":
        return f"{place} lacks {key!r}."
    return f"{key} in {place}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}."


def _check(config: Config) -> None:
    """What no single value tells."""
    train = config.train
    if train.milestones != sorted(set(train.milestones)):
        raise HatlibError(f"train.milestones must rise, and do not: {train.milestones}.")
    if train.milestones and train.schedule != "multistep":
        raise HatlibError(f"train.milestones belong to train.schedule=multistep, not to {train.schedule}.")
    if late := [m for m in train.milestones if m >= train.updates]:
        raise HatlibError(
            f"train.milestones={late} are past the end: the run has train.updates={train.updates}. Give milestones "
            "that lie before it, or train.milestones=[]."
        )
    if train.warmup >= train.updates:
        raise HatlibError(f"train.warmup={train.warmup} leaves nothing of train.updates={train.updates}.")
