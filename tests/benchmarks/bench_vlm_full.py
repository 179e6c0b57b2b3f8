"""Whole networks with synthetic weights: loading, memory, phases of one answer, decoding against its cost model.

    python tests/benchmarks/bench_vlm_full.py [mobilevlm:v1-1.7b imp:v1.5-2b-qwen ...] [--precisions bf16 int4]
        [--tokens 272] [--picture FILE] [--threads 0] [--weights FOLDER]

Needs the extra `vlm`, and a machine that is otherwise idle. Each network runs in a process of its own, one after the
other; a first answer, cut off after its second token, is not counted. Columns:

- load: s, the measuring of memory bandwidth (about 1 s) included; weights: GB held; peak: GB of resident memory;
  loading, all: its share of the target of 1.1 x weights + 1 GB (10^9 bytes) up to when all is loaded, and to the end;
- first, prep, vision, prefill: s until the first token is out, and of what; prompt: tokens, the picture's included;
- t/s @32, @256: tokens a second around the 32nd and 256th token after the first; slower: seconds a token there by those
  here, over the same of the bytes that the cost model counts (1: explained to the last bit; target: within 10 %);
- use: bytes of decode a second by the cost model, over what memory was measured to give;
- table 4: by how much T_VE + N_prompt / S_prompt + N_gen / S_gen misses the time of the answer (target: 1 %).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgewatt.harness.analysis import analyse
from edgewatt.harness.analysis_tokens import costs, decode_rate_at
from edgewatt.harness.api import Items, Phase, Run
from support.here import Here

NETWORKS = ("mobilevlm:v1-1.7b", "imp:v1.5-2b-qwen")
PRECISIONS = ("bf16", "int4")
NEAR, FAR, AROUND = 32, 256, 8  # tokens after the first
HEADS = ("load", "weights", "peak", "loading", "all", "first", "prep", "vision", "prefill", "prompt", f"t/s @{NEAR}",
         f"@{FAR}", "slower", "use", "table 4")  # fmt: skip


class EnoughError(Exception):
    """The warm-up has seen every phase."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="SYSTEM:VARIANT")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--tokens", type=int, default=FAR + 2 * AROUND)
    parser.add_argument("--picture", type=Path, help="default: a drawn scene")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--weights", default="synthetic", help="a checkpoint's folder")
    parser.add_argument("--here", action="store_true", help="the one network named, in this process; prints JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured(options.networks[0], options.precisions[0], options)))
        return
    print(f"{'':34}" + "".join(f"{h:>10}" for h in HEADS), flush=True)
    more = [f"--tokens={options.tokens}", f"--threads={options.threads}", f"--weights={options.weights}"]
    more += [f"--picture={options.picture}"] if options.picture else []
    for network in options.networks:
        for precision in options.precisions:
            command = [sys.executable, __file__, network, "--precisions", precision, "--here", *more]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                print(f"{network + ' ' + precision:34}  {said[-1]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{network + ' ' + precision:34}" + "".join(f"{cell(found.get(h)):>10}" for h in HEADS), flush=True)


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def measured(network: str, precision: str, options: argparse.Namespace) -> dict[str, float | None]:
    """The figures of one network by HEADS."""
    from edgewatt.workloads.vlm.runner import VisionLanguageRunner

    runner = VisionLanguageRunner(parameters(network, precision, options))
    begun = time.perf_counter()
    facts = runner.load()
    load_s, loading = time.perf_counter() - begun, resident_peak_bytes()
    answer(runner, most_steps=1)
    run = answer(runner)
    run = dataclasses.replace(run, engine=facts)
    value = {(m.metric, m.phase): m.value for m in analyse(run)[0]}
    speeds = [rate.value if (rate := decode_rate_at(run.items, at, AROUND)) else None for at in (NEAR, FAR)]
    prompt = value["prefill_tokens", "window"]
    peak, target = resident_peak_bytes(), 1.1 * facts["model_bytes"] + 1e9
    return {
        "load": load_s,
        "weights": facts["model_bytes"] / 1e9,
        "peak": peak / 1e9,
        "loading": loading / target,
        "all": peak / target,
        "first": value["ttft_s", "window"],
        "prep": value["latency_s", "preprocess"],
        "vision": value["latency_s", "vision"],
        "prefill": value["latency_s", "prefill"],
        "prompt": prompt,
        HEADS[10]: speeds[0],
        HEADS[11]: speeds[1],
        "slower": slower(facts, prompt, *speeds),
        "use": value.get(("bandwidth_utilisation", "decode")),
        "table 4": table_4(value),
    }


def parameters(network: str, precision: str, options: argparse.Namespace) -> Any:
    """The parameters of the job, as the workload makes them."""
    from edgewatt.workloads.imp.workload import Imp
    from edgewatt.workloads.mobilevlm.workload import MobileVlm

    system, _, variant = network.partition(":")
    workload = {"mobilevlm": MobileVlm, "imp": Imp}[system](
        variant=variant or "auto", weights=options.weights, precision=precision, data=options.picture, limit=1,
        max_new_tokens=options.tokens, ignore_eos=True, threads=options.threads,
    )  # fmt: skip
    return json.loads(json.dumps(workload.prepare(Here()).params))  # type: ignore[arg-type]


def answer(runner: Any, most_steps: int | None = None) -> Run:
    """One answer as a run of one window; cut off after so many steps of decode, if that is given."""
    names: list[str] = []
    marks: list[tuple[str, int, float]] = []

    def mark(phase: str, tokens: int = 0) -> None:
        marks.append((phase, tokens, time.perf_counter()))
        if phase not in names:
            names.append(phase)
        if most_steps is not None and sum(p == "decode" for p, *_ in marks) > most_steps:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        runner.run(0, mark)
    at = np.array([*(t for *_, t in marks), time.perf_counter()])
    zero = np.zeros(len(marks), np.int64)
    phase, tokens = (np.array(x, np.int64) for x in zip(*((names.index(p), n) for p, n, _ in marks), strict=True))
    items = Items(tuple(names), zero, zero, phase, zero, zero, at[:-1], at[1:], ("window",), tokens)
    window = Phase("window", float(at[0]), float(at[-1]), 1)
    return Run("benchmark", "", "here", "vlm", {}, {}, phases=(window,), items=items)


def slower(facts: Any, prompt: float, near: float | None, far: float | None) -> float | None:
    """By how much more a token takes far into the answer, over how many more bytes it moves there."""
    moved = costs(facts)["decode"].moved
    if near is None or far is None or moved is None:
        return None
    first, last = (moved[0] + moved[1] + moved[2] * (prompt + at) for at in (NEAR, FAR))
    return near / far / (last / first)


def table_4(value: dict[tuple[str, str], float]) -> float:
    """The identity of the Imp paper's Table 4 (arXiv 2405.12107): how far it is off, as a share of the whole time."""
    one = {metric: v for (metric, phase), v in value.items() if phase == "window"}
    total = one["vision_s"]
    for phase in ("prefill", "decode"):
        total += one[f"{phase}_tokens"] / one[f"{phase}_tokens_per_s"]
    return total / one["latency_s"] - 1


def resident_peak_bytes() -> int:
    """The most this process ever held in memory (VmHWM of the kernel's /proc/self/status)."""
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
