"""Published weights: the table, downloads that go wrong, and weights for other channel counts."""

import dataclasses
import hashlib
import subprocess
import sys
import time
from collections import Counter

import pytest
import timm
import torch
from conftest import randomize, relative_error, tiny_overrides
from huggingface_hub import constants
from servers import file_handler, serving
from spandrel.architectures.HAT import HAT as SpandrelHAT
from spandrel.architectures.SwinIR import SwinIR as SpandrelSwinIR

import hatlib
from hatlib import HatlibError
from hatlib.checkpoint import load_weights
from hatlib.hub.download import fetch_weights, weights_folder
from hatlib.models import HAT
from hatlib.networks import Weights

PUBLISHED = hatlib.list_models(pretrained=True)
PUBLISHED = [name for name in PUBLISHED if hatlib.model_info(name).weights.url]
COUNTS = {"hat": 14, "swinir": 5}
TINY = tiny_overrides("hat_x2")


def test_the_table_is_complete():
    weights = [hatlib.model_info(name).weights for name in PUBLISHED]
    assert len(weights) == len({w.sha256 for w in weights}) == len({w.file for w in weights})
    assert Counter(hatlib.model_info(name).family for name in PUBLISHED) == COUNTS
    for name, w in zip(PUBLISHED, weights, strict=True):
        scale = hatlib.model_info(name).scale
        assert name.partition(".")[0].endswith(f"_x{scale}")
        at_mirror = w.url.rpartition("/")[2]
        if name.startswith("hat"):
            assert f"SRx{scale}" in w.file and f"{scale}x" in at_mirror
        else:
            assert f"_x{scale}" in w.file and w.file == at_mirror
        assert len(bytes.fromhex(w.sha256)) == 32
        assert w.url.startswith("https://") and w.origin and w.training_data and w.license
        assert not (w.metrics and "gan" in name)
        assert w.metrics or "gan" in name or name == "swinir_s_x2.div2k"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_default_is_the_best_and_no_gan(scale):
    assert next(iter(hatlib.model_info(f"hat_x{scale}").tags)) == "imagenet_ft_df2k"
    assert hatlib.model_info(f"hat_x{scale}").weights == hatlib.model_info(f"hat_x{scale}.imagenet_ft_df2k").weights
    assert timm.models.get_pretrained_cfg(f"hat_x{scale}").tag == "imagenet_ft_df2k"


def test_published_metrics():
    assert hatlib.model_info("hat_x4").weights.metrics["Urban100"] == 28.37
    assert hatlib.model_info("hat_l_x4").weights.ssim["Set5"] == 0.9083
    assert hatlib.model_info("swinir_m_x2").weights.metrics["Manga109"] == 39.92


# Downloads.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own, and no waiting between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what has arrived is kept in whole chunks
    monkeypatch.delenv("HATLIB_WEIGHTS_URL", raising=False)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: sleep(min(s, 0.01)))
    return tmp_path / "cache" / "hatlib"


CONTENT = bytes(range(256)) * 4096


def weights_at(base, **changes):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    facts = dict(file="w.pth", url=f"{base}/w.pth", sha256=sha256, training_data="", origin="nowhere", license="")
    return Weights(**{**facts, **changes})


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_download_once(cache):
    requests = []
    with serving(file_handler({"w.pth": CONTENT}, requests=requests)) as url:
        path = fetch_weights(weights_at(url))
        assert path.read_bytes() == CONTENT and fetch_weights(weights_at(url)) == path
    assert len(requests) == 1 and files_in(cache) == ["w.pth"]
    assert fetch_weights(weights_at(url)) == path, "the server is gone"


def test_wrong_hash(cache):
    with serving(file_handler({"w.pth": CONTENT[:-1] + b"x"})) as url:
        with pytest.raises(HatlibError, match="w.pth from http.*SHA-256.*checkpoint_path=.*HATLIB_WEIGHTS_URL"):
            fetch_weights(weights_at(url))
    assert files_in(cache) == []


def test_a_file_spoilt_in_the_cache_is_fetched_again(cache):
    with serving(file_handler({"w.pth": CONTENT})) as url:
        fetch_weights(weights_at(url)).write_bytes(CONTENT[:100])
        assert fetch_weights(weights_at(url)).read_bytes() == CONTENT


