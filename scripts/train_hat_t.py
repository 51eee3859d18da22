"""Train the tiny HAT that ships with the package, on a folder of photos and a laptop's CPU.

    python scripts/train_hat_t.py --scale 4 --hr photos --val Set5/HR --out runs/hat_t_x4

Low-resolution images are made by MATLAB's bicubic rule. A run that was stopped goes on from its last checkpoint when
started again with the same arguments, and then gives the same weights as an uninterrupted one: each batch is drawn
from the seed and its own number alone.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import hatlib
from hatlib.checkpoint import write_state_dict
from hatlib.data import imresize
from hatlib.metrics import psnr

Pairs = dict[str, tuple[Tensor, Tensor]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train hat_t on a folder of PNG images.")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 4))
    parser.add_argument("--hr", type=Path, required=True, help="folder of high-resolution PNG images")
    parser.add_argument("--val", type=Path, required=True, help="folder of high-resolution PNG images to validate on")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and exported weights")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=32, help="side of the low-resolution patches")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val-every", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=50)
    return parser.parse_args()


def load_pairs(folder: Path, scale: int) -> Pairs:
    """All PNG images of a folder, as name -> (LR, HR), each (3, H, W) uint8 in memory."""
    pairs = {}
    for file in sorted(folder.glob("*.png")):
        hr = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        hr = hr[:, : hr.shape[1] // scale * scale, : hr.shape[2] // scale * scale].contiguous()
        pairs[file.stem] = imresize(hr, 1 / scale), hr
    if not pairs:
        raise SystemExit(f"No PNG images in {folder}.")
    return pairs


def draw_batch(pairs: Pairs, scale: int, args: argparse.Namespace, update: int) -> tuple[Tensor, Tensor]:
    """A batch of random crops, flipped and rotated; a pure function of the seed and the update."""
    rng = np.random.default_rng((args.seed, update))
    images = list(pairs.values())
    batch = []
    for _ in range(args.batch):
        for _ in range(10):  # flat patches (sky, darkness) teach nothing: draw again
            lr, hr = images[rng.integers(len(images))]
            y, x = (int(rng.integers(n - args.patch + 1)) for n in lr.shape[1:])
            lr = lr[:, y : y + args.patch, x : x + args.patch]
            if lr.float().std((1, 2)).max() > 12:
                break
        y, x, side = scale * y, scale * x, scale * args.patch
        hr = hr[:, y : y + side, x : x + side]
        turns, flip = int(rng.integers(4)), [-1] * int(rng.integers(2))
        batch.append([image.rot90(turns, (1, 2)).flip(flip) for image in (lr, hr)])
    lr, hr = (torch.stack(images).float() / 255 for images in zip(*batch, strict=True))
    return lr, hr


@torch.no_grad()
def start_as_interpolation(model: nn.Module) -> None:
    """Initialise the convolutions around the trunk so that the untrained network interpolates its input.

    Six channels carry the image and its negative from `conv_first` to `conv_last` (in pairs, since
    leaky(x) - leaky(-x) is linear), and each pixel-shuffle convolution interpolates them; the others stay random. A
    short training then goes into detail from the first update on, rather than into passing the image through.
    """
    image = torch.arange(6)
    first, before, last = model.conv_first, model.conv_before_upsample[0], model.conv_last
    ups = [m for m in model.upsample if isinstance(m, nn.Conv2d)]
    model.conv_after_body.weight[image] = 0
    model.conv_after_body.bias[image] = 0
    first.weight[image] = 0
    first.weight[image, image % 3, 1, 1] = torch.tensor([1.0, 1, 1, -1, -1, -1])
    before.weight[image] = 0
    before.weight[image, image, 1, 1] = 1
    near = torch.tensor([5.0, 30, -3]) / 32  # quadratic interpolation a quarter of a pixel before the middle
    for conv in ups:
        phases = torch.stack([torch.outer(v, h) for v in (near, near.flip(0)) for h in (near, near.flip(0))])
        conv.weight[:24] = 0
        for c in range(6):
            conv.weight[4 * c : 4 * c + 4, c] = phases
        conv.bias[:24] = 0
    last.weight.zero_()
    slope = model.conv_before_upsample[1].negative_slope
    last.weight[image % 3, image, 1, 1] = torch.tensor([1.0, 1, 1, -1, -1, -1]) / (1 + slope)
    for conv in (first, before):
        conv.bias[:6] = 0
    last.bias.zero_()


@torch.no_grad()
def validate(network: Callable[[Tensor], Tensor], pairs: Pairs, scale: int) -> float:
    """Mean PSNR on the luma, in dB."""
    return float(torch.cat([psnr(network(lr[None]), hr[None], border=scale) for lr, hr in pairs.values()]).mean())


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name first, so that it is whole or absent at any moment."""
    temporary = file.with_name(file.name + ".part")
    write(temporary)
    os.replace(temporary, file)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arch, checkpoint = f"hat_t_x{args.scale}", args.out / "checkpoint.pt"

    torch.manual_seed(args.seed)
    model = hatlib.create_model(arch, drop_path_rate=0.0)
    start_as_interpolation(model)
    ema = hatlib.create_model(arch, drop_path_rate=0.0).eval()  # validated and exported
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["update"]

    train, val = load_pairs(args.hr, args.scale), load_pairs(args.val, args.scale)
    train = {k: (lr, hr) for k, (lr, hr) in train.items() if min(lr.shape[1:]) >= args.patch}
    if not train:
        raise SystemExit(f"No image in {args.hr} is as large as a patch of {args.scale * args.patch} pixels.")
    bicubic = validate(lambda lr: imresize(lr, args.scale), val, args.scale)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arch}: {parameters} parameters, {len(train)} images, from update {start} to {args.updates}")

    def evaluate_and_export(update: int) -> float:
        weights = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
        exported = hatlib.create_model(arch).eval()  # what is measured is what is written, in half precision
        exported.load_state_dict(weights)
        ours = validate(lambda lr: exported(lr.float() / 255), val, args.scale)
        print(f"update {update}: {args.val} PSNR-Y {ours:.3f} dB (bicubic {bicubic:.3f} dB)", flush=True)
        header = {key: exported.config[key] for key in ("architecture", "model_args")}  # what weights don't tell
        header |= {"updates": update, "data": args.hr.name, "psnr_y": round(ours, 3)}
        write_state_dict(weights, args.out / f"{arch}.safetensors", header)
        return ours

    if start == 0:
        evaluate_and_export(0)
    losses, clock = [], time.perf_counter()
    for update in range(start + 1, args.updates + 1):
        progress = max(0, update - args.warmup) / max(1, args.updates - args.warmup)
        rate = args.lr * min(1, update / max(1, args.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        lr, hr = draw_batch(train, args.scale, args, update)
        loss = (model(lr) - hr).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(args.ema, (1 + update) / (10 + update))  # a short memory at first, when the weights move fast
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)

        losses.append(loss.item())
        saving, validating = (
            update % every == 0 or update == args.updates for every in (args.save_every, args.val_every)
        )
        if saving or validating:
            state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            replace(checkpoint, partial(torch.save, state | {"update": update}))
            seconds = (time.perf_counter() - clock) / len(losses)
            row = {"update": update, "loss": sum(losses) / len(losses), "lr": rate, "s_per_update": round(seconds, 3)}
            if validating:
                row |= {"psnr_y": evaluate_and_export(update), "psnr_y_bicubic": bicubic}
            with open(args.out / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            losses, clock = [], time.perf_counter()


if __name__ == "__main__":
    main()
