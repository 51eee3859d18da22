"""Ours beside other implementations with the same weights and inputs: time, memory, operations.

    python -m benchmarks.compare                      # sizes 64 and 128, float32: a few minutes on two cores
    python -m benchmarks.compare --full --docs docs/performance.md

Times are taken in turns within one process, and ratios are medians of neighboring runs; peaks of memory in a process
each, above what model and input take. On the CPU each is done twice: with the system allocator as it comes, and told
to keep freed memory instead of handing it back.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.networks import CASES

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
MARKS = ("<!-- figures: python -m benchmarks.compare --docs -->", "<!-- end of figures -->")
DEFAULT_CASES = ("hat_s_x4", "hat_x4", "swinir_m_x4", "rcan_x4")


def run(request: dict, environment: dict[str, str] | None = None) -> dict:
    """One measurement in a process of its own; the reason in `failed` where it could not be taken."""
    print(f"  {request}" + (" keeping memory" if environment else ""), file=sys.stderr, flush=True)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"signal {-done.returncode}"
        return {**request, "failed": reason}
    return {**request, **json.loads(done.stdout.splitlines()[-1]), "keeping_memory": bool(environment)}


def measure(args: argparse.Namespace) -> dict:
    """All measurements that the arguments ask for."""
    device, common = args.device, {"threads": args.threads, "device": args.device}
    typed = {**common, "dtype": args.dtype, "batch": 1}
    names = args.case or [*DEFAULT_CASES, *(["hat_t_x4", "swin2sr_x4"] if args.full else [])]
    sizes = args.size or ([64, 128, 256] if args.full else [64, 128])
    rows = []
    peak = run({"kind": "peak", "dtype": args.dtype, **common})["operations_per_s"]
    for name in names:
        operations = run({"kind": "operations", "threads": 1, "name": name, "size": 64})["operations"]
        compared = CASES[name].ours and CASES[name].theirs
        closely = args.full or args.size or name in ("hat_s_x4", "hat_x4")
        for size in sizes if closely else sizes[:1]:
            timing = {"kind": "time", "name": name, "size": size, "mode": "forward", **typed}
            timing["repeats"] = 20 if device == "cuda" else 5 if size <= 64 else 3 if args.full else 1
            for environment in (
                (None, KEEP_MEMORY) if device == "cpu" and compared and closely and size <= 64 else (None,)
            ):
                rows.append(run(timing, environment))
                for side in ("theirs", "ours"):
                    if f"{side}_s" in rows[-1]:
                        rate = operations * (size / 64) ** 2 / rows[-1][f"{side}_s"]
                        rows[-1][f"{side}_share_of_peak"] = rate / peak
    others = [name for name in names if CASES[name].ours and CASES[name].theirs and name != "hat_s_x4"]
    for name in others if args.full or args.case else ():
        for side in ("theirs", "ours"):
            memory = {"kind": "memory", "name": name, "side": side, "size": sizes[-1], "mode": "forward", **typed}
            rows.append(run(memory))
    for name in ("hat_s_x4",) if "hat_s_x4" in names else ():
        for size in [*sizes, 512] if args.full else sizes[-1:]:
            for side in ("theirs", "ours") if size < 512 else ("ours",):
                rows.append(
                    run({"kind": "memory", "name": name, "side": side, "size": size, "mode": "forward", **typed})
                )
        rows.append(run({"kind": "time", "name": name, "size": 64, "mode": "train", "repeats": 2, **typed}))
        for side, mode in (("theirs", "train"), ("ours", "train"), ("ours", "checkpointed")):
            rows.append(run({"kind": "memory", "name": name, "side": side, "size": 64, "mode": mode, **typed}))
        if args.full:
            rows.append(run({"kind": "time", "name": name, "size": 512, "mode": "forward", "repeats": 1, **typed}))
            rows.append(
                run({"kind": "time", "name": name, "size": 64, "mode": "forward", "repeats": 3, **typed, "batch": 4})
            )
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    system = {
        "device": gpu or f"{cpu_name()}, {args.threads} threads",
        "torch": torch.__version__,
        "dtype": args.dtype,
        "peak_gflops": peak / 1e9,
    }
    return {"system": system, "rows": rows}


def cpu_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(result: dict) -> str:
    """The measurements as tables."""
    system, rows = result["system"], [row for row in result["rows"] if "failed" not in row]
    lines = [
        f"{system['device']}; PyTorch {system['torch']}, {system['dtype']}; a large matrix product runs at "
        f"{system['peak_gflops']:.0f} GFLOP/s.",
        "",
        "| forward | size | batch | allocator | theirs | ours | ratio | share of peak, theirs / ours | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    times = [row for row in rows if row["kind"] == "time"]
    for row in times:
        if row["mode"] != "forward":
            continue
        theirs, ours = (f"{row[s]:.2f} s" if s in row else "" for s in ("theirs_s", "ours_s"))
        ratio, error = (f"{row[k]:{f}}" if k in row else "" for k, f in (("ratio", ".2f"), ("error", ".0e")))
        shares = [f"{row[s]:.0%}" if s in row else "-" for s in ("theirs_share_of_peak", "ours_share_of_peak")]
        allocator = "keeps memory" if row["keeping_memory"] else "as it comes"
        title, size = CASES[row["name"]].title, row["size"]
        cells = (title, f"{size}x{size}", row["batch"], allocator, theirs, ours, ratio, " / ".join(shares), error)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    memory = {(r["name"], r["side"], r["mode"], r["size"]): r["bytes"] for r in rows if r["kind"] == "memory"}
    lines += [
        "",
        "| peak memory | | size | theirs | ours | ratio | ours, bytes a pixel |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, side, mode, size), ours in memory.items():
        if side != "ours":
            continue
        theirs = memory.get((name, "theirs", "train" if mode == "checkpointed" else mode, size))
        compared = (f"{theirs / 2**20:.0f} MiB", f"{ours / theirs:.2f}") if theirs else ("", "")
        what = {"train": "training step", "checkpointed": "training step, checkpointed"}.get(mode, mode)
        cells = (
            CASES[name].title,
            what,
            f"{size}x{size}",
            compared[0],
            f"{ours / 2**20:.0f} MiB",
            compared[1],
            f"{ours / size**2:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    for row in times:
        if row["mode"] == "train":
            lines += [
                "",
                f"Training step of HAT-S x4 at {row['size']}x{row['size']}: theirs {row['theirs_s']:.2f} s, ours "
                f"{row['ours_s']:.2f} s ({row['ours_s'] / row['theirs_s']:.2f} of it), gradients equal to "
                f"{row['gradient_error']:.0e}.",
            ]
    failed = [row for row in result["rows"] if "failed" in row]
    lines += [f"\nNot measured: {row['name']} ({row.get('side', row['kind'])}): {row['failed']}" for row in failed]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare hatlib's networks with other implementations.")
    parser.add_argument("--case", action="append", choices=CASES, help="only this network (may be repeated)")
    parser.add_argument("--size", action="append", type=int, help="only this side of the image (may be repeated)")
    parser.add_argument("--full", action="store_true", help="larger sizes, batch 4 and more networks: long")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--docs", type=Path, help="put the tables between the marks of this Markdown page")
    args = parser.parse_args()
    result = measure(args)
    tables = markdown(result)
    print(tables)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.docs:
        before, _, rest = args.docs.read_text().partition(MARKS[0])
        args.docs.write_text(f"{before}{MARKS[0]}\n\n{tables}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
