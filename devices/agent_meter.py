"""A meter that an agent samples on the device (docs/agent-protocol.md, `sample`)."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgewatt.harness.api import (
    AgentProcess,
    Channel,
    Device,
    Facts,
    Floats,
    HarnessError,
    Meter,
    Trace,
    TransientError,
)

FIRST_SAMPLE_S = 15.0  # an old board takes seconds to start Python
FIRST_OF_STREAM_S = 35.0  # a program it has to start first may take as long again
MISSING = np.iinfo(np.int64).min


class AgentMeter(Meter):
    """Channels that an agent reads on `device`, from nodes or a source, between `start` and `stop`.

    Counters are handed on as they were read: undoing a wrap is for the analysis (`Channel.wraps_at`).
    """

    def __init__(
        self,
        device: Device,
        name: str,
        channels: Sequence[Channel],
        job: Facts,
        scale: Sequence[float] | None = None,
        clock: str = "boottime",
    ) -> None:
        """`job` is that of the agent's `sample`; `scale` turns columns into their channels' units (None: they are)."""
        self.device, self.name, self.channels, self.clock = device, name, tuple(channels), clock
        self.job = dict(job)
        nodes = self.job.get("nodes") or ()
        if len(nodes) == columns(nodes) == len(self.channels):  # errors are then told by channel
            self.job["nodes"] = [{"name": c.name, **n} for c, n in zip(self.channels, nodes, strict=True)]
        self.period_s = 1 / float(self.job.get("rate_hz", 100))
        self._scale = np.ones(len(self.channels)) if scale is None else np.array(scale, np.float64)
        self._first_sample_s = FIRST_OF_STREAM_S if self.job.get("stream") else FIRST_SAMPLE_S
        self._process: AgentProcess | None = None
        self._thread: threading.Thread | None = None
        self._trace: Trace | None = None

    def converted(self, raw: Floats) -> Floats:
        """Readings (n, columns) in the channels' units, (n, channels). To be overridden where columns are combined."""
        return raw * self._scale

    def start(self) -> None:
        """Sampling begins; returns once the first sample is in. HarnessError with the agent's reason if none comes."""
        if self._process is not None:
            raise RuntimeError(f"{self.name}: started already")
        self._trace = None
        self._collected = Collected()
        self._process = self.device.start("sample", self.job)
        events = self._process.events(self._first_sample_s)
        try:
            for event in events:
                self._collected.take(event)
                if event["event"] == "sampling":
                    break
            else:
                end = self._process.stop()
                cause = (
                    self._collected.failure or f"the agent ended ({end.signal or f'status {end.status}'}) {end.stderr}"
                )
                raise HarnessError(f"{self.name}: no sample: {cause.strip()}")
            self._check()
        except (TimeoutError, HarnessError) as error:
            self._process.stop()
            self._process = None
            if isinstance(error, HarnessError):
                raise
            raise HarnessError(f"{self.name}: no sample within {self._first_sample_s:g} s: {error}") from error
        except BaseException:
            self._process.stop()
            self._process = None
            raise
        self._thread = threading.Thread(target=self._collect, name=f"meter {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> Trace:
        """Sampling ends; the samples since `start`. `ended` in the facts says why, had it ended by itself before."""
        if self._process is not None and self._thread is not None:
            self._collected.asked_to_end = True
            end = self._process.stop()
            self._thread.join()
            self._process = self._thread = None
            if not self._collected.ended and not self._collected.last_said:
                stderr = end.stderr.strip().splitlines()[-1:]
                self._collected.ended = " ".join([end.signal or f"status {end.status}", *stderr])
            self._trace = self._traced()
        if self._trace is None:
            raise RuntimeError(f"{self.name}: never started")
        return self._trace

    def _check(self) -> None:
        told = self._collected
        if told.protocol != 1:
            raise HarnessError(f"{self.name}: the agent speaks protocol {told.protocol}; this edgewatt speaks 1")
        self.clock = told.clock or self.clock

    def _collect(self) -> None:
        assert self._process
        while True:
            try:
                for event in self._process.events():
                    self._collected.take(event)
                return
            except TransientError as error:
                self._collected.ended = str(error)
            except HarnessError as error:
                self._collected.refused.append(str(error))

    def _traced(self) -> Trace:
        told = self._collected
        t_ns, read_ns, raw = told.samples(columns(self.job.get("nodes") or ()) or None)
        rising = np.diff(np.maximum.accumulate(t_ns), prepend=t_ns[:1] - 1) > 0
        values = self.converted(raw[rising]) if len(raw) else np.empty((0, len(self.channels)))
        facts: dict[str, Any] = {
            "rate_asked_hz": 1 / self.period_s,
            **timing(t_ns[rising], read_ns[rising], self.job.get("gap_limit_s")),
            **{k: v for k, v in told.sampled.items() if k not in ("event", "n")},
            "scheduling": told.scheduling,
            "missing": int(np.isnan(values).sum()),
        }
        if not rising.all():
            facts["out_of_order"] = int((~rising).sum())
        if told.refused:
            facts["refused_lines"] = told.refused[:10]
        if told.ended:
            facts["ended"] = told.ended
        return Trace(self.name, self.clock, self.channels, t_ns[rising] * 1e-9, values, facts)


def columns(nodes: Sequence[Facts]) -> int:
    """How many columns an agent gives for nodes: one each, or one for each of a node's fields."""
    return sum(len(n.get("fields") or (n,)) for n in nodes)


class Collected:
    """What an agent that samples has said so far."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.clock = ""
        self.scheduling = ""
        self.failure = ""
        self.ended = ""
        self.asked_to_end = self.last_said = False
        self.sampled: Mapping[str, Any] = {}
        self.refused: list[str] = []
        self._frames: list[Mapping[str, Any]] = []

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "frames":
            self._frames.append(event)
        elif kind == "hello":
            self.protocol, self.clock = event.get("protocol"), str(event.get("clock", ""))
        elif kind == "sampling":
            self.scheduling = str(event.get("scheduling", ""))
        elif kind == "sampled":
            self.sampled = event
        elif kind == "error":
            self.last_said, self.failure = True, str(event.get("message"))
            self.ended = self.failure
        elif kind == "end":
            self.last_said = True
            if not self.asked_to_end:
                self.ended = str(event.get("reason"))

    def samples(self, columns: int | None) -> tuple[Any, Any, Floats]:
        """Stamps (n,) and durations (n,) in ns, and readings (n, columns) as floats, NaN where missing.

        A frame that cannot be decoded is left out and named in `refused`: its samples are then a gap.
        """
        decoded = list(self._decoded(columns))
        if not decoded:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, columns or 0))
        t_ns, read_ns, values = (np.concatenate(part) for part in zip(*decoded, strict=True))
        return t_ns, read_ns, values

    def _decoded(self, columns: int | None) -> Iterator[tuple[Any, Any, Floats]]:
        for frame in self._frames:
            try:
                n = int(frame["n"])
                t_ns, read_ns = unpacked(frame["t_ns"], "<i8"), unpacked(frame["read_ns"], "<i8")
                values = unpacked(frame["values"], {"int64": "<i8", "float64": "<f8"}[frame["form"]]).reshape(n, -1)
                if len(t_ns) != n or len(read_ns) != n or columns not in (None, values.shape[1]):
                    raise ValueError(f"{len(t_ns)} stamps, {values.shape} values")
            except (KeyError, TypeError, ValueError) as error:
                self.refused.append(f"a frame that cannot be decoded: {error}")
                continue
            columns = values.shape[1]
            floats = values.astype(np.float64)
            if frame["form"] == "int64":
                floats[values == MISSING] = np.nan
            yield t_ns, read_ns, floats


def unpacked(text: str, form: str) -> Any:
    """The numbers that an agent packed; ValueError if they are none."""
    return np.frombuffer(base64.b64decode(text, validate=True), form)


def timing(t_ns: Any, read_ns: Any, gap_limit_s: float | None) -> dict[str, Any]:
    """How sampling went, from the stamps alone; for an agent that did not live to tell."""
    if len(t_ns) < 2:
        return {"rate_hz": None, "gap_p99_s": None, "gap_max_s": None, "read_s": None}
    gaps_s = np.diff(t_ns) * 1e-9
    facts = {
        "rate_hz": float(1 / gaps_s.mean()),
        "gap_p99_s": float(np.quantile(gaps_s, 0.99)),
        "gap_max_s": float(gaps_s.max()),
        "read_s": float(np.median(read_ns) * 1e-9),
    }
    return facts if gap_limit_s is None else facts | {"gaps_over_limit": int((gaps_s > gap_limit_s).sum())}
