"""Which channels may be added: a total and its parts never are, and a sum is named as one."""

from edgewatt.harness.api import Channel
from edgewatt.harness.channels import groups, parts, roots


def power(name: str, boundary: str = "rails", parent: str | None = None, covers: str = "") -> Channel:
    return Channel(name, "power", "W", "gauge", covers or name, boundary, parent=parent)


def counter(name: str, boundary: str = "package", parent: str | None = None, covers: str = "") -> Channel:
    return Channel(name, "energy", "J", "counter", covers or name, boundary, parent=parent)


def names(channels: tuple[Channel, ...]) -> list[str]:
    return [c.name for c in channels]


# Jetson Orin NX: the input rail and two of its children.
ORIN = (power("VDD_IN", "module"), power("VDD_CPU_GPU_CV", parent="VDD_IN"), power("VDD_SOC", parent="VDD_IN"))


def test_children_of_the_input_rail_are_not_added_to_it() -> None:
    assert names(roots(ORIN)) == ["VDD_IN"]
    (group,) = groups(ORIN)
    assert (group.label, group.boundary) == ("VDD_IN", "module")
    assert names(parts(ORIN)) == ["VDD_CPU_GPU_CV", "VDD_SOC"]


def test_rails_without_a_total_are_named_as_a_sum() -> None:
    rails = (power("GPU"), power("CPU"), Channel("GPU volts", "voltage", "V", "gauge", "GPU"))
    (group,) = groups(rails)
    assert group.label == "sum of GPU + CPU"
    assert names(parts(rails)) == ["GPU", "CPU"]


def test_sum_of_many_rails_is_named_by_its_ends() -> None:
    (group,) = groups([power(f"rail{k}") for k in range(9)])
    assert group.label == "sum of rail0 + ... + rail8 (9 channels)"


def test_boundaries_are_never_mixed_and_the_widest_comes_first() -> None:
    found = groups((counter("dram", "dram"), counter("package-0"), counter("package-1"), power("input", "dc-input")))
    assert [(g.boundary, g.label) for g in found] == [
        ("dc-input", "input"),
        ("package", "sum of package-0 + package-1"),
        ("dram", "dram"),
    ]


def test_power_and_energy_of_one_sensor_are_counted_once() -> None:
    both = (power("in1 power", "board", covers="the board"), counter("in1 energy", "board", covers="the board"))
    assert names(roots(both)) == ["in1 energy"]


def test_grandchild_is_contained_through_a_channel_that_holds_no_energy() -> None:
    chain = (power("in"), Channel("amps", "current", "A", "gauge", "x", parent="in"), power("leaf", parent="amps"))
    assert names(roots(chain)) == ["in"]


def test_parent_that_the_meter_lacks_contains_nothing() -> None:
    assert names(roots((power("leaf", parent="gone"),))) == ["leaf"]


def test_channels_that_name_each_other_as_parent_do_not_hang() -> None:
    assert roots((power("a", parent="b"), power("b", parent="a"))) == ()
    ring = (Channel("a", "current", "A", "gauge", "a", parent="a"), power("b", parent="a"))
    assert names(roots(ring)) == ["b"]


def test_meter_without_energy_has_no_groups() -> None:
    assert groups((Channel("t", "temperature", "degC", "gauge", "CPU"),)) == ()
