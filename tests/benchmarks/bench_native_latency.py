"""What the native agent adds to a model's latency, and what its sampling costs.

FemtoDet's packaged graph (synthetic weights, 416 x 416, one thread) is run by the agent's `run` and by a plain loop in
C over the same library, session options and bound tensors, in turns; medians of latency are compared. Before that the
native and the Python agent sample the same 8 files at 100 Hz in turns, and tell their own processor time.

    EDGEWATT_ORT_INCLUDE=… python tests/benchmarks/bench_native_latency.py [rounds]

Needs a C++ compiler and onnxruntime_c_api.h. Target: a ratio within 2 %.
"""

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgewatt.devices.android import build
from edgewatt.devices.transport import AGENT
from edgewatt.workloads.femtodet import fold, graph, synthetic
from edgewatt.workloads.femtodet.variants import VARIANTS

SIZE, SECONDS = 416, 2.0
LOOP = r"""
#include <dlfcn.h>
#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static const OrtApi *api;
#define CALL(...) do { OrtStatus *s = (__VA_ARGS__); \
    if (s) { fprintf(stderr, "%s\n", api->GetErrorMessage(s)); exit(1); } } while (0)
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(int argc, char **argv) {
    int size = atoi(argv[4]);
    double seconds = atof(argv[5]);
    void *library = dlopen(argv[1], RTLD_NOW);
    api = ((const OrtApiBase *(*)(void))dlsym(library, "OrtGetApiBase"))()->GetApi(14);
    OrtEnv *env; OrtSessionOptions *options; OrtSession *session; OrtMemoryInfo *memory; OrtIoBinding *binding;
    OrtAllocator *allocator; OrtValue *value;
    CALL(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "loop", &env));
    CALL(api->CreateSessionOptions(&options));
    CALL(api->SetIntraOpNumThreads(options, 1));
    CALL(api->SetInterOpNumThreads(options, 1));
    CALL(api->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL));
    CALL(api->AddFreeDimensionOverrideByName(options, "height", size));
    CALL(api->AddFreeDimensionOverrideByName(options, "width", size));
    CALL(api->CreateSession(env, argv[2], options, &session));
    CALL(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    CALL(api->GetAllocatorWithDefaultOptions(&allocator));
    CALL(api->CreateIoBinding(session, &binding));
    int64_t shape[4] = {1, 3, size, size};
    size_t bytes = 3 * size * size * 4, n;
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    FILE *file = fopen(argv[3], "rb");
    if (fread(data, 1, bytes, file) != bytes) return 1;
    CALL(api->CreateTensorWithDataAsOrtValue(
        memory, data, bytes, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    CALL(api->BindInput(binding, "input", value));
    CALL(api->SessionGetOutputCount(session, &n));
    const char *names[16]; char *name; OrtValue *found[16] = {0};
    for (size_t k = 0; k < n; ++k) { CALL(api->SessionGetOutputName(session, k, allocator, &name)); names[k] = name; }
    const char *input = "input";
    CALL(api->Run(session, NULL, &input, (const OrtValue *const *)&value, 1, names, n, found));
    for (size_t k = 0; k < n; ++k) CALL(api->BindOutput(binding, names[k], found[k]));
    for (int64_t start = now(), before, end = start; end - start < seconds * 1e9;) {
        before = now();
        CALL(api->RunWithBinding(session, NULL, binding));
        end = now();
        printf("%lld\n", (long long)(end - before));
    }
}
"""


def events(command: list[str], verb: str, job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    said = subprocess.run([*command, verb, str(path)], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def by_agent(agent: Path, library: Path, model: Path, data: Path, folder: Path) -> list[float]:
    """Latencies in one window, in seconds."""
    inputs = [{"name": "input", "path": str(data), "shape": [1, 3, SIZE, SIZE], "type": "float32"}]
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "runner": "native:onnxruntime",
            "params": {"library": str(library), "model": str(model), "threads": 1, "inputs": inputs},
            "item_count": data.stat().st_size // (3 * SIZE * SIZE * 4),
            "item_phases": ["detect"],
            "folder": f"{scratch}/outputs",
            "idle_s": 0,
            "window_s": SECONDS,
            "steady": {"max_s": 0.5},
        }
        said = events([str(agent)], "run", job, folder)
    marks = [
        np.frombuffer(base64.b64decode(e["marks_ns"]), "<i8").reshape(-1, 2)
        for e in said
        if e["event"] == "items" and e["part"] == "window"
    ]
    return list(np.diff(np.concatenate(marks), axis=1).ravel() * 1e-9)


def latency(rounds: int, agent: Path, folder: Path, include: str) -> None:
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    voc = VARIANTS["voc"]
    model = graph.write(folder, fold.folded(synthetic.synthetic(voc, 0), voc), voc)
    data, source, loop = folder / "input.bin", folder / "loop.c", folder / "loop"
    np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype("<f4").tofile(data)
    source.write_text(LOOP)
    subprocess.run(["cc", "-O2", f"-I{include}", str(source), "-o", str(loop), "-ldl"], check=True)
    plain: list[float] = []
    ours: list[float] = []
    for k in range(rounds):
        said = subprocess.run(
            [loop, library, model, data, str(SIZE), str(SECONDS)], capture_output=True, text=True, check=True
        ).stdout
        a, b = [int(line) * 1e-9 for line in said.split()], by_agent(agent, library, model, data, folder)
        plain.append(statistics.median(a))
        ours.append(statistics.median(b))
        print(f"round {k}: C loop {plain[-1] * 1e3:.3f} ms, agent {ours[-1] * 1e3:.3f} ms, {ours[-1] / plain[-1]:.4f}")
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    print(f"agent / C loop: median of {rounds} rounds {statistics.median(ratios):.4f} (wanted within 0.98 to 1.02)")


def sampling(rounds: int, agent: Path, folder: Path) -> None:
    paths = [folder / f"node{k}" for k in range(8)]
    for k, path in enumerate(paths):
        path.write_text(f"{5_120_000 + k}\n")
    job = {"rate_hz": 100, "duration_s": 2, "nodes": [{"path": str(p)} for p in paths]}
    agents = {"native": [str(agent)], "python": [sys.executable, str(AGENT)]}
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in agents}
    for _ in range(rounds):
        for name, command in agents.items():
            told[name].append(events(command, "sample", job, folder)[-2])
    for name, ends in told.items():
        cpu = statistics.median(e["cpu_s_per_s"] for e in ends)
        read_s = statistics.median(e["read_s"] for e in ends)
        gap_s = statistics.median(e["gap_p99_s"] for e in ends)
        print(
            f"{name}: 100 Hz x 8 files: {cpu:.2%} of a core, {read_s * 1e6:.0f} us a row, p99 gap {gap_s * 1e3:.2f} ms"
        )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    include = os.environ.get("EDGEWATT_ORT_INCLUDE", "")
    with tempfile.TemporaryDirectory(prefix="edgewatt-bench-") as scratch:
        folder = Path(scratch)
        agent = folder / "edgewatt-agent"
        build.compile_with(["c++"], agent, Path(include) if include else None)
        sampling(rounds, agent, folder)
        if include:
            latency(rounds, agent, folder, include)
        else:
            print("no onnxruntime_c_api.h here (EDGEWATT_ORT_INCLUDE names its folder): latency not compared")


if __name__ == "__main__":
    main()
