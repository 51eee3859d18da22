"""What FSDP2 divides among processes is whole in averages and checkpoints, on two processes of a CPU."""

import pytest
import torch
from timm.utils import ModelEmaV3
from training_runs import TINY, run

import hatlib
from hatlib.training import sharding

SCRIPT = """
import sys, torch
from torch.distributed.fsdp import fully_shard
import hatlib
from hatlib.training import sharding
from test_training_sharding import train_by_hand

torch.distributed.init_process_group("gloo")
def shard(model):
    for block in model.modules():
        if type(block).__name__ in ("HAB", "OCAB"):
            fully_shard(block)
    fully_shard(model)
state = train_by_hand(shard)
if torch.distributed.get_rank() == 0:
    torch.save(state, sys.argv[1])
torch.distributed.destroy_process_group()
"""


def train_by_hand(shard=lambda model: None) -> dict:
    """Two updates, a new model that takes over the state of the first, and two more."""
    torch.manual_seed(0)
    images = [torch.rand(2, 3, 8, 8) for _ in range(4)]
    state: dict = {}
    for part in range(2):
        torch.manual_seed(1)
        model = hatlib.create_model("hat_t_x2", **TINY, drop_path_rate=0.0)
        if state:
            model.load_state_dict(state["model"])
        ema = ModelEmaV3(model, decay=0.9)
        if state:
            ema.module.load_state_dict(state["ema"])
        shard(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        if state:
            sharding.load_optimizer_state(model, optimizer, state["optimizer"])
        for step in range(2):
            optimizer.zero_grad()
            model(images[2 * part + step]).square().mean().backward()
            optimizer.step()
            sharding.update_average(ema, model, 2 * part + step + 1)
        moments = sharding.optimizer_state(model, optimizer)
        state = {"model": sharding.whole_state(model), "ema": ema.module.state_dict(), "optimizer": moments}
    return state


@pytest.mark.slow
def test_sharded_on_two_processes_equals_whole(tmp_path):
    from pathlib import Path

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + SCRIPT
    run(tmp_path, str(tmp_path / "state.pt"), code=code, processes=2)
    expected, sharded = train_by_hand(), torch.load(tmp_path / "state.pt", weights_only=True)
    for kind in ("model", "ema"):
        for name, value in expected[kind].items():
            assert torch.allclose(value, sharded[kind][name], atol=1e-6), (kind, name)
    names = list(expected["model"])
    for number, moments in expected["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.allclose(value, sharded["optimizer"]["state"][names[number]][key].cpu(), atol=1e-6)


def test_whole_models_are_left_alone():
    state = train_by_hand()
    assert all(int(moments["step"]) == 4 for moments in state["optimizer"]["state"].values())
    averaged = state["ema"]["conv_first.weight"]
    assert not torch.equal(averaged, state["model"]["conv_first.weight"]) and torch.isfinite(averaged).all()
