"""`edgewatt calibrate`: a load in steps, seen by a device's own sensor and a meter in its supply, and their fit.

What comes out is a run of the workload "calibrate" with both traces, so that the fit can be made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from edgewatt.harness import calibration, clocks, flags, measure
from edgewatt.harness.analysis_meter import Source, sources
from edgewatt.harness.analysis_view import WHOLE_RUN, Findings, on_device_clock
from edgewatt.harness.api import Device, HarnessError, Meter, Run, RunError, Trace, UsageError
from edgewatt.harness.channels import WIDEST_FIRST, groups
from edgewatt.harness.energy import GapError, update_period
from edgewatt.harness.record import Record

WORKLOAD = "calibrate"
SECONDS = 60.0
MARGIN_S = 2.0  # of idle before and after
# Lengths (s) and workers (-1: all) of the steps; the lengths share no divisor, so that no sensor keeps time with them.
STEPS = ((5.3, 0), (4.1, -1), (6.7, 0), (4.9, 1), (3.7, -1), (5.9, 2), (4.3, 0), (6.1, 1), (3.1, 0), (5.7, -1),
         (4.7, 2), (5.5, 0))  # fmt: skip
STEP_PERIODS = 6  # a step lasts at least so many update periods of the slower meter


def chosen(device: Device, attached: Sequence[Meter], named: str | None, sensor: str | None) -> tuple[Meter, Meter]:
    """The reference among the attached meters and the device's own meter; UsageError in one line if one is missing."""
    refs = [m for m in attached if named in (None, m.name) and any(c.is_energy for c in m.channels)]
    if not refs:
        which = f"no meter called {named!r} is attached" if named else "no meter is attached"
        raise UsageError(
            f"{device.name}: {which} to calibrate against; add [devices.{device.name}.meters.NAME] to the device file, "
            "or --meter KIND:ADDRESS"
        )
    if len(refs) > 1:
        raise UsageError(f"{device.name}: {', '.join(m.name for m in refs)} are attached; name one with --meter NAME")
    own = [m for m in device.meters() if any(c.is_energy for c in m.channels)]
    wanted = (sensor or "").partition("/")[0]
    mine = [m for m in own if wanted in ("", m.name)]
    if not mine:
        found = f"; it has {', '.join(m.name for m in own)}" if own else ""
        raise UsageError(f"{device.name}: has no power sensor {wanted or 'of its own'} to calibrate{found}; see doctor")
    return refs[0], min(mine, key=_place)


def _place(meter: Meter) -> int:
    widest = groups(meter.channels)
    order = {b: k for k, b in enumerate(WIDEST_FIRST)}
    return order.get(widest[0].boundary, len(order)) if widest else len(order) + 1


def steps(seconds: float, period_s: float) -> list[list[float | int]]:
    """The load: as long as was asked, longer where the slower meter renews its reading every `period_s`."""
    whole, shortest = sum(s for s, _ in STEPS), min(s for s, _ in STEPS)
    factor = max(seconds / whole, STEP_PERIODS * period_s / shortest)
    return [[round(s * factor, 4), workers] for s, workers in STEPS]


def calibrate(device: Device, reference: Meter, own: Meter, sensor: str | None, seconds: float = SECONDS) -> Run:
    """The finished run, with its fit or the reason why there is none as its error.

    UsageError where the sensor's name is wrong; HarnessError where the load cannot be played or a meter not be read.
    """
    traces = [measure.watched(m, measure.PROBE_S) for m in (reference, own)]
    channels = [_channel(traces[0], None), _channel(traces[1], sensor)]
    period_s = max(update_period(t, c).period_s for t, c in zip(traces, channels, strict=True))
    load = steps(seconds, period_s)
    now = datetime.now(timezone.utc)
    record = Record(clock=device.clock)
    before = device.clock_offset()
    with contextlib.ExitStack() as running:
        held: list[Trace] = []
        for meter in (reference, own):
            meter.start()
            running.callback(_hold, meter, held)
        time.sleep(MARGIN_S)
        _play(device, load, record)
        time.sleep(max(MARGIN_S, 2 * period_s))
    after = device.clock_offset()
    by_name = {t.meter: t for t in held}
    run = Run(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        created_utc=now.isoformat(timespec="seconds"),
        device_name=device.name,
        workload=WORKLOAD,
        spec={"seconds": sum(s for s, _ in load), "steps": load,
              "reference": [reference.name, channels[0]], "sensor": [own.name, channels[1]]},
        device=device.describe(),
        software=measure.software(),
        clock_offset=clocks.line(before, after) if after.at_s > before.at_s else before,
        phases=record.phases,
        traces=(by_name[reference.name], by_name[own.name]),
    )  # fmt: skip
    return concluded(run)


