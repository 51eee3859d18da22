"""Training on Accelerate: one readable loop, checkpoints that are exact to the bit, typed configurations."""

from hatlib.training.command import main
from hatlib.training.config import Config, format_config, load_config, recipe_names
from hatlib.training.finetune import FinetuneComparison, compare_with_start, finetune_config
from hatlib.training.loop import TrainResult, train
from hatlib.training.schedule import learning_rate

__all__ = [
    "Config",
    "FinetuneComparison",
    "TrainResult",
    "compare_with_start",
    "finetune_config",
    "format_config",
    "learning_rate",
    "load_config",
    "main",
    "recipe_names",
    "train",
]
