"""Saved models: round trips through hatlib and timm, strictness, cards, and repositories of the Hub."""

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest
import timm
import torch
from conftest import randomize, relative_error, tiny_overrides
from huggingface_hub import HfApi
from servers import COMMITS, hub_handler, serving

import hatlib
from hatlib import HatlibError
from hatlib.hub import PretrainedModel
from hatlib.hub.card import ModelFacts
from hatlib.models import HAT, RestorationModel

TINY = tiny_overrides("hat_x2")


@pytest.fixture
def saved(tmp_path, tiny_hat):
    tiny_hat.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Round trips.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_round_trip(arch, dtype, tmp_path):
    model = randomize(hatlib.create_model(arch, **tiny_overrides(arch))).to(dtype).eval()
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    # Shrunk, an arch is no longer itself: it is built through one of its family and scale, with all arguments.
    assert config["architecture"].endswith(f"_x{model.upscale}") and config["model_type"] == "hatlib"
    for load in (
        lambda: type(model).from_pretrained(tmp_path),
        lambda: RestorationModel.from_pretrained(str(tmp_path)),
        lambda: hatlib.create_model(f"local-dir:{tmp_path}", pretrained=True),
        lambda: timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        lambda: hatlib.load(tmp_path / "model.safetensors"),
    ):
        again = load()
        assert type(again) is type(model) and again.config == model.config
        assert all(torch.equal(v.to(dtype), model.state_dict()[k]) for k, v in again.state_dict().items())
        assert all(v.dtype == torch.float32 for v in again.state_dict().values())
    exact = RestorationModel.from_pretrained(tmp_path, dtype="auto")
    assert all(torch.equal(v, model.state_dict()[k]) and v.dtype == dtype for k, v in exact.state_dict().items())
    assert not exact.training
    if dtype == torch.float32:
        x = torch.rand(1, model.in_chans, 16, 24)
        with torch.inference_mode():
            assert relative_error(exact(x), model(x)) < 1e-6


UNUSUAL = [
    dict(upscale=3, in_chans=1),
    dict(upscale=2, in_chans=4, out_chans=2, conv_scale=0.3, img_range=255.0, mean=(0.1, 0.2, 0.3, 0.4)),
    dict(upscale=16, overlap_ratio=0.25),
    dict(upscale=5, upsampler="pixelshuffledirect"),
    dict(upscale=1, upsampler="", resi_connection="3conv"),
    dict(upscale=4, upsampler="nearest+conv", norm_layer=torch.nn.Identity, patch_norm=False, qk_scale=0.2),
]


@pytest.mark.parametrize("option", UNUSUAL, ids=str)
def test_models_that_no_name_describes(option, tmp_path):
    model = randomize(HAT(**{**TINY, **option})).eval()
    model.save_pretrained(tmp_path)
    x = torch.rand(1, model.in_chans, 16, 24)
    with torch.inference_mode():
        for load in (
            lambda: HAT.from_pretrained(tmp_path),
            lambda: timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(),
        ):
            again = load()
            assert again.config == model.config
            assert relative_error(again(x), model(x)) < 1e-6


def test_config(tiny_hat):
    assert json.loads(json.dumps(tiny_hat.config))["model_args"]["depths"] == [2, 2]
    config = HAT(upscale=2, **{**TINY, "depths": [2, 2]}).config
    assert config["model_args"]["depths"] == (2, 2)
    assert config["model_args"]["norm_layer"] == "torch.nn.LayerNorm"
    assert config["hatlib_class"] == "hatlib.models.hat.HAT" and config["hatlib_version"] == hatlib.__version__
    assert set(config["model_args"]) == set(__import__("inspect").signature(HAT).parameters)
    with pytest.raises(HatlibError, match="norm_layer=.*cannot be written to config.json"):
        _ = HAT(upscale=2, norm_layer=lambda dim: torch.nn.LayerNorm(dim), **TINY).config


def test_a_new_head_is_in_the_config(tiny_hat, tmp_path):
    tiny_hat.reset_upsampler(3, "pixelshuffledirect")
    tiny_hat.save_pretrained(tmp_path)
    again = HAT.from_pretrained(tmp_path)
    assert (again.upscale, again.upsampler) == (3, "pixelshuffledirect")
    assert again.config["architecture"].endswith("_x3")


def test_full_size_names_are_kept(tmp_path):
    with torch.device("meta"):
        assert hatlib.create_model("hat_l_x3", drop_path_rate=0.0).config["architecture"] == "hat_l_x3"
        assert HAT(upscale=4).config["architecture"] == "hat_x4"


