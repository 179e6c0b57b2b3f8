"""What one call of our onnxruntime engine costs on the host over the C API of the same library.

A graph of one node with 16 numbers (nothing to compute) is run in a loop by a small C program, through
OrtApi::RunWithBinding of the libonnxruntime in the wheel, and by `Engine.run` in a Python loop; the difference is ours.
Both with one thread, bound input and outputs and kept run options; the rounds alternate, and medians are compared.

    python tests/benchmarks/bench_call_overhead.py

Needs gcc and the extra `torch` (for onnx). Target: at most 0.5 us.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgewatt.workloads.engines.registry import open_engine

# Positions in struct OrtApi, which only ever grows at its end (onnxruntime_c_api.h).
PROGRAM = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
typedef void *P;
typedef struct { const P *(*api)(uint32_t); const char *(*version)(void); } Base;
static const P *api;
#define CALL(index, type, ...) do { P s = ((P (*) type)api[index])(__VA_ARGS__); \
    if (s) { fprintf(stderr, "%s\n", ((const char *(*)(P))api[2])(s)); exit(1); } } while (0)
int main(int argc, char **argv) {
    P library = dlopen(argv[1], RTLD_NOW), env, options, session, run, memory, binding;
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    const Base *base = ((const Base *(*)(void))dlsym(library, "OrtGetApiBase"))();
    api = base->api(16);
    static float buffers[4][16]; int64_t shape[4] = {1, 1, 4, 4};
    const char *names[4] = {"input", "cls", "reg", "obj"};
    CALL(3, (int, const char *, P *), 3, "bench", &env);                                 /* CreateEnv */
    CALL(10, (P *), &options);                                                           /* CreateSessionOptions */
    CALL(24, (P, int), options, 1);                                                      /* SetIntraOpNumThreads */
    CALL(25, (P, int), options, 1);                                                      /* SetInterOpNumThreads */
    CALL(7, (P, const char *, P, P *), env, argv[2], options, &session);                 /* CreateSession */
    CALL(39, (P *), &run);                                                               /* CreateRunOptions */
    CALL(69, (int, int, P *), 1, 0, &memory);                                            /* CreateCpuMemoryInfo */
    CALL(134, (P, P *), session, &binding);                                              /* CreateIoBinding */
    for (int k = 0; k < 4; k++) {
        P value;
        CALL(49, (P, P, size_t, int64_t *, size_t, int, P *),                            /* CreateTensorWithData... */
             memory, buffers[k], sizeof buffers[k], shape, 4, 1, &value);
        CALL(k ? 137 : 136, (P, const char *, P), binding, names[k], value);             /* BindOutput, BindInput */
    }
    long n = atol(argv[3]);
    fprintf(stderr, "%s\n", base->version());
    while (getchar() != EOF) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (long i = 0; i < n; i++) CALL(133, (P, P, P), session, run, binding);        /* RunWithBinding */
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%.6f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n / 1e3);
        fflush(stdout);
    }
}
"""
CALLS, ROUNDS = 1_000, 801  # short rounds, so that most are not interrupted


def trivial_graph(path: Path) -> None:
    """Three outputs like FemtoDet's, all of them the input."""
    shape = [1, 1, 4, 4]
    nodes = [helper.make_node("Identity", ["input"], [name]) for name in ("cls", "reg", "obj")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input", "cls", "reg", "obj")]
    graph = helper.make_graph(nodes, "nothing", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main() -> int:
    """Prints both costs and their difference in microseconds; 1 if it is above the target."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trivial_graph(folder / "nothing.onnx")
        (folder / "loop.c").write_text(PROGRAM)
        subprocess.run(["gcc", "-O2", "-o", folder / "loop", folder / "loop.c", "-ldl"], check=True)
        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*")
        engine = open_engine("onnxruntime", folder / "nothing.onnx", threads=1, input_shape=(1, 1, 4, 4))
        with subprocess.Popen(
            [folder / "loop", library, folder / "nothing.onnx", str(CALLS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as loop:
            assert loop.stdin is not None and loop.stdout is not None
            c_us, ours_us = [], []
            for _ in range(ROUNDS):
                loop.stdin.write("\n")
                loop.stdin.flush()
                c_us.append(float(loop.stdout.readline()))
                ours_us.append(python_loop_us(engine.run))
            loop.stdin.close()
    c, ours = statistics.median(c_us), statistics.median(ours_us)
    over = statistics.median(b - a for a, b in zip(c_us, ours_us, strict=True))
    print(f"C API, RunWithBinding   {c:7.3f} us a call (least {min(c_us):.3f})")
    print(f"Engine.run              {ours:7.3f} us a call (least {min(ours_us):.3f})")
    print(f"host overhead           {over:7.3f} us a call, ratio {ours / c:.2f}; target <= 0.5 us")
    return int(over > 0.5)


def python_loop_us(run: object) -> float:
    """Microseconds a call in a plain loop, the loop itself counted as ours."""
    call = run
    begin = time.perf_counter_ns()
    for _ in range(CALLS):
        call()  # type: ignore[operator]
    return (time.perf_counter_ns() - begin) / CALLS / 1e3


if __name__ == "__main__":
    sys.exit(main())
