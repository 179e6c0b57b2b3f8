"""The nouns every part of edgewatt shares: what is measured, with what, and what is left behind.

Seconds, watts, joules, hertz, bytes and degrees Celsius everywhere; other units live at a device's edge.
A time is a number of seconds on a named clock (`boottime`, `monotonic` or `realtime`, of one machine).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Facts = Mapping[str, Any]  # what can be written as JSON


class HarnessError(Exception):
    """Something went wrong in a way we foresaw; the message says what was found, wanted, and the next step."""


class TransientError(HarnessError):
    """A lost link or a busy port: the same call may work a moment later."""


class UsageError(HarnessError):
    """The asking was wrong (an input, an option, a store): nothing was started. The command line exits with 2."""

    is_refusal = True  # an agent, which does not import this module, knows it by this


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class Channel:
    """One measured quantity of one piece of hardware.

    A gauge (power, temperature) is a level and is integrated; a counter (energy) only grows and is subtracted.
    """

    name: str  # the maker's spelling: "VDD_IN", "package-0"
    quantity: str  # power, energy, voltage, current, temperature, frequency, utilisation, memory
    unit: str  # W, J, V, A, degC, Hz, 1, B
    kind: Literal["gauge", "counter"]
    covers: str  # the hardware it covers, in words
    boundary: str = ""  # where the joules are counted: rails, package, module, board, battery, dc-input, wall
    quantum: float | None = None  # smallest step of a reading, in `unit`; None: unknown
    gain_error: float | None = None  # relative error of the sensor at 95 %, from its data sheet; None: unknown
    parent: str | None = None  # the channel that contains this one; the two are never added
    wraps_at: float | None = None  # counters: the value after which it starts at 0 again; None: it never wraps
    # Gauges: a reading is the mean of this long before it; 0: instantaneous; None: unknown.
    averaging_s: float | None = None
    # How old a reading may be when it is read, where the sensor renews its register at a pace of its own; 0: it is made
    # as it is read, or stamped by the sensor. None: unknown; a gauge that shows no repeats is then taken to be fresh.
    # A counter that shows none is taken to be up to one read old, unless this is 0.
    age_s: float | None = None

    @property
    def is_energy(self) -> bool:
        """Whether joules can be had from this channel."""
        return self.quantity in ("power", "energy")


@dataclass(frozen=True)
class Trace:
    """A meter's samples on one clock.

    `t_s` (n,) rises (equal stamps do not occur); `values` (n, c) has one column per channel, NaN where a reading is
    missing. Times are the mid-points of the reads unless the sensor stamps its own readings.
    `facts` tells how it was sampled; an agent fills in `rate_asked_hz`, `rate_hz` (achieved), `gap_p99_s`,
    `gap_max_s`, `gap_limit_s`, `read_s` (median duration of a read), `cpu_s_per_s` (its own cost), `errors`
    (channel -> count and last text) and `ended` (why sampling stopped, when it was not asked to).
    """

    meter: str
    clock: str
    channels: tuple[Channel, ...]
    t_s: Floats
    values: Floats
    facts: Facts = field(default_factory=dict)

    def column(self, channel: str) -> Floats:
        """The samples (n,) of one channel; KeyError if the trace has no such channel."""
        for k, c in enumerate(self.channels):
            if c.name == channel:
                return self.values[:, k]
        raise KeyError(f"{self.meter} has no channel {channel}; it has {', '.join(c.name for c in self.channels)}")

    def channel(self, name: str) -> Channel:
        """The channel of that name; KeyError if there is none."""
        for c in self.channels:
            if c.name == name:
                return c
        raise KeyError(f"{self.meter} has no channel {name}; it has {', '.join(c.name for c in self.channels)}")


@dataclass(frozen=True)
class Phase:
    """A named, unbroken interval of a run: idle, load, warmup, window, preprocess, detect, ...

    `window` is the steady part in which whole items ran one after the other; a phase of an item (`detect`) that
    stands here by its own name ran alone, looped, so that a slow sensor could see it.
    """

    phase: str
    start_s: float
    end_s: float
    items: int = 0
    repeat: int = 0
    clock: str = "boottime"

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Items:
    """When each phase of each item began and ended: one row per (item, phase, step), in order of time.

    All arrays have shape (n,). `names` are the phase names `phase` points into; `picture` is the index of the
    input; `part` is the name of the surrounding Phase (`warmup`, `window`, or an isolated phase's own name).
    Most phases have one step; those of a decoder that writes token by token follow one another without a gap.
    `tokens` is how many tokens a row worked on, 0 where they are not counted (left out: nowhere).
    """

    names: tuple[str, ...]
    item: Ints  # running number of the item within its repeat and part
    picture: Ints
    phase: Ints  # index into names
    part: Ints  # index into parts
    repeat: Ints
    start_s: Floats
    end_s: Floats
    parts: tuple[str, ...] = ("window",)
    tokens: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.item):
            if self.tokens.any():
                raise ValueError(f"{len(self.tokens)} rows of tokens, wanted {len(self.item)}")
            object.__setattr__(self, "tokens", np.zeros(len(self.item), np.int64))  # none are none, however many

    @staticmethod
    def none() -> Items:
        """No items at all."""
        i, f = np.empty(0, np.int64), np.empty(0)
        return Items((), i, i, i, i, i, f, f)

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True)
class ClockOffset:
    """Device clock minus harness clock, as a line in harness time: offset_s + drift * (t - at_s), within bound_s."""

    offset_s: float = 0.0
    bound_s: float = 0.0
    drift: float = 0.0
    at_s: float = 0.0
    n: int = 0


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


@dataclass(frozen=True)
class Measurement:
    """One derived number. `uncertainty` is the half-width of its 95 % interval, in `unit`; None: it has none (a count).

    `method` says in words how it was obtained; `parts` is the uncertainty budget (name -> half-width in `unit`).
    """

    metric: str
    value: float
    uncertainty: float | None
    unit: str
    phase: str
    n: int
    method: str
    meter: str = ""
    boundary: str = ""
    parts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Flag:
    """A doubt about a run, with its evidence in numbers. A flag that voids makes the named metrics unusable.

    `flag` is one of the names in `edgewatt.harness.flags`; `voids` lists metrics ("energy_j", "ap") or is empty.
    `meter` names the meter it speaks of, if it speaks of one.
    """

    flag: str
    voids: tuple[str, ...]
    detail: str
    meter: str = ""


@dataclass(frozen=True)
class RunError:
    """How a run ended badly: `kind` (crashed, hung, out_of_memory, killed, refused, lost_link, interrupted, failed)."""

    kind: str
    message: str
    detail: str = ""  # traceback or the last lines of stderr


@dataclass(frozen=True)
class Run:
    """Everything one execution left behind; never changed afterwards.

    `spec` holds every parameter (workload, protocol) as JSON values; `device` what the device said of itself;
    `engine` what the model really ran on; `software` versions by name; `artefacts` name -> sha256;
    `outputs` name -> path of a file to keep (the store copies it, and hands back its own path).
    """

    id: str
    created_utc: str  # ISO 8601, a label only
    device_name: str
    workload: str
    spec: Facts
    device: Facts
    engine: Facts = field(default_factory=dict)
    software: Facts = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    clock_offset: ClockOffset = ClockOffset()
    phases: tuple[Phase, ...] = ()
    items: Items = field(default_factory=Items.none)
    traces: tuple[Trace, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    flags: tuple[Flag, ...] = ()
    warnings: tuple[str, ...] = ()
    error: RunError | None = None
    cell: str = ""  # the sweep cell this run fills, and which attempt it was
    attempt: int = 0

    def trace(self, meter: str) -> Trace:
        """The trace of one meter; KeyError if the run has none."""
        for t in self.traces:
            if t.meter == meter:
                return t
        raise KeyError(f"run {self.id} has no meter {meter}; it has {', '.join(t.meter for t in self.traces)}")

    def as_json(self) -> dict[str, Any]:
        """What `run --json` prints of this run, the store's address apart."""
        return {
            "run": self.id,
            "created_utc": self.created_utc,
            "device": self.device_name,
            "workload": self.workload,
            "spec": dict(self.spec),
            "measurements": [dataclasses.asdict(m) for m in self.measurements],
            "phases": [dataclasses.asdict(p) for p in self.phases],
            "flags": [dataclasses.asdict(f) | {"voids": list(f.voids)} for f in self.flags],
            "warnings": list(self.warnings),
            "error": dataclasses.asdict(self.error) if self.error else None,
            "device_facts": dict(self.device),
            "engine": dict(self.engine),
            "software": dict(self.software),
            "artefacts": dict(self.artefacts),
            "outputs": {k: str(v) for k, v in self.outputs.items()},
            "meters": [
                {"meter": t.meter, "clock": t.clock, "samples": len(t.t_s), "facts": dict(t.facts)}
                | {"channels": [dataclasses.asdict(c) for c in t.channels]}
                for t in self.traces
            ],
            "cell": self.cell,
            "attempt": self.attempt,
        }


# ---------------------------------------------------------------------------------------------------------------------
# What measures


class AgentProcess(ABC):
    """One verb of the agent, running on a device. Its events are JSON objects, one a line (docs/agent-protocol.md)."""

    @abstractmethod
    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]:
        """Events as they arrive, until the process ends; TimeoutError after `silence_s` seconds without one."""

    @abstractmethod
    def stop(self, grace_s: float = 5.0) -> Exit:
        """Ask it to end, make it end after `grace_s`, and everything it started with it. Twice is harmless."""


