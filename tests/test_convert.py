"""`hatlib convert`: between checkpoints, .safetensors and saved directories."""

import pytest
import torch
from conftest import randomize, tiny_overrides
from spandrel import ModelLoader

from hatlib.checkpoint import read_state_dict
from hatlib.cli import main
from hatlib.models import HAT

TINY = tiny_overrides("hat_x2")


@pytest.fixture
def model():
    return randomize(HAT(upscale=2, **TINY)).eval()


@pytest.fixture
def checkpoint(tmp_path, model):
    other = {name: 2 * value for name, value in model.state_dict().items()}
    torch.save({"params": other, "params_ema": model.published_state_dict()}, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def same(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.filterwarnings("ignore:.*does not record")
def test_round_trip_through_all_forms(tmp_path, model, checkpoint, capsys):
    steps = ["saved", "a.safetensors", "b.pth", "again", "c.pth"]
    source = checkpoint
    for name in steps:
        assert main(["convert", str(source), str(tmp_path / name)]) == 0
        source = tmp_path / name
    assert capsys.readouterr().out.count(f"hat_x2, {model.num_parameters():,} parameters: ") == len(steps)
    assert same(read_state_dict(source), model.state_dict())
    assert HAT.from_pretrained(tmp_path / "again").config == model.config


@pytest.mark.filterwarnings("ignore:.*does not record")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_layout(tmp_path, model, suffix):
    model.save_pretrained(tmp_path / "saved")
    out = tmp_path / f"out{suffix}"
    assert main(["convert", str(tmp_path / "saved"), str(out), "--layout", "published"]) == 0
    assert "relative_position_index_SA" in read_state_dict(out)
    theirs = ModelLoader().load_from_file(out)
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.allclose(theirs.model.eval()(x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not record")
def test_which_weights_and_which_type(tmp_path, model, checkpoint):
    for flag, factor in (("--ema", 1), ("--no-ema", 2)):
        out = tmp_path / f"out{flag}.safetensors"
        assert main(["convert", str(checkpoint), str(out), flag, "--dtype", "float16"]) == 0
        expected = {name: (factor * value).half() for name, value in model.state_dict().items()}
        assert same(read_state_dict(out), expected)
    # The type stays as it is where none is asked for.
    assert main(["convert", str(tmp_path / "out--ema.safetensors"), str(tmp_path / "half")]) == 0
    assert read_state_dict(tmp_path / "half" / "model.safetensors")["norm.bias"].dtype == torch.float16


@pytest.mark.filterwarnings("ignore:.*does not record")
def test_refusals(tmp_path, model, checkpoint, capsys):
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "text.pth").write_text("not weights at all")
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "foreign.pth")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    cases = [
        (["in.pth", "saved"], "exists; --overwrite"),
        (["in.pth", "in.pth"], "exists; --overwrite"),
        (["in.pth", "new", "--layout", "published"], "name a .pth or .safetensors"),
        (["saved", "x.pth", "--ema"], "leave ema (--ema, --no-ema) out"),
        (["bare.pth", "x.pth", "--ema"], "no averaged weights"),
        (["text.pth", "x.pth"], "damaged"),
        (["nowhere.pth", "x.pth"], "no weight file"),
        (["foreign.pth", "x.pth"], "no architecture"),
        (["in.pth", "no/such/folder/x.pth"], "Cannot write"),
    ]
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for (source, target, *options), message in cases:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *options]) == 1, source
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert main(["convert", str(checkpoint), str(tmp_path / "saved"), "--overwrite"]) == 0
