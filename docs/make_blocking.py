"""Shows the window grid in feature maps: `python docs/make_blocking.py IMAGE --model A --model B -o figure.png`."""

import argparse
from pathlib import Path

from hatlib.analysis import blocking_ratio, draw_features, feature_maps
from hatlib.data import read_rgb
from hatlib.evaluation import resolve_models
from hatlib.inference.runner import window_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, help="input of the models")
    parser.add_argument("--model", action="append", dest="models", help="name, weight file or module:function")
    parser.add_argument("--window", type=int, help="side of the windows in pixels (default: that of each model)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="figure to write")
    args = parser.parse_args()
    image, features = read_rgb(args.image), {}
    print("| model | group | at borders | at half | elsewhere |\n|---|---|---|---|---|")
    for row in resolve_models(args.models or ["hat_t_x4"])[0][1:]:
        window = args.window or window_of(row.model)
        features[row.name] = feature_maps(row.model, image), window
        for i, feature in enumerate(features[row.name][0], 1):
            found = blocking_ratio(feature, window)
            print(f"| {row.name} | {i} | {found.ratio:.3f} | {found.half:.3f} | {found.control:.3f} |")
    draw_features(args.output, features)
