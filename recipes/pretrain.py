"""Train a model from scratch, or from the weights that a recipe names.

    python recipes/pretrain.py hat_t_x4 data.hr=photos val.folders=[Set5] out=runs/hat_t_x4
    accelerate launch --config_file recipes/accelerate/one_node.yaml recipes/pretrain.py hat_x4.imagenet data.hr=train

Started again with `--resume auto`, it goes on from the newest checkpoint, and gives the same weights.
"""

import sys

from hatlib.training import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__.splitlines()[0]))