def test_other_weights_and_other_processes(tiny_hat, tmp_path):
    average = {name: value + 1 for name, value in tiny_hat.state_dict().items()}
    tiny_hat.save_pretrained(tmp_path / "a", state_dict=average, is_main_process=False)
    assert not (tmp_path / "a").exists()
    tiny_hat.save_pretrained(tmp_path / "a", state_dict=average)
    assert torch.equal(HAT.from_pretrained(tmp_path / "a").norm.bias, tiny_hat.norm.bias + 1)
    del average["norm.bias"]
    with pytest.raises(HatlibError, match="norm.bias"):
        tiny_hat.save_pretrained(tmp_path / "a", state_dict=average)


def test_architecture_without_weights(saved):
    assert not torch.equal(
        hatlib.create_model(f"local-dir:{saved}").conv_first.weight, HAT.from_pretrained(saved).conv_first.weight
    )


def test_dtype_device_and_counts(saved):
    model = HAT.from_pretrained(saved, dtype=torch.bfloat16, device="cpu")
    assert model.conv_first.weight.dtype == torch.bfloat16
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    model.conv_first.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - (12 * 27 + 12)
    model.gradient_checkpointing_enable()
    assert model.layers[0].residual_group.grad_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.layers[0].residual_group.grad_checkpointing


def test_another_scale_has_a_new_head(saved):
    with pytest.warns(UserWarning, match="scale 2: the head for scale 4 is new and untrained"):
        model = HAT.from_pretrained(saved, upscale=4)
    x2 = HAT.from_pretrained(saved)
    assert model.upscale == 4 and model.config["architecture"].endswith("_x4")
    assert torch.equal(model.norm.weight, x2.norm.weight)
    assert not torch.equal(model.conv_last.weight, x2.conv_last.weight)


@pytest.mark.parametrize("safe", [False, True])
def test_directories_that_timm_saved(tmp_path, safe):
    model = timm.create_model("hat_x2", **TINY).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=TINY, safe_serialization=safe)
    again = hatlib.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        assert relative_error(again(x), model(x)) < 1e-6


def test_copies_keep_their_configuration(tiny_hat):
    assert copy.deepcopy(tiny_hat).config == tiny_hat.config == pickle.loads(pickle.dumps(tiny_hat)).config


def test_weight_files(tmp_path, tiny_hat):
    tiny_hat.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    again = HAT.from_pretrained(tmp_path / "model.safetensors")
    assert again.config == tiny_hat.config


# What does not fit.


class Other(RestorationModel):
    def __init__(self, upscale: int = 2, dim: int = 8):
        super().__init__(upscale=upscale, in_chans=3, out_chans=None, img_range=1.0, mean=None, multiple=1)
        self.num_features = self.num_feat = dim
        self.upsampler = "pixelshuffledirect"
        self.conv_first = torch.nn.Conv2d(3, dim, 3, padding=1)
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(dim, dim, 3, padding=1)])
        self.conv_after_body = torch.nn.Identity()
        self.reset_upsampler(upscale)


def test_a_class_that_is_not_registered(tmp_path):
    model = Other(dim=4).eval()
    model.save_pretrained(tmp_path)
    again = Other.from_pretrained(tmp_path)
    x = torch.rand(1, 3, 5, 6)
    assert relative_error(again(x), model(x)) < 1e-6
    with pytest.raises(HatlibError, match="is a test_hub.Other, which no registered arch builds"):
        hatlib.create_model(f"local-dir:{tmp_path}", pretrained=True)
    edit(tmp_path, model_args=dict(dimm=3))
    with pytest.raises(HatlibError, match="dimm"):
        Other.from_pretrained(tmp_path)


def test_the_wrong_class(saved):
    with pytest.raises(HatlibError, match="is a HAT, not a Other; load it with HAT.from_pretrained"):
        Other.from_pretrained(saved)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_keys_that_are_missing_or_too_many(saved, tiny_hat):
    from safetensors.torch import load_file, save_file

    state_dict = load_file(saved / "model.safetensors")
    removed = state_dict.pop("norm.weight")
    save_file(state_dict, saved / "model.safetensors")
    with pytest.raises(HatlibError, match=r"1 keys missing \(norm.weight\)") as error:
        HAT.from_pretrained(saved)
    assert "\n" not in str(error.value)
    partly = HAT.from_pretrained(saved, strict=False)
    assert torch.equal(partly.norm.bias, tiny_hat.norm.bias)
    save_file({**state_dict, "norm.weight": removed, "extra": removed.clone()}, saved / "model.safetensors")
    with pytest.raises(HatlibError, match=r"1 keys not known \(extra\)"):
        hatlib.create_model(f"local-dir:{saved}", pretrained=True)


