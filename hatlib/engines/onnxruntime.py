"""ONNX models as modules, run by ONNX Runtime, so that `Upscaler` takes them like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.errors import HatlibError, first_line

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxModel(nn.Module):
    """A super-resolution network in an ONNX file: (B, in_chans, H, W) -> (B, out_chans, s * H, s * W), in [0, 1].

    Its scale is found by a run on a small image. A model that was exported for one size of image gets each padded to
    it, and `Upscaler` cuts larger ones into tiles of it. Runs on the GPU if the installed onnxruntime can.

    Args:
        path: the file.
        threads: of the CPU; 0 for as many as torch uses.

    Attributes:
        upscale: output size over input size.
        in_chans: channels of the input.
        fixed_size: the height and width that the graph is tied to, or None.

    Raises:
        HatlibError: if onnxruntime is not installed, or the file is no ONNX model from one image to one image.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise HatlibError(
                "ONNX models need the extra 'onnx' of hatlib: pip install '.[onnx]' in its checkout."
            ) from error
        path = Path(path)
        if not path.is_file():
            raise HatlibError(f"There is no file '{path}'.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime has a class of its own for each reason
            raise HatlibError(f"'{path}' is not a readable ONNX model: {first_line(error)}.") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES or len(outputs) != 1:
            raise HatlibError(f"'{path}' does not map one image (B, C, H, W) to one image.")
        batch, channels, *size = inputs[0].shape
        self.name, self.type = inputs[0].name, _TYPES[inputs[0].type]
        self.single = batch == 1
        self.in_chans = channels if isinstance(channels, int) else 3
        self.fixed_size = tuple(size) if all(isinstance(side, int) for side in size) else None
        self.upscale = self._find_scale(path)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape:
            raise HatlibError(f"The model takes images (B, {self.in_chans}, H, W), not {tuple(x.shape)}.")
        height, width = x.shape[2:]
        if self.fixed_size:
            rows, columns = self.fixed_size[0] - height, self.fixed_size[1] - width
            if rows < 0 or columns < 0:
                raise HatlibError(
                    f"The model is tied to {self.fixed_size}, the image has {(height, width)}: use tiles."
                )
            x = F.pad(x, (0, columns, 0, rows), mode="replicate")
        parts = x.split(1) if self.single else (x,)
        y = torch.cat([torch.from_numpy(self._run(part)) for part in parts]).to(x)
        return y[:, :, : height * self.upscale, : width * self.upscale]

    def _run(self, x: Tensor) -> Any:
        return self.session.run(None, {self.name: x.detach().cpu().numpy().astype(self.type)})[0]

    def _find_scale(self, path: Path) -> int:
        height, width = self.fixed_size or (64, 64)
        try:
            result = self._run(torch.zeros(1, self.in_chans, height, width)).shape
        except Exception as error:
            raise HatlibError(
                f"'{path}' does not run on an image of {height} x {width}: {first_line(error)}."
            ) from error
        scale = result[-1] // width
        if len(result) != 4 or scale < 1 or tuple(result[2:]) != (scale * height, scale * width):
            raise HatlibError(f"'{path}' makes {tuple(result)} of an image of {height} x {width}: no whole scale.")
        return scale
