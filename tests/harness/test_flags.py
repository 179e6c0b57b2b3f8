"""The flags: every one has a meaning, and a raised one spoils what it says and nothing else."""

import pytest

from edgewatt.harness import flags
from edgewatt.harness.api import Flag, Measurement

# The list of the rules for valid results.
WANTED = [
    "charging", "stale", "gap", "low_coverage", "throttled", "clock_skew", "counter_reset", "window_too_short",
    "not_steady", "rail_missing", "on_fallback", "simulated", "synthetic_weights", "few_samples",
]  # fmt: skip


def power(meter: str, metric: str = "power_w") -> Measurement:
    return Measurement(metric, 1.0, 0.1, "W", "window", 1, "made up", meter)


def test_every_flag_of_the_rules_has_a_name_and_a_meaning() -> None:
    assert set(WANTED) <= set(flags.NAMES)
    for name in flags.NAMES:
        assert flags.meaning(name).endswith(".")
        assert name.upper() in vars(flags)


def test_unknown_flag_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(KeyError, match="throttled"):
        flags.meaning("throtled")
    with pytest.raises(KeyError, match="stale"):
        flags.voided_by("stal")


def test_charging_spoils_joules_and_leaves_time_alone() -> None:
    voided = flags.voided_by("charging")
    assert {"energy_j", "power_w", "energy_per_inference_j", "energy_per_inference_net_j"} <= set(voided)
    assert not {"latency_s", "throughput_fps", "ap"} & set(voided)


def test_synthetic_weights_spoil_quality_alone() -> None:
    assert {"ap", "ap50"} <= set(flags.voided_by("synthetic_weights"))
    assert not {"latency_s", "energy_j"} & set(flags.voided_by("synthetic_weights"))


def test_flag_on_a_meter_speaks_of_its_channels_and_of_no_other_meter() -> None:
    flag = Flag("charging", ("power_w",), "1 of 1 readings", "rapl")
    assert flags.is_void(power("rapl"), flag)
    assert flags.is_void(power("rapl/package-0/core"), flag)
    assert not flags.is_void(power("rapl2"), flag)
    assert not flags.is_void(power("rapl", "energy_j"), flag)


def test_flag_without_a_meter_speaks_of_all() -> None:
    assert flags.is_void(power("rapl"), Flag("not_steady", ("power_w",), "drift"))


def test_flag_that_voids_nothing_leaves_everything_usable() -> None:
    assert not flags.is_void(power("rapl"), Flag("gap", (), "0.2 s", "rapl"))