@pytest.mark.parametrize("change", [lambda b: b[:-100], lambda b: b"\xff" * 100, lambda b: b""])
def test_damaged_weights(saved, change):
    file = saved / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(HatlibError, match=r"model.safetensors' is not a weight file, or it is damaged"):
        HAT.from_pretrained(saved)


def test_missing_files(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(HatlibError, match="no weight file"):
        HAT.from_pretrained(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HatlibError, match="not a saved model: there is no config.json"):
        HAT.from_pretrained(tmp_path / "empty")
    with pytest.raises(HatlibError, match="There is no folder 'nowhere'"):
        hatlib.create_model("local-dir:nowhere", pretrained=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_args=dict(embed_dimm=3)), "no option 'embed_dimm'.*embed_dim"),
        (dict(model_args=[1]), "'model_args'"),
        (dict(architecture="mynet_x2", hatlib_class="mypackage.MyNet"), "Unknown model 'mynet_x2'.*mypackage.MyNet"),
        (dict(model_args=dict(norm_layer="torch.nn.Nonsense")), "no layer 'torch.nn.Nonsense'"),
        (dict(model_args=dict(norm_layer="torch.nn.functional")), "no layer"),
    ],
    ids=str,
)
def test_configurations_that_are_wrong(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(HatlibError, match=message):
        HAT.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"text"'])
def test_no_configuration(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(HatlibError, match="config.json"):
        HAT.from_pretrained(saved)


def test_unwritable_place(tiny_hat, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HatlibError, match="Cannot save to"):
        tiny_hat.save_pretrained(tmp_path / "file")


# The card.

FACTS = ModelFacts(
    training_data="61 photos",
    recipe="5,000 updates",
    metrics={"Set5": {"PSNR": 29.5, "SSIM": 0.84}, "Set14": {"PSNR": 27.1}},
    command="hatlib evaluate out --data Set5",
    license="apache-2.0",
    note="A test.",
)


def test_card(tiny_hat, tmp_path, monkeypatch):
    tiny_hat.save_pretrained(tmp_path, facts=FACTS)
    card = (tmp_path / "README.md").read_text()
    for fact in ("x2", "61 photos", "5,000 updates", "| Set5 | 29.5 | 0.84 |", FACTS.command, "A test.", "chen2023hat"):
        assert fact in card
    metadata = __import__("yaml").safe_load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0" and metadata["pipeline_tag"] == "image-to-image"
    assert str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], scope := {})
    assert scope["restored"].shape == (1, 3, 96, 128)


def test_a_card_of_ones_own_is_kept(tiny_hat, tmp_path):
    card = tmp_path / "README.md"
    tiny_hat.save_pretrained(tmp_path)
    tiny_hat.save_pretrained(tmp_path, facts=FACTS)
    assert "61 photos" in card.read_text(), "nobody has touched it: it is renewed"
    for own in ("# My model\n", card.read_text().replace("A test.", "My words."), card.read_text() + "More.\n"):
        card.write_text(own)
        tiny_hat.save_pretrained(tmp_path)
        assert card.read_text() == own


def test_card_says_where_weights_came_from(tiny_hat, tmp_path):
    tiny_hat.loaded_weights = hatlib.model_info("hat_x4").weights
    tiny_hat.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "HAT_SRx4_ImageNet-pretrain.pth" in card and "XPixelGroup/HAT" in card and "none stated" in card


# The Hub. Its client reads HF_ENDPOINT when it is imported, hence the processes.

