"""FemtoDet's speed on our engines, on ncnn (converted by pnnx) and on torch: same network, picture and threads.

Each engine lives in a process of its own, so that no thread pool disturbs another; the processes work in turns of a
fraction of a second, and medians over the turns are compared. An engine whose logits are off by more than 0.05 from
the first one's is shown but not compared.

    python tests/benchmarks/bench_engines.py [--variant voc] [--size 416] [--threads 1 2] [--turns 41] [--compile]

Needs the extra `torch`, and the packages ncnn and pnnx. Target: our best engine at least as fast as ncnn and torch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.workloads.femtodet import checkpoint, fold, graph
from edgewatt.workloads.femtodet.variants import VARIANTS

TURN_S = 0.2
SETTLE_S = 0.2
OURS = ("onnxruntime", "torch")
OTHERS = ("ncnn", "ncnn-fp32", "ncnn-bf16", "torch-eager", "onnxruntime-plain")


def main() -> int:
    """Prints a table for each number of threads; 1 if our best engine is slower than another's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="voc", choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--compile", action="store_true", help="torch.compile too (a minute of compiling)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker, options.variant, options.size)
        return 0
    slower = 0
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.variant, options.size)
        for threads in options.threads:
            names = (*OURS, *OTHERS, *(("torch-compile",) if options.compile else ()))
            slower |= race(Path(scratch), names, options, threads)
    return slower


