"""Data sets: matching and its errors, patches as functions of (seed, draw), the kept index, extraction and checks."""

import itertools
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from hatlib.cli import main
from hatlib.data import (
    EndlessSampler,
    ImagePairs,
    TrainingPatches,
    benchmark_folders,
    files,
    imresize,
    index_images,
    training_loader,
)
from hatlib.data.checks import check_dataset
from hatlib.data.patches import extract_patches, patch_starts
from hatlib.errors import HatlibError
from hatlib.imageio import read_image


def save(path, h=24, w=20, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, h // 4 + 1, w // 4 + 1), np.uint8)
    smooth = imresize(torch.from_numpy(coarse), size=(h, w)).permute(1, 2, 0).numpy()
    PILImage.fromarray(smooth).convert(mode).save(path)
    return path


def shrunk(path, target, scale):
    hr = torch.from_numpy(np.array(PILImage.open(path).convert("RGB"))).permute(2, 0, 1)
    hr = hr[:, : hr.shape[1] // scale * scale, : hr.shape[2] // scale * scale]
    target.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(imresize(hr, 1 / scale).permute(1, 2, 0).numpy()).save(target)


@pytest.fixture
def benchmark(tmp_path):
    """Set/HR with three images, one in a sub-folder and none a multiple of the scale, and Set/LR_bicubic/X2."""
    for i, name in enumerate(["a", "b", "sub/c"]):
        hr = save(tmp_path / "Set" / "HR" / f"{name}.png", 25 + 4 * i, 21 + 2 * i, seed=i)
        shrunk(hr, tmp_path / "Set" / "LR_bicubic" / "X2" / f"{name}x2.png", 2)
    return tmp_path / "Set"


def test_pairs_of_a_benchmark(benchmark):
    hr, lr = benchmark_folders(benchmark, 2)
    paired, made = ImagePairs(hr, lr, scale=2), ImagePairs(hr, scale=2)
    assert [pair.name for pair in paired] == ["a", "b", "sub/c"] and len(paired) == 3
    for pair, other in zip(paired, made, strict=True):
        assert torch.equal(pair.lr, other.lr) and torch.equal(pair.hr, other.hr)
        assert pair.hr.dtype == torch.uint8 and [2 * n for n in pair.lr.shape[1:]] == list(pair.hr.shape[1:])
    assert benchmark_folders(benchmark, 3) == (benchmark / "HR", None)
    assert benchmark_folders(benchmark / "HR", 2) == (benchmark / "HR", None)


@pytest.mark.parametrize("pattern", ["{}.jpg", "{}_x2.png", "{}X2.bmp", "{}-x2.png"])
def test_names_that_match(tmp_path, pattern):
    for name in ("one", "two"):
        save(tmp_path / "hr" / f"{name}.png", 8, 12)
        save(tmp_path / "lr" / pattern.format(name), 4, 6)
    assert [pair.name for pair in ImagePairs(tmp_path / "hr", tmp_path / "lr", scale=2)] == ["one", "two"]


def test_list_of_files(benchmark):
    hr, lr = benchmark_folders(benchmark, 2)
    (benchmark / "list.txt").write_text("# the second\nb.png  # and a comment\n\nsub/c.png\n")
    for chosen in (benchmark / "list.txt", ["b.png", "sub/c.png"]):
        assert [pair.name for pair in ImagePairs(hr, lr, scale=2, files=chosen)] == ["b", "sub/c"]
    with pytest.raises(HatlibError, match="2 listed files are not in .*: x.png, y.png"):
        ImagePairs(hr, scale=2, files=["x.png", "b.png", "y.png"])
    with pytest.raises(HatlibError, match="list of files"):
        ImagePairs(hr, scale=2, files=benchmark / "none.txt")


def test_gray_is_repeated_and_opaque_alpha_dropped(tmp_path):
    save(tmp_path / "gray.png", mode="L")
    save(tmp_path / "opaque.png", mode="RGBA")
    gray, opaque = ImagePairs(tmp_path, scale=2)
    assert gray.hr.shape == opaque.hr.shape == (3, 24, 20)
    assert torch.equal(gray.hr[0], gray.hr[2]) and not torch.equal(opaque.hr[0], opaque.hr[2])


def break_gap(root):
    (root / "LR_bicubic/X2/bx2.png").unlink()
    return "1 of 3 images .* have no partner .*: b.png"


def break_scale_of_names(root):
    for file in list((root / "LR_bicubic/X2").rglob("*.png")):
        file.rename(file.with_name(file.name.replace("x2", "x3")))
    return "3 of 3 images .* end in x3: is x2 the scale"


def break_extra(root):
    save(root / "LR_bicubic/X2/zx2.png")
    return "1 of 4 images .* belong to no image .*: zx2.png"


def break_size(root):
    save(root / "LR_bicubic/X2/ax2.png", 13, 10)
    return "not 1/2 of those .* is x2 the scale.* ax2.png is 10x13 where a.png of 21x25 wants 10x12"


def break_twice(root):
    save(root / "LR_bicubic/X2/a.jpg", 12, 10)
    return "several partners .* a.png has a.jpg, ax2.png"


def break_head(root):
    (root / "HR/b.png").write_text("no picture")
    return "1 images of .* can't be read: b.png"


def break_empty(root):
    for file in list((root / "LR_bicubic/X2").rglob("*.png")):
        file.unlink()
    return "holds no images"


def break_small(root):
    save(root / "HR/b.png", 1, 9)
    return "1 images .* smaller than the scale x2: b.png"


@pytest.mark.parametrize(
    "damage",
    [break_gap, break_scale_of_names, break_extra, break_size, break_twice, break_head, break_empty, break_small],
)
def test_damage_is_named(benchmark, damage):
    message = damage(benchmark)
    with pytest.raises(HatlibError, match=message):
        ImagePairs(benchmark / "HR", benchmark / "LR_bicubic/X2", scale=2)
    # The check goes on to the end and says the same.
    _, problems = check_dataset(benchmark / "HR", benchmark / "LR_bicubic/X2", 2) if damage != break_empty else (0, [])
    assert damage == break_empty or problems


def test_images_that_data_sets_do_not_take(tmp_path):
    transparent = np.full((8, 8, 4), 100, np.uint8)
    PILImage.fromarray(transparent).save(tmp_path / "clear.png")
    with pytest.raises(HatlibError, match="clear.png' is partly transparent"):
        ImagePairs(tmp_path, scale=2)[0]
    PILImage.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "clear.png")
    with pytest.raises(HatlibError, match="16 bits"):
        ImagePairs(tmp_path, scale=2)[0]
    with pytest.raises(HatlibError, match="no folder"):
        benchmark_folders(tmp_path / "nothing", 2)
    with pytest.raises(HatlibError, match="scale is a whole number"):
        ImagePairs(tmp_path, scale=0)


def test_file_that_changed_since_the_scan(benchmark):
    pairs = ImagePairs(benchmark / "HR", scale=2)
    save(benchmark / "HR/a.png", 40, 40)
    with pytest.raises(HatlibError, match="was 21x25 when the folder was scanned and is 40x40 now"):
        pairs[0]


def orientations(image):
    return [view for turns in range(4) for view in (image.rot90(turns, (1, 2)), image.rot90(turns, (1, 2)).flip(2))]


@pytest.mark.parametrize("lr", [True, False])
def test_patches_lie_where_they_should(benchmark, lr):
    """Each patch, turned back, is a part of its image; LR and HR parts are the same place; all eight views occur."""
    pairs = ImagePairs(benchmark / "HR", benchmark / "LR_bicubic/X2" if lr else None, scale=2)
    patches, views = TrainingPatches(pairs, 5, seed=3), set()
    for draw in range(120):
        item = patches[draw % 3, draw]
        whole = pairs[draw % 3]
        found = []
        for view, (low, high) in enumerate(zip(orientations(item["lr"]), orientations(item["hr"]), strict=True)):
            low, high = low.mul(255).round().byte(), high.mul(255).round().byte()
            for y, x in itertools.product(range(whole.lr.shape[1] - 4), range(whole.lr.shape[2] - 4)):
                if torch.equal(whole.lr[:, y : y + 5, x : x + 5], low):
                    found.append(view)
                    assert torch.equal(whole.hr[:, 2 * y : 2 * y + 10, 2 * x : 2 * x + 10], high)
        assert len(found) == 1
        views.update(found)
    assert len(views) == 8


def test_patches_are_functions_of_seed_and_draw(benchmark):
    pairs = ImagePairs(benchmark / "HR", scale=2)
    one, same, other = (TrainingPatches(pairs, 4, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[i % 3, i]["hr"], same[i % 3, i]["hr"]) for i in reversed(range(9)))
    assert any(not torch.equal(one[i % 3, i]["hr"], other[i % 3, i]["hr"]) for i in range(9))
    assert any(not torch.equal(one[0, i]["hr"], one[0, i + 1]["hr"]) for i in range(5))


def test_options_of_augmentation(benchmark):
    pairs = ImagePairs(benchmark / "HR", scale=2)
    still = TrainingPatches(pairs, 10, flip=False, rotate=False)  # as wide as the first image: one column of places
    whole = pairs[0].hr
    assert all(any(torch.equal(whole[:, 2 * y :][:, :20] / 255, still[0, d]["hr"]) for y in range(3)) for d in range(6))
    flipped = TrainingPatches(pairs, 10, rotate=False)
    seen = [
        (torch.equal(w, flipped[0, d]["hr"]), torch.equal(w.flip(2), flipped[0, d]["hr"]))
        for d in range(8)
        for w in [whole[:, 2 * y :][:, :20] / 255 for y in range(3)]
    ]
    assert any(plain for plain, _ in seen) and any(mirrored for _, mirrored in seen)


def test_small_images(tmp_path):
    save(tmp_path / "large.png", 40, 44)
    save(tmp_path / "small.png", 15, 30, seed=1)
    pairs = ImagePairs(tmp_path, scale=2)
    skipping = TrainingPatches(pairs, 10)
    assert len(skipping) == 1 and skipping.skipped == 1
    enlarging = TrainingPatches(pairs, 10, small="enlarge")
    assert len(enlarging) == 2 and enlarging.skipped == 0
    assert all(enlarging[1, draw]["hr"].shape == (3, 20, 20) for draw in range(8))
    with pytest.raises(HatlibError, match="All 2 images .* smaller than the patch of 100 pixels"):
        TrainingPatches(pairs, 50)
    with pytest.raises(HatlibError, match="'skip'"):
        TrainingPatches(pairs, 10, small="ignore")


def test_sampler_is_a_function_of_seed_and_draw():
    draws = list(itertools.islice(EndlessSampler(7, seed=5), 35))
    assert [draw for _, draw in draws] == list(range(35))
    passes = [[index for index, _ in draws[7 * e : 7 * e + 7]] for e in range(5)]
    assert all(sorted(p) == list(range(7)) for p in passes) and len(set(map(tuple, passes))) > 1
    assert list(itertools.islice(EndlessSampler(7, seed=5, start=11), 24)) == draws[11:]
    assert list(itertools.islice(EndlessSampler(7, seed=6), 35)) != draws
    sampler = EndlessSampler(7, seed=5)
    assert [sampler.index(d) for d in (30, 2, 16)] == [draws[d][0] for d in (30, 2, 16)]
    for arguments in [(0,), (3, -1), (3, 0, -1)]:
        with pytest.raises(HatlibError, match="sampler"):
            EndlessSampler(*arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_same_batches_with_any_number_of_workers(benchmark, workers):
    patches = TrainingPatches(ImagePairs(benchmark / "HR", scale=2), 4, seed=1)
    loader = training_loader(patches, 2, start=4, workers=workers)
    sampler = EndlessSampler(3)
    for n, batch in enumerate(itertools.islice(loader, 3)):
        expected = [patches[sampler.index(d), d]["hr"] for d in (4 + 2 * n, 5 + 2 * n)]
        assert torch.equal(batch["hr"], torch.stack(expected)) and batch["lr"].shape == (2, 3, 4, 4)


def test_fork_is_refused_in_words(benchmark):
    """libvips would hang in a forked worker."""
    patches = TrainingPatches(ImagePairs(benchmark / "HR", scale=2), 4)
    loader = torch.utils.data.DataLoader(
        patches, 2, sampler=EndlessSampler(3), num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(HatlibError, match="does not survive a fork"):
        next(iter(loader))


def test_index_is_kept_and_renewed(tmp_path, monkeypatch):
    root, cache = tmp_path / "images", tmp_path / "cache"
    for i in range(6):
        save(root / f"class{i % 2}" / f"{i}.png", 8 + i, 9)
    monkeypatch.setattr(files, "MIN_CACHED_IMAGES", 3)
    read = []
    original = files.image_size
    monkeypatch.setattr(files, "image_size", lambda path: read.append(path.name) or original(path))
    first = index_images(root, cache=cache)
    assert list(first) == [f"class{i % 2}/{i}.png" for i in (0, 2, 4, 1, 3, 5)] and len(read) == 6
    assert first.sizes[:, 0].tolist() == [8, 10, 12, 9, 11, 13] and first[-2:] == ["class1/3.png", "class1/5.png"]
    again = index_images(root, cache=cache)
    assert list(again) == list(first) and (again.sizes == first.sizes).all() and len(read) == 6
    time.sleep(0.02)  # so that the folder's time differs on coarse clocks
    os.replace(save(tmp_path / "new.png", 30, 9), root / "class1" / "3.png")
    save(root / "class1" / "7.png", 40, 9)
    read.clear()
    renewed = index_images(root, cache=cache)
    assert sorted(read) == ["1.png", "3.png", "5.png", "7.png"]  # those of the folder that changed
    assert dict(zip(renewed, renewed.sizes[:, 0].tolist(), strict=True))["class1/3.png"] == 30 and len(renewed) == 7
    (kept,) = (cache / "index").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert list(index_images(root, cache=cache)) == list(renewed)


def test_small_folders_leave_no_cache(tmp_path):
    save(tmp_path / "images" / "a.png")
    index_images(tmp_path / "images", cache=tmp_path / "cache")
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize(
    "length, expected", [(480, [0]), (300, [0]), (720, [0, 240]), (721, [0, 240, 241]), (1000, [0, 240, 480, 520])]
)
def test_patch_starts(length, expected):
    assert patch_starts(length, 480, 240) == expected


def test_extract_patches(tmp_path):
    source = save(tmp_path / "in" / "a b.png", 30, 22)
    save(tmp_path / "in" / "tiny.png", 6, 7)
    result = extract_patches(tmp_path / "in", tmp_path / "out", size=16, step=8)
    assert (result.written, result.present, result.failures) == (7, 0, [])
    whole = read_image(source).pixels
    places = [(y, x) for y in (0, 8, 14) for x in (0, 6)]
    for n, (y, x) in enumerate(places, 1):
        patch = read_image(tmp_path / "out" / f"a b_s{n:03d}.png").pixels
        assert np.array_equal(patch, whole[y : y + 16, x : x + 16])
    assert read_image(tmp_path / "out" / "tiny_s001.png").pixels.shape == (6, 7, 3)


def test_extraction_goes_on_where_it_was_stopped(tmp_path):
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", 40, 40, seed=i)
    stop = threading.Event()

    def interrupt(done, total):
        if done == 2:
            stop.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_patches(tmp_path / "in", tmp_path / "out", size=16, step=8, workers=1, progress=interrupt)
    assert stop.is_set()
    (tmp_path / "out" / "0_s003.png").unlink()
    result = extract_patches(tmp_path / "in", tmp_path / "out", size=16, step=8)
    assert result.written + result.present == 4 * 16 and result.present >= 31 and result.written >= 1
    extract_patches(tmp_path / "in", tmp_path / "straight", size=16, step=8)
    names = sorted(os.listdir(tmp_path / "straight"))
    assert names == sorted(os.listdir(tmp_path / "out")) and len(names) == 65
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    with pytest.raises(HatlibError, match="other settings"):
        extract_patches(tmp_path / "in", tmp_path / "out", size=16, step=4)


def test_extract_pairs(benchmark, tmp_path):
    extract_patches(benchmark / "HR", tmp_path / "o", size=8, step=4, lr=benchmark / "LR_bicubic/X2", scale=2)
    hr, lr = benchmark_folders(tmp_path / "o", 2)
    whole = ImagePairs(benchmark / "HR", benchmark / "LR_bicubic/X2", scale=2)[0]
    for pair in [pair for pair in ImagePairs(hr, lr, scale=2) if pair.name.startswith("a_")]:
        n = int(pair.name[-3:]) - 1
        starts = patch_starts(20, 8, 4)
        y, x = patch_starts(24, 8, 4)[n // len(starts)], starts[n % len(starts)]
        assert torch.equal(pair.hr, whole.hr[:, y : y + 8, x : x + 8])
        assert torch.equal(pair.lr, whole.lr[:, y // 2 : y // 2 + 4, x // 2 : x // 2 + 4])


def test_extraction_refuses_what_would_mix(tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "a.jpg")
    with pytest.raises(HatlibError, match="'a': their patches would have one name"):
        extract_patches(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.jpg").unlink()
    with pytest.raises(HatlibError, match="holds other files"):
        extract_patches(tmp_path / "in", tmp_path / "in")
    for size, step in [(0, 1), (8, 9), (8, 0)]:
        with pytest.raises(HatlibError, match="step"):
            extract_patches(tmp_path / "in", tmp_path / "out", size=size, step=step)


def test_command(benchmark, tmp_path, capsys):
    (benchmark / "HR" / "broken.png").write_bytes((benchmark / "HR" / "a.png").read_bytes()[:200])
    extract = ["data", "extract-patches", str(benchmark / "HR"), str(tmp_path / "o"), "--size", "8", "--step", "8"]
    assert main(extract) == 1
    captured = capsys.readouterr()
    assert "patches written, 0 already existed" in captured.out and "1 images could not be cut" in captured.err
    assert "broken.png" in captured.err and json.loads((tmp_path / "o" / "patches.json").read_text())["size"] == 8
    assert main(["data", "check", str(benchmark)]) == 1
    captured = capsys.readouterr()
    assert "broken.png' is not a readable image" in captured.err
    (benchmark / "HR" / "broken.png").unlink()
    assert main(["data", "check", str(benchmark)]) == 0
    captured = capsys.readouterr()
    assert "3 images, 3 of them exactly MATLAB's bicubic reduction" in captured.out and captured.err == ""
    for arguments, message in [
        (["check", str(tmp_path / "nothing")], "There is no folder"),
        (["extract-patches", str(tmp_path / "nothing"), str(tmp_path / "p")], "There is no folder"),
        (["extract-patches", str(benchmark), str(tmp_path / "p"), "--lr", str(benchmark)], "--lr needs --scale"),
    ]:
        assert main(["data", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith(f"hatlib: {message}") and captured.err.count("\n") == 1
    assert not (tmp_path / "p").exists()
    for arguments in ([], ["sort"], ["check"]):
        with pytest.raises(SystemExit) as stop:
            main(["data", *arguments])
        assert stop.value.code == 2


def test_interrupted_command(benchmark, monkeypatch, capsys):
    """A signal that arrives between two images ends the command with its exit code."""
    monkeypatch.setattr("hatlib.data.checks._compare", lambda pairs, index: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["data", "check", str(benchmark)]) == 143
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "hatlib: interrupted\n"


def test_check_names_every_problem(benchmark):
    lr = benchmark / "LR_bicubic" / "X2"
    save(lr / "ax2.png", 12, 10, seed=77)  # of the right size, but another picture
    (benchmark / "HR" / "b.png").write_bytes((benchmark / "HR" / "b.png").read_bytes()[:-30])
    save(benchmark / "HR" / "sub" / "d.png", 33, 25, seed=2)  # the pixels of sub/c.png
    shrunk(benchmark / "HR" / "sub" / "d.png", lr / "sub" / "dx2.png", 2)
    facts, problems = check_dataset(benchmark, patch=30)
    assert len(facts) == 2 and "4 images, 21x25 to 25x33" in facts[0] and "4 images, 2 of them exactly" in facts[1]
    for words in [
        "b.png' is not a readable",
        "'sub/d.png' has the same pixels as 'sub/c.png'",
        "'a.png' and its partner",
    ]:
        assert sum(words in problem for problem in problems) == 1
    assert sum("smaller than the patch of 30" in problem for problem in problems) == 3