CLIENT = """
import sys, json, warnings; warnings.simplefilter("ignore")
import hatlib, torch
from hatlib.models import HAT, RestorationModel
results = []
for call in sys.argv[1:]:
    try:
        model = eval(call)
        results.append(float(model.conv_first.bias[0]))
    except hatlib.HatlibError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def ask(url, cache, *calls, **environment):
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "PYTHONPATH": ":".join(sys.path), **environment}
    command = [sys.executable, "-c", CLIENT, *calls]
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_repositories(tmp_path):
    versions = {}
    for value, revision in ((1.0, "main"), (2.0, "v1")):
        model = HAT(upscale=2, **TINY)
        torch.nn.init.constant_(model.conv_first.bias, value)
        model.save_pretrained(tmp_path / revision)
        versions[revision] = {p.name: p.read_bytes() for p in (tmp_path / revision).iterdir()}
    repositories = {"org/net": versions, "org/bare": {"main": {"README.md": b"text"}}}
    calls = [
        ("HAT.from_pretrained('org/net')", 1.0),
        ("HAT.from_pretrained('org/net', revision='v1')", 2.0),
        ("RestorationModel.from_pretrained('org/net@v1')", 2.0),
        ("hatlib.create_model('hf-hub:org/net', pretrained=True)", 1.0),
        ("hatlib.create_model('hf-hub:org/net@v1', pretrained=True)", 2.0),
        (f"HAT.from_pretrained('org/net', revision={COMMITS['v1']!r})", 2.0),
        ("__import__('timm').create_model('hf-hub:org/net@v1', pretrained=True)", 2.0),
        ("HAT.from_pretrained('org/net', revision='v9')", "has no revision 'v9'"),
        ("HAT.from_pretrained('org/secret')", "private.*hf auth login"),
        ("HAT.from_pretrained('org/nothing')", "no repository 'org/nothing'"),
        ("HAT.from_pretrained('org/bare')", "lacks config.json or model.safetensors"),
        ("HAT.from_pretrained('org/a/b')", "'org/a/b'"),
        ("HAT.from_pretrained('hat_x5')", "Unknown model 'hat_x5'"),
    ]
    with serving(hub_handler(repositories, private=("org/secret",))) as url:
        results = ask(url, tmp_path / "home", *(call for call, _ in calls))
    for (call, expected), result in zip(calls, results, strict=True):
        if isinstance(expected, float):
            assert result == expected, call
        else:
            assert re.search(expected, str(result)) and "\n" not in result, (call, result)
    offline = ask(
        url, tmp_path / "home", "HAT.from_pretrained('org/net')", "HAT.from_pretrained('org/new')", HF_HUB_OFFLINE="1"
    )
    assert offline[0] == 1.0 and "not in the cache" in offline[1]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Records what would be uploaded; the repository has the card `hub['card']`, or none."""
    from huggingface_hub.errors import EntryNotFoundError

    seen = {"card": None}

    def create_repo(self, repo_id, **options):
        seen["created"] = (repo_id, options)
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, **options):
        seen["uploaded"] = (repo_id, options)
        seen["files"] = {p.name: p.read_bytes() for p in folder_path.iterdir()}
        return type("Commit", (), {"commit_url": "https://hub/commit"})

    def download(repo_id, filename, **options):
        if seen["card"] is None:
            raise EntryNotFoundError("none")
        (tmp_path / "card").write_text(seen["card"])
        return str(tmp_path / "card")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr("hatlib.hub.repository.hf_hub_download", download)
    return seen


def test_push(tiny_hat, hub, tmp_path):
    url = tiny_hat.push_to_hub("org/net", private=True, revision="main", commit_message="First", facts=FACTS)
    assert url == "https://hub/commit"
    assert hub["created"] == ("org/net", dict(private=True, exist_ok=True))
    assert hub["uploaded"] == ("org/net", dict(revision="main", commit_message="First"))
    assert sorted(hub["files"]) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert b'"hf-hub:org/net"' in hub["files"]["README.md"]
    (tmp_path / "back").mkdir()
    for name, content in hub["files"].items():
        (tmp_path / "back" / name).write_bytes(content)
    back = HAT.from_pretrained(tmp_path / "back")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), tiny_hat.parameters(), strict=True))


def test_push_keeps_the_card_of_the_repository(tiny_hat, hub):
    hub["card"] = "# My model\n"
    tiny_hat.push_to_hub("org/net")
    assert hub["files"]["README.md"] == b"# My model\n"


def test_push_that_is_refused(tiny_hat, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: (_ for _ in ()).throw(OSError("no route\nto host")))
    with pytest.raises(HatlibError, match="The Hub could not serve 'org/net': no route$"):
        tiny_hat.push_to_hub("org/net")


def test_a_module_of_ones_own_without_our_base(tmp_path):
    """PretrainedModel asks for nothing but a constructor that JSON can hold."""

    class Plain(PretrainedModel):
        def __init__(self, dim: int, *, bias: bool = True, **rest):
            super().__init__()
            self.layer, self.rest = torch.nn.Linear(dim, dim, bias), rest

    model = Plain(3, bias=False, anything="kept")
    model.save_pretrained(tmp_path)
    again = Plain.from_pretrained(tmp_path)
    assert again.rest == {"anything": "kept"} and again.layer.bias is None
    assert relative_error(again.layer.weight, model.layer.weight) == 0
