"""A training that was stopped, killed or out of disk goes on as if nothing had been."""

import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_runs import KILLED, ROOT, differences, run, small, write_config, write_photos

from hatlib import HatlibError
from hatlib.signals import Interrupted
from hatlib.training import checkpointing, loop, train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many as the trainings in processes of their own have: another number sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def straight(photos, tmp_path_factory):
    """Folder of a run of 6 updates that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(small(photos, folder))
    return folder


@pytest.fixture
def stopped(straight, tmp_path):
    """A copy of it."""
    return shutil.copytree(straight, tmp_path / "stopped")


EXACT = {
    "train.updates": 60,
    "save.every": 20,
    "save.keep": 10,
    "val.every": 20,
    "log.every": 7,
    "train.clip": 1.0,
}


def test_killed_twice_equals_straight(photos, tmp_path, monkeypatch):
    train(small(photos, tmp_path / "straight", **EXACT))
    out = tmp_path / "killed"
    args = (write_config(tmp_path / "config.yaml", photos, out, **EXACT), "--resume", "auto")
    assert run(tmp_path, "27", "-", *args, code=KILLED, check=False).returncode == -signal.SIGKILL
    assert run(tmp_path, "40", "writing", *args, code=KILLED, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in checkpointing.find_checkpoints(out)] == ["checkpoint-000020"]
    assert list((out / "checkpoint-000040").glob(".hatlib-*.part")), "a half-written checkpoint should be there"

    # A crash of another kind, and the rest.
    config = small(photos, out, **EXACT)
    rate = loop.learning_rate

    def crash(section, update):
        if update == 51:
            raise RuntimeError("on purpose")
        return rate(section, update)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="on purpose"):
        patched.setattr(loop, "learning_rate", crash)
        train(config, resume="auto")
    train(config, resume="auto")
    assert not list(out.glob(".checkpoint-*.part"))
    last = "checkpoint-000060"
    assert differences(tmp_path / "straight" / last, out / last) == []
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()
    assert (out / "log.jsonl").read_text().count("\n") == 1 + 9 + 3


@pytest.mark.slow
def test_killed_twice_on_two_processes_equals_straight(photos, tmp_path):
    run(tmp_path, write_config(tmp_path / "straight.yaml", photos, tmp_path / "straight", **EXACT), processes=2)
    out = tmp_path / "killed"
    args = (write_config(tmp_path / "killed.yaml", photos, out, **EXACT), "--resume", "auto")
    assert run(tmp_path, "27", "-", *args, code=KILLED, processes=2, check=False).returncode
    assert [path.name for path in checkpointing.find_checkpoints(out)] == ["checkpoint-000020"]
    assert run(tmp_path, "45", "-", *args, "data.workers=2", code=KILLED, processes=2, check=False).returncode
    run(tmp_path, *args, "data.workers=1", processes=2)
    assert differences(tmp_path / "straight" / "checkpoint-000060", out / "checkpoint-000060") == []
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_resumed_with_other_workers_equals_straight(photos, tmp_path):
    train(small(photos, tmp_path / "straight", **EXACT))
    out = tmp_path / "killed"
    args = (write_config(tmp_path / "killed.yaml", photos, out, **EXACT), "--resume", "auto")
    workers = "data.workers=3"
    assert run(tmp_path, "27", "-", *args, workers, code=KILLED, check=False).returncode == -signal.SIGKILL
    run(tmp_path, *args, "data.cache=true")
    assert differences(tmp_path / "straight" / "checkpoint-000060", out / "checkpoint-000060") == []
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_workers_end_with_a_killed_training(photos, tmp_path):
    config = write_config(tmp_path / "config.yaml", photos, tmp_path / "run", **{"data.workers": 2})
    # The pipe of its output stays open as long as any of its workers lives, and `run` waits for its end.
    assert run(tmp_path, "4", "-", config, code=KILLED, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_goes_on(straight, photos, tmp_path, monkeypatch, signum):
    rate = loop.learning_rate

    def stop(section, update):
        if update == 3:
            os.kill(os.getpid(), signum)
        return rate(section, update)

    config = small(photos, tmp_path / "stopped")
    with monkeypatch.context() as patched, pytest.raises(Interrupted) as stopped:
        patched.setattr(loop, "learning_rate", stop)
        train(config)
    assert stopped.value.signum == signum
    assert [path.name for path in checkpointing.find_checkpoints(config.folder)] == ["checkpoint-000003"]
    train(config, resume="auto")
    assert differences(straight / "checkpoint-000006", config.folder / "checkpoint-000006") == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals between processes")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_exit_codes_with_workers(photos, tmp_path, signum, code):
    changes = {"train.updates": 100_000, "data.workers": 2}
    config = write_config(tmp_path / "config.yaml", photos, tmp_path / "run", **changes)
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), config]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True, start_new_session=True)
    while not (tmp_path / "run" / "timing.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signum)  # as a terminal does: to the workers too
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "--resume auto" in error and "Traceback" not in error
    assert checkpointing.find_checkpoints(tmp_path / "run")


def test_full_disk_keeps_the_last_one(straight, photos, tmp_path, monkeypatch):
    class Full(io.RawIOBase):
        written = 0

        def writable(self):
            return True

        def write(self, data):
            if Full.written > 10_000:
                raise OSError(28, "No space left on device")
            Full.written += len(data)
            return len(data)

    config = small(photos, tmp_path / "run", **{"save.every": 2})
    opened = pathlib.Path.open

    def open_full(path, mode="r", *args, **kwargs):
        full = path.suffix == ".part" and mode == "wb" and "000004" in path.parent.name
        return Full() if full else opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(HatlibError) as error:
        patched.setattr(pathlib.Path, "open", open_full)
        train(config)
    assert "No space left on device" in str(error.value)
    assert f"the last one is '{config.folder / 'checkpoint-000002'}'" in str(error.value)
    assert [path.name for path in checkpointing.find_checkpoints(config.folder)] == ["checkpoint-000002"]
    assert not list(config.folder.rglob("*.part")) and not (config.folder / "checkpoint-000004").exists()
    train(config, resume="auto")
    assert differences(straight / "checkpoint-000006", config.folder / "checkpoint-000006") == []


def test_damaged_checkpoint_gives_way_to_the_one_before(photos, tmp_path):
    config = small(photos, tmp_path / "run", **{"save.every": 2, "save.keep": 3})
    train(config)
    newest, middle, _ = checkpointing.find_checkpoints(config.folder)
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="damaged.*Taking the one before it"):
        assert checkpointing.checkpoint_to_resume(config.folder, "auto")[0] == middle
    with pytest.raises(HatlibError, match="damaged"):
        train(config, resume=str(newest))


def test_last_and_best_are_kept(photos, tmp_path, monkeypatch):
    psnr = iter([20.0, 21.0, 25.0, 24.0, 23.0, 22.0, 22.5])
    monkeypatch.setattr(loop, "mean_psnr", lambda metrics: next(psnr))
    config = small(photos, tmp_path / "run", **{"save.every": 3, "save.keep": 1, "val.every": 1})
    train(config)
    # Update 0 has no checkpoint; 1 and 2 were better than all before, and 2 stayed so.
    assert [path.name[-1] for path in checkpointing.find_checkpoints(config.folder)] == ["6", "2"]
    assert checkpointing.load_checkpoint(config.folder / "checkpoint-000006")["counted"]["best"]["update"] == 2


def test_folder_in_use_is_refused(stopped, photos, tmp_path):
    config = small(photos, stopped)
    with pytest.raises(HatlibError, match="has come to update 6: go on with --resume auto, or choose another"):
        train(config)
    with pytest.raises(HatlibError, match="is no checkpoint"):
        train(config, resume=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.args": {"embed_dim": 24}}, "model.args was"),
        ({"model.name": "hat_t_x4"}, "model.name was 'hat_t_x2' and is 'hat_t_x4'"),
        ({"train.batch": 3}, "patches per update was 2 and is 3"),
        ({"train.lr": 2e-3}, "train.lr was 0.001 and is 0.002"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"train.schedule": "cosine"}, "train.schedule was 'multistep' and is 'cosine'"),
    ],
)
def test_another_training_is_refused(stopped, photos, changes, words):
    with pytest.raises(HatlibError, match=words):
        train(small(photos, stopped, **changes), resume="auto")


def test_other_data_is_refused(stopped, tmp_path):
    more = write_photos(tmp_path / "more", count=4)
    with pytest.raises(HatlibError, match="training images was 3 and is 4"):
        train(small(more, stopped), resume="auto")
    with pytest.raises(HatlibError, match="names and sizes of the images was .* and is"):
        train(small(write_photos(tmp_path / "other", side=44), stopped), resume="auto")


def test_what_changes_nothing_may_change(stopped, photos, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "moved")
    changes = {"train.updates": 8, "save.every": 2, "val.folders": [], "train.batch": 1, "train.accumulation": 2}
    assert train(small(moved, stopped, **changes), resume="auto").update == 8


def test_checkpoint_holds_what_it_says(stopped):
    state = checkpointing.load_checkpoint(stopped / "checkpoint-000006")
    assert state["draw"] == 12 and state["log"] == (stopped / "log.jsonl").stat().st_size
    assert {"model", "ema", "optimizer", "scaler", "random", "config", "facts"} <= state.keys()
    torch.manual_seed(5)
    before = checkpointing.random_state()
    values = torch.rand(3)
    checkpointing.set_random_state(before)
    assert torch.equal(torch.rand(3), values)
