"""The training loop, its configuration and its data."""

import io
import json
import math
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import tiny_overrides
from training_runs import TINY, run, small, write_config, write_photos

import hatlib
from hatlib import HatlibError
from hatlib.cli import main as cli
from hatlib.data import EndlessSampler, ImagePairs, TrainingPatches
from hatlib.training import checkpointing, learning_rate, load_config, loop, train
from hatlib.training.figures import curves_figure, draw_curves, read_log
from hatlib.training.initialization import initial_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def fresh_accelerator():
    """For another precision than the trainings before, which Accelerate keeps per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


PLAIN = {"model.args": {**TINY, "drop_path_rate": 0.0}}


def weights(folder, update=6, kind="model"):
    return checkpointing.load_checkpoint(folder / f"checkpoint-{update:06d}")[kind]


def largest_difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


# Schedules.


@pytest.mark.parametrize("warmup", [0, 4])
def test_multistep_is_that_of_torch(photos, warmup):
    changes = {"train.milestones": [5, 9, 10], "train.updates": 14, "train.gamma": 0.3, "train.warmup": warmup}
    config = small(photos, photos, **changes).train
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, config.milestones, config.gamma)
    for update in range(1, 15):
        expected = scheduler.get_last_lr()[0] if update > warmup else config.lr * update / warmup
        assert learning_rate(config, update) == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_cosine_is_that_of_torch(photos):
    changes = {"train.schedule": "cosine", "train.updates": 30, "train.warmup": 10, "train.lr_min": 1e-5}
    config = small(photos, photos, **changes).train
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=1e-5)
    assert [learning_rate(config, u) for u in (1, 5, 10)] == pytest.approx([1e-4, 5e-4, 1e-3])
    for update in range(11, 31):
        assert learning_rate(config, update) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_optimizer_gets_the_schedule(photos, tmp_path):
    changes = {"train.milestones": [2, 4], "train.warmup": 2}
    outcome = train(small(photos, tmp_path, **changes))
    rates = [row["lr"] for row in read_log(outcome.folder / "log.jsonl") if "lr" in row]
    assert rates == pytest.approx([5e-4, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


# What an update is.


def test_update_by_hand(photos, tmp_path):
    """Three updates are Adam on the mean L1 loss of the draws, and the average follows."""
    config = small(photos, tmp_path, **PLAIN, **{"train.updates": 3, "train.clip": 0.1})
    train(config)
    torch.manual_seed(0)
    model = hatlib.create_model("hat_t_x2", **config.model.args)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    pairs = ImagePairs(photos, scale=2)
    patches = TrainingPatches(pairs, 8)
    sampler = EndlessSampler(len(pairs))
    for update in range(1, 4):
        batch = [patches[sampler.index(draw), draw] for draw in (2 * update - 2, 2 * update - 1)]
        lr, hr = (torch.stack([sample[key] for sample in batch]) for key in ("lr", "hr"))
        optimizer.zero_grad()
        (model(lr) - hr).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        decay = 1 - 1 / (1 + (update - 1) / 10)
        for name, value in model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    assert largest_difference(model.state_dict(), weights(tmp_path, 3)) < 1e-6
    assert largest_difference(average, weights(tmp_path, 3, "ema")) < 1e-6


def test_accumulation_equals_a_larger_batch(photos, tmp_path):
    train(small(photos, tmp_path / "a", **PLAIN, **{"train.batch": 4}))
    train(small(photos, tmp_path / "b", **PLAIN, **{"train.batch": 1, "train.accumulation": 4}))
    assert largest_difference(weights(tmp_path / "a"), weights(tmp_path / "b")) < 1e-5
    losses = [[row["loss"] for row in read_log(tmp_path / x / "log.jsonl") if "loss" in row] for x in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_equal_a_larger_batch(photos, tmp_path):
    one = small(photos, tmp_path / "one", **PLAIN, **{"train.batch": 4, "val.every": 3})
    train(one)
    file = write_config(tmp_path / "two.yaml", photos, tmp_path / "two", **PLAIN, **{"train.batch": 2, "val.every": 3})
    run(tmp_path, file, processes=2)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    logs = [read_log(tmp_path / folder / "log.jsonl") for folder in ("one", "two")]
    # The same weights give the same mean to the last digit, three images on two processes included.
    assert logs[0][0] == logs[1][0] and logs[0][0]["val"]["photos"]["psnr"] > 10
    for one, two in zip(*logs, strict=True):
        assert one.get("loss", 0) == pytest.approx(two.get("loss", 0), rel=1e-4)


def test_switches_change_nothing(photos, tmp_path):
    train(small(photos, tmp_path / "plain", **PLAIN))
    changes = {"model.grad_checkpointing": True, "model.channels_last": True, "data.cache": True, "data.lr": None}
    train(small(photos, tmp_path / "other", **PLAIN, **changes))
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "other")) < 1e-5


@pytest.mark.slow
def test_compiling_changes_nothing(photos, tmp_path):
    compiled = {"model.compile": True, "model.compile_backend": "eager", "train.updates": 1}
    train(small(photos, tmp_path / "compiled", **PLAIN, **compiled))
    train(small(photos, tmp_path / "eager", **PLAIN, **{"train.updates": 1}))
    assert largest_difference(weights(tmp_path / "eager", 1), weights(tmp_path / "compiled", 1)) < 1e-5


def test_bfloat16(photos, tmp_path, fresh_accelerator):
    train(small(photos, tmp_path / "low", **PLAIN, **{"train.precision": "bf16", "train.updates": 2}))
    low = weights(tmp_path / "low", 2)
    assert all(value.dtype == torch.float32 for value in low.values())
    AcceleratorState._reset_state(reset_partial_state=True)
    train(small(photos, tmp_path / "full", **PLAIN, **{"train.updates": 2}))
    full = weights(tmp_path / "full", 2)
    assert 0 < largest_difference(low, full) <= 4.1e-3  # two updates of Adam in opposite directions


def test_float16_scales_the_loss_down_until_the_gradient_is_finite(photos, tmp_path, monkeypatch, fresh_accelerator):
    class Scaling(loop.Accelerator):  # Accelerate makes a scaler for GPUs alone
        def __init__(self, **options):
            super().__init__(**options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
            self.native_amp = True

    monkeypatch.setattr(loop, "Accelerator", Scaling)
    changes = {"train.precision": "fp16", "save.every": 3, "train.updates": 20}
    config = small(photos, tmp_path / "run", **PLAIN, **changes)
    train(config)
    skipped = [row["skipped"] for row in read_log(config.folder / "log.jsonl") if "loss" in row]
    assert 0 < skipped[-1] < 15 and skipped == sorted(skipped) and skipped[0] == 1
    scaler = weights(config.folder, 20, "scaler")
    assert scaler["scale"] == 2.0 ** (24 - skipped[-1])
    # Stopped while it is being found, the scale goes on from where it was.
    straight = checkpointing.load_checkpoint(config.folder / "checkpoint-000020")
    for path in checkpointing.find_checkpoints(config.folder)[:1]:
        path.rename(config.folder / "away")
    train(config, resume="auto")
    again = checkpointing.load_checkpoint(config.folder / "checkpoint-000020")
    assert again["scaler"] == straight["scaler"] and largest_difference(again["ema"], straight["ema"]) == 0


# What may go wrong.


def test_gradient_that_is_not_finite_is_skipped(photos, tmp_path, monkeypatch):
    real, calls = loop.l1_loss, []

    def broken(output, target):
        calls.append(1)
        return real(output, target) * (math.nan if len(calls) in (2, 3) else 1)

    monkeypatch.setattr(loop, "l1_loss", broken)
    train(small(photos, tmp_path, **{"save.every": 1, "save.keep": 9}))
    assert not (tmp_path / "checkpoint-000002").exists(), "no checkpoint while updates are skipped"
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 2, 2]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())
    steps = {int(state["step"]) for state in weights(tmp_path, 6, "optimizer")["state"].values()}
    assert steps == {4}


def test_too_many_of_them_end_the_run(photos, tmp_path, monkeypatch):
    real, calls = loop.l1_loss, []

    def broken(output, target):
        calls.append(1)
        return real(output, target) * (math.inf if len(calls) > 3 else 1)

    monkeypatch.setattr(loop, "l1_loss", broken)
    config = small(photos, tmp_path, **{"save.every": 3, "train.max_skipped": 4, "train.updates": 20})
    with pytest.raises(HatlibError, match="not finite in 4 updates in a row, up to 7.*'.*checkpoint-000003'"):
        train(config)
    assert [path.name for path in checkpointing.find_checkpoints(tmp_path)] == ["checkpoint-000003"]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path, 3).values())


def test_corrupt_images_are_left_out_counted_and_named(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", count=4)
    (photos / "headless.png").write_bytes(b"no image")
    whole = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(whole[: len(whole) // 2])
    changes = {"train.updates": 4, "train.batch": 4, "data.hr": str(photos), "val.folders": []}
    out = train(small(photos, tmp_path / "run", **changes)).folder
    assert read_log(out / "log.jsonl")[-1]["unreadable"] == 2
    assert "2 images could not be read and were left out: 1.png, headless.png." in capsys.readouterr().out
    # Worked out again, with the image in memory or not, the draws are the same.
    train(small(photos, tmp_path / "again", **changes, **{"data.cache": True}))
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "again" / "log.jsonl").read_bytes()
    for file in photos.glob("?.png"):
        file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(HatlibError, match="No image could be read in 50 tries; the last one was: .*png"):
        train(small(photos, tmp_path / "none", **changes))


# Where it starts.


def test_start_from_saved_weights_of_another_scale(photos, tmp_path):
    torch.manual_seed(1)
    source = hatlib.create_model("hat_t_x2", **TINY)
    source.save_pretrained(tmp_path / "x2")
    config = small(photos, tmp_path / "run", **{"model.name": "hat_t_x4", "model.init": str(tmp_path / "x2")})
    model, origin = initial_model(config.model)
    assert origin == f"{tmp_path / 'x2'}, with new, untrained upsample.2"
    old = source.state_dict()
    new = {name for name, value in model.state_dict().items() if name not in old or not torch.equal(value, old[name])}
    assert new == {"upsample.2.weight", "upsample.2.bias"}


def test_going_on_needs_no_weights_to_start_from(photos, tmp_path):
    torch.manual_seed(1)
    hatlib.create_model("hat_t_x2", **TINY).save_pretrained(tmp_path / "start")
    changes = {"model.init": str(tmp_path / "start"), "save.every": 3}
    config = small(photos, tmp_path / "run", **PLAIN, **changes)
    train(config)
    before = weights(config.folder)
    (config.folder / "checkpoint-000006").rename(config.folder / "away")
    shutil.rmtree(tmp_path / "start")
    train(config, resume="auto")
    assert largest_difference(before, weights(config.folder)) == 0


def test_start_from_weights_by_name(photos, tmp_path):
    config = small(photos, tmp_path, **{"model.name": "hat_t_x4", "model.init": "hat_t_x4", "model.args": {}})
    model, origin = initial_model(config.model)
    assert origin == "hat_t_x4"
    pretrained = hatlib.create_model("hat_t_x4", pretrained=True)
    assert all(torch.equal(value, pretrained.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["hat_t_x2", "hat_t_x4", "swinir_m_x4", "rcan_x4", "edsr_x2"])
def test_start_as_interpolation(name):
    torch.manual_seed(0)
    changes = [f"model.name={name}", f"model.args={json.dumps(tiny_overrides(name))}"]
    config = load_config("hat_t_x4", changes)
    model, origin = initial_model(config.model)
    assert origin == "interpolation"
    ramp = torch.linspace(0.2, 0.8, 24).expand(1, 3, 16, 24)
    scale = model.upscale
    with torch.no_grad():
        out = model.eval()(ramp)
    inner = out[..., 4 * scale : -4 * scale, 4 * scale : -4 * scale]
    positions = (torch.arange(24 * scale) + 0.5) / scale - 0.5  # of the output's pixels among the input's
    expected = (0.2 + 0.6 * positions / 23)[4 * scale : -4 * scale]
    assert (inner - expected).abs().max() < 2e-3


# What it leaves.


def test_model_and_card(photos, tmp_path):
    changes = {"save.half": True, "note": "Made by a test.", "val.samples": 1, "val.every": 3}
    outcome = train(small(photos, tmp_path / "run", **changes))
    model = hatlib.create_model(f"local-dir:{outcome.model}", pretrained=True).eval()
    averaged = weights(outcome.folder, kind="ema")
    assert all(torch.equal(v, averaged[n].half().float()) for n, v in model.state_dict().items())
    card = (outcome.model / "README.md").read_text()
    assert "3 images of 'photos', reduced by MATLAB's bicubic" in card
    assert "small: 6 updates of 2 patches of 8x8 LR pixels" in card and "Made by a test." in card
    command = next(line for line in card.splitlines() if line.startswith("hatlib evaluate"))
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert cli(command.split()[1:]) == 0
    measured = outcome.metrics["photos"]
    assert f"{measured['psnr']:.3f}" in printed.getvalue() and f"| {round(measured['psnr'], 3)} |" in card
    for picture in ("curves.png", "samples.png"):
        assert hatlib.imageio.read_image(outcome.folder / picture).pixels.std() > 5


def test_curves_of_a_short_or_broken_log(tmp_path):
    log = tmp_path / "log.jsonl"
    for text in ("", '{"update": 1, "loss": 0.5}\n', '{"update": 1, "loss": NaN}\n{"upd'):
        log.write_text(text)
        draw_curves(log, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").is_file()
        assert len(curves_figure(read_log(log)).axes) == ("0.5" in text)
        (tmp_path / "curves.png").unlink()
    with pytest.raises(HatlibError, match="none"):
        draw_curves(log, tmp_path / "none" / "curves.png")


def test_curves_show_the_log():
    losses = [900.0, 800.0, *(0.5 - i / 1000 for i in range(298))]
    rows = [{"update": i, "loss": loss} for i, loss in enumerate(losses)]
    rows[5]["loss"] = math.nan
    sets = {"Set5": [28.5, 30.25], "$_a": [math.inf, 26.0]}
    for i, update in enumerate((0, 500)):
        rows.append({"update": update, "val": {name: {"psnr": values[i]} for name, values in sets.items()}})
    rows[-2]["bicubic"] = {"Set5": {"psnr": 28.0}}
    loss, psnr = curves_figure(rows).axes
    assert loss.get_xlabel() == psnr.get_xlabel() == "optimizer updates"
    assert "loss" in loss.get_ylabel() and "PSNR" in psnr.get_ylabel()
    (line,) = loss.lines
    assert line.get_xydata().tolist() == [[i, value] for i, value in enumerate(losses) if i != 5]
    low, high = loss.get_ylim()
    assert low < losses[-1] and 0.49 < high < 1  # without the first two
    first, bicubic, second = psnr.lines
    assert first.get_xydata().tolist() == [[0, 28.5], [500, 30.25]] and second.get_xydata().tolist() == [[500, 26]]
    assert set(bicubic.get_ydata()) == {28.0} and bicubic.get_linewidth() < first.get_linewidth()
    assert bicubic.get_color() == first.get_color() != second.get_color()
    assert psnr.get_ylim()[0] < 26 and psnr.get_ylim()[1] > 30.25
    texts = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (loss, psnr)]
    assert texts == [["loss 0.203"], ["Set5 30.25 (bicubic 28)", "$_a 26"]]


# The data.


@pytest.mark.parametrize("with_lr", [False, True])
def test_patches_from_memory_are_the_same(photos, tmp_path, with_lr):
    lr = None
    if with_lr:
        lr = tmp_path / "lr"
        lr.mkdir()
        for name, small_image, _ in ImagePairs(photos, scale=2):
            hatlib.imageio.write_image(lr / f"{name}.png", hatlib.imageio.Image(small_image.permute(1, 2, 0).numpy()))
    plain, kept = (TrainingPatches(ImagePairs(photos, lr, scale=2, in_memory=m), 8, min_std=30) for m in (False, True))
    for _ in range(2):
        for draw in range(12):
            a, b = plain[draw % 3, draw], kept[draw % 3, draw]
            assert torch.equal(a["lr"], b["lr"]) and torch.equal(a["hr"], b["hr"])
    for file in photos.glob("*.png"):
        file.rename(file.with_suffix(".away"))
    try:
        assert kept[0, 0]["lr"].shape == (3, 8, 8)
    finally:
        for file in photos.glob("*.away"):
            file.rename(file.with_suffix(".png"))


def test_small_images_from_memory_are_the_same(photos):
    plain, kept = (
        TrainingPatches(ImagePairs(photos, scale=2, in_memory=m), 24, small="enlarge") for m in (False, True)
    )
    for draw in range(6):
        assert torch.equal(plain[draw % 3, draw]["lr"], kept[draw % 3, draw]["lr"])


def test_flat_patches_are_drawn_again(tmp_path):
    folder = write_photos(tmp_path / "photos", count=1)
    from PIL import Image

    flat = np.full((40, 40, 3), 90, np.uint8)
    flat[:4, :4] = 200
    Image.fromarray(flat).save(folder / "flat.png")
    patches = TrainingPatches(ImagePairs(folder, scale=2), 8, min_std=12)
    drawn = [patches[1, draw] for draw in range(20)]  # all of the flat image, if it were not for that
    assert min(sample["lr"].mul(255).std((1, 2)).max() for sample in drawn) >= 12
    assert torch.equal(drawn[7]["hr"], patches[1, 7]["hr"])
    assert any(sample["lr"].std() < 0.01 for sample in (TrainingPatches(patches.pairs, 8)[1, d] for d in range(20)))
    Image.fromarray(flat[4:, 4:]).save(folder / "0.png")
    only_flat = TrainingPatches(ImagePairs(folder, scale=2), 8, min_std=200)
    assert only_flat[0, 0]["lr"].shape == (3, 8, 8)  # after ten tries it takes what there is
