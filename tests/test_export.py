"""torch.export and ONNX with height and width left open."""

import pytest
import torch
from conftest import relative_error

SIZES = [(32, 32), (64, 64), (32, 50), (17, 40), (33, 64)]
DYNAMIC = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def example_of(model):
    return (torch.rand(1, model.in_chans, 33, 50),)


def test_export(tiny_of_each_family):
    tiny = tiny_of_each_family
    exported = torch.export.export(tiny, example_of(tiny), dynamic_shapes=DYNAMIC).module()
    for size in SIZES:
        x = torch.rand(1, tiny.in_chans, *size)
        with torch.no_grad():
            assert relative_error(exported(x), tiny(x)) < 1e-5, size
    if tiny.multiple > 1:
        least = tiny.multiple + 1
        with pytest.raises(AssertionError, match=f"Guard failed: x.size.* >= {least}"):  # more than one window
            exported(torch.rand(1, tiny.in_chans, tiny.multiple, tiny.multiple))


def test_onnx(tiny_of_each_family, tmp_path):
    import onnxruntime

    tiny = tiny_of_each_family
    file = tmp_path / "model.onnx"
    names = dict(input_names=["image"], output_names=["restored"])
    torch.onnx.export(tiny, example_of(tiny), file, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False, **names)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in [*SIZES, (8, 8), (7, 5), (1, 1)]:
        x = torch.rand(1, tiny.in_chans, *size)
        out = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        with torch.no_grad():
            assert relative_error(out, tiny(x)) < 1e-5, size