def test_dropped_and_resumed_within_a_call(cache):
    requests = []
    with serving(file_handler({"w.pth": CONTENT}, drop_after=[300_000, 200_000], requests=requests)) as url:
        assert fetch_weights(weights_at(url)).read_bytes() == CONTENT
    assert [r[1] for r in requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_truncated_for_good_then_resumed_by_the_next_call(cache):
    with serving(file_handler({"w.pth": CONTENT}, drop_after=[500_000] + [0] * 20)) as url:
        with pytest.raises(HatlibError, match="Could not download"):
            fetch_weights(weights_at(url))
    assert files_in(cache) == ["w.pth.incomplete"]
    requests = []
    with serving(file_handler({"w.pth": CONTENT}, requests=requests)) as url:
        assert fetch_weights(weights_at(url)).read_bytes() == CONTENT
    assert requests == [("/w.pth", "bytes=500000-")] and files_in(cache) == ["w.pth"]


@pytest.mark.parametrize("left", [b"of another file", CONTENT, CONTENT + b"too much"], ids=["other", "whole", "longer"])
def test_what_an_earlier_download_left(cache, left):
    with serving(file_handler({"w.pth": CONTENT})) as url:
        weights = weights_at(url)
        weights_folder(weights).mkdir(parents=True)
        (weights_folder(weights) / "w.pth.incomplete").write_bytes(left)
        assert fetch_weights(weights).read_bytes() == CONTENT
    assert files_in(cache) == ["w.pth"]


def test_larger_than_it_may_be(cache):
    with serving(file_handler({"w.pth": CONTENT})) as url:
        with pytest.raises(HatlibError, match="larger than 1000 bytes"):
            fetch_weights(weights_at(url, size=1000))
    assert files_in(cache) == []


def test_404_and_no_server(cache):
    with serving(file_handler({})) as url:
        with pytest.raises(HatlibError, match="the server answered 404.*nowhere.*checkpoint_path="):
            fetch_weights(weights_at(url))
    with pytest.raises(HatlibError, match="Could not download w.pth"):
        fetch_weights(weights_at(url))
    assert files_in(cache) == []


def test_offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HatlibError, match="HF_HUB_OFFLINE is set.*checkpoint_path="):
        fetch_weights(weights_at("http://127.0.0.1:9"))


def test_another_place(cache, monkeypatch):
    with serving(file_handler({"mirror/w.pth": CONTENT})) as url:
        monkeypatch.setenv("HATLIB_WEIGHTS_URL", f"{url}/mirror/")
        assert fetch_weights(weights_at("http://127.0.0.1:9")).read_bytes() == CONTENT


