"""Fine-tune a model that was trained before (model.init=...), with a recipe's small learning rate.

python recipes/finetune.py hat_x4.imagenet_ft_df2k model.init=runs/hat_x4.imagenet/model data.hr=DF2K
"""

import sys

from hatlib.training import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__.splitlines()[0], require_init=True))
