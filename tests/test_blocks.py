"""The blocks alone: shapes, meaning, and their use in a stranger's network."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import relative_error
from torch.nn import functional as F

from hatlib import HatlibError, blocks
from hatlib.blocks import softmax_attention, strips
from hatlib.blocks.window import cyclic_shift, shifted_window_regions, window_kinds
from hatlib.registry import heads


def test_window_partition_and_back():
    x = torch.rand(2, 12, 8, 5)
    windows = blocks.window_partition(x, 4)
    assert windows.shape == (2 * 3 * 2, 16, 5)
    assert torch.equal(windows[1], x[0, :4, 4:].flatten(0, 1))
    assert torch.equal(blocks.window_reverse(windows, 4, 12, 8), x)


def test_overlap_windows_surround_their_window():
    x = torch.rand(1, 8, 12, 3)
    windows = blocks.overlap_window_partition(F.pad(x, (0, 0, 1, 1, 1, 1)), 4, 6).view(2, 3, 6, 6, 3)
    assert torch.equal(windows[0, 1, 1:, :], x[0, :5, 3:9])  # row 0 lies above the image
    assert windows[0, 1, 0].eq(0).all()
    assert torch.equal(windows[:, :, 1:5, 1:5].flatten(0, 1).flatten(1, 2), blocks.window_partition(x, 4))


def test_relative_position_index_against_its_definition():
    index, w = blocks.relative_position_index(3), 3
    for q in range(9):
        for k in range(9):
            dy, dx = q // w - k // w, q % w - k % w
            assert index[q, k] == (dy + w - 1) * (2 * w - 1) + dx + w - 1


@pytest.mark.parametrize("window, overlap", [(4, 6), (8, 8), (16, 24)])
def test_overlap_index_is_one_row_for_each_offset(window, overlap):
    index = blocks.overlap_relative_position_index(window, overlap)
    assert index.shape == (window**2, overlap**2)
    assert index.min() >= 0 and index.max() < (window + overlap - 1) ** 2
    q, k = torch.arange(window**2), torch.arange(overlap**2)
    offset = (k // overlap - (q // window)[:, None]) * 1000 + k % overlap - (q % window)[:, None]
    assert len(torch.unique(torch.stack([offset.flatten(), index.flatten()], 1), dim=0)) == len(offset.unique())


@pytest.mark.parametrize("distance", [1, 4, -4])
def test_shift_is_a_roll(distance):
    x = torch.rand(2, 8, 12, 3)
    with torch.no_grad():
        assert torch.equal(cyclic_shift(x, distance), x.roll((-distance, -distance), (1, 2)))


def test_shifted_windows_separate_what_the_roll_joined():
    """Two tokens of a shifted window may meet exactly if no wrap of the map lies between them."""
    w, s, rows, columns = 4, 2, 3, 2
    y, x = torch.meshgrid(torch.arange(rows * w), torch.arange(columns * w), indexing="ij")
    wrapped = (y < s).int() * 2 + (x < s).int()  # these came from the other side
    rolled = blocks.window_partition(wrapped.roll((-s, -s), (0, 1))[None, :, :, None], w).squeeze(-1)
    expected = rolled[:, :, None] == rolled[:, None, :]
    regions = shifted_window_regions(w, s)[window_kinds(rows, columns).flatten()]
    assert torch.equal(regions[:, :, None] == regions[:, None, :], expected)


def formula(q, k, v, bias, scale):
    return (scale * q @ k.mT + bias).softmax(-1) @ v


@pytest.mark.parametrize("per_window", [False, True])
def test_attend_against_its_formula(per_window):
    q, k, v = torch.rand(4, 2, 9, 5), torch.rand(4, 2, 12, 5), torch.rand(4, 2, 12, 5)
    bias = torch.randn(4, 2, 9, 12) if per_window else torch.randn(2, 9, 12)
    assert torch.allclose(blocks.attend(q, k, v, bias, scale=0.7), formula(q, k, v, bias, 0.7), atol=1e-6)


def attention_inputs(windows=3, dtype=torch.float64):
    shapes = [(windows, 2, 9, 5), (windows, 2, 12, 5), (windows, 2, 12, 5), (2, 9, 12)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("strip_bytes", [1, 10**9])
def test_gradients_of_attend(monkeypatch, strip_bytes):
    """With the scores computed again one window at a time, or all at once."""
    monkeypatch.setattr(softmax_attention, "CPU_BYTES", strip_bytes)
    inputs = attention_inputs()
    assert torch.autograd.gradcheck(lambda *x: blocks.attend(*x, scale=0.7), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_attend_in_low_precision(dtype):
    inputs = attention_inputs(windows=5)
    expected = torch.autograd.grad(formula(*inputs, 0.7).square().sum(), inputs)
    low = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = blocks.attend(*low, scale=0.7)
    gradients = torch.autograd.grad(out.square().sum(), low)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        assert relative_error(gradient.double(), reference) < (1e-5 if dtype == torch.float32 else 0.05)


def test_training_keeps_no_scores():
    q, k, v, bias = attention_inputs(windows=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        blocks.attend(q, k, v, bias, scale=1.0)
    assert sum(kept) <= sum(t.numel() for t in (q, q, k, v, bias))


@pytest.mark.parametrize("block", ["WindowAttention", "shifted", "OverlapCrossAttention", "HAB", "OCAB", "STL", "RSTB"])
@pytest.mark.parametrize("size", [(8, 8), (8, 40), (24, 16)])
def test_strips_change_nothing(monkeypatch, block, size):
    """Eager inference works in strips: the smallest possible ones give what autograd's whole map gives."""
    block = (
        {
            "WindowAttention": blocks.WindowAttention(24, 2, window_size=8),
            "shifted": blocks.WindowAttention(24, 2, window_size=8, shift_size=4),
            "OverlapCrossAttention": blocks.OverlapCrossAttention(24, 2, window_size=8),
            "HAB": blocks.HAB(24, 2, window_size=8, shift_size=4, squeeze_factor=4),
            "OCAB": blocks.OCAB(24, 2, window_size=8),
            "STL": blocks.STL(24, 2, window_size=8, shift_size=4),
            "RSTB": blocks.RSTB(24, 3, num_heads=2, resi_connection="3conv"),
        }[block]
        .double()
        .eval()
    )
    x = torch.rand(2, *size, 24, dtype=torch.float64)
    before = x.clone()
    expected = block(x).detach()
    for strip_bytes in (1, 30_000, 10**9):
        monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
        with torch.inference_mode():
            assert relative_error(block(x), expected) < 1e-12
        assert torch.equal(x, before)


