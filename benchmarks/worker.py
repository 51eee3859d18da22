"""One measurement in a process of its own: `python -m benchmarks.worker '{"kind": "time", ...}'` prints JSON."""

import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import CASES, build


def step(model: nn.Module, x: Tensor, mode: str, dtype: torch.dtype) -> Tensor:
    """A forward pass ('forward'), or a forward and a backward pass ('train', 'checkpointed')."""
    if mode == "forward":
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return model(x)
    model.zero_grad()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        out = model(x)
    out.float().square().mean().backward()  # smooth: a sign would differ where two results straddle zero
    return out.detach()


def prepare(name: str, side: str, mode: str, device: str) -> nn.Module:
    model = build(name, side).to(device).train(mode != "forward")
    if mode == "checkpointed":
        model.set_grad_checkpointing()
    return model


def seconds(model: nn.Module, x: Tensor, mode: str, dtype: torch.dtype) -> float:
    start = time.perf_counter()
    step(model, x, mode, dtype)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_time(name: str, size: int, batch: int, mode: str, repeats: int, dtype: torch.dtype, device: str) -> dict:
    """Median seconds of each side, run in turns, and how far apart their results are."""
    case = CASES[name]
    sides = [side for side in ("theirs", "ours") if getattr(case, side)]
    models = {side: prepare(name, side, mode, device) for side in sides}
    x = torch.rand(batch, 3, size, size, device=device)
    outs = {side: step(model, x, mode, dtype) for side, model in models.items()}
    runs: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            runs[side].append(seconds(models[side], x, mode, dtype))
    result: dict[str, Any] = {f"{side}_s": statistics.median(times) for side, times in runs.items()}
    if len(sides) == 2:
        result["ratio"] = statistics.median(a / b for a, b in zip(runs["theirs"], runs["ours"], strict=True))
        result["error"] = ((outs["ours"] - outs["theirs"]).abs().max() / outs["theirs"].abs().max()).item()
        if mode != "forward":
            theirs = dict(models["theirs"].named_parameters())
            result["gradient_error"] = max(
                ((p.grad - theirs[n].grad).abs().max() / theirs[n].grad.abs().max()).item()
                for n, p in models["ours"].named_parameters()
            )
    return result


def measure_memory(name: str, side: str, size: int, batch: int, mode: str, dtype: torch.dtype, device: str) -> dict:
    """Peak memory of a run above what the model and the input take, in bytes."""
    model = prepare(name, side, mode, device)
    x = torch.rand(batch, 3, size, size, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, x, mode, dtype)
        return {"bytes": torch.cuda.max_memory_allocated() - before}
    step(model, x[:, :, :16, :16], mode, dtype)  # what is allocated once: thread pools, primitives, gradients
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = _resident("VmRSS")
    step(model, x, mode, dtype)
    return {"bytes": _resident("VmHWM") - before}


def measure_peak(dtype: torch.dtype, device: str) -> dict:
    """Operations a second of a large matrix multiplication, the best of several."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.rand(n, n, device=device, dtype=dtype), torch.rand(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return {"operations_per_s": 2 * n**3 / best}


def count_operations(name: str, size: int) -> dict:
    """Operations (twice the multiply-adds) of convolutions, linear layers and attention products."""
    from torch.utils.flop_counter import FlopCounterMode

    side = "theirs" if CASES[name].theirs else "ours"
    model = build(name, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, size // 2, size // 2))  # a quarter: operations grow with the number of pixels
    return {"operations": 4 * counter.get_total_flops()}


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def main() -> None:
    request = json.loads(sys.argv[1])
    kind, threads = request.pop("kind"), request.pop("threads")
    torch.set_num_threads(threads)
    if "dtype" in request:
        request["dtype"] = getattr(torch, request["dtype"])
    measure = {"time": measure_time, "memory": measure_memory, "peak": measure_peak, "operations": count_operations}
    print(json.dumps(measure[kind](**request)))


if __name__ == "__main__":
    main()