def _hold(meter: Meter, held: list[Trace]) -> None:
    held.append(meter.stop())


def _play(device: Device, load: Sequence[Sequence[float | int]], record: Record) -> None:
    process = device.start("pulse", {"steps": [list(s) for s in load]})
    try:
        for event in process.events(silence_s=max(s for s, _ in load) + 30):
            record.take(event)
    except TimeoutError as error:
        raise HarnessError(f"{device.name}: its agent fell silent while it played the load") from error
    finally:
        ended = process.stop()
    if record.error is not None:
        raise HarnessError(f"{device.name}: the load could not be played: {record.error.get('message', '')}")
    if not record.phases:
        raise HarnessError(f"{device.name}: the load was not played; {ended.stderr[-200:] or 'the agent said nothing'}")


def _channel(trace: Trace, named: str | None) -> str:
    """The channel that is fitted: the one that was named, or the widest root, if that is one channel."""
    wanted = (named or "").partition("/")[2]
    if wanted:
        if wanted not in {c.name for c in trace.channels if c.is_energy}:
            raise UsageError(f"{trace.meter}: has no energy channel {wanted!r}; leave it out or see `edgewatt devices`")
        return wanted
    source: Source | None = next((s for s in sources(trace, 0.0) if not s.is_part), None)
    if source is None or len(source.channels) != 1:
        many = source.name if source else "nothing"
        raise UsageError(
            f"{trace.meter}: its widest figure is {many}, no single channel; name one with --sensor "
            f"{trace.meter}/CHANNEL"
        )
    return source.channels[0].name


def concluded(run: Run) -> Run:
    """The run with its fit made from the raw samples it holds (also by `recompute`)."""
    found = Findings()
    (ref_name, ref_channel), (own_name, own_channel) = run.spec["reference"], run.spec["sensor"]
    raw = run.trace(own_name)
    bare = dataclasses.replace(raw, facts={k: v for k, v in raw.facts.items() if k != "calibration"})
    (reference, bound_s), (own, own_bound_s) = (on_device_clock(t, run, found) for t in (run.trace(ref_name), bare))
    if run.device.get("simulated"):
        found.doubt(flags.SIMULATED, f"{run.device_name} says it is simulated ({run.device['simulated']!r})")
    error = None
    told: dict[str, Any] = {}
    try:
        fit = calibration.fit(reference, ref_channel, own, own_channel, bound_s + own_bound_s)
    except (calibration.FitError, GapError) as failure:
        error = RunError("failed", f"no calibration: {failure}")
    else:
        told = {
            "meter": own_name,
            "channel": own_channel,
            "fit": fit.as_json(),
            "reference": _reference(reference, ref_channel),
            "seconds": run.spec["seconds"],
            "levels": sorted({p.items for p in run.phases} | {0}),
        }
        _measured(fit, f"{own_name}/{own_channel}", ref_name, told["reference"]["boundary"], found)
        if told["reference"]["gain_error"] is None:
            found.warnings.append(f"{ref_name}: states no gain error, so what is calibrated by it has none either")
    return dataclasses.replace(
        run,
        engine={"calibration": told} if told else {},
        measurements=tuple(found.measurements),
        flags=tuple(found.flags),
        warnings=tuple(dict.fromkeys(found.warnings)),
        error=error,
    )


def _reference(trace: Trace, name: str) -> dict[str, Any]:
    c = trace.channel(name)
    return {"meter": trace.meter, "channel": name, "boundary": c.boundary, "covers": c.covers,
            "gain_error": c.gain_error, "wiring": dict(trace.facts.get("wiring") or {})}  # fmt: skip


def _measured(fit: calibration.Fit, sensor: str, reference: str, boundary: str, found: Findings) -> None:
    method = f"{sensor} fitted to {reference}, reference = gain x reading + offset: {fit.words}"
    rows = (
        ("calibration_gain", fit.gain, fit.gain_error, "1"),
        ("calibration_offset_w", fit.offset_w, fit.offset_error_w, "W"),
        ("calibration_delay_s", fit.delay_s, fit.delay_error_s, "s"),
        ("calibration_averaging_s", fit.averaging_s, fit.averaging_error_s, "s"),
        ("calibration_scatter_w", fit.scatter_w, None, "W"),
        ("calibration_nonlinearity_w", fit.nonlinearity_w, None, "W"),
    )
    for metric, value, width, unit in rows:
        if value is not None:
            found.measured(metric, value, width, unit, WHOLE_RUN, fit.n, method, sensor, boundary)


__all__ = ["WORKLOAD", "calibrate", "chosen", "concluded", "steps"]
