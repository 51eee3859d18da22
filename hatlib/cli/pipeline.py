"""Image after image: read ahead and written behind in threads, while the model works on the one between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hatlib import signals
from hatlib.cli.plan import Job
from hatlib.errors import HatlibError, describe_error

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

    from hatlib.imageio import Header, Image, ImageReader
    from hatlib.inference import Upscaler

STREAMED_PIXELS = 2**25
"""Results of more pixels than this are never in memory as a whole, where the formats allow it."""


@dataclass
class Pipeline:
    """Upscales files.

    Args:
        upscaler: runs the model.
        resize: what to resize the results by, for a scale that no model has.
        quality: of JPEG and WebP.
        jobs: images to read ahead, and to write behind.
        on_header: called with each image's path and header before it is upscaled.
        on_result: called with the path of each finished result.
    """

    upscaler: Upscaler
    resize: float = 1.0
    quality: int = 95
    jobs: int = 2
    on_header: Callable[[Path, Header], None] = lambda path, header: None
    on_result: Callable[[Path], None] = lambda path: None

    def run(self, tasks: list[Job], progress: Progress) -> list[HatlibError]:
        """Does all tasks in order and returns what went wrong; an interruption leaves whole files only."""
        failures: list[HatlibError] = []
        bar = progress.add_task("images", total=len(tasks), visible=len(tasks) > 1)
        ahead, behind = deque(), deque()
        left = iter(tasks)
        readers, writers = ThreadPoolExecutor(self.jobs), ThreadPoolExecutor(self.jobs)

        def wait(most: int) -> None:
            """Waits until no more than `most` results are being written."""
            while len(behind) > most:
                target, written = behind.popleft()
                with collect_errors(failures):
                    written.result()
                    self.on_result(target)
                progress.advance(bar)

        try:
            while True:
                while len(ahead) <= self.jobs and (task := next(left, None)):
                    ahead.append((task, readers.submit(self._read, task)))
                if not ahead:
                    break
                signals.check()
                task, read = ahead.popleft()
                with collect_errors(failures):
                    behind.append((task.target, self._upscale(task, read.result(), writers, progress)))
                    wait(self.jobs - 1)
                    continue
                progress.advance(bar)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            wait(0)  # what is computed is also written
            writers.shutdown()
        return failures

    def _read(self, task: Job) -> Image | ImageReader:
        """Reads an image, or opens it if its result is to be streamed; refuses early what can't be written."""
        from hatlib.imageio import ROW_WISE, check_output, open_image

        if isinstance(task.target, HatlibError):
            raise task.target
        with explain_errors(task.source, self.upscaler):
            reader = open_image(task.source)
            header = reader.header.enlarged(self.upscaler.scale)
            kind = check_output(task.target, header)
            if header.height * header.width > STREAMED_PIXELS and kind in ROW_WISE and self.resize == 1:
                return reader
            with reader:
                return reader.image()

    def _upscale(
        self, task: Job, image: Image | ImageReader, writers: ThreadPoolExecutor, progress: Progress
    ) -> Future:
        from hatlib.imageio import Image

        self.on_header(task.source, image.header)
        bar = progress.add_task(task.source.name, total=None)

        def tile_done(done: int, total: int) -> None:
            signals.check()
            progress.update(bar, completed=done, total=total)

        try:
            with explain_errors(task.source, self.upscaler):
                if isinstance(image, Image):
                    pixels = self._resized(self.upscaler(image.pixels, progress=tile_done))
                    return writers.submit(self._write, task, image.with_pixels(pixels))
                self._stream(image, task.target, tile_done)
                done: Future = Future()
                done.set_result(None)
                return done
        finally:
            progress.remove_task(bar)

    def _write(self, task: Job, image: Image) -> None:
        from hatlib.imageio import write_image

        with explain_errors(task.source, self.upscaler):
            write_image(task.target, image, quality=self.quality)

    def _stream(self, reader: ImageReader, target: Path, tile_done: Callable[[int, int], None]) -> None:
        from hatlib.imageio import image_writer

        header = reader.header
        with reader, image_writer(target, header.enlarged(self.upscaler.scale), quality=self.quality) as writer:
            for strip in self.upscaler.strips(reader.rows, header.height, header.width, progress=tile_done):
                writer.write(strip)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        if self.resize == 1:
            return pixels
        import numpy as np
        import torch

        from hatlib.blocks.imresize import imresize

        top = np.iinfo(pixels.dtype).max
        x = torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32) / top)
        height, width = (max(1, round(side * self.resize)) for side in x.shape[1:])
        y = imresize(x, size=(height, width)).clamp_(0, 1).mul_(top).round_()
        return np.ascontiguousarray(np.moveaxis(y.numpy(), 0, 2), pixels.dtype)


@contextmanager
def collect_errors(failures: list[HatlibError]) -> Iterator[None]:
    """Adds an error to the list instead of raising it."""
    try:
        yield
    except HatlibError as error:
        failures.append(error)


@contextmanager
def explain_errors(source: Path, upscaler: Upscaler) -> Iterator[None]:
    """Makes whatever goes wrong with an image an error that names it, so that the others are done nevertheless."""
    from hatlib.inference.memory import is_out_of_memory

    try:
        yield
    except HatlibError:
        raise
    except Exception as error:  # a foreign network, or an ONNX model, may raise anything
        if is_out_of_memory(error):
            hint = f"Not enough memory for '{source}': choose a smaller --tile than {upscaler.tile}."
            raise HatlibError(hint) from error
        raise HatlibError(f"Cannot upscale '{source}': {describe_error(error)}.") from error
