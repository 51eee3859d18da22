"""Shows the window grid in feature maps: `python docs/make_blocking.py IMAGE... --model A --model B -o figure.png`.

Prints the ratios, means over the images, and draws the maps of the first one.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean

from hatlib.analysis import blocking_ratio, draw_features, feature_maps
from hatlib.data import read_rgb
from hatlib.errors import HatlibError
from hatlib.evaluation import resolve_models
from hatlib.imageio import check_output
from hatlib.inference.runner import tile_multiple


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", help="inputs of the models")
    parser.add_argument("--model", action="append", dest="models", help="name, weight file or module:function")
    parser.add_argument("--window", type=int, help="side of the windows in pixels (default: that of each model)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="figure to write")
    args = parser.parse_args()
    check_output(args.output)
    images, features = [read_rgb(image) for image in args.images], {}
    print("| model | group | at borders | at half | elsewhere |\n|---|---|---|---|---|")
    for row in resolve_models(args.models or ["hat_t_x4"])[0][1:]:
        window = args.window or tile_multiple(row.model)
        if window == 1:
            raise HatlibError(f"{row.name} has no windows: say where to look for their borders, as --window 16.")
        maps = [feature_maps(row.model, image) for image in images]
        features[row.name] = maps[0], window
        for i, group in enumerate(zip(*maps, strict=True), 1):
            found = [blocking_ratio(feature, window) for feature in group]
            means = (mean(getattr(f, place) for f in found) for place in ("ratio", "half", "control"))
            print(f"| {row.name} | {i} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    draw_features(args.output, features)


if __name__ == "__main__":
    try:
        main()
    except HatlibError as error:
        sys.exit(f"make_blocking: {error}")
