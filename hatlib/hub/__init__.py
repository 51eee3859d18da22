"""Models as directories and Hub repositories: constructor arguments, model cards, saving, loading, downloads."""

from hatlib.hub.card import ModelFacts
from hatlib.hub.pretrained import MODEL_TYPE, PretrainedModel, build_from_config, load_saved, load_source
from hatlib.hub.resolve import Source, resolve

__all__ = [
    "MODEL_TYPE",
    "ModelFacts",
    "PretrainedModel",
    "Source",
    "build_from_config",
    "load_saved",
    "load_source",
    "resolve",
]
