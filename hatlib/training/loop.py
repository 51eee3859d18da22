"""The training loop: one function, read from top to bottom, counted in optimizer updates."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from timm.utils import ModelEmaV3
from torch.nn.functional import l1_loss

from hatlib.data import ImagePairs, TrainingPatches, training_loader
from hatlib.data.files import named_briefly
from hatlib.errors import HatlibError
from hatlib.registry import model_info
from hatlib.training import checkpoint as checkpoints
from hatlib.training.config import Config
from hatlib.training.export import export_model
from hatlib.training.interruption import TrainingStopped, stop_signals
from hatlib.training.schedule import learning_rate
from hatlib.training.start import build_model
from hatlib.training.tracking import Tracker
from hatlib.training.validate import mean_psnr, metrics_of, validate, validation_data

__all__ = ["Outcome", "train"]


@dataclass(frozen=True)
class Outcome:
    """What a training leaves.

    Attributes:
        folder: of the run.
        model: folder of the averaged weights, as `from_pretrained` takes it.
        update: the last one.
        metrics: of these weights, by benchmark.
    """

    folder: Path
    model: Path
    update: int
    metrics: dict[str, dict[str, float]]


def train(config: Config, resume: str | None = None) -> Outcome:
    """Trains a model, from the beginning or from a checkpoint on.

    An update is a step of the optimizer: `train.batch` patches, times the steps that are accumulated, times the
    processes. Draw n of the data is the same whatever the number of processes and workers, so a run that was stopped
    goes on exactly as if it had not been.

    Args:
        config: see `load_config`.
        resume: 'auto' goes on from the newest whole checkpoint if there is one; or the path of a checkpoint.

    Raises:
        HatlibError: If anything in the configuration, the data or the checkpoint is not right, the disk is full, or
            gradients stay not finite.
        TrainingStopped: After SIGINT or SIGTERM, when the state was saved.
    """
    # Where it runs.
    folder, options = config.folder, config.train
    cpu = config.device == "cpu" or not torch.accelerator.is_available()  # or two processes would wait for two GPUs
    precision = {"fp32": "no"}.get(options.precision, options.precision)
    try:
        accelerator = Accelerator(
            cpu=cpu, mixed_precision=precision, log_with=config.log.trackers or None, project_dir=str(folder)
        )
    except (ValueError, ImportError) as error:
        raise HatlibError(f"train.precision={options.precision} is not possible here: {error}") from error
    world, main = accelerator.num_processes, accelerator.is_main_process
    global_batch = options.batch * options.accumulation * world

    # What it learns from.
    scale = _scale(config)
    patches = _training_data(config, scale)
    val = validation_data(config, scale)

    # What it trains.
    set_seed(config.seed)
    model, origin = build_model(config.model)
    if model.upscale != scale:
        raise HatlibError(f"model.args make a network of scale x{model.upscale} of {config.model.name}.")
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
    )
    facts = {
        "parameters of the model": sum(p.numel() for p in model.parameters()),
        "training images": len(patches),
        "patches per update": global_batch,
    }

    # Where it was.
    start, state, found = 0, {}, _find(folder, resume, main)
    if found is not None:
        found, state = found
        checkpoints.check_same(config, facts, state, found)
        start = state["update"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    # A short memory at first, when the weights move fast: after n updates about the last tenth of them.
    ema = ModelEmaV3(model, decay=options.ema, use_warmup=True, warmup_gamma=10, warmup_power=1)
    if state:
        ema.module.load_state_dict(state["ema"])
    if config.model.compile:
        model.compile(backend=config.model.compile_backend)
    loader = training_loader(
        patches,
        options.batch,
        seed=config.seed,
        start=start * global_batch,
        workers=config.data.workers,
        generator=torch.Generator(),  # or the loader would take a number from the generator of dropout
    )
    network = model
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)  # and no scheduler: it would run ahead
    set_seed(config.seed + 1 + accelerator.process_index)  # dropout differs between processes
    if state:
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == world:
            checkpoints.set_random_state(state["random"][accelerator.process_index])
    # Sums since the last line of the log, and what is counted over the whole run.
    running = state.get("running") or {"loss": 0.0, "norm": 0.0, "updates": 0}
    counted = state.get("counted") or {"skipped": 0, "in_a_row": 0, "unreadable": [], "best": None}
    unreadable = set(counted["unreadable"]) | set(patches.pairs.unreadable)

    # What is told.
    tracker = Tracker(
        folder,
        accelerator,
        updates=options.updates,
        batch=global_batch,
        start=start,
        position=state.get("log", 0),
    )
    if config.log.trackers:
        values = checkpoints.flat(config.model_dump(mode="json"))
        accelerator.init_trackers(
            config.name, {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items()}
        )
    tracker.say(_introduction(config, facts, origin, world, patches, found))
    last_saved = found

    def evaluate_now(update: int) -> bool:
        """Validates the averaged weights; whether they are the best so far."""
        rows = {"ema": ema.module} if update else {"ema": ema.module, "bicubic": None}
        result = validate(rows, val, accelerator, config.val.tile)
        metrics = metrics_of(result, "ema")
        psnr = mean_psnr(metrics)
        is_best = counted["best"] is None or psnr > counted["best"]["psnr"]
        if is_best:
            counted["best"] = {"update": update, "psnr": psnr}
        extra = {} if update else {"bicubic": metrics_of(result, "bicubic")}
        tracker.row(update, {"val": metrics, **extra})
        tracker.say(
            f"update {update}: " + "; ".join(f"{d} {m['psnr']:.3f} dB / {m['ssim']:.4f}" for d, m in metrics.items())
        )
        return is_best

    def save(update: int) -> Path:
        """Writes a checkpoint, on the main process; an error is raised on all."""
        counted["unreadable"] = sorted(unreadable.union(*gather_object([unreadable])))
        randoms = gather_object([checkpoints.random_state()])
        outcome: list[Any] = [None]
        if main:
            try:
                path = checkpoints.save_checkpoint(
                    folder,
                    update,
                    {
                        "model": network.state_dict(),
                        "ema": ema.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                        "random": randoms,
                        "draw": update * global_batch,
                        "config": config.model_dump(mode="json"),
                        "facts": facts,
                        "running": running,
                        "counted": counted,
                        "log": tracker.position,
                    },
                )
                checkpoints.prune(folder, config.save.keep, (counted["best"] or {}).get("update"))
                outcome = [str(path)]
            except HatlibError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], HatlibError):
            raise outcome[0]
        return Path(outcome[0])

    try:
        with stop_signals() as signals:
            if val and start == 0:
                evaluate_now(0)
            batches = iter(loader)
            tracker.pause_over()
            model.train()
            for update in range(start + 1, options.updates + 1):
                rate = learning_rate(options, update)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                # Gradients, in as many steps as fit the memory; processes exchange them in the last one.
                optimizer.zero_grad()
                loss = torch.zeros((), device=accelerator.device)
                for step in range(options.accumulation):
                    batch = next(batches)
                    unreadable.update(name for names in batch["unreadable"] for name in names.splitlines())
                    waits = step + 1 < options.accumulation
                    with accelerator.no_sync(model) if waits else contextlib.nullcontext():
                        part = l1_loss(model(batch["lr"]), batch["hr"]) / options.accumulation
                        accelerator.backward(part)
                    loss += part.detach()

                # All processes agree on the loss, on whether to stop, and on whether the gradient can be used.
                norm = accelerator.clip_grad_norm_(model.parameters(), options.clip or math.inf)
                told = torch.stack([loss, norm.to(loss), torch.full_like(loss, len(signals))])
                loss, norm, stop = accelerator.reduce(told, "mean").tolist()
                if math.isfinite(loss) and math.isfinite(norm):
                    optimizer.step()
                    ema.update(network, step=update)
                    counted["in_a_row"] = 0
                    running["loss"] += loss
                    running["norm"] += norm
                    running["updates"] += 1
                else:
                    counted["skipped"] += 1
                    counted["in_a_row"] += 1
                    if accelerator.scaler is not None:  # float16 overflowed: the next one is scaled less
                        accelerator.scaler.update()
                tracker.step(update)

                last = update == options.updates
                if update % config.log.every == 0 or last:
                    unreadable.update(*gather_object([unreadable]))
                    n = max(1, running["updates"])
                    row = {"loss": running["loss"] / n, "lr": rate, "grad_norm": running["norm"] / n}
                    tracker.row(update, {**row, "skipped": counted["skipped"], "unreadable": len(unreadable)})
                    running.update(loss=0.0, norm=0.0, updates=0)
                if counted["in_a_row"] >= options.max_skipped:
                    raise HatlibError(
                        f"The gradient was not finite in {counted['in_a_row']} updates in a row, up to {update}. "
                        + (
                            f"The last good checkpoint is '{last_saved}'"
                            if last_saved
                            else "There is no checkpoint yet"
                        )
                        + "; go on from it with a smaller train.lr, train.clip=1 or train.precision=fp32."
                    )
                best = bool(val) and (update % config.val.every == 0 or last) and evaluate_now(update)
                due = update % config.save.every == 0 or best or last
                if stop or (due and not counted["in_a_row"]):
                    last_saved = save(update)
                tracker.pause_over()
                if stop:
                    raise TrainingStopped(signals[0] if signals else 15)
    finally:
        tracker.close()
    if unreadable:
        tracker.say(
            f"{len(unreadable)} images could not be read and were left out: {named_briefly(sorted(unreadable))}."
        )
    return Outcome(folder, *export_model(config, ema.module, val, accelerator, facts), options.updates)


def _scale(config: Config) -> int:
    """Output size over input size."""
    return config.model.args.get("upscale", model_info(config.model.name).scale)


def _training_data(config: Config, scale: int) -> TrainingPatches:
    data = config.data
    if data.hr is None:
        raise HatlibError("Say where the training images are: data.hr=DIR, and data.lr=DIR if there are LR images too.")
    pairs = ImagePairs(data.hr, data.lr, scale=scale, files=data.files, in_memory=data.cache, skip_unreadable=True)
    return TrainingPatches(
        pairs,
        data.patch,
        seed=config.seed,
        flip=data.flip,
        rotate=data.rotate,
        small=data.small,
        min_std=data.min_std,
        skip_unreadable=True,
    )


def _find(folder: Path, resume: str | None, main: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its content."""
    existing = checkpoints.find_checkpoints(folder)
    if resume is None:
        if existing:
            raise HatlibError(
                f"'{folder}' holds a run that has come to update {checkpoints.update_of(existing[0])}: go on with "
                "--resume auto, or choose another folder with out=..."
            )
        return None
    if resume != "auto":
        return Path(resume), checkpoints.load_checkpoint(Path(resume))
    for path in existing:
        try:
            return path, checkpoints.load_checkpoint(path)
        except HatlibError as error:
            if path == existing[-1]:
                raise
            if main:
                print(f"{error} Taking the one before it.", file=sys.stderr)
    return None


def _introduction(
    config: Config, facts: Mapping[str, Any], origin: str, world: int, patches: TrainingPatches, found: Path | None
) -> str:
    """What is about to happen."""
    train, batch = config.train, facts["patches per update"]
    passes = train.updates * batch / len(patches)
    lines = [
        f"{config.name}: {config.model.name}, {facts['parameters of the model']:,} parameters, "
        + (f"going on from {found}" if found else f"starting from {origin}"),
        f"{len(patches):,} images of {config.data.hr}"
        + (f", {patches.skipped} smaller than a patch left out" if patches.skipped else "")
        + (f", {len(patches.pairs.unreadable)} unreadable left out" if patches.pairs.unreadable else ""),
        f"{batch} patches per update ({train.batch} per process x {world} processes x {train.accumulation} accumulated)"
        f", {train.updates:,} updates, {passes:,.1f} passes through the data",
    ]
    if config.recipe_batch not in (None, batch):
        advice = f"The recipe was made for {config.recipe_batch} patches per update, and this run has {batch}."
        steps, rest = divmod(config.recipe_batch, train.batch * world)
        if steps and not rest:
            advice += f" train.accumulation={steps} gives {config.recipe_batch}."
        lines.append(advice)
    return "\n".join(lines)
