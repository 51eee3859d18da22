"""PSNR and SSIM against plain numpy loops; means over images and processes."""

import json
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import hatlib.metrics
from hatlib.errors import HatlibError
from hatlib.metrics import exact_mean, functional, lpips, psnr, rgb_to_y, sr_metrics, ssim


def images(*shape, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    preds = target / 255 + noise * torch.randn(shape, generator=generator)
    return preds, target


def reference_planes(preds, target, border, y_channel):
    """The protocol step by step on one image: two arrays (C, h, w), float64 in 8-bit units."""
    planes = []
    for x in (preds.double().numpy(), target.double().numpy() / 255):
        x = np.round(np.clip(x, 0, 1) * 255)
        x = x[:, border : x.shape[1] - border, border : x.shape[2] - border]
        if y_channel and len(x) == 3:
            x = 16 + (65.481 * x[:1] + 128.553 * x[1:2] + 24.966 * x[2:]) / 255
        planes.append(x)
    return planes


def reference_ssim(a, b):
    window = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    window /= window.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, t = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mean_p, mean_t = (window * p).sum(), (window * t).sum()
            var_p, var_t = (window * (p - mean_p) ** 2).sum(), (window * (t - mean_t) ** 2).sum()
            covariance = (window * (p - mean_p) * (t - mean_t)).sum()
            luminance = (2 * mean_p * mean_t + 6.5025) / (mean_p**2 + mean_t**2 + 6.5025)
            values.append(luminance * (2 * covariance + 58.5225) / (var_p + var_t + 58.5225))
    return np.mean(values)


CASES = pytest.mark.parametrize(
    "channels,border,y_channel", [(3, 0, True), (3, 4, True), (3, 2, False), (1, 3, True), (1, 0, False)]
)


@CASES
def test_psnr_equals_formula(channels, border, y_channel):
    preds, target = images(2, channels, 21, 26)
    values = psnr(preds, target, border=border, y_channel=y_channel)
    assert values.shape == (2,)
    for value, p, t in zip(values, preds, target, strict=True):
        a, b = reference_planes(p, t, border, y_channel)
        assert value.item() == pytest.approx(10 * math.log10(255**2 / np.mean((a - b) ** 2)), abs=1e-9)


@CASES
def test_ssim_equals_formula(channels, border, y_channel):
    preds, target = images(2, channels, 21, 26, seed=1)
    values = ssim(preds, target, border=border, y_channel=y_channel)
    assert values.shape == (2,)
    for value, p, t in zip(values, preds, target, strict=True):
        planes = reference_planes(p, t, border, y_channel)
        expected = np.mean([reference_ssim(a, b) for a, b in zip(*planes, strict=True)])
        assert value.item() == pytest.approx(expected, abs=1e-9)


# BasicSR 1.4.2 (metrics/psnr_ssim.py: calculate_psnr, calculate_ssim; opencv 5.0) on the images of `seeded`, its BGR
# arrays with crop_border and test_y_channel as here: size, border, on luma, seed, PSNR, SSIM.
BASICSR = [
    ((32, 40, 3), 4, True, 0, 31.529003294794467, 0.9866142303351912),
    ((33, 47, 3), 3, True, 1, 31.44835026751204, 0.9880064158095272),
    ((31, 29, 3), 2, False, 2, 26.798111962227523, 0.9873306782814205),
    ((24, 25, 1), 2, False, 3, 27.112105944660275, 0.98793166906169),
    ((11, 11, 3), 0, True, 4, 32.56267853495373, 0.9926414172537199),
    ((15, 13, 3), 1, True, 5, 31.528419871440356, 0.9891592064064052),
]


def seeded(size, seed):
    """A random image and a noisier one, uint8."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 256, size, dtype=np.uint8)
    preds = np.clip(target + rng.integers(-20, 21, size), 0, 255).astype(np.uint8)
    return [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (preds, target)]


@pytest.mark.parametrize("size, border, y_channel, seed, expected_psnr, expected_ssim", BASICSR)
def test_equal_to_basicsr(size, border, y_channel, seed, expected_psnr, expected_ssim):
    pair = seeded(size, seed)
    assert psnr(*pair, border=border, y_channel=y_channel).item() == pytest.approx(expected_psnr, abs=1e-5)
    assert ssim(*pair, border=border, y_channel=y_channel).item() == pytest.approx(expected_ssim, abs=1e-6)


def test_equal_images():
    _, target = images(1, 3, 12, 12)
    assert psnr(target, target).item() == math.inf
    assert ssim(target, target).item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(psnr(target / 255, target), psnr(target, target))


def test_quantize():
    target = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    preds = torch.full((1, 1, 8, 8), 100.4 / 255)
    assert psnr(preds, target).item() == math.inf
    assert psnr(preds, target, quantize=False).item() == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    assert psnr(torch.full_like(preds, 1.7), torch.full_like(target, 255)).item() == math.inf


def test_luma_range():
    black_white = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
    assert rgb_to_y(black_white).flatten().tolist() == pytest.approx([16, 235])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input(metric):
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(HatlibError, match="equal shape"):
        metric(x, x[..., :-1])
    with pytest.raises(HatlibError, match="equal shape"):
        metric(x[0], x[0])
    with pytest.raises(HatlibError, match="leaves nothing"):
        metric(x, x, border=8)


def test_ssim_needs_a_window():
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(HatlibError, match="11x11"):
        ssim(x, x, border=3)


@pytest.mark.parametrize("name, function", [("PSNR", psnr), ("SSIM", ssim)])
def test_class_is_the_exact_mean_of_the_function(name, function):
    metric = getattr(hatlib.metrics, name)(border=2, y_channel=False)
    batches = [images(n, 3, 20, 24, seed=n) for n in (3, 1, 2)]
    values = []
    for preds, target in batches:
        batch = function(preds, target, border=2, y_channel=False)
        assert metric(preds, target).item() == exact_mean(batch.tolist())
        values += batch.tolist()
    expected = math.fsum(values) / 6
    assert metric.compute().item() == expected
    metric.reset()
    for preds, target in reversed(batches):
        metric.update(preds.flip(0), target.flip(0))
    assert metric.compute().item() == expected
    metric.reset()
    with pytest.raises(HatlibError, match=f"{name} has seen no images"):
        metric.compute()


def test_sr_metrics():
    preds, target = images(2, 3, 24, 26)
    found = sr_metrics(4)(preds, target)
    assert found["psnr"].item() == exact_mean(psnr(preds, target, border=4).tolist())
    assert found["ssim"].item() == exact_mean(ssim(preds, target, border=4).tolist())
    assert sr_metrics(1)(preds, target)["psnr"].item() == exact_mean(psnr(preds, target).tolist())
    both = sr_metrics(2)
    both.update(target, target)  # equal states of the first update must not merge the two
    both.update(preds, target)
    assert both.compute()["psnr"].item() == math.inf and both.compute()["ssim"].item() < 1


def on_two_processes(rank, folder):
    """Three images on one process, two on the other, and a metric that only one of them fed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preds, target = images(5, 3, 20, 24, seed=8)
    metrics = sr_metrics(2)
    for i in range(rank, 5, 2):
        metrics.update(preds[i : i + 1], target[i : i + 1])
    lonely = hatlib.metrics.PSNR()
    if rank == 0:
        lonely.update(preds, target)
    values = [*metrics.compute().values(), lonely.compute()]
    (folder / f"{rank}.json").write_text(json.dumps([value.item() for value in values]))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_mean_of_one(tmp_path):
    torch.multiprocessing.start_processes(on_two_processes, (tmp_path,), nprocs=2, start_method="spawn")
    preds, target = images(5, 3, 20, 24, seed=8)
    functions = (partial(psnr, border=2), partial(ssim, border=2), psnr)
    expected = [math.fsum(function(preds, target).tolist()) / 5 for function in functions]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected, expected]