@pytest.mark.parametrize("option", ["drop", "attn_drop", "drop_path"])
def test_dropout_is_drawn_for_the_whole_map(monkeypatch, option):
    """In training nothing works in strips, so that random numbers do not depend on them, nor on gradients."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    block = blocks.HAB(24, 2, window_size=8, shift_size=4, squeeze_factor=4, **{option: 0.5}).train()
    x = torch.rand(2, 16, 16, 24)
    torch.manual_seed(0)
    expected = block(x).detach()
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(block(x), expected)


def test_training_on_the_meta_device():
    with torch.device("meta"):
        block = blocks.HAB(24, 2, window_size=8, shift_size=4, squeeze_factor=4)
        assert block(torch.rand(1, 16, 8, 24)).shape == (1, 16, 8, 24)


@torch.no_grad()
def test_strips_run_on_the_cpu_only(monkeypatch):
    """On any other device eager inference makes as many calls as training: one for the whole map."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    sizes = []
    block = blocks.HAB(12, 2, window_size=4, squeeze_factor=4).eval()
    block.mlp.fc1.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape))
    block(torch.zeros(1, 16, 12, 12))
    assert sizes == [(1, 1, 12, 12)] * 16
    sizes.clear()
    block.to("meta")(torch.empty(1, 16, 12, 12, device="meta"))
    assert sizes == [(1, 16, 12, 12)]


@pytest.mark.parametrize("length, bytes_each, multiple", [(64, 100, 16), (7, 10**9, 1), (48, 1, 16), (50, 300, 1)])
def test_strips_cover_all_within_the_budget(length, bytes_each, multiple):
    parts = list(strips.strips(length, bytes_each, multiple, budget=4000))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(length))
    assert all(part.start % multiple == 0 for part in parts)
    assert all((p.stop - p.start) * bytes_each <= 4000 or p.stop - p.start == multiple for p in parts)


