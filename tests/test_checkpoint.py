"""Weight files in every published wrapping, and files that must be refused."""

import os
import pickle

import pytest
import torch
from conftest import relative_error, tiny_overrides
from safetensors.torch import save_file
from spandrel.architectures.HAT import HAT as SpandrelHAT

import hatlib
from hatlib import HatlibError
from hatlib.checkpoint import read_state_dict

TINY = tiny_overrides("hat_x2")


@pytest.fixture(scope="module")
def published():
    """A state dict as BasicSR writes it, index buffers and all, and what its network gives."""
    torch.manual_seed(0)
    model = SpandrelHAT(img_size=64, upscale=2, mlp_ratio=2.0, **TINY).eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        return model.state_dict(), x, model(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"params_ema": sd, "params": {k: v * 0 for k, v in sd.items()}},
        lambda sd: {"params": sd},
        lambda sd: {"state_dict": {f"module.{k}": v for k, v in sd.items()}, "epoch": 3},
        lambda sd: {f"module._orig_mod.{k}": v for k, v in sd.items()},
    ],
    ids=["bare", "params_ema", "params", "state_dict, DataParallel", "DataParallel, compiled"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoint_path_takes_published_files(tmp_path, published, wrap, suffix):
    state_dict, x, expected = published
    file = tmp_path / f"weights{suffix}"
    wrapped = wrap(state_dict)
    if suffix == ".pth":
        torch.save(wrapped, file)
    elif all(isinstance(v, torch.Tensor) for v in wrapped.values()):
        save_file(wrapped, file)
    else:
        pytest.skip("a .safetensors file holds tensors alone")
    model = hatlib.create_model("hat_x2", checkpoint_path=file, **TINY).eval()
    with torch.inference_mode():
        assert relative_error(model(x), expected) < 1e-5


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must never run > executed",)


def test_a_pickle_with_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, protocol in (("torch.pth", None), ("plain.pth", 2)):
        if protocol is None:
            torch.save({"params": Malicious()}, name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(Malicious(), protocol))
        with pytest.raises(HatlibError, match="could run code"):
            read_state_dict(name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"<html>", b"\x80\x02garbage", b"PK\x03\x04 half a zip", b"\xff" * 64]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, content, suffix):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(HatlibError, match="is not a weight file, or it is damaged"):
        read_state_dict(file)


def test_truncated_files_are_refused(tmp_path, published):
    for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
        file = tmp_path / f"weights{suffix}"
        save(published[0], file)
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(HatlibError, match="or it is damaged"):
            read_state_dict(file)


def test_missing_file():
    with pytest.raises(HatlibError, match="There is no weight file 'nowhere.pth'"):
        hatlib.create_model("hat_x2", checkpoint_path="nowhere.pth", **TINY)


@pytest.mark.parametrize("content", [{"params": {}}, {"epoch": 3}, [1, 2], {"weights": {"a": {"b": torch.zeros(1)}}}])
def test_no_weights_in_it(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(HatlibError, match="no state dict|no weights"):
        read_state_dict(tmp_path / "x.pth")


def test_foreign_checkpoint_leaves_the_model_alone(tmp_path, published):
    file = tmp_path / "foreign.pth"
    torch.save({"params": {"body.0.weight": torch.zeros(3), "conv_first.weight": torch.zeros(7, 3, 3, 3)}}, file)
    with pytest.raises(HatlibError) as error:
        hatlib.create_model("hat_x2", checkpoint_path=file, **TINY)
    for part in ("does not fit HAT", "keys missing (", "1 keys not known (body.0.weight)", "1 keys of another shape"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