def test_two_processes_at_once(tmp_path):
    requests = []
    code = (
        "import sys; from hatlib.hub.download import fetch_weights; from hatlib.networks import Weights;"
        "print(fetch_weights(Weights(file='w.pth', url=sys.argv[1], sha256=sys.argv[2], training_data='', origin='',"
        " license='')))"
    )
    with serving(file_handler({"w.pth": CONTENT}, requests=requests)) as url:
        command = [sys.executable, "-W", "ignore", "-c", code, f"{url}/w.pth", hashlib.sha256(CONTENT).hexdigest()]
        environment = {"HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        runs = [subprocess.Popen(command, stdout=pipe, text=True, env=environment) for _ in range(2)]
        paths = {run.communicate()[0].strip() for run in runs}
    assert len(paths) == 1 == len(requests) and files_in(tmp_path) == ["w.pth"]


def test_a_packaged_file_is_verified(monkeypatch, tmp_path):
    (tmp_path / "own.safetensors").write_bytes(CONTENT)
    monkeypatch.setattr(Weights, "packaged_path", property(lambda self: str(tmp_path / self.file)))
    assert fetch_weights(weights_at("", **{"file": "own.safetensors", "url": None})) == tmp_path / "own.safetensors"
    for broken in (dict(sha256="0" * 64), dict(file="missing.safetensors")):
        with pytest.raises(HatlibError, match="install hatlib again"):
            fetch_weights(weights_at("", **{"file": "own.safetensors", "url": None, **broken}))


# Each configuration, with a file of the right layout under its name.


def fake_file(path, arch, **config):
    """A published file as BasicSR writes it, with random weights; and what its network gives."""
    info = hatlib.model_info(arch)
    torch.manual_seed(0)
    if info.family == "hat":
        cls, defaults = SpandrelHAT, dict(window_size=16, num_feat=64)
    else:
        cls, defaults = SpandrelSwinIR, dict(window_size=8, upsampler="pixelshuffle")
    theirs = cls(img_size=64, **{"mlp_ratio": 2.0, **defaults, **info.model_args, **config}).eval()
    torch.save({"params_ema" if info.family == "hat" or info.task == "real" else "params": theirs.state_dict()}, path)
    return theirs


@pytest.fixture
def published(tmp_path, cache, monkeypatch):
    """Puts a fake file in the place of a published one; gives spandrel's network."""

    def publish(name, content=None, **config):
        info = hatlib.model_info(name)
        network = fake_file(tmp_path / "fake.pth", info.arch, **config)
        content = (tmp_path / "fake.pth").read_bytes()
        changed = dataclasses.replace(info.weights, sha256=hashlib.sha256(content).hexdigest(), size=None)
        tag = next(tag for tag, weights in info.tags.items() if weights == info.weights)
        registered = hatlib.networks.networks._parts[info.arch]
        changed = dataclasses.replace(
            registered, weights=changed, tags={t: changed if t == tag else w for t, w in registered.tags.items()}
        )
        monkeypatch.setitem(hatlib.networks.networks._parts, info.arch, changed)
        folder = weights_folder(changed.tags[tag])
        folder.mkdir(parents=True)
        (folder / info.weights.file).write_bytes(content)
        return network

    return publish


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_its_layout_loads(name, published):
    theirs = published(name)
    ours = hatlib.create_model(name, pretrained=True)
    assert ours.pretrained_cfg["tag"] == name.partition(".")[2]
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    assert ours.state_dict().keys() == dict(theirs.named_parameters()).keys(), "all but index and mask buffers"


@pytest.mark.parametrize("create", [hatlib.create_model, timm.create_model])
def test_by_name_through_both_libraries(published, create):
    theirs = published("hat_s_x2", **TINY)
    ours = create("hat_s_x2", pretrained=True, **TINY).eval()
    x = torch.rand(1, 3, 24, 16)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-5
    bare = HAT.from_pretrained("hat_s_x2.df2k", **TINY)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), bare.parameters(), strict=True))


def test_a_file_of_another_model_is_refused(published):
    published("hat_s_x2", **TINY)
    for create in (hatlib.create_model, timm.create_model):
        with pytest.raises(HatlibError, match="does not fit HAT as it was configured"):
            create("hat_s_x2", pretrained=True)


# Other channel counts.


def interior(x, border=1):
    return x[..., border:-border, border:-border]


