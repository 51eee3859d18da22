"""torch.export and ONNX with height and width left open."""

import pytest
import torch
from conftest import relative_error

SIZES = [(32, 32), (64, 64), (32, 50), (17, 40), (33, 64)]
DYNAMIC = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def test_export(tiny_hat):
    example = torch.rand(1, 3, 33, 50)
    exported = torch.export.export(tiny_hat, (example,), dynamic_shapes=DYNAMIC).module()
    for size in SIZES:
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert relative_error(exported(x), tiny_hat(x)) < 1e-5, size
    with pytest.raises(AssertionError, match="Guard failed: x.size.* >= 9"):  # the window is 8
        exported(torch.rand(1, 3, 8, 8))


def test_onnx(tiny_hat, tmp_path):
    import onnxruntime

    file = tmp_path / "model.onnx"
    example = torch.rand(1, 3, 33, 50)
    names = dict(input_names=["image"], output_names=["restored"])
    torch.onnx.export(tiny_hat, (example,), file, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False, **names)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in [*SIZES, (8, 8), (7, 5), (1, 1)]:
        x = torch.rand(1, 3, *size)
        out = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        with torch.no_grad():
            assert relative_error(out, tiny_hat(x)) < 1e-5, size
