"""The run loop: one workload on one device, measured; a finished Run comes back, whatever happened on the way.

It does not save, plot or print.
"""

import contextlib
import dataclasses
import math
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness import analysis, clocks, energy, pulses
from edgewatt.harness.analysis_timing import needed_for
from edgewatt.harness.api import (
    AgentProcess,
    Device,
    Exit,
    Facts,
    Flag,
    HarnessError,
    Job,
    Measurement,
    Meter,
    Run,
    RunError,
    Score,
    Trace,
    TransientError,
    UsageError,
    Workload,
)
from edgewatt.harness.channels import roots
from edgewatt.harness.record import Record

SPARE = 1.1  # windows are so much longer than a sensor needs: what it does in the run is known only afterwards
PROBE_S = 1.0  # how long a meter is watched before the run to see how often it refreshes
GATE = "doubts_before"  # device fact: what was doubtful when the run began, which no raw sample tells again
NOTES = "lengthened"  # in the spec: which windows were made longer, and why
# Distributions that a number may depend on.
_DEPENDED_ON = (
    "edgewatt", "numpy", "scipy", "onnxruntime", "torch", "transformers", "tokenizers", "sentencepiece", "pillow",
    "ncnn", "opencv-python-headless", "pycocotools",
)  # fmt: skip
RAW = "raw/"  # prefix of the outputs that the runner itself saved; `recompute` scores them again


@dataclass(frozen=True)
class Protocol:
    """How a run is measured; every field can be set by `--set`, and all are kept in the run's spec."""

    repeats: int = 3
    idle_s: float = 3.0  # idle before the first and after each window
    window_s: float = 10.0  # steady window, at least; made longer where a meter's update period asks for it
    isolated_s: float = 3.0  # each phase looped alone, at least; 0 leaves the isolated phases out
    max_window_s: float = 120.0  # no window is made longer than this for a slow meter's sake
    warmup_min_s: float = 1.0
    warmup_max_s: float = 60.0
    steady_tolerance: float = 0.02  # relative change of block medians that still counts as steady
    item_timeout_s: float = 120.0  # a step of an item (all of one that has no steps) that takes longer is a hang
    load_timeout_s: float = 600.0
    memory_limit_bytes: int | None = None
    affinity: tuple[int, ...] | None = None
    seed: int = 0
    pattern: bool = False  # pulses before and after the job, that tie a recording's clock; always played for one

    def __post_init__(self) -> None:
        for name in ("idle_s", "isolated_s", "warmup_min_s"):
            if not 0 <= getattr(self, name) < 86400:
                raise UsageError(f"{name}={getattr(self, name)}: wanted 0 to 86400 seconds")
        for name in ("window_s", "max_window_s", "item_timeout_s", "load_timeout_s"):
            if not 0 < getattr(self, name) < 86400:
                raise UsageError(f"{name}={getattr(self, name)}: wanted more than 0 and less than 86400 seconds")
        if not 1 <= self.repeats <= 1000:
            raise UsageError(f"repeats={self.repeats}: wanted 1 to 1000")
        if self.warmup_max_s < self.warmup_min_s:
            raise UsageError(f"warmup_max_s={self.warmup_max_s} is less than warmup_min_s={self.warmup_min_s}")
        if self.max_window_s < self.window_s:
            raise UsageError(f"max_window_s={self.max_window_s} is less than window_s={self.window_s}; raise it too")
        if not 0 < self.steady_tolerance < 1:
            raise UsageError(f"steady_tolerance={self.steady_tolerance}: wanted a share between 0 and 1")
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < 1 << 26:
            raise UsageError(f"memory_limit_bytes={self.memory_limit_bytes}: wanted at least 64 MiB (67108864)")


@dataclass(frozen=True)
class Progress:
    """How far a run has come, for whoever shows it: `share` 0..1 of the present stage."""

    stage: str
    repeat: int
    repeats: int
    items: int
    share: float
    tokens: int = 0  # in the item at hand


