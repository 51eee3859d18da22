"""What may go wrong in a tile, and what makes results better: memory, float16, ensembles, batches, ONNX, any model."""

import logging

import numpy as np
import pytest
import torch
from conftest import tiny_overrides
from test_inference import Enlarge, noise
from torch import nn

import hatlib
from hatlib.engines import OnnxModel
from hatlib.errors import HatlibError
from hatlib.inference import Upscaler, auto_tile, default_overlap, free_bytes
from hatlib.inference import memory as memory_module


class Greedy(Enlarge):
    """Has memory for tiles of some size and no more."""

    def __init__(self, most, error=torch.OutOfMemoryError, **kwargs):
        super().__init__(**kwargs)
        self.most, self.error, self.refused = most, error, []

    def forward(self, x):
        if x.shape[0] * x.shape[2] * x.shape[3] > self.most:
            self.refused.append(tuple(x.shape))
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return super().forward(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("tile, batch", [(None, 1), (128, 1), (64, 4)])
def test_out_of_memory_halves_the_tile(error, tile, batch, caplog):
    model = Greedy(40 * 40, error, window_size=8)
    upscaler = Upscaler(model, tile=tile, batch=batch)
    x = noise(1, 3, 150, 170)
    with caplog.at_level(logging.WARNING):
        y = upscaler(x)
    torch.testing.assert_close(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert "going on with 32" in caplog.text or max(map(max, model.sizes)) <= 40
    assert 1 <= len(model.refused) <= 4  # once a size, and not once a tile
    model.refused.clear()
    upscaler(x)
    assert not model.refused  # it has learnt


def test_no_memory_at_all_is_an_error():
    with pytest.raises(HatlibError, match="Not enough memory, not even for tiles of"):
        Upscaler(Greedy(10), tile=64)(noise(1, 3, 100, 100))


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"):
        model = Greedy(10, lambda text: RuntimeError("wrong shape"))
        Upscaler(model)(noise(1, 3, 50, 50))
    assert len(model.refused) == 1


class Overflow(Enlarge):
    """Passes through values that float16 does not hold."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.wide, self.types = nn.Conv2d(3, 3, 1), []
        nn.init.constant_(self.wide.weight, 40_000.0)

    def forward(self, x):
        y = self.wide(super().forward(x) + 1)
        self.types.append(y.dtype)
        return y / 300_000


@pytest.mark.parametrize("how", ["autocast", "half"])
def test_float16_overflow_is_redone_in_float32(how, caplog):
    x = noise(1, 3, 40, 40)
    model = Overflow()
    expected = Upscaler(model)(x)
    assert 0 < expected.min() and expected.max() < 1
    model = model.half() if how == "half" else model
    with caplog.at_level(logging.WARNING):
        y = Upscaler(model, tile=24, overlap=8, dtype=torch.float16 if how == "autocast" else None)(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-3)
    assert caplog.text.count("overflows") == 1
    assert model.types.count(torch.float16) == 1  # later tiles don't try again
    assert next(model.parameters()).dtype == (torch.float16 if how == "half" else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near(dtype, tiny_hat):
    x = noise(1, 3, 20, 20)
    torch.testing.assert_close(Upscaler(tiny_hat, dtype=dtype)(x), Upscaler(tiny_hat)(x), rtol=0, atol=0.05)
    with pytest.raises(HatlibError, match="float64"):
        Upscaler(tiny_hat, dtype=torch.float64)


def test_self_ensemble_is_the_mean_of_eight():
    class Shift(Enlarge):
        """Moves the image one pixel to the right: the mean is symmetric although this is not."""

        def forward(self, x):
            return super().forward(x.roll(1, 3))

    x = torch.zeros(1, 3, 9, 9)
    x[..., 4, 4] = 1
    model = Shift(1)
    y = Upscaler(model, self_ensemble=True)(x)
    assert len(model.sizes) == 8
    expected = torch.zeros(9, 9)
    expected[4, 3] = expected[4, 5] = expected[3, 4] = expected[5, 4] = 0.25
    torch.testing.assert_close(y[0, 0], expected)
    wide = noise(1, 3, 20, 31)
    torch.testing.assert_close(
        Upscaler(Enlarge(2), self_ensemble=True, tile=16, overlap=4)(wide), Upscaler(Enlarge(2))(wide)
    )


def test_batches_of_tiles_change_nothing():
    x = noise(2, 3, 100, 131)
    one, many = Enlarge(2, "bicubic"), Enlarge(2, "bicubic")
    y = Upscaler(one, tile=32, overlap=8)(x)
    torch.testing.assert_close(Upscaler(many, tile=32, overlap=8, batch=3)(x), y)
    assert len(many.sizes) <= len(one.sizes) / 2


def test_overlap_follows_what_the_model_sees():
    assert default_overlap(Enlarge(window_size=16)) == 32 and default_overlap(Enlarge(window_size=(4, 7))) == 16
    shallow = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1))
    deep = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(40)])
    assert 8 <= default_overlap(shallow) < default_overlap(deep) <= 64
    for name in ("hat_t_x2", "hat_s_x4"):
        model = hatlib.create_model(name, **tiny_overrides(name))
        assert default_overlap(model) == max(16, 2 * model.window_size)


def test_auto_tile_fits_the_memory(monkeypatch, tiny_hat):
    cpu = torch.device("cpu")
    assert 2**20 < free_bytes(cpu) < 2**50
    each = memory_module.bytes_per_pixel(tiny_hat)
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 2 * each * 100 * 100)
    assert auto_tile(tiny_hat, 99, 99, 8, cpu) is None
    assert auto_tile(tiny_hat, 500, 500, 8, cpu) == 96
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 0)
    assert auto_tile(tiny_hat, 500, 500, 16, cpu) == 64
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 2 * each * 80 * 80)
    sizes = []
    tiny_hat.register_forward_pre_hook(lambda model, args: sizes.append(tuple(args[0].shape[2:])))
    y = Upscaler(tiny_hat, tile="auto")(noise(1, 3, 90, 120))
    assert y.shape == (1, 3, 180, 240) and max(map(max, sizes)) <= 80


@pytest.mark.parametrize("options", [{"tile": "large"}, {"tile": 1.5}, {"batch": 0}, {"overlap": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(HatlibError):
        Upscaler(Enlarge(), **options)


def test_sixteen_bits_use_more_than_256_levels():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    y = Upscaler(Enlarge(2, "bicubic"), tile=32)(ramp)
    assert y.dtype == np.uint16 and len(np.unique(y)) > 4096


def export(path, size=None, batch=1):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    height, width = size or ("h", "w")
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest", nearest_mode="floor")
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    graph = helper.make_graph(
        [node],
        "enlarge",
        [helper.make_tensor_value_info("x", kind, [batch, 3, height, width])],
        [helper.make_tensor_value_info("y", kind, None)],
        [helper.make_tensor("scales", kind, [4], [1.0, 1.0, 3.0, 3.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("size, batch", [(None, "b"), (None, 1), ((32, 32), 1)])
def test_onnx_models(tmp_path, size, batch):
    pytest.importorskip("onnxruntime")
    model = OnnxModel(export(tmp_path / "a.onnx", size, batch), threads=1)
    assert model.upscale == 3 and model.in_chans == 3 and model.fixed_size == size
    for shape in [(20, 25, 3), (70, 50, 3), (40, 41)]:
        image = (noise(*shape).numpy() * 255).astype(np.uint8)
        expected = image.repeat(3, 0).repeat(3, 1)
        assert np.array_equal(Upscaler(model)(image), expected)
        assert np.array_equal(Upscaler(model, tile=32, overlap=8, batch=2)(image), expected)


def test_bad_onnx_models(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("not a model")
    for name, reason in [("text.onnx", "not a readable ONNX model"), ("missing.onnx", "no file")]:
        with pytest.raises(HatlibError, match=reason) as caught:
            OnnxModel(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_foreign_models():
    """Any module that says its scale; here one of spandrel's, wrapped."""
    pytest.importorskip("spandrel")
    from spandrel import ImageModelDescriptor, ModelLoader
    from spandrel.architectures.ESRGAN import ESRGAN

    from hatlib.engines import ForeignModel

    network = ESRGAN(num_filters=8, num_blocks=1, scale=2)
    descriptor = ModelLoader("cpu").load_from_state_dict(network.state_dict())
    assert isinstance(descriptor, ImageModelDescriptor)
    model = ForeignModel(descriptor)
    image = (noise(41, 50, 4).numpy() * 255).astype(np.uint8)
    assert Upscaler(model)(image).shape == (82, 100, 4)
    whole, parts = Upscaler(model)(image[..., :3]), Upscaler(model, tile=32)(image[..., :3])
    assert np.abs(whole.astype(int) - parts).max() <= 32 and np.abs(whole.astype(int) - parts).mean() < 1
