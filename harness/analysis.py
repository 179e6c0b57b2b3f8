"""From the raw part of a run to its numbers: every measurement with its error bar, every doubt with its evidence.

Nothing here reads a clock, a file or a random seed: the same phases, items and samples give the same results.

What comes out (`metric`, of `phase`; names are stable, they are the database's keys):
- duration_s of every phase; first_latency_s and burst_latency_s of "warmup"; latency_s (the median), latency_p90_s,
  latency_p99_s of "window" (whole items) and of every phase of an item; throughput_fps of "window".
- of language models: ttft_s (the median), ttft_p90_s, ttft_p99_s, the time to the first token; tpot_s, tpot_p90_s,
  tpot_p99_s, the time of each token after it; vision_s, prefill_tokens_per_s, decode_tokens_per_s, prefill_tokens and
  decode_tokens (of an item), all of "window". Where the engine tells what a step costs: flops_per_s and
  macs_per_inference of each phase, bytes_per_token, bandwidth_bytes_per_s and bandwidth_utilisation of "decode",
  read_bandwidth_bytes_per_s of "run".
- per meter: energy_j and power_w of every phase, energy_per_inference_j of "window" and of phases looped alone
  ("detect"), energy_per_token_j of those that count tokens; power_net_w, energy_net_j, energy_per_inference_net_j,
  energy_per_token_net_j above idle; "window/detect", ..., "window/other": the window's energy shared out over its
  items' phases, where the sensor is fast enough. update_period_s of "run".
- per pair of an external meter and another one ("supply vs rapl"): meter_ratio and meter_lag_s of "window".
- temperature_c, temperature_max_c, frequency_hz, frequency_min_hz, utilisation of "window"; sampler_cpu_s_per_s,
  peak_memory_bytes, model_bytes of "run".
`meter` is the meter's name for its widest root (or the sum of such roots), "meter/channel" for other roots and parts.
"""

from __future__ import annotations

from edgewatt.harness import flags
from edgewatt.harness.analysis_crosscheck import crosscheck
from edgewatt.harness.analysis_energy import metering
from edgewatt.harness.analysis_health import health
from edgewatt.harness.analysis_meter import supported
from edgewatt.harness.analysis_timing import timing
from edgewatt.harness.analysis_tokens import token_figures
from edgewatt.harness.analysis_view import WHOLE_RUN, Findings, on_device_clock, view
from edgewatt.harness.api import Flag, Measurement, Run

__all__ = ["analyse", "supported"]

# What the engine tells of itself: fact -> how it was obtained, in words.
ENGINE_BYTES = {
    "peak_memory_bytes": "largest resident set of the model's process, whole run",
    "model_bytes": "size of the model's files",
}


def analyse(run: Run) -> tuple[tuple[Measurement, ...], tuple[Flag, ...], tuple[str, ...]]:
    """Measurements, flags and warnings that follow from a run's spec, phases, items, traces, clock offset and engine.

    Whatever is odd in them (no items, a meter that stopped early, phases of no length) costs the figures it concerns
    and is told in a flag or a warning; it raises nothing.
    """
    found = Findings()
    seen = view(run, found)
    _engine(run, found)
    timing(seen, found)
    token_figures(seen, found)
    traces = [on_device_clock(t, run, found) for t in run.traces]
    metering(seen, traces, found)
    health(seen, [trace for trace, _ in traces], found)
    crosscheck(seen, traces, found)
    return tuple(found.measurements), tuple(dict.fromkeys(found.flags)), tuple(dict.fromkeys(found.warnings))


def _engine(run: Run, found: Findings) -> None:
    for metric, method in ENGINE_BYTES.items():
        size = run.engine.get(metric)
        if isinstance(size, (int, float)) and size > 0:
            found.measured(metric, float(size), None, "B", WHOLE_RUN, 1, method)
    if run.device.get("simulated"):
        found.doubt(flags.SIMULATED, f"{run.device_name} says it is simulated ({run.device['simulated']!r})")
    _fallback(run, found)


def _fallback(run: Run, found: Findings) -> None:
    """All of the model elsewhere than asked voids; single nodes elsewhere are told."""
    asked, used = run.engine.get("provider_asked"), run.engine.get("provider_used")
    share = run.engine.get("fallback_share") or 0.0
    if asked and used and not _is_same(str(asked), str(used)):
        found.doubt(
            flags.ON_FALLBACK, f"asked for {asked}, ran on {used} ({share:.1%} of the nodes elsewhere, limit 0 %)"
        )
    elif share > 0:
        ops = ", ".join(map(str, run.engine.get("fallback_ops") or ()))
        detail = (
            f"{share:.1%} of the nodes ran elsewhere than on {used or asked} (limit 0 %): {run.engine.get('nodes')}"
            f"{f'; elsewhere ran {ops}' if ops else ''}"
        )
        found.doubt(flags.ON_FALLBACK, detail, voids=flags.voided_by(flags.ON_FALLBACK) if share >= 1 else ())


def _is_same(asked: str, used: str) -> bool:
    """Whether two spellings name one provider: "cpu" is what ONNX Runtime calls CPUExecutionProvider."""
    short = [p.lower().removesuffix("executionprovider") for p in (asked, used)]
    return short[0] == short[1]
