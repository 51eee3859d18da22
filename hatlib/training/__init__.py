"""Training on Accelerate: one readable loop, checkpoints that are exact to the bit, typed configurations."""

from hatlib.training.config import Config, format_config, load_config, recipe_names
from hatlib.training.entry import main
from hatlib.training.finetune import Comparison, compare, finetune_config
from hatlib.training.interruption import TrainingStopped
from hatlib.training.loop import Outcome, train
from hatlib.training.schedule import learning_rate

__all__ = [
    "Comparison",
    "Config",
    "Outcome",
    "TrainingStopped",
    "compare",
    "finetune_config",
    "format_config",
    "learning_rate",
    "load_config",
    "main",
    "recipe_names",
    "train",
]
