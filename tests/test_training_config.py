"""The configuration of a training, its command line, and what is refused."""

import re

import pytest
from training_runs import ROOT, small, write_config, write_photos

from hatlib import HatlibError
from hatlib.training import format_config, load_config, main, train
from hatlib.training.config import known_keys


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.milestones": [3, 7]}, r"train.milestones=\[7\] are past the end: the run has train.updates=6"),
        ({"train.milestones": [3, 2]}, "must rise"),
        ({"train.milestones": [3], "train.schedule": "cosine"}, "belong to train.schedule=multistep"),
        ({"train.warmup": 6}, "leaves nothing"),
        ({"train.learning_rate": 1}, "Unknown key 'train.learning_rate'"),
        ({"train.milestone": []}, "Did you mean train.milestones"),
        ({"trian.lr": 1}, "Unknown key 'trian'"),
        ({"train.lr": "fast"}, "train.lr in the configuration: input should be a valid number.*not 'fast'"),
        ({"train.batch": 1.5}, "train.batch in .* not 1.5"),
        ({"train.batch": 0}, "train.batch in .* greater than or equal to 1, not 0"),
        ({"train.precision": "int8"}, "train.precision in .*'fp32', 'bf16' or 'fp16'"),
        ({"data.cache": "perhaps"}, "data.cache in .*boolean"),
    ],
)
def test_bad_configurations(photos, tmp_path, changes, words):
    with pytest.raises(HatlibError, match=words):
        small(photos, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.hr": None}, "Say where the training images are: data.hr=DIR"),
        ({"data.hr": "nowhere"}, "There is no folder 'nowhere'"),
        ({"data.patch": 64}, "smaller than the patch of 128 pixels"),
        ({"val.folders": ["nowhere"]}, "There is no folder 'nowhere'"),
        ({"model.name": "hat_t_x5"}, "Unknown model 'hat_t_x5'. Did you mean"),
        ({"model.args": {"depth": 3}}, "has no option 'depth'"),
        ({"model.init": "nothing.safetensors"}, "no weight file"),
        ({"model.init": "hat_s_x8"}, "no pretrained weights for hat_s_x8"),
        ({"model.init": "hat_t_x4"}, "does not fit HAT as it was configured, beyond its head"),
        ({"model.init": "hat_t_x4", "model.args": {"img_range": 2}}, "is for a network with img_range=1.0, which"),
        ({"model.name": "hat_s_x3", "model.interpolate": True}, "model.interpolate=true is for"),
        ({"log.trackers": ["nonesuch"]}, "nonesuch"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(photos, tmp_path, changes, words):
    with pytest.raises(HatlibError, match=words):
        train(small(photos, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_overrides_and_print_config(tmp_path, capsys):
    assert main(["hat_t_x4", "train.lr=3e-4", "val.folders=[a, b]", "model.args.embed_dim=24", "--print-config"]) == 0
    printed = capsys.readouterr().out
    config = load_config("hat_t_x4", ["train.lr=3e-4", "val.folders=[a, b]", "model.args.embed_dim=24"])
    assert format_config(config) == printed
    assert (config.train.lr, config.val.folders) == (3e-4, ["a", "b"])
    assert config.model.args == {"drop_path_rate": 0.0, "embed_dim": 24}
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert load_config(file) == config


def test_the_documentation_has_every_key():
    page = (ROOT / "docs" / "training.md").read_text()
    assert re.findall(r"^\| `([a-z_.]+)` \| .* \| .+ \|$", page, re.M) == list(known_keys())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hat_t_x5"], "neither a file nor a recipe that ships. Did you mean hat_t_x"),
        (["hat_t_x4", "train.lr"], "section.key=value, not 'train.lr'"),
        (["hat_t_x4", "train.lr=[1"], "can't be read as YAML"),
        (["hat_t_x4", "train.lr.x=1"], "train.lr is a value and holds no 'x'"),
        (["hat_t_x4", "data.worker=2"], "Unknown key 'data.worker' in '.*hat_t_x4.yaml'. Did you mean data.workers"),
    ],
)
def test_usage_errors_are_one_sentence(capsys, args, words):
    assert main(args) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and re.search(words, error)


def test_what_starts_is_told(photos, tmp_path, capsys):
    file = write_config(tmp_path / "config.yaml", photos, tmp_path / "run", recipe_batch=32, **{"train.updates": 3})
    assert main([file]) == 0
    told = capsys.readouterr().out
    assert "hat_t_x2, 13,835 parameters, starting from random weights" in told
    assert "2 patches per update (2 per process x 1 processes x 1 accumulated), 3 updates, 2.0 passes" in told
    assert "made for 32 patches per update, and this run has 2. train.accumulation=16 gives 32." in told
    assert "update 3/3: loss" in told and "s/update" in told and "GiB" in told
    assert main([file, "--resume", "auto"]) == 0  # at its end: saves the model again
    assert "going on from" in capsys.readouterr().out


def test_finetuning_needs_weights(photos, tmp_path, capsys):
    file = write_config(tmp_path / "config.yaml", photos, tmp_path / "run")
    assert main([file], require_init=True) == 1
    assert "model.init=NAME" in capsys.readouterr().err
