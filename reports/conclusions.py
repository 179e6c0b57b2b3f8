"""What a run says, ready to be shown: results with their doubts in words, the headline, and why there are no joules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgewatt.harness import flags
from edgewatt.harness.api import Flag, Measurement, Run
from edgewatt.reports import metrics
from edgewatt.reports.numbers import Quantity, quantity

# From what holds everything to what holds a part; where one device has several meters of its own, the widest is its
# headline. One in the supply line (an external meter) comes before all of them.
BOUNDARIES = ("wall", "dc-input", "usb", "supply", "battery", "board", "module", "package", "rails", "")

ENERGY, ENERGY_NET = "energy_per_inference_j", "energy_per_inference_net_j"
ENERGY_TOKEN = "energy_per_token_j"
# The number that stands for the quality of a run, by what it was run on.
QUALITY = ("ap", "gqa_accuracy", "textvqa_accuracy", "scienceqa_image_accuracy", "pope_f1", "mme_perception",
           "mmbench_accuracy")  # fmt: skip
_WHOLE = ("window", "run", "")  # phases of figures that speak of whole items while they are worked on
_DECODE = ("window/decode", "decode")  # and of tokens: in the items, or of decoding looped alone
_OF_TOKENS = (ENERGY_TOKEN, "energy_per_token_net_j", "bandwidth_utilisation")
LATENCY = ("latency_s", "latency_p50_s")  # the median, under either name


@dataclass(frozen=True)
class Result:
    """One measurement as a reader meets it. `voided_by` not empty: it must not be used, and is shown struck out."""

    measurement: Measurement
    voided_by: tuple[Flag, ...]
    marks: tuple[str, ...]  # what a reader must not miss: "simulated", "synthetic weights"

    @property
    def label(self) -> str:
        m = self.measurement
        return "Idle power" if (m.metric, m.phase) == ("power_w", "idle") else metrics.label(m.metric)

    @property
    def quantity(self) -> Quantity:
        m = self.measurement
        return quantity(m.value, m.uncertainty, metrics.unit(m))

    @property
    def is_valid(self) -> bool:
        return not self.voided_by

    @property
    def void_reason(self) -> str:
        """The flags that void it, in words; "" when none does."""
        return ", ".join(dict.fromkeys(f.flag.replace("_", " ") for f in self.voided_by))


@dataclass(frozen=True)
class Doubt:
    """A flag in words: what it means, its evidence, and what it makes unusable."""

    flag: str
    meaning: str
    detail: str
    voids: tuple[str, ...]
    meter: str


@dataclass(frozen=True)
class Tile:
    """One headline figure, with the lesser ones under it; `words` say why there is none, or none that stands."""

    label: str
    main: Result | None
    lesser: tuple[Result, ...] = ()
    words: str = ""


def speaks_of(flag: Flag, meter: str) -> bool:
    """Whether a flag about one meter (or about all of them) is about `meter`, or about a channel of it."""
    return not flag.meter or meter == flag.meter or meter.startswith(f"{flag.meter}/")


def results(run: Run) -> list[Result]:
    """Every measurement of a run, in the order of a report."""
    return [result(run, m) for m in sorted(run.measurements, key=metrics.place)]


def result(run: Run, m: Measurement) -> Result:
    """One measurement with the flags that void it and the marks it must carry."""
    voided = tuple(f for f in run.flags if flags.is_void(m, f))
    return Result(m, voided, tuple(_marks(run, m)))


def _marks(run: Run, m: Measurement) -> Iterator[str]:
    if any(f.flag == "simulated" and speaks_of(f, m.meter) for f in run.flags):
        yield "simulated"
    if metrics.group(m.metric, m.unit) == "Quality" and any(f.flag == "synthetic_weights" for f in run.flags):
        yield "synthetic weights"


def doubts(run: Run) -> list[Doubt]:
    """The flags of a run in words, those that void something first; of what is void figures of tokens are named only
    where there are any."""
    ordered = sorted(run.flags, key=lambda f: not f.voids)
    absent = {*flags.TOKEN_METRICS, *flags.TOKEN_ENERGY_METRICS} - {m.metric for m in run.measurements}
    voids = [tuple(v for v in f.voids if v not in absent) for f in ordered]
    return [Doubt(f.flag, _meaning(f.flag), f.detail, _labels(v), f.meter) for f, v in zip(ordered, voids, strict=True)]


def _meaning(flag: str) -> str:
    return flags.meaning(flag) if flag in flags.NAMES else ""  # a plugin's flag has its evidence only


def _labels(voids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(metrics.label(v) for v in voids))


def breadth(boundary: str) -> int:
    """How much a boundary holds: 0 for the widest."""
    return BOUNDARIES.index(boundary) if boundary in BOUNDARIES else len(BOUNDARIES)


def is_external(run: Run, meter: str) -> bool:
    """Whether a figure's meter is one that was wired into the device's supply line: trusted before its own sensors."""
    return any("wiring" in t.facts and (meter == t.meter or meter.startswith(f"{t.meter}/")) for t in run.traces)


def whole(run: Run, metric: str) -> list[Result]:
    """The results of one metric that speak of whole items (not of one of their phases, nor of idle), or of the tokens
    that were decoded: those of external meters first, and of each tier the widest boundary first."""
    phases = _DECODE if metric in _OF_TOKENS else _WHOLE
    found = [r for r in results(run) if r.measurement.metric == metric and r.measurement.phase in phases]
    return sorted(
        found,
        key=lambda r: (
            not is_external(run, r.measurement.meter),
            breadth(r.measurement.boundary),
            phases.index(r.measurement.phase) if phases is _DECODE else 0,
        ),
    )


def best(run: Run, metric: str, meter: str | None = None) -> Result | None:
    """The result to show for a metric: valid before voided, then as `whole` has them; of `meter` if that is given."""
    found = [r for r in whole(run, metric) if meter is None or r.measurement.meter == meter]
    return min(found, key=lambda r: not r.is_valid, default=None)


def no_joules(run: Run) -> str:
    """Why a run has no valid energy per inference, in words; "" when it has one."""
    energies = whole(run, ENERGY)
    if any(r.is_valid for r in energies):
        return ""
    if energies:
        return f"joules were measured, but are void: {_reasons([f for r in energies for f in r.voided_by])}"
    has_sensor = any(c.is_energy for t in run.traces for c in t.channels)
    if run.error and (has_sensor or not run.traces):
        return "no joules: the run ended before they were measured"
    if not has_sensor:
        return f"no joules: {run.device_name} has no power sensor that could be read"
    about_energy = [f for f in run.flags if f.meter and any(metrics.group(v) == "Energy" for v in f.voids)]
    if about_energy:
        return f"no joules: {_reasons(about_energy)}"
    return "no joules: the meters left no energy of a whole window"


def _reasons(found: list[Flag]) -> str:
    return "; ".join(dict.fromkeys(f"{f.flag.replace('_', ' ')} ({f.detail})" for f in found))


def headline(run: Run) -> list[Tile]:
    """The figures a reader looks for first; a tile without its figure says why."""
    absent = "not measured: the run ended badly" if run.error else "not measured"
    energy = best(run, ENERGY)
    meter = energy.measurement.meter if energy else None
    net = best(run, ENERGY_NET, meter)
    power = best(run, "power_w", meter)

    def lesser(*metric: str, of: str | None = None) -> tuple[Result, ...]:
        return tuple(r for k in metric if (r := best(run, k, of)) is not None)

    tiles = [Tile("Energy per inference, gross", energy, (net,) if net else (), no_joules(run))]
    latency = next((r for k in LATENCY if (r := best(run, k))), None)
    tiles.append(Tile("Latency, median", latency, lesser("latency_p90_s", "latency_p99_s"), "" if latency else absent))
    throughput = best(run, "throughput_fps")
    tiles.append(Tile("Throughput", throughput, (), "" if throughput else absent))
    first, decoding, token = best(run, "ttft_s"), best(run, "decode_tokens_per_s"), best(run, ENERGY_TOKEN, meter)
    if first:
        tiles.append(Tile("Time to first token, median", first, lesser("ttft_p90_s", "vision_s")))
    if decoding:
        tiles.append(Tile("Decoding speed", decoding, lesser("prefill_tokens_per_s", "bandwidth_utilisation")))
    if token:
        tiles.append(Tile("Energy per token decoded", token, lesser("energy_per_token_net_j", of=meter)))
    if power:
        tiles.append(Tile("Power, gross", power, (*lesser("power_net_w", of=meter), *idle_power(run, meter))))
    quality = next((r for k in QUALITY if (r := best(run, k))), None)
    if quality:
        tiles.append(Tile(quality.label, quality, lesser("ap50")))
    return tiles


def idle_power(run: Run, meter: str | None) -> tuple[Result, ...]:
    """The power of a meter while nothing ran, if it is known: at most one result."""
    found = [
        r
        for r in results(run)
        if r.measurement.meter == meter
        and (
            r.measurement.metric == "idle_power_w" or (r.measurement.metric, r.measurement.phase) == ("power_w", "idle")
        )
    ]
    return tuple(found[:1])


def is_simulated(run: Run) -> bool:
    """Whether any of its figures came from something simulated."""
    return any(f.flag == "simulated" for f in run.flags)


def has_synthetic_weights(run: Run) -> bool:
    """Whether its weights are random, so that quality means nothing."""
    return any(f.flag == "synthetic_weights" for f in run.flags)


def repeats(run: Run) -> int:
    """How many steady windows a run really has."""
    return len({p.repeat for p in run.phases if p.phase == "window"})
