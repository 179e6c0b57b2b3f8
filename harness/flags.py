"""The names of doubts about a run, what each means in plain words, and what it spoils."""

from edgewatt.harness.api import Flag, Measurement
from edgewatt.harness.plugins import nearest

CHARGING = "charging"
STALE = "stale"
GAP = "gap"
LOW_COVERAGE = "low_coverage"
THROTTLED = "throttled"
CLOCK_SKEW = "clock_skew"
COUNTER_RESET = "counter_reset"
WINDOW_TOO_SHORT = "window_too_short"
NOT_STEADY = "not_steady"
RAIL_MISSING = "rail_missing"
ON_FALLBACK = "on_fallback"
SIMULATED = "simulated"
SYNTHETIC_WEIGHTS = "synthetic_weights"
ALIASED = "aliased"
SHARED_METER = "shared_meter"
FEW_SAMPLES = "few_samples"
DRAWN_SCENES = "drawn_scenes"
BUSY = "busy"
HOT = "hot"
SLOW_CLOCKS = "slow_clocks"
LOW_BATTERY = "low_battery"
SCREEN_ON = "screen_on"
OVER_RANGE = "over_range"
METERS_DISAGREE = "meters_disagree"

TOKEN_METRICS = ("ttft_s", "ttft_p90_s", "ttft_p99_s", "tpot_s", "tpot_p90_s", "tpot_p99_s", "vision_s",
                 "prefill_tokens_per_s", "decode_tokens_per_s", "flops_per_s", "bandwidth_bytes_per_s",
                 "bandwidth_utilisation")  # fmt: skip
TIMING_METRICS = ("latency_s", "latency_p90_s", "latency_p99_s", "throughput_fps", *TOKEN_METRICS)
TOKEN_ENERGY_METRICS = ("energy_per_token_j", "energy_per_token_net_j")
NET_METRICS = ("power_net_w", "energy_net_j", "energy_per_inference_net_j", TOKEN_ENERGY_METRICS[1])
ENERGY_METRICS = ("power_w", "energy_j", "energy_per_inference_j", TOKEN_ENERGY_METRICS[0], *NET_METRICS)
QUALITY_METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "voc_ap50_area", "voc_ap50_11point",
    "gqa_accuracy", "pope_f1", "pope_accuracy", "textvqa_accuracy", "scienceqa_image_accuracy", "scienceqa_accuracy",
    "mme_perception", "mme_cognition", "mmbench_accuracy", "mmbench_vanilla_accuracy",
)  # fmt: skip

# flag -> (what it means, which metrics it makes unusable unless the flag itself says otherwise)
_FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    CHARGING: (
        "The battery was being charged, so what left it is not what the device used.",
        ENERGY_METRICS,
    ),
    STALE: (
        "The sensor went on repeating one reading far longer than it usually takes to give a new one.",
        ENERGY_METRICS,
    ),
    GAP: (
        "Readings were missing for a while; the energy used meanwhile is interpolated, with a wider error bar.",
        (),
    ),
    LOW_COVERAGE: (
        "Less than 95 % of the time has a fresh reading near it: too much of the energy would be guessed.",
        ENERGY_METRICS,
    ),
    THROTTLED: (
        "The device slowed itself down because it was hot; the numbers mix two speeds.",
        (*TIMING_METRICS, *ENERGY_METRICS),
    ),
    CLOCK_SKEW: (
        "The clocks of the meter and of the device are tied too loosely to say which joules belong to which phase.",
        ENERGY_METRICS,
    ),
    COUNTER_RESET: (
        "An energy counter jumped back (a restart, a rail assigned anew); what it counted around that moment is lost.",
        ENERGY_METRICS,
    ),
    WINDOW_TOO_SHORT: (
        "The sensor renews its reading too rarely for so short a phase; the edges alone are uncertain by over 2 %.",
        ENERGY_METRICS,
    ),
    ALIASED: (
        "The load changed faster than the sensor was read: its readings are chance hits, and so is their mean.",
        ENERGY_METRICS,
    ),
    SHARED_METER: (
        "Another program sets the pace of this meter's readings: slower than was asked, or in step with the load.",
        (),
    ),
    NOT_STEADY: (
        "The quantity was still moving while it was measured, so its average stands for no steady state.",
        (*TIMING_METRICS, *ENERGY_METRICS),
    ),
    RAIL_MISSING: (
        "A channel of the meter gave no reading at all; a sum without it would be too small.",
        ENERGY_METRICS,
    ),
    ON_FALLBACK: (
        "Part of the model, or all of it, ran elsewhere (on the CPU) than was asked.",
        (*TIMING_METRICS, *ENERGY_METRICS),
    ),
    SIMULATED: (
        "The device is a simulated one: its numbers exercise the software and say nothing about hardware.",
        (),
    ),
    SYNTHETIC_WEIGHTS: (
        "The weights are random, not trained: speed and energy are real, quality means nothing.",
        QUALITY_METRICS,
    ),
    DRAWN_SCENES: (
        "The pictures were drawn by edgewatt for want of real ones; nobody knows what a model should find there.",
        QUALITY_METRICS,
    ),
    BUSY: (
        "Something else was computing on the device when the run began.",
        (),
    ),
    HOT: (
        "The device was already hot when the run began.",
        (),
    ),
    SLOW_CLOCKS: (
        "The processor's clocks are held below what it can do.",
        (),
    ),
    LOW_BATTERY: (
        "The battery was low when the run began; devices slow down then, and gauges err most.",
        (),
    ),
    SCREEN_ON: (
        "The screen was on when the run began; its power is in every joule that the battery gave.",
        (),
    ),
    OVER_RANGE: (
        "The meter was at the end of its range: the device may have drawn more than it can show.",
        ENERGY_METRICS,
    ),
    METERS_DISAGREE: (
        "Two meters of the same device show energies that differ by more than their error bars.",
        (),
    ),
    FEW_SAMPLES: (
        "Too few items or repeats for this figure, or to say how far it would move if all were repeated.",
        (),
    ),
}

NAMES = tuple(_FLAGS)


def meaning(flag: str) -> str:
    """What the flag says, in one plain sentence; KeyError if there is no such flag."""
    return _entry(flag)[0]


def voided_by(flag: str) -> tuple[str, ...]:
    """The metrics that the flag makes unusable where it applies in full; KeyError if there is no such flag.

    A raised `Flag` may void fewer (a doubt about idle spoils only net figures): its own `voids` is what counts.
    """
    return _entry(flag)[1]


def is_void(measurement: Measurement, flag: Flag) -> bool:
    """Whether `flag` makes `measurement` unusable: it names the metric, and its meter or no meter at all.

    A flag on a meter ("rapl") speaks of every channel of it ("rapl/package-0/core") as well.
    """
    is_same = flag.meter in ("", measurement.meter) or measurement.meter.startswith(f"{flag.meter}/")
    return is_same and measurement.metric in flag.voids


def _entry(flag: str) -> tuple[str, tuple[str, ...]]:
    if flag not in _FLAGS:
        raise KeyError(f"no flag is called {flag!r}; {nearest(flag, _FLAGS)}")
    return _FLAGS[flag]
