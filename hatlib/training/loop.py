"""The training loop: one function, read from top to bottom, counted in optimizer updates."""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from timm.utils import ModelEmaV3
from torch.nn.functional import l1_loss

from hatlib.data import training_loader
from hatlib.data.files import shorten_names
from hatlib.errors import HatlibError, first_line
from hatlib.evaluation import Candidate
from hatlib.signals import Interrupted, collect_signals
from hatlib.training import checkpointing
from hatlib.training.config import Config
from hatlib.training.data import fingerprint, scale_of, training_patches, validation_data
from hatlib.training.figures import draw_curves, draw_samples
from hatlib.training.final_model import save_final_model
from hatlib.training.initialization import initial_model
from hatlib.training.schedule import learning_rate
from hatlib.training.tracking import LOG, Tracker, introduction
from hatlib.training.validate import mean_psnr, metrics_of, validate

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
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


def train(config: Config, resume: str | None = None) -> TrainResult:
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
        Interrupted: After SIGINT or SIGTERM, when the state was saved.
    """
    # Where it runs.
    folder, options = config.folder, config.train
    cpu = config.device == "cpu" or not torch.accelerator.is_available()  # or two processes would wait for two GPUs
    precision = {"fp32": "no"}.get(options.precision, options.precision)
    trackers = config.log.trackers or None
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=trackers, project_dir=str(folder))
    except (ValueError, ImportError) as error:
        reason = first_line(error)
        raise HatlibError(f"train.precision={options.precision}, log.trackers={trackers}: {reason}.") from error
    world, main = accelerator.num_processes, accelerator.is_main_process
    global_batch = options.batch * options.accumulation * world

    # What it learns from.
    scale = scale_of(config)
    patches = training_patches(config, scale)
    val = validation_data(config, scale)

    # What it trains, from the beginning or from where it was.
    found, state = checkpointing.checkpoint_to_resume(folder, resume)
    start = state.get("update", 0)
    set_seed(config.seed)
    model, origin = initial_model(config.model if found is None else config.model.model_copy(update={"init": None}))
    if model.upscale != scale:
        raise HatlibError(f"model.args make a network of scale x{model.upscale} of {config.model.name}.")
    if (model.in_chans, model.out_chans) != (channels := 1 if config.data.gray else 3,) * 2:
        raise HatlibError(
            f"The model takes {model.in_chans} channels and gives {model.out_chans}; the images have {channels}: set "
            "data.gray, or in_chans and out_chans in model.args."
        )
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
    )
    facts = {
        "parameters of the model": sum(p.numel() for p in model.parameters()),
        "training images": len(patches),
        "names and sizes of the images": fingerprint(patches),
        "patches per update": global_batch,
    }

    if found is not None:
        checkpointing.check_resumable(config, facts, state, found)
        model.load_state_dict(state["model"])
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
    network = model  # without what `prepare` puts around it
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)  # and no scheduler: it would run ahead
    set_seed(config.seed + 1 + accelerator.process_index)  # dropout differs between processes
    if state:
        optimizer.optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == world:
            checkpointing.set_random_state(state["random"][accelerator.process_index])
    # Sums since the last line of the log, and what is counted over the whole run.
    running = state.get("running") or {"loss": 0.0, "norm": 0.0, "updates": 0}
    counted = state.get("counted") or {"skipped": 0, "in_a_row": 0, "unreadable": [], "best": None}
    unreadable = set(counted["unreadable"]) | set(patches.pairs.unreadable)

    # What is told.
    position = state.get("log", 0)
    tracker = Tracker(config, accelerator, batch=global_batch, start=start, position=position)
    tracker.say(introduction(config, facts, origin, world, patches, found))
    last_saved = found

    def evaluate_now(update: int) -> bool:
        """Validates the averaged weights; whether they are the best so far."""
        rows = [Candidate("bicubic"), Candidate("ema", ema.module)]
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
        if main:
            draw_curves(folder / LOG, folder / "curves.png")
            if config.val.samples:
                draw_samples(rows, val, result, config.val.samples, folder / "samples.png")
        return is_best

    def save(update: int) -> Path:
        """Writes a checkpoint, on the main process; an error is raised on all."""
        counted["unreadable"] = sorted(unreadable.union(*gather_object([unreadable])))
        randoms = gather_object([checkpointing.random_state()])
        outcome: list[Any] = [None]
        if main:
            try:
                path = checkpointing.save_checkpoint(
                    folder,
                    update,
                    {
                        "model": network.state_dict(),
                        "ema": ema.module.state_dict(),
                        "optimizer": optimizer.optimizer.state_dict(),
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
                checkpointing.prune(folder, config.save.keep, (counted["best"] or {}).get("update"))
                outcome = [str(path)]
            except HatlibError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], HatlibError):
            raise outcome[0]
        return Path(outcome[0])

    try:
        with collect_signals() as signals:
            if val and start == 0:
                evaluate_now(0)
            batches = iter(loader)
            tracker.exclude_elapsed()
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
                shared = torch.stack([loss, norm.to(loss), torch.full_like(loss, len(signals))])
                loss, norm, stop = accelerator.reduce(shared, "mean").tolist()
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
                    good = f"The last good checkpoint is '{last_saved}'" if last_saved else "There is no checkpoint yet"
                    raise HatlibError(
                        f"Loss or gradient was not finite in {counted['in_a_row']} updates in a row, up to {update}. "
                        f"{good}. Start from its weights with a smaller train.lr, train.clip=1 or train.precision=fp32."
                    )
                best = bool(val) and (update % config.val.every == 0 or last) and evaluate_now(update)
                due = update % config.save.every == 0 or best or last
                if stop or (due and not counted["in_a_row"]):
                    last_saved = save(update)
                tracker.exclude_elapsed()
                if stop:
                    signum = signals[0] if signals else signal.SIGTERM
                    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}")
        if unreadable:
            names = shorten_names(sorted(unreadable))
            tracker.say(f"{len(unreadable)} images could not be read and were left out: {names}.")
        saved, metrics = save_final_model(config, ema.module, val, accelerator, facts)
        return TrainResult(folder, saved, options.updates, metrics)
    finally:
        tracker.close()  # which ends the processes' connection too