@dataclass(frozen=True)
class Exit:
    """How a process ended: `status` (None when a signal ended it), `signal` by name ("SIGKILL"), the end of stderr."""

    status: int | None
    signal: str | None
    stderr: str
    out_of_memory: bool = False  # the kernel's OOM killer was seen at work while it ran


class Meter(ABC):
    """A source of timed readings on one clock, sampled by itself (an agent, a stream) between `start` and `stop`.

    A plugin of the group `edgewatt.meters` is a class of this kind. Whoever opens a meter stops it.
    """

    name: str
    channels: tuple[Channel, ...]
    period_s: float  # asked time between two samples
    clock: str = "boottime"
    shares_clock: bool = True  # False: nothing ties its clock to the device's; the run plays pulses that do
    probe_s: float = 0.0  # how long it must be watched to see how often it refreshes, where a second does not do

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        """The meters of this kind that `device` has, probed by value: a sensor that gives no sane reading is absent."""
        return ()

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """Why meters of this kind that one might expect are absent: a sentence with the next step each."""
        return ()

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        """A meter of this kind at `address`, wired to `device` by hand (`--meter KIND:ADDRESS`, the device file)."""
        raise UsageError(f"{cls.__name__}: found by itself, cannot be attached at {address!r}; leave it out")

    @abstractmethod
    def start(self) -> None:
        """Sampling begins; returns once the first sample is in. HarnessError if none comes."""

    @abstractmethod
    def stop(self) -> Trace:
        """Sampling ends; everything sampled since `start`. What went wrong meanwhile is in the trace's facts."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at before measuring: whether it is well (None: cannot be told), and what was found.

    `detail` ends with the next step where it is not well.
    """

    name: str
    is_well: bool | None
    detail: str