def measure(
    device: Device,
    workload: Workload,
    protocol: Protocol,
    into: Path,
    *,
    extra_meters: Sequence[Meter] = (),
    controls: Mapping[str, Any] | None = None,
    calibrations: Callable[[Facts], Mapping[str, Facts]] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """One finished run. Files it leaves (outputs) lie in `into` until somebody stores them.

    `calibrations` gives, of what the device says of itself, what is to be applied to which meter (meter ->
    facts["calibration"]); the samples stay raw, the analysis applies it.

    Raises UsageError when nothing could be started (parameters, input, controls). Everything after that, an
    interrupt too, ends in a Run with its error.
    """
    progress(Progress("prepare", 0, protocol.repeats, 0, 0.0))
    job = workload.prepare(device)
    controls = dict(controls or {})
    gate: tuple[Flag, ...] = ()
    now = datetime.now(timezone.utc)
    run = Run(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        created_utc=now.isoformat(timespec="seconds"),
        device_name=device.name,
        workload=workload.name,
        spec={**_fields(workload), **_fields(protocol), "controls": controls},
        device=device.describe(),
        software=software(),
        artefacts=dict(job.artefacts),
    )
    calibrated = dict(calibrations(run.device)) if calibrations else {}
    if calibrated:
        run = dataclasses.replace(run, spec={**run.spec, "calibrated": calibrated})
    record = Record(clock=device.clock)
    notes: list[str] = []
    error: RunError | None = None
    session = _Session(device, job, protocol, record, progress)
    read_back: Mapping[str, Any] = {}
    try:
        with device.controls(controls) as read_back:
            if restored := read_back.get("restored"):
                said = ", ".join(f"{k} = {v}" for k, v in restored.items())
                notes.append(f"an earlier harness was killed and had left settings on the device: put back {said}")
            gate = tuple(device.health())  # of the device as it is set now
            doubts = [dataclasses.asdict(f) for f in gate]
            run = dataclasses.replace(run, device={**run.device, GATE: doubts}, flags=gate)
            meters = _apart([*device.meters(), *extra_meters])
            notes += _not_there(calibrated, meters)
            window_s, isolated_s, longer = _windows(meters, protocol, extra_meters)
            notes += longer
            run = dataclasses.replace(run, spec={**run.spec, NOTES: notes})
            before = device.clock_offset()
            has_pulses = protocol.pattern or not all(m.shares_clock for m in meters)
            with session.sampled(meters):
                if has_pulses:
                    session.pulse(0, run.id)
                session.execute(window_s, isolated_s if any(map(_measures_energy, meters)) else 0.0)
                if has_pulses:
                    session.pulse(1, run.id)
            after = device.clock_offset()
            if after.at_s > before.at_s:  # a device on the harness's own clock has nothing to draw a line through
                run = dataclasses.replace(run, clock_offset=clocks.line(before, after))
    except KeyboardInterrupt:
        error = RunError("interrupted", f"stopped by hand during {_place(record)}")
    except UsageError:
        raise
    except _EndedError as ended:
        error = ended.error
    except HarnessError as failure:
        error = (
            RunError("lost_link", f"{failure}; it was in {_place(record)}")
            if isinstance(failure, TransientError)
            else RunError("failed", str(failure))
        )
    run = dataclasses.replace(
        run,
        spec={**run.spec, "controls_read_back": dict(read_back)},
        engine={**record.engine, "steady": record.steady},
        phases=record.phases,
        items=record.items,
        traces=tuple(_told(t, calibrated) for t in session.traces),
        error=error,
    )
    for outputs in (session.outputs, lambda _: None):  # what was measured is worth keeping without a score
        try:
            return conclude(run, workload, outputs(into), into, gate, notes)
        except KeyboardInterrupt:
            failed = RunError("interrupted", "stopped by hand while the outputs were scored")
        except HarnessError as failure:
            failed = RunError("failed", str(failure))
        except Exception as failure:  # a fault of this program must not cost the samples either
            said = f"unexpected {type(failure).__name__}: {failure}"
            failed = RunError(
                "failed", f"{said}; its samples are kept: `edgewatt --debug recompute {run.id}` tells where"
            )
        run = dataclasses.replace(run, error=run.error or failed)
    return dataclasses.replace(run, flags=tuple(gate), warnings=tuple(notes))


def _not_there(calibrated: Mapping[str, Facts], meters: Sequence[Meter]) -> list[str]:
    """What of the calibrations that were asked for cannot be applied in this run; UsageError if none can."""
    channels = {m.name: [c.name for c in m.channels] for m in meters}
    missing = [f"{m}/{told['channel']}" for m, told in calibrated.items() if told["channel"] not in channels.get(m, ())]
    if missing and len(missing) == len(calibrated):
        raise UsageError(
            f"{', '.join(missing)}: was calibrated, and this run does not read it (it reads "
            f"{', '.join(channels) or 'no meter'}); calibrate again, or leave --calibrated out"
        )
    return [f"{name}: was calibrated, and this run does not read it" for name in missing]


def _told(trace: Trace, calibrated: Mapping[str, Facts]) -> Trace:
    """The trace with what is to be applied to it among its facts."""
    told = calibrated.get(trace.meter)
    return dataclasses.replace(trace, facts={**trace.facts, "calibration": dict(told)}) if told else trace


def watched(meter: Meter, seconds: float, periods: int = 5) -> Trace:
    """What a meter says in so long a time, or in so many of its periods, or in its own time, where that is longer."""
    meter.start()
    try:
        time.sleep(max(seconds, periods * meter.period_s, meter.probe_s if periods else 0.0))
    finally:
        trace = meter.stop()
    return trace


def conclude(
    run: Run, workload: Workload, raw: Path | None, into: Path, gate: Sequence[Flag] = (), notes: Sequence[str] = ()
) -> Run:
    """The same run with every conclusion drawn from its raw part: energies, latencies, quality, flags.

    `raw` is the folder of the runner's outputs, None if there are none; files worth keeping are written into `into`.
    """
    measurements, flags, warnings = analysis.analyse(run)
    score = Score()
    if raw is not None:
        score = workload.score(raw, into)
    outputs = dict(score.outputs)
    if raw is not None:
        outputs |= {f"{RAW}{p.relative_to(raw)}": p for p in sorted(raw.rglob("*")) if p.is_file()}
    every = [*gate, *workload.flags(), *score.flags, *flags]
    return dataclasses.replace(
        run,
        measurements=(*measurements, *score.measurements),
        flags=tuple(dict.fromkeys(every)),
        warnings=tuple(dict.fromkeys((*notes, *warnings, *score.warnings))),
        outputs=outputs,
    )


def recompute(run: Run, workload: Workload, into: Path) -> Run:
    """The run with every number derived anew from the raw samples that were stored with it."""
    raw = into / "raw"
    for name, path in run.outputs.items():
        if name.startswith(RAW):
            target = raw / name.removeprefix(RAW)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    gate = [Flag(**{**f, "voids": tuple(f["voids"])}) for f in run.device.get(GATE, ())]
    return conclude(run, workload, raw if raw.is_dir() else None, into, gate, run.spec.get(NOTES, ()))


def software() -> dict[str, str]:
    """Versions of what a number may depend on, by distribution name."""
    found = {"python": platform.python_version()}
    for name in _DEPENDED_ON:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class _EndedError(Exception):
    """The agent's process ended otherwise than by finishing its job."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.message)
        self.error = error


class _Session:
    """One job on one device: its agent, its meters' traces, and where it left its outputs."""

    def __init__(
        self, device: Device, job: Job, protocol: Protocol, record: Record, progress: Callable[[Progress], None]
    ) -> None:
        self._device, self._job, self._protocol = device, job, protocol
        self._record, self._progress = record, progress
        self.traces: tuple[Trace, ...] = ()

    @contextlib.contextmanager
    def sampled(self, meters: Sequence[Meter]) -> Iterator[None]:
        """Every meter samples inside; afterwards `traces` holds what they saw, also when something broke."""
        running: list[Meter] = []
        try:
            for meter in meters:
                meter.start()
                running.append(meter)
            yield
            # The last phase's end needs a reading after it, of the slowest meter too.
            time.sleep(max((2 * m.period_s for m in running), default=0.0))
        finally:
            with contextlib.ExitStack() as stops:  # every meter is stopped, also when another cannot be
                for meter in reversed(running):
                    stops.callback(self._stop, meter)

    def _stop(self, meter: Meter) -> None:
        self.traces = (*self.traces, meter.stop())

    def pulse(self, end: int, run: str) -> None:
        """Plays the pattern of one end of that run; _EndedError if it cannot be played."""
        steps = pulses.steps(end, run)
        process = self._device.start("pulse", {"steps": [list(s) for s in steps]})
        record, played, error = self._record, 0, None
        busy = sum(workers != 0 for _, workers in steps)
        try:
            for event in process.events(silence_s=30.0):
                if event.get("event") == "phase":
                    record.take({**event, "repeat": end})
                    played += 1
                elif event.get("event") == "error":
                    error = event.get("message")
                self._progress(Progress(pulses.PULSE, 0, self._protocol.repeats, 0, played / busy))
        except TimeoutError:
            error = "nothing was heard for 30 s"
        finally:
            process.stop()
        if played < busy:
            place = "before" if end == 0 else "after"
            why = error or "it was ended"
            raise _EndedError(RunError("failed", f"the pulses {place} the job, {played} of {busy} played: {why}"))

    def execute(self, window_s: float, isolated_s: float) -> None:
        """Runs the job to its end; _EndedError with the reason if it does not get there."""
        p = self._protocol
        steady = {"min_s": p.warmup_min_s, "max_s": p.warmup_max_s, "tolerance": p.steady_tolerance, "block_s": 0.5}
        process = self._device.start(
            "run",
            {
                "runner": self._job.runner,
                "params": dict(self._job.params),
                "item_count": self._job.item_count,
                "item_phases": list(self._job.item_phases),
                "isolate": list(self._job.isolate) if isolated_s else [],
                "folder": f"{self._device.scratch()}/outputs",
                "repeats": p.repeats,
                "idle_s": p.idle_s,
                "window_s": window_s,
                "isolated_s": isolated_s,
                "max_window_s": 86400.0,  # every picture is seen once, however many there are
                "min_items": math.ceil(needed_for(0.5) / p.repeats),  # so that there is a median to tell
                "steady": {**steady, "nodes": [dict(n) for n in self._device.steady_nodes()]},
                "load_limit_s": p.load_timeout_s,
                "item_limit_s": p.item_timeout_s,
                "memory_limit_bytes": p.memory_limit_bytes,
                "affinity": list(p.affinity) if p.affinity else None,
            },
        )
        try:
            self._follow(process)
        finally:
            ended = process.stop()
        if self._record.error is not None and self._record.error.get("kind") == "refused":
            raise UsageError(str(self._record.error.get("message", "the agent refused the job")))
        if not self._record.is_done:
            raise _EndedError(_why(self._record, ended))

    def _follow(self, process: AgentProcess) -> None:
        """Takes events until the process ends; a hang (no item finished in time) is an error."""
        record, p = self._record, self._protocol
        progressed, at = None, time.monotonic()
        try:
            for event in process.events(silence_s=30.0):
                record.take(event)
                where = (record.stage, record.repeat, record.items_done, len(record.phases))
                if where != progressed:
                    progressed, at = where, time.monotonic()
                if event.get("event") == "alive":  # a long item makes progress step by step
                    at = max(at, time.monotonic() - record.step_s)
                # The agent ends a hang itself and says where it hangs; this is for one that cannot any more.
                limits_s = {"load": p.load_timeout_s, "save": p.load_timeout_s, "idle": p.idle_s}
                limit_s = limits_s.get(record.stage, p.item_timeout_s) + 15
                if time.monotonic() - at > limit_s:
                    raise _EndedError(_hang(record, limit_s))
                done = (record.items_done, record.share, record.tokens_done)
                self._progress(Progress(record.stage, record.repeat, p.repeats, *done))
        except TimeoutError as error:
            raise _EndedError(_hang(record, 30.0)) from error

    def outputs(self, into: Path) -> Path | None:
        """The folder of the runner's outputs, brought here; None if it saved none."""
        if self._record.saved is None:
            return None
        fetched = self._device.get(self._record.saved, into)
        if self._job.finish is not None:
            self._job.finish(fetched)
        return fetched


def _hang(record: Record, limit_s: float) -> RunError:
    return RunError(
        "hung",
        f"no progress for {limit_s:.0f} s during {_place(record)}; the process was ended. "
        "If the model is that slow, raise item_timeout_s or load_timeout_s",
    )


def _why(record: Record, ended: Exit) -> RunError:
    """How the model's process ended, in words a user can act on."""
    place = _place(record)
    if record.error is not None:
        kind = str(record.error.get("kind", "failed"))
        message = str(record.error.get("message", ""))[:500]
        if kind == "out_of_memory":
            message = f"not enough memory during {place}: {message}; use a smaller size or raise memory_limit_bytes"
        return RunError(kind, message, _calls(str(record.error.get("detail", ""))))
    stderr = _calls(ended.stderr)
    if ended.out_of_memory:
        return RunError("out_of_memory", f"killed by the kernel for want of memory during {place}", stderr)
    if ended.signal is not None:
        kind = "killed" if ended.signal in ("SIGKILL", "SIGTERM") else "crashed"
        return RunError(kind, f"the model's process was ended by {ended.signal} during {place}", stderr)
    if record.ended == "stopped":
        return RunError("killed", f"the model's process was asked to stop during {place}", stderr)
    return RunError(
        "crashed", f"the model's process ended with status {ended.status} during {place}, without a word", stderr
    )


def _calls(text: str) -> str:
    """A traceback as the list of calls it is, without the headline that belongs to a program that broke."""
    return text.replace("Traceback (most recent call last):\n", "").strip()


def _place(record: Record) -> str:
    return f"{record.stage} (repeat {record.repeat + 1}, {record.items_done} items done)"


def _apart(meters: list[Meter]) -> list[Meter]:
    """The same meters, if their names tell them apart."""
    names = [m.name for m in meters]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(f"two meters are called {twice!r}; attach one in the device file, under a name of its own")
    return meters


def _measures_energy(meter: Meter) -> bool:
    return any(c.is_energy for c in meter.channels)


def _windows(meters: Sequence[Meter], protocol: Protocol, attached: Sequence[Meter]) -> tuple[float, float, list[str]]:
    """Window and isolated-phase length that the slowest energy meter supports, and what was changed for it."""
    window_s, isolated_s = protocol.window_s, protocol.isolated_s
    notes: list[str] = []
    for meter in filter(_measures_energy, meters):
        if not meter.shares_clock:  # a recording is there only after the run
            continue
        trace = watched(meter, PROBE_S)
        for channel in roots(trace.channels):
            if np.isfinite(trace.column(channel.name)).sum() < 2:
                continue  # a channel that is silent in the run as well gets a flag there
            update = energy.update_period(trace, channel.name)
            period_s = update.period_s
            if not update.known:  # a steady power hides it; a slow meter in the supply line tells what it is
                if meter not in attached or not channel.age_s:
                    continue
                period_s = max(period_s, channel.age_s)
            needed_s = SPARE * energy.minimum_window_s(period_s)
            longer_s = min(needed_s, protocol.max_window_s)
            if longer_s > window_s:
                window_s = longer_s
                most = " (max_window_s)" if longer_s < needed_s else ""
                notes.append(
                    f"{meter.name}/{channel.name} refreshes every {period_s:.3g} s, so windows last "
                    f"{window_s:.3g} s{most} instead of {protocol.window_s:.3g} s"
                )
            if isolated_s:
                isolated_s = max(isolated_s, longer_s)
    return window_s, isolated_s, notes


def _fields(thing: Any) -> dict[str, Any]:
    """A dataclass's fields as JSON values."""
    return {k: _plain(v) for k, v in dataclasses.asdict(thing).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


__all__ = ["Measurement", "Progress", "Protocol", "conclude", "measure", "recompute", "software", "watched"]
