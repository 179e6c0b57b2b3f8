"""A made-up run with everything a real one has: meters, items, measurements of every kind, flags, an output file.

The traces follow a known waveform, so that a picture of them looks like a measurement; the measurements are written
by hand beside it (from the waveform's closed form, roughly) and are not the work of the analysis.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgewatt.harness.api import (
    Channel,
    ClockOffset,
    Flag,
    Floats,
    Items,
    Measurement,
    Phase,
    Run,
    RunError,
    Trace,
)

ITEM_PHASES = ("preprocess", "detect", "postprocess")
ITEM_S = {"preprocess": 0.004, "detect": 0.014, "postprocess": 0.002}  # how long each phase of an item takes
POWER_W = {"idle": 4.0, "load": 9.0, "preprocess": 11.0, "detect": 18.0, "postprocess": 10.0}  # of the package
DRAM_SHARE = 0.12  # of the package's power
BOARD_EXTRA_W = 6.5  # what the board draws beside package and memory
RAPL_QUANTUM_J = 2.0**-14  # the usual energy unit of RAPL

PACKAGE = Channel(
    "package-0",
    "energy",
    "J",
    "counter",
    "CPU package",
    "package",
    quantum=RAPL_QUANTUM_J,
    gain_error=0.05,
    wraps_at=262143.32885,
)
DRAM = Channel(
    "package-0/dram",
    "energy",
    "J",
    "counter",
    "memory modules of package 0",
    "package",
    quantum=RAPL_QUANTUM_J,
    gain_error=0.05,
    wraps_at=65712.999613,
)
BOARD = Channel(
    "ina226/power1",
    "power",
    "W",
    "gauge",
    "the board's 12 V input",
    "dc-input",
    quantum=0.025,
    gain_error=0.01,
    averaging_s=0.1,
)
HEALTH = (
    Channel("temperature", "temperature", "degC", "gauge", "CPU package", quantum=0.001),
    Channel("frequency", "frequency", "Hz", "gauge", "mean of the CPU's cores", quantum=1000.0),
    Channel("utilisation", "utilisation", "1", "gauge", "all cores", quantum=0.001),
)


def example_run(
    seed: int = 0,
    *,
    with_power: bool = True,
    error: RunError | str | None = None,
    repeats: int = 3,
    name: str = "host",
    workload: str = "femtodet",
    size: int = 416,
    engine: str = "onnxruntime",
    folder: Path | None = None,
    created_utc: str | None = None,
    id: str | None = None,
) -> Run:
    """A run on one host; the same `seed` gives the same numbers and the same id.

    `with_power` gives it two energy counters (package, memory) and a power gauge (board); without, only its health
    is known. With `error` (a kind, such as "hung", will do) it stops in the first window, with no measurements.
    Latency and energy grow with `size` as they do in reality. The output file is written into `folder`, or into one
    that is removed when the tests end.
    """
    rng = np.random.default_rng(seed)
    slower = (size / 416) ** 2
    failure = RunError(error, f"{name}: the model {error} in the first window") if isinstance(error, str) else error
    phases, items = _timeline(rng, 1 if failure else repeats, slower, stop_early=failure is not None)
    traces = _traces(rng, phases, items, with_power)
    return Run(
        id=id or f"20260314T1{seed % 10}2653-{rng.integers(16**8):08x}",
        created_utc=created_utc or f"2026-03-14T1{seed % 10}:26:53Z",
        device_name=name,
        workload=workload,
        spec={
            "data": "drawn",
            "variant": "voc",
            "size": size,
            "weights": "synthetic",
            "engine": engine,
            "threads": 2,
            "provider": "cpu",
            "score_threshold": 0.01,
            "nms_iou": 0.65,
            "limit": None,
            "strict": False,
            "seed": seed,
            "repeats": repeats,
            "idle_s": 5.0,
            "window_s": 10.0,
            "isolated_s": 2.0,
            "max_window_s": 600.0,
            "rate_hz": 100.0,
            "warmup_min_s": 1.0,
            "warmup_max_s": 60.0,
            "controls": {},
        },
        device={
            "kind": "host",
            "machine": "x86_64",
            "cpu": "Example CPU @ 2.40GHz",
            "cores": 2,
            "memory_bytes": 25 << 30,
            "os": "Debian GNU/Linux 12",
            "kernel": "6.1.0-18-amd64",
            "governor": "performance",
            "boot_id": "3f1c",
            "caches": {"L1d": 32768, "L2": 1 << 20, "L3": 32 << 20},
            "libraries": ["openblas 0.3.27", "grün <b>"],
        },
        engine={
            "engine": engine,
            "version": "1.22.0",
            "threads": 2,
            "provider_asked": "cpu",
            "provider_used": "CPUExecutionProvider",
            "nodes": {"CPUExecutionProvider": 87},
            "fallback_share": 0.0,
        },
        software={
            "edgewatt": "0.1.0",
            "python": "3.11.7",
            "numpy": "2.4.6",
            "git": {"commit": "e5fef70", "dirty": False},
        },
        artefacts={"model.onnx": f"{seed:064x}", "pictures": "ab" * 32},
        outputs={"detections": _output(seed, folder)},
        clock_offset=ClockOffset(1.5e-7, 2.5e-5, 3e-9, phases[0].start_s, 20),
        phases=phases,
        items=items,
        traces=traces,
        measurements=() if failure else tuple(_measurements(rng, repeats, slower, with_power)),
        flags=_flags(with_power),
        warnings=("the CPU's governor changed nothing in 0 of 3 repeats", "3 of 90 pictures were not readable"),
        error=failure,
        cell=f"{name}/{workload}/{size}",
        attempt=1 if seed % 2 else 0,
    )


def _timeline(
    rng: np.random.Generator, repeats: int, slower: float, stop_early: bool
) -> tuple[tuple[Phase, ...], Items]:
    """Phases in order of time from 1,000 s on, and the items in them; cut off in the first window if `stop_early`."""
    phases: list[Phase] = []
    parts = ("warmup", "window", *ITEM_PHASES)
    rows: list[tuple[int, int, int, int, int, float, float]] = []
    now = 1000.0

    def plain(phase: str, seconds: float, repeat: int = 0) -> None:
        nonlocal now
        phases.append(Phase(phase, now, now + seconds, 0, repeat))
        now = round((now + seconds + 0.01) * 1e9) / 1e9

    def loop(part: str, seconds: float, repeat: int, names: tuple[str, ...]) -> None:
        nonlocal now
        start, n = now, 0
        while now - start < seconds:
            for k in names:
                spent = ITEM_S[k] * slower * (1 + 0.03 * rng.standard_normal() + 0.4 * (rng.random() < 0.01))
                following = round((now + spent) * 1e9) / 1e9  # whole nanoseconds, as the agent stamps them
                rows.append((n, n % 90, ITEM_PHASES.index(k), parts.index(part), repeat, now, following))
                now = following
            n += 1
        phases.append(Phase(part, start, now, n, repeat))
        now = round((now + 0.01) * 1e9) / 1e9

    plain("load", 0.8)
    plain("idle", 5.0)
    for r in range(repeats):
        loop("warmup", 2.0, r, ITEM_PHASES)
        loop("window", 3.0 if stop_early else 10.0, r, ITEM_PHASES)
        if stop_early:
            break
        for phase in ITEM_PHASES:
            loop(phase, 2.0, r, (phase,))
        plain("idle", 5.0, r)
    whole = np.array([r[:5] for r in rows], np.int64).T
    times = np.array([r[5:] for r in rows], np.float64).T
    return tuple(phases), Items(ITEM_PHASES, *whole, times[0].copy(), times[1].copy(), parts)


def _traces(rng: np.random.Generator, phases: tuple[Phase, ...], items: Items, with_power: bool) -> tuple[Trace, ...]:
    start, end = phases[0].start_s - 1.0, phases[-1].end_s + 1.0
    # The package's power is constant in each phase of an item; between them it idles.
    edges: list[tuple[float, float, float]] = [(p.start_s, p.end_s, POWER_W[p.phase]) for p in phases if not p.items]
    edges += [(s, e, POWER_W[ITEM_PHASES[k]]) for s, e, k in zip(items.start_s, items.end_s, items.phase, strict=True)]
    edges.sort()
    steps = [(start, POWER_W["idle"])]
    for (s, e, watts), following in pairwise([*edges, (end, end, 0.0)]):
        steps.append((s, watts))
        if following[0] > e:
            steps.append((e, POWER_W["idle"]))
    knots = np.array([t for t, _ in steps] + [end])
    joules = np.concatenate([[0.0], np.cumsum(np.diff(knots) * np.array([w for _, w in steps]))])

    def stamps(rate_hz: float) -> Floats:
        t = np.arange(start, end, 1 / rate_hz)
        return np.round((t + rng.uniform(0, 0.05 / rate_hz, len(t))) * 1e9) / 1e9

    def facts(rate_hz: float) -> dict[str, object]:
        return {
            "rate_asked_hz": rate_hz,
            "rate_hz": rate_hz * 0.999,
            "gap_p99_s": 1.02 / rate_hz,
            "gap_max_s": 1.2 / rate_hz,
            "gap_limit_s": 5 / rate_hz,
            "read_s": 2.1e-5,
            "cpu_s_per_s": 0.004,
            "errors": {},
        }

    t = stamps(10.0)
    busy = np.interp(t - 0.1, knots, joules)
    power = (np.interp(t, knots, joules) - busy) / 0.1
    # First-order warming, 0.9 degrees per watt with 20 s to settle.
    warm = np.empty(len(t))
    level = 0.9 * POWER_W["idle"]
    for k, p in enumerate(power):
        level += (0.9 * p - level) * 0.1 / 20
        warm[k] = level
    health = np.column_stack(
        [
            np.round(38 + warm, 3),
            np.round(np.where(power > 8, 2.4e9, 0.8e9) + 1e6 * rng.integers(-5, 5, len(t))),
            np.round(np.clip(power / 18, 0, 1), 3),
        ]
    )
    health[rng.integers(0, len(t), 3), 0] = np.nan  # a reading that failed
    traces = [Trace("health", "boottime", HEALTH, t, health, facts(10.0))]
    if with_power:
        t = stamps(100.0)
        used = np.interp(t, knots, joules)
        counters = np.floor(np.column_stack([used + 123456.0, used * DRAM_SHARE + 4321.0]) / RAPL_QUANTUM_J)
        traces.insert(0, Trace("rapl", "boottime", (PACKAGE, DRAM), t, counters * RAPL_QUANTUM_J, facts(100.0)))
        t = stamps(10.0)
        mean = (np.interp(t, knots, joules) - np.interp(t - 0.1, knots, joules)) / 0.1
        board = mean * (1 + DRAM_SHARE) + BOARD_EXTRA_W + 0.1 * rng.standard_normal(len(t))
        watts = np.round(board / 0.025)[:, None] * 0.025
        traces.insert(1, Trace("hwmon", "boottime", (BOARD,), t, watts, facts(10.0)))
    return tuple(traces)


def _measurements(rng: np.random.Generator, repeats: int, slower: float, with_power: bool) -> list[Measurement]:
    """Numbers near the waveform's own, a little different from run to run."""
    few = 1 + 0.005 * rng.standard_normal()
    item_s = {k: v * slower * few for k, v in ITEM_S.items()}
    whole_s = sum(item_s.values())
    n = round(repeats * 10 / whole_s)
    items = "every item of the steady windows"
    found = [
        Measurement("latency_s", whole_s, 0.004 * whole_s, "s", "window", n, f"median of {items}; bootstrap"),
        Measurement("latency_p90_s", 1.04 * whole_s, 0.006 * whole_s, "s", "window", n, f"quantile 0.9 of {items}"),
        Measurement("latency_p99_s", 1.3 * whole_s, 0.05 * whole_s, "s", "window", n, f"quantile 0.99 of {items}"),
        Measurement(
            "throughput_fps", 1 / whole_s, 0.004 / whole_s, "1/s", "window", n, "items by duration of the windows"
        ),
        Measurement(
            "peak_memory_bytes", 183_500_800.0, None, "B", "window", 1, "largest resident set of the model's process"
        ),
        Measurement("model_bytes", 291_234.0, None, "B", "load", 1, "size of the model's files"),
        Measurement("load_s", 0.8, 1e-4, "s", "load", 1, "from the start of the load to the model being ready"),
        Measurement("temperature_c", 52.3, 0.4, "degC", "window", 300, "mean over the windows", "health"),
        Measurement("frequency_hz", 2.4e9, 1.2e6, "Hz", "window", 300, "mean over the windows", "health"),
        Measurement("utilisation", 0.83, 0.01, "1", "window", 300, "mean over the windows", "health"),
        Measurement("ap", 0.0042, None, "1", "", 90, "pycocotools, IoU 0.50:0.95, at most 100 detections a picture"),
        Measurement("ap50", 0.0117, None, "1", "", 90, "pycocotools, IoU 0.50, at most 100 detections a picture"),
    ]
    for k, s in item_s.items():
        found.append(Measurement("latency_s", s, 0.005 * s, "s", k, n, f"median of {k} in {items}"))
    if not with_power:
        return found
    share = {"package-0": (1.0, "rapl", "package"), "package-0/dram": (DRAM_SHARE, "rapl", "package")}
    for channel, (part, meter, boundary) in share.items():
        label = f"{meter}/{channel}"
        energy = {k: part * POWER_W[k] * s for k, s in item_s.items()}
        per_item = sum(energy.values())
        seconds = 10.0 * repeats
        for metric, value, unit, method in (
            ("power_w", per_item / whole_s, "W", "energy of the windows by their duration"),
            ("power_net_w", per_item / whole_s - part * POWER_W["idle"], "W", "power less idle before and after"),
            ("idle_power_w", part * POWER_W["idle"], "W", "energy of the idle phases by their duration"),
            ("energy_j", per_item / whole_s * seconds, "J", "counter, subtracted; edges interpolated"),
            ("energy_per_inference_j", per_item, "J", "sum of energies by sum of items; bootstrap over repeats"),
            ("energy_per_inference_net_j", per_item - part * POWER_W["idle"] * whole_s, "J", "the same, less idle"),
        ):
            parts = {"gain": 0.05 * value, "edge": 0.002 * value, "quantisation": 1e-5 * value, "repeats": 0.01 * value}
            width = float(np.sqrt(sum(p * p for p in parts.values())))
            phase = "idle" if metric.startswith("idle") else "window"
            found.append(Measurement(metric, value, width, unit, phase, n, method, label, boundary, parts))
        for k, joules in energy.items():
            parts = {"gain": 0.05 * joules, "edge": 0.02 * joules}
            width = math.hypot(*parts.values())
            method = f"{k} alone, looped for 2 s"
            found.append(
                Measurement("energy_per_inference_j", joules, width, "J", k, n, method, label, boundary, parts)
            )
    board_w = (1 + DRAM_SHARE) * sum(POWER_W[k] * s for k, s in item_s.items()) / whole_s + BOARD_EXTRA_W
    parts = {"gain": 0.01 * board_w, "sampling": 0.004 * board_w}
    width = math.hypot(*parts.values())
    method = "gauge, integrated by trapezoids"
    for metric, scale, unit in (("power_w", 1.0, "W"), ("energy_per_inference_j", whole_s, "J")):
        budget = {k: v * scale for k, v in parts.items()}
        found.append(
            Measurement(
                metric,
                board_w * scale,
                width * scale,
                unit,
                "window",
                n,
                method,
                "hwmon/ina226/power1",
                "dc-input",
                budget,
            )
        )
    return found


def _flags(with_power: bool) -> tuple[Flag, ...]:
    flags = [Flag("synthetic_weights", ("ap", "ap50"), "the weights are random (seed 0), so accuracy means nothing")]
    if with_power:
        detail = "postprocess lasts 0.002 s, the meter renews its reading every 0.1 s; loop it for 10 s"
        flags.append(Flag("window_too_short", ("energy_per_inference_j",), detail, "hwmon"))
        flags.append(Flag("throttled", (), "repeat 2: 0.4 s below 2.3 GHz at 71.2 degC", "health"))
    return tuple(flags)


def _output(seed: int, folder: Path | None) -> Path:
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="edgewatt-example-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "detections.json"
    boxes = [{"image_id": k, "category_id": 1 + k % 20, "bbox": [k, 2 * k, 30, 40], "score": 0.5} for k in range(90)]
    path.write_text(json.dumps({"seed": seed, "detections": boxes}))
    return path