class Device(ABC):
    """The unit under test: a shell, some facts, its meters, and an agent. A context manager; closing twice is harmless.

    A plugin of the group `edgewatt.devices` is a class of this kind, made by `from_config`.
    """

    name: str
    kind: ClassVar[str]
    clock: str = "boottime"
    # What runs jobs there: "python" (any runner), "native" (graphs on tensors, docs/native-agent.md), or nothing ("").
    agent_kind: str = "python"

    @classmethod
    def connected(cls) -> Sequence[str]:
        """Addresses of devices of this kind that are there without anybody naming them (phones on USB)."""
        return ()

    @classmethod
    @abstractmethod
    def from_config(cls, name: str, address: str, options: Mapping[str, Any]) -> Device:
        """The device at `address` ("" for the kind's own default); `options` are the keys of the device file."""

    @abstractmethod
    def describe(self) -> Facts:
        """What the device is and how it is set up, as JSON values."""

    @abstractmethod
    def start(self, verb: str, job: Facts) -> AgentProcess:
        """The agent, started with one verb and one job (docs/agent-protocol.md)."""

    @abstractmethod
    def put(self, path: Path) -> str:
        """Where the device finds that file or folder, pushed once by content hash if it has to be."""

    @abstractmethod
    def get(self, remote: str, into: Path) -> Path:
        """A file or folder of the device, brought into the folder `into` under its own name; where it is there."""

    @abstractmethod
    def scratch(self) -> str:
        """A folder on the device for one run's files, empty; removed by `close`."""

    @abstractmethod
    def meters(self) -> Sequence[Meter]:
        """Every meter the device has, probed by value; health (temperature, clocks) as well as energy."""

    def clock_offset(self) -> ClockOffset:
        """Device clock against the harness's, with its bound. Zero where both are the same clock."""
        return ClockOffset()

    def controls(self, wanted: Mapping[str, Any]) -> AbstractContextManager[Facts]:
        """Sets power mode, governor and the like, and puts them back on any exit; gives what was read back."""
        if wanted:
            raise UsageError(f"{self.name}: has no control named {', '.join(wanted)}")
        return nullcontext({})

    def health(self) -> Sequence[Flag]:
        """What would spoil a measurement that started now (charging, hot, throttled), each with numbers."""
        return ()

    def checks(self) -> Sequence[Check]:
        """What `edgewatt doctor` looks at on this kind of device, beside `health` and the meters' problems."""
        return ()

    def restore(self) -> Facts:
        """Puts back what a harness that was killed had set (`edgewatt doctor --restore`); what was put back."""
        return {}

    def steady_nodes(self) -> Sequence[Facts]:
        """What warm-up watches besides latency until it settles: `{"name", "path", "scale", "tolerance"}` each."""
        return ()

    def close(self) -> None:  # noqa: B027  most devices have something to close; one without need not say so
        """Nothing of ours is left on the device."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---------------------------------------------------------------------------------------------------------------------
# What runs


@dataclass(frozen=True)
class Job:
    """What an agent executes: a runner (import path "module:Class", looked up on the device) and its parameters.

    `params` goes to the runner as it is; `item_count` distinct inputs; `item_phases` in the order of an item.
    `isolate` are the item phases worth looping alone when the device has a power sensor. Of a model that works on
    tokens, `prefill` and `decode` among the phases give the time to the first token and the speed of both.
    `artefacts` name -> sha256 of every file the result depends on.
    `finish` is called with the folder of the outputs once it is here, and leaves what `Workload.score` reads: where the
    device's agent can only save the model's tensors, what follows them is done on the host.
    """

    runner: str
    params: Facts
    item_count: int
    item_phases: tuple[str, ...]
    isolate: tuple[str, ...] = ()
    artefacts: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Score:
    """What a workload made of the outputs: measurements, flags, and files worth keeping (name -> path)."""

    measurements: tuple[Measurement, ...] = ()
    flags: tuple[Flag, ...] = ()
    warnings: tuple[str, ...] = ()
    outputs: Mapping[str, Path] = field(default_factory=dict)


class Workload(ABC):
    """A model's inference job; a dataclass whose fields are its parameters. It never reads a clock or a meter.

    A plugin of the group `edgewatt.workloads` is a class of this kind.
    """

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, device: Device) -> Job:
        """Artefacts made once by content hash and put on the device, and the job that uses them.

        UsageError for anything wrong with the parameters or the input, before anything is measured.
        """

    @abstractmethod
    def score(self, outputs: Path, into: Path) -> Score:
        """Quality from what the runner saved in the folder `outputs`; files worth keeping are written into `into`.

        Depends on nothing but the parameters and that folder, so that `recompute` gives it again.
        """

    def flags(self) -> Sequence[Flag]:
        """Doubts that hold for any run with these parameters (synthetic weights)."""
        return ()


class Runner(ABC):
    """The device's side of a workload, in the agent's process: loads a model and runs items. It never reads a clock.

    Made once per job as `Runner(params)`, where `params` is the job's; closed by the end of the process.
    One that loads for long keeps an attribute `loaded` at the share that is done, 0 to 1.

    Some of the facts that `load` may give have a meaning of their own. `costs`, phase -> {"macs": [c0, c1, c2],
    "bytes": [b0, b1, b2]}: a step on t tokens, after which its item has k, takes c0 + c1 t + c2 t k multiplications
    and moves b0 + b1 t + b2 k bytes (k: over all phases that count tokens; a phase that counts none: t = k = 0).
    `read_bandwidth_bytes_per_s` and `read_bandwidth_error_bytes_per_s`: what the device's memory was measured to give.
    `uneven`, phase -> in what items differ there (some have no picture): such a phase gets no time of its own.
    """

    @abstractmethod
    def load(self) -> Facts:
        """The model made ready; what it really runs on (engine, provider per node, threads, kernel library)."""

    @abstractmethod
    def run(self, index: int, mark: Any) -> Any:
        """Item `index` done whole, `mark(phase, tokens=0)` called at the start of each phase; its output, to be kept.

        Marking the phase that runs already begins another step of it; `tokens` is how many a step works on: the
        prompt's in `prefill`, one in each step of `decode`. The first token is out when `prefill` ends, so an item that
        decodes none marks `decode` once with 0. The end of the item is marked by the agent.
        """

    def run_phase(self, phase: str, index: int) -> int | None:
        """One phase of item `index`, alone; called only for the job's `isolate`, after `run` has seen every item.

        How many tokens it worked on; None: they are not counted.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot run {phase} alone")

    @abstractmethod
    def save(self, outputs: Mapping[int, Any], folder: Path) -> None:
        """The first output of each item, written into `folder` in the form `Workload.score` reads."""


def with_measurements(run: Run, measurements: Sequence[Measurement], flags: Sequence[Flag]) -> Run:
    """The same run with other conclusions drawn from the same raw samples."""
    return dataclasses.replace(run, measurements=tuple(measurements), flags=tuple(flags))
