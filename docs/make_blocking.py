"""Shows the window grid in feature maps: `python docs/make_blocking.py IMAGE... --model A --model B -o figure.png`.

Prints the ratios, means over the images, and draws the maps of the first one.
"""

import argparse
from pathlib import Path
from statistics import mean

from hatlib.analysis import blocking_ratio, draw_features, feature_maps
from hatlib.data import read_rgb
from hatlib.evaluation import resolve_models
from hatlib.inference.runner import window_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", help="inputs of the models")
    parser.add_argument("--model", action="append", dest="models", help="name, weight file or module:function")
    parser.add_argument("--window", type=int, help="side of the windows in pixels (default: that of each model)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="figure to write")
    args = parser.parse_args()
    features = {}
    print("| model | group | at borders | at half | elsewhere |\n|---|---|---|---|---|")
    for row in resolve_models(args.models or ["hat_t_x4"])[0][1:]:
        window = args.window or window_of(row.model)
        maps = [feature_maps(row.model, read_rgb(image)) for image in args.images]
        features[row.name] = maps[0], window
        for i, group in enumerate(zip(*maps, strict=True), 1):
            found = [blocking_ratio(feature, window) for feature in group]
            means = (mean(getattr(f, place) for f in found) for place in ("ratio", "half", "control"))
            print(f"| {row.name} | {i} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    draw_features(args.output, features)