@pytest.mark.parametrize(
    "block",
    [
        blocks.WindowAttention(24, 2, window_size=8),
        blocks.WindowAttention(24, 3, window_size=8, shift_size=4),
        blocks.OverlapCrossAttention(24, 2, window_size=8),
        blocks.HAB(24, 2, window_size=8, squeeze_factor=4),
        blocks.OCAB(24, 2, window_size=8),
        blocks.RHAG(24, 2, num_heads=2, window_size=8, block_layer=partial(blocks.HAB, squeeze_factor=4)),
        blocks.STL(24, 2, window_size=8, shift_size=4),
        blocks.RSTB(24, 2, num_heads=2),
    ],
    ids=lambda b: type(b).__name__,
)
def test_window_blocks_keep_the_shape(block):
    x = torch.rand(2, 16, 8, 24, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.isfinite().all()
    with pytest.raises(HatlibError, match="multiples of 8"):
        block(torch.rand(1, 12, 8, 24))


@pytest.mark.parametrize(
    "block",
    [
        blocks.CAB(24, squeeze_factor=4),
        blocks.ChannelAttention(24, 4),
        blocks.RCAB(24, 4),
        blocks.ResidualGroup([blocks.RCAB(24, 4)] * 2, blocks.residual_conv(24, "1conv"), layout="NCHW"),
        blocks.ResBlock(24),
    ],
    ids=lambda block: type(block).__name__,
)
def test_channel_blocks_keep_the_shape(block):
    assert block(torch.rand(2, 24, 5, 7)).shape == (2, 24, 5, 7)


@pytest.mark.parametrize("block", [blocks.RCAB(8, 2, res_scale=0.1), blocks.ResBlock(8, res_scale=0.1)])
def test_residual_blocks_weigh_their_branch(block):
    """In inference too, where the branch may overwrite its own results, but never the input."""
    x = torch.rand(2, 8, 5, 7)
    before = x.clone()
    with torch.inference_mode():
        out = block.eval()(x)
        block.res_scale = 1.0
        assert torch.allclose(out - x, 0.1 * (block(x) - x), atol=1e-6)
    assert torch.equal(x, before) and not torch.equal(out, x)


def test_channel_attention_is_global():
    block = blocks.ChannelAttention(8, 2)
    x = torch.rand(1, 8, 6, 6)
    changed = x.clone()
    changed[:, :, 0, 0] += 5
    assert not torch.equal(block(x)[:, :, -1, -1], block(changed)[:, :, -1, -1])


@pytest.mark.parametrize(
    "upsampler, scale",
    [(u, s) for u in ("pixelshuffle", "pixelshuffle+conv", "pixelshuffledirect") for s in (1, 2, 3, 4, 8)]
    + [("nearest+conv", 2), ("nearest+conv", 4), ("", 1)],
)
def test_heads_give_the_scale(upsampler, scale):
    head = heads.create(upsampler, dim=12, out_chans=3, scale=scale, num_feat=8)
    assert head(torch.rand(2, 12, 5, 6)).shape == (2, 3, 5 * scale, 6 * scale)


@pytest.mark.parametrize("size", [(1, 1), (3, 16), (17, 5)])
def test_pad_to_multiple_reflects_where_it_can(size):
    x = torch.rand(1, 2, *size)
    padded = blocks.pad_to_multiple(x, 8)
    assert padded.shape[2] % 8 == padded.shape[3] % 8 == 0
    assert torch.equal(padded[:, :, : size[0], : size[1]], x)
    if size == (17, 5):
        assert torch.equal(padded, F.pad(F.pad(x, (0, 3, 0, 0), "reflect"), (0, 0, 0, 7), "reflect"))


def test_a_network_of_ones_own():
    """The README's example, as it stands there: a new restoration network from the blocks, which learns."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S) if "class MyNet" in code]
    names = {}
    exec(example, names)

    torch.manual_seed(0)
    net = names["MyNet"]()
    hr = F.interpolate(torch.rand(4, 3, 7, 5), scale_factor=6, mode="bicubic")
    lr = F.avg_pool2d(hr, 2)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = F.l1_loss(net(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    for scale in (1, 3, 4):
        assert names["MyNet"](scale=scale)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