@pytest.mark.parametrize("create", [hatlib.create_model, timm.create_model])
def test_gray_from_color(published, create):
    theirs = published("hat_s_x2", **TINY)
    ours = create("hat_s_x2", pretrained=True, in_chans=1, **TINY).eval()
    assert (ours.in_chans, ours.out_chans) == (1, 1)
    assert ours.mean_values == pytest.approx([sum((0.4488, 0.4371, 0.4040)) / 3])
    x = torch.rand(1, 1, 24, 16)
    with torch.no_grad():
        expected = theirs(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        shallow, mean = theirs.conv_first(x - theirs.mean), ours.mean
        assert relative_error(interior(ours.conv_first(x - mean)), interior(shallow)) < 1e-5
        # The zeros that pad the first convolution stand for each channel's own mean: a small difference at the border.
        assert relative_error(ours(x), expected) < 1e-2


@pytest.fixture
def color(tmp_path):
    """A network whose channels have one mean, so that nothing depends on the border; and its file."""
    model = randomize(HAT(upscale=2, mean=(0.3, 0.3, 0.3), **TINY)).eval()
    model.save_pretrained(tmp_path / "color")
    return model, tmp_path / "color"


@pytest.mark.parametrize(
    "upsampler, upscale", [("pixelshuffle", 2), ("pixelshuffledirect", 3), ("nearest+conv", 2), ("", 1)]
)
def test_gray_is_the_gray_of_color(tmp_path, upsampler, upscale):
    color = randomize(HAT(upscale=upscale, upsampler=upsampler, mean=(0.3,) * 3, img_range=2.0, **TINY)).eval()
    color.save_pretrained(tmp_path)
    gray = HAT.from_pretrained(tmp_path, in_chans=1)
    x = torch.rand(2, 1, 24, 16)
    with torch.no_grad():
        assert relative_error(gray(x), color(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)) < 1e-5


@pytest.mark.parametrize("name", ["swinir_s_x3", "swinir_m_real_x2", "swinir_m_jpeg_color_x1", "rcan_x3", "edsr_m_x4"])
def test_gray_is_the_gray_of_color_in_other_families(name, tmp_path):
    color = randomize(hatlib.create_model(name, mean=(0.3,) * 3, **tiny_overrides(name))).eval()
    color.save_pretrained(tmp_path)
    gray = type(color).from_pretrained(tmp_path, in_chans=1)
    side = 3 * color.multiple
    x = torch.rand(2, 1, side, side + 7)
    with torch.no_grad():
        assert relative_error(gray(x), color(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)) < 1e-5


def test_more_channels(color):
    model, folder = color
    x = torch.rand(1, 1, 24, 16)
    with torch.no_grad():
        expected = model(x.expand(-1, 3, -1, -1))
        for n in (2, 4, 6):
            out = HAT.from_pretrained(folder, in_chans=n)(x.expand(-1, n, -1, -1))
            assert out.shape[1] == n
            assert relative_error(out, expected[:, torch.arange(n) % 3]) < 1e-5


@pytest.mark.parametrize("out_chans", [1, 2, 5])
def test_other_outputs(color, out_chans):
    model, folder = color
    x = torch.rand(1, 3, 24, 16)
    with torch.no_grad():
        expected = model(x)
        expected = expected.mean(1, keepdim=True) if out_chans == 1 else expected[:, torch.arange(out_chans) % 3]
        for load in (
            lambda: HAT.from_pretrained(folder, out_chans=out_chans),
            lambda: timm.create_model(f"local-dir:{folder}", pretrained=True, out_chans=out_chans).eval(),
            lambda: hatlib.load(folder / "model.safetensors", out_chans=out_chans),
        ):
            assert relative_error(load()(x), expected) < 1e-5


def test_color_from_gray(tmp_path):
    gray = randomize(HAT(upscale=2, in_chans=1, mean=(0.4,), **TINY)).eval()
    gray.save_pretrained(tmp_path)
    for create in (hatlib.create_model, timm.create_model):
        color = create(f"local-dir:{tmp_path}", pretrained=True, in_chans=3).eval()
        x = torch.rand(1, 1, 16, 16)
        with torch.no_grad():
            assert relative_error(color(x.expand(-1, 3, -1, -1)), gray(x).expand(-1, 3, -1, -1)) < 1e-5


def test_a_mean_that_is_given_is_kept(color):
    model, folder = color
    gray = HAT.from_pretrained(folder, in_chans=1, mean=(0.5,))
    assert gray.mean_values == (0.5,)
    x = torch.rand(1, 1, 40, 40)
    with torch.no_grad():
        shallow, expected = gray.conv_first(x - 0.5), model.conv_first(x.expand(-1, 3, -1, -1) - 0.3)
    assert relative_error(interior(shallow), interior(expected)) < 1e-5


def test_adapted_models_are_saved_with_their_mean(color, tmp_path):
    gray = HAT.from_pretrained(color[1], in_chans=1)
    gray.save_pretrained(tmp_path / "gray")
    again = HAT.from_pretrained(tmp_path / "gray")
    assert again.config == gray.config and again.mean_values == pytest.approx((0.3,))


def test_a_checkpoint_is_adapted_when_channels_are_asked_for(color, tmp_path):
    torch.save(color[0].state_dict(), tmp_path / "w.pth")
    assert hatlib.create_model("hat_x2", checkpoint_path=tmp_path / "w.pth", in_chans=1, **TINY).in_chans == 1
    with pytest.raises(HatlibError, match="of another shape"):
        load_weights(HAT(upscale=2, in_chans=1, **TINY), tmp_path / "w.pth")