def untrained(monkeypatch):
    """torchvision's networks without the download."""
    from torchmetrics.functional.image import lpips as module

    original = module._get_tv_model_features
    monkeypatch.setattr(module, "_get_tv_model_features", lambda net, pretrained=False: original(net, False))
    functional._lpips_network.cache_clear()


def test_lpips_equals_torchmetrics(monkeypatch):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    untrained(monkeypatch)
    preds, target = images(2, 3, 48, 40)
    torch.manual_seed(0)
    values = lpips(preds, target, border=4)
    rounded = preds.clamp(0, 1).mul(255).round() / 255
    inner = [x[..., 4:-4, 4:-4] for x in (rounded, target / 255)]
    torch.manual_seed(0)
    expected = learned_perceptual_image_patch_similarity(*inner, net_type="alex", normalize=True)
    assert values.shape == (2,) and values.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    metric = hatlib.metrics.LPIPS(border=4)
    assert metric(preds, target).item() == pytest.approx(expected.item(), rel=1e-5)
    assert lpips(target, target).abs().max() == 0
    functional._lpips_network.cache_clear()


def test_lpips_says_what_is_missing(monkeypatch):
    def offline(net, pretrained=False):
        raise OSError("no route to host")

    from torchmetrics.functional.image import lpips as module

    functional._lpips_network.cache_clear()
    monkeypatch.setattr(module, "_get_tv_model_features", offline)
    x = torch.rand(1, 3, 40, 40)
    with pytest.raises(HatlibError, match="can't be downloaded .no route to host.; .* put the file into .*checkpoints"):
        lpips(x, x)
    with pytest.raises(HatlibError, match="'alex', 'vgg' and 'squeeze', not 'resnet'"):
        lpips(x, x, net="resnet")
    with pytest.raises(HatlibError, match="RGB images of at least 32x32"):
        lpips(x[..., :20], x[..., :20])


def test_torchmetrics_waits_for_its_classes():
    code = "import sys, hatlib.metrics; print('torchmetrics' in sys.modules, hasattr(hatlib.metrics, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert all(hasattr(hatlib.metrics, name) for name in hatlib.metrics.__all__)