def prepare(folder: Path, name: str, size: int) -> None:
    """The model for every engine: an .onnx with weights, a traced module, and pnnx's conversion of that."""
    import torch

    from edgewatt.workloads.femtodet.network import FemtoDet

    variant = VARIANTS[name]
    folded = fold.folded(checkpoint.synthetic(variant, 0), variant)
    graph.write(folder, folded, variant)
    net = FemtoDet(variant, "inference").eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in folded.items()})
    torch.save(net.state_dict(), folder / "state.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(1, 3, size, size)).save(str(folder / "net.pt"))
    pnnx = [Path(sys.executable).parent / "pnnx", "net.pt", f"inputshape=[1,3,{size},{size}]", "fp16=0"]
    subprocess.run(pnnx, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def race(folder: Path, names: tuple[str, ...], options: argparse.Namespace, threads: int) -> int:
    """Lets the engines run in turns; prints the table."""
    base = [sys.executable, __file__, "--variant", options.variant, "--size", str(options.size), "--worker"]
    with_threads = os.environ | {"OMP_NUM_THREADS": str(threads)}
    workers = {
        name: subprocess.Popen(
            [*base, name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=with_threads,
        )
        for name in names
    }
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    ready = {name: answer(worker) for name, worker in workers.items()}
    for _ in range(options.turns):
        for name, worker in workers.items():
            if ready[name]:
                times_ms[name].append(float(ask(worker)))
    for worker in workers.values():
        worker.communicate()

    first = np.load(folder / f"{names[0]}.npy")
    median_ms = {name: statistics.median(t) for name, t in times_ms.items() if t}
    valid = {}
    print(f"{options.variant} {options.size} px, {threads} thread(s), {options.turns} turns of {TURN_S} s each")
    for name in names:
        if name not in median_ms:
            print(f"  {name:18} did not start")
            continue
        off = float(np.abs(np.load(folder / f"{name}.npy") - first).max())
        valid[name] = off <= 0.05
        note = "" if valid[name] else "   not compared: wrong logits"
        print(
            f"  {name:18} {1e3 / median_ms[name]:7.1f} FPS  median {median_ms[name]:7.3f} ms  "
            f"least {min(times_ms[name]):7.3f} ms  logits off by {off:.1e}{note}"
        )
    best, slower = min(OURS, key=median_ms.__getitem__), 0
    for rival in ("ncnn", "torch"):
        rivals = [n for n in median_ms if n.startswith(rival) and valid[n]]
        if not rivals:
            print(f"  nothing to compare with: no {rival} ran")
            slower = 1
            continue
        other = min(rivals, key=median_ms.__getitem__)
        ratio = median_ms[other] / median_ms[best]
        by_turn = statistics.median(b / a for a, b in zip(times_ms[best], times_ms[other], strict=True))
        least = min(times_ms[other]) / min(times_ms[best])
        slower |= ratio < 1
        print(f"  {best} / {other}: {ratio:.2f}x by medians, {by_turn:.2f}x turn by turn, {least:.2f}x by least times")
    return int(slower)


def ask(worker: subprocess.Popen[str]) -> str:
    """One turn's answer."""
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return answer(worker)


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def work(name: str, folder: str, threads: str, variant: str, size: int) -> None:
    """One engine: says it is ready, then for each line read runs for a turn and answers with milliseconds a call."""
    picture = np.random.default_rng(0).normal(0, 1, (1, 3, size, size)).astype(np.float32)
    call = engine(name, Path(folder), int(threads), variant, picture)
    outputs = call()
    np.save(Path(folder) / f"{name}.npy", np.concatenate([np.asarray(y).ravel() for y in outputs]))
    for _ in range(10):
        call()
    print("ready", flush=True)
    for _ in sys.stdin:
        # A turn begins with threads asleep, maybe on one core; a window of ten seconds does not.
        begin = time.perf_counter()
        while time.perf_counter() - begin < SETTLE_S:
            call()
        n, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < TURN_S:
            call()
            n += 1
        print((time.perf_counter() - begin) / n * 1e3, flush=True)


def engine(name: str, folder: Path, threads: int, variant: str, picture: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """A call that runs the network once."""
    if name.startswith("ncnn"):
        return ncnn_call(folder, threads, name.removeprefix("ncnn").removeprefix("-"), picture)
    if name in ("torch-eager", "torch-compile"):
        return torch_call(folder, threads, variant, picture, compiled=name == "torch-compile")
    from edgewatt.workloads.engines.registry import open_engine

    (model,) = folder.glob(f"femtodet-*/{variant}.onnx")
    if name == "onnxruntime-plain":  # without the form for AVX-512
        model = model.with_name("plain.onnx")
        model.write_bytes(model.with_name(f"{variant}.onnx").read_bytes())
    opened = open_engine(name.removesuffix("-plain"), model, picture.shape, threads)
    opened.input[:] = picture
    return opened.run


def ncnn_call(folder: Path, threads: int, storage: str, picture: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """ncnn as it comes (""), with 16-bit storage off ("fp32"), or with bfloat16 storage ("bf16")."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if storage:
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = storage == "bf16"
    net.load_param(str(folder / "net.ncnn.param"))
    net.load_model(str(folder / "net.ncnn.bin"))
    source = ncnn.Mat(picture[0])

    def call() -> list[Any]:
        extractor = net.create_extractor()
        extractor.input("in0", source)
        return [extractor.extract(f"out{k}")[1] for k in range(3)]

    return call


def torch_call(
    folder: Path, threads: int, variant: str, picture: np.ndarray[Any, Any], compiled: bool
) -> Callable[[], Any]:
    """torch's module called directly in channels-last layout, or compiled with frozen weights."""
    import torch

    from edgewatt.workloads.femtodet.network import FemtoDet

    torch.set_num_threads(threads)
    net = FemtoDet(VARIANTS[variant], "inference").eval()
    net.load_state_dict(torch.load(folder / "state.pth", weights_only=True))
    source = torch.from_numpy(picture)
    call: Callable[..., Any] = net
    if compiled:
        torch._inductor.config.freezing = True
        call = torch.compile(net)
    else:
        net, source = (x.to(memory_format=torch.channels_last) for x in (net, source))

    def run() -> Any:
        with torch.inference_mode():
            return call(source)

    return run


if __name__ == "__main__":
    sys.exit(main())
