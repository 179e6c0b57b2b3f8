"""Settings of a phone held for the time of a run: read, written in a journal, set, read back, and put back on any exit.

All values are checked before anything is touched. What does not follow, or cannot be read back on this phone, is
refused, and what was set before it is put back: nothing is silently skipped.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewatt.devices.android import facts, journal
from edgewatt.devices.android.journal import Boot, Held
from edgewatt.devices.android.knobs import Airplane, FixedPerformance, Idle, Knob, Node, Screen, Setting
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Facts, HarnessError, TransientError, UsageError
from edgewatt.harness.plugins import nearest

if TYPE_CHECKING:
    from edgewatt.devices.android.device import Android

Step = tuple[Knob, str]  # and what it is set to

ODPM_HZ = (7.8125, 15.625, 31.25, 62.5, 125.0, 250.0, 500.0, 1000.0)
"""What the power meter chips take (drivers/iio/power/odpm.c; 500 on the first of them alone)."""

_LONG_MS = str(24 * 3600 * 1000)
_PLUGS = "7"  # BatteryManager: AC 1, USB 2, wireless 4
_SCALES = ("window_animation_scale", "transition_animation_scale", "animator_duration_scale")

# Files with which vendors cut charging, the value that charges, and the one that cuts; all need root.
_SUPPLY = "/sys/class/power_supply/battery"
_CHARGING = (
    (f"{_SUPPLY}/charging_enabled", "1", "0"),
    (f"{_SUPPLY}/battery_charging_enabled", "1", "0"),
    (f"{_SUPPLY}/input_suspend", "0", "1"),
    ("/sys/class/qcom-battery/input_suspend", "0", "1"),
    (f"{_SUPPLY}/batt_slate_mode", "0", "1"),
    (f"{_SUPPLY}/charge_disable", "0", "1"),
)


@contextlib.contextmanager
def held(device: Android, wanted: Mapping[str, Any]) -> Iterator[Facts]:
    """Holds `wanted` (control -> value); gives what was read back, and under "after" what was read once put back.

    What a killed harness had left is put back first, and told under "restored". Under "not_put_back" stands what could
    not be put back; it stays in the journal.

    Raises:
        UsageError: a value is wrong, or the phone has no such setting, does not tell it, or did not follow.
        HarnessError: at the end something could not be put back.
    """
    steps = [(control, *step) for control, found in checked(device, wanted).items() for step in found]
    restored = journal.restore(device)
    read_back: dict[str, Any] = {"restored": restored} if restored else {}
    if not steps:
        yield read_back
        return
    with journal.taken(device) as book:
        plan = [Held(c, knob, _before(device, c, knob), value) for c, knob, value in steps]
        then = journal.boot(device)
        book.write(plan, then)
        touched: list[Held] = []
        try:
            for h in plan:
                if not h.knob.followed(h.wanted, h.before, h.before):
                    touched.append(h)
                    _set(device, h, touched)
            _look_again(device)
            read_back.update(_by_control(device, plan))
            yield read_back
        finally:
            _put_all_back(device, book, plan, touched, then, read_back)


def checked(device: Android, wanted: Mapping[str, Any]) -> dict[str, Sequence[Step]]:
    """The steps of each control that is asked for, in the order of setting. UsageError for anything wrong."""
    for control in wanted:
        if control not in _CONTROLS:
            raise UsageError(f"{device.name}: has no control {control!r}; {nearest(control, _CONTROLS)}")
    if "fixed_performance" in wanted and {"governor", "frequency"} & set(wanted):
        raise UsageError(f"{device.name}: fixed_performance sets the clocks itself; leave governor and frequency out")
    found: dict[str, Sequence[Step]] = {}
    for control, (parse, needs_root) in _CONTROLS.items():
        if control not in wanted:
            continue
        try:
            steps = parse(device, wanted[control])
        except ValueError as error:
            raise UsageError(f"{device.name}: {control} = {wanted[control]!r}: {error}") from error
        if needs_root and not device.is_root:
            step = "adb root, where the build allows it (root = true in the device file), or leave it out"
            raise UsageError(f"{device.name}: {control} needs root on the phone: {step}")
        found[control] = steps
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What each control is made of. ValueError: what was wanted instead.


def _charging(device: Android, value: Any) -> list[Step]:
    is_on = _switch(value)
    if not device.is_root:
        return []
    for path, on, off in _CHARGING:
        if device.shell('[ -f "$1" ] && cat "$1"', path).stdout.strip():
            return [(Node(path), on if is_on else off)]
    raise ValueError("this phone exposes no file that cuts charging; pull the cable and use adb over the network")


def _airplane(device: Android, value: Any) -> list[Step]:
    is_on = _switch(value)
    if is_on and not device.is_usb:
        raise ValueError("adb comes over the network, which airplane mode cuts; use a cable or leave it out")
    return [(Airplane(), "enabled" if is_on else "disabled")]


def _background(device: Android, value: Any) -> list[Step]:
    if value not in ("limited", "free"):
        raise ValueError("wanted limited (apps in deep idle, by force) or free")
    return [(Idle(), value)]


def _animations(device: Android, value: Any) -> list[Step]:
    return [(Setting("global", key), "1" if _switch(value) else "0") for key in _SCALES]


def _stay_awake(device: Android, value: Any) -> list[Step]:
    if not _switch(value):
        return [(Setting("global", "stay_on_while_plugged_in"), "0")]
    # The first keeps it awake on a cable, the second without one.
    return [
        (Setting("global", "stay_on_while_plugged_in"), _PLUGS),
        (Setting("system", "screen_off_timeout"), _LONG_MS),
    ]


def _brightness(device: Android, value: Any) -> list[Step]:
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,3}", text) or int(text) > 255:
        raise ValueError("wanted a whole number from 0 to 255")
    mode = Setting("system", "screen_brightness_mode")  # else the light sensor moves it
    return [(mode, "0"), (Setting("system", "screen_brightness"), str(int(text)))]


def _governor(device: Android, value: Any) -> list[Step]:
    if not isinstance(value, str) or not re.fullmatch(r"[\w-]{1,40}", value):
        raise ValueError("wanted a governor's name, such as performance")
    steps: list[Step] = []
    for p in _policies(device):
        if p.governors and value not in p.governors:
            raise ValueError(f"{p.name} has no such governor; {nearest(value, p.governors)}")
        steps.append((Node(f"{p.folder}/scaling_governor"), value))
    return steps


def _frequency(device: Android, value: Any) -> list[Step]:
    """ "max", "min" or hertz for all clusters, or `POLICY:VALUE` for some: "0:max,6:1.4e9"."""
    clusters = {p.name.removeprefix("policy"): p for p in _policies(device)}
    asked = {n: str(value) for n in clusters}
    if ":" in str(value):
        asked = {}
        for part in str(value).split(","):
            n, _, each = part.strip().partition(":")
            if n not in clusters:
                raise ValueError(f"there is no policy {n!r}; {nearest(n, clusters)}")
            asked[n] = each
    steps: list[Step] = []
    for n, each in asked.items():
        p, hz = clusters[n], _hertz(clusters[n], each)
        least, most = (Node(f"{p.folder}/scaling_{end}_freq") for end in ("min", "max"))
        # The kernel refuses a lower end above the upper one: the end that gives way is moved first.
        pair = (most, least) if hz >= (p.held_least_hz or 0.0) else (least, most)
        steps += [(node, str(round(hz / 1e3))) for node in pair]
    return steps


def _hertz(p: facts.Policy, value: str) -> float:
    ends = {"max": p.most_hz, "min": p.least_hz}
    if value in ends:
        hz = ends[value]
        if not hz:
            raise ValueError(f"{p.name} does not tell its {value}imum; give it in hertz")
        return hz
    try:
        hz = float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no frequency; wanted max, min, hertz, or POLICY:VALUE,...") from None
    steps = p.steps_hz or tuple(h for h in (p.least_hz, p.most_hz) if h)
    if not math.isfinite(hz) or (p.steps_hz and hz not in steps) or (steps and not steps[0] <= hz <= steps[-1]):
        near = sorted(steps, key=lambda h: abs(h - hz) if math.isfinite(hz) else h)[:3]
        raise ValueError(f"{p.name} has no step of {hz:g} Hz; near: {', '.join(f'{h:.0f}' for h in sorted(near))}")
    return hz


def _fixed_performance(device: Android, value: Any) -> list[Step]:
    if not _switch(value):
        raise ValueError("wanted true; leave it out for a phone as it is")
    return [(FixedPerformance(), "fixed")]


def _odpm_rate(device: Android, value: Any) -> list[Step]:
    try:
        hz = float(value)
    except (TypeError, ValueError):
        hz = math.nan
    if hz not in ODPM_HZ or isinstance(value, bool):
        raise ValueError(f"wanted one of {', '.join(f'{h:g}' for h in ODPM_HZ)}")
    if not device.is_root:
        return []
    seen = device.seen
    names = seen.paths("/sys/bus/iio/devices/iio:device*/name")
    chips = [p.rpartition("/")[0] for p in names if (seen.text(p) or "").endswith("-odpm")]
    if not chips:
        raise ValueError("this phone shows no power meter chips (below /sys/bus/iio/devices)")
    return [(Node(f"{chip}/sampling_rate"), f"{hz:g}") for chip in chips]


def _screen(device: Android, value: Any) -> list[Step]:
    return [(Screen(), "on" if _switch(value) else "off")]


# control -> (its steps, whether it needs root); in this order they are set.
_CONTROLS: dict[str, tuple[Callable[[Android, Any], list[Step]], bool]] = {
    "charging": (_charging, True),
    "airplane": (_airplane, False),
    "animations": (_animations, False),
    "stay_awake": (_stay_awake, False),
    "brightness": (_brightness, False),
    "governor": (_governor, True),
    "frequency": (_frequency, True),
    "fixed_performance": (_fixed_performance, False),
    "odpm_rate_hz": (_odpm_rate, True),
    "screen": (_screen, False),
    "background": (_background, False),  # last: a screen that goes off or on ends idleness
}

NAMES = tuple(_CONTROLS)


def _switch(value: Any) -> bool:
    known = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    found = known.get(str(value).lower())
    if found is None:
        raise ValueError("wanted on or off")
    return found


def _policies(device: Android) -> list[facts.Policy]:
    seen: Snapshot = device.seen
    found = facts.policies(seen)
    if not found:
        raise ValueError("this phone shows no clocks of its processors (cpufreq)")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Setting and putting back


def _before(device: Android, control: str, knob: Knob) -> str | None:
    try:
        return knob.read(device.shell)
    except TransientError:
        raise
    except HarnessError as error:
        raise UsageError(f"{device.name}: {control} cannot be set: {error}; leave it out") from error


def _set(device: Android, h: Held, touched: list[Held]) -> None:
    try:
        h.knob.write(device.shell, h.wanted)
    except TransientError:
        raise
    except HarnessError as error:
        if not h.knob.is_told:  # the phone has no such thing, so it could not be turned off again either
            touched.remove(h)
        raise UsageError(f"{device.name}: {h.control} was refused: {error}; leave it out") from error
    now = h.knob.reads(device.shell, h.wanted, h.before)
    if not h.knob.followed(h.wanted, now, h.before):
        raise UsageError(
            f"{device.name}: {h.control} did not follow: {h.knob.name} was set to {h.wanted} and says "
            f"{facts.plain(now) or 'nothing'}; this phone ignores it, leave it out"
        )


def _put_all_back(
    device: Android,
    book: journal.Journal,
    plan: Sequence[Held],
    touched: Sequence[Held],
    then: Boot,
    read_back: dict[str, Any],
) -> None:
    """Everything that was touched, the last first. What fails stays in the journal, and is an error."""
    raised = sys.exc_info()[1]
    failed: dict[str, str] = {}
    try:
        is_restarted = then.is_over(journal.patiently(functools.partial(journal.boot, device)))
        for h in reversed(touched):
            back = functools.partial(journal.put_back, device, h, is_restarted=is_restarted)
            try:
                journal.patiently(back)
            except HarnessError as error:
                failed[h.knob.name] = str(error)
    except HarnessError as error:  # the phone is away: no use to wait for it again for every setting
        failed = {h.knob.name: str(error) for h in touched}
    _look_again(device)
    with contextlib.suppress(HarnessError):  # told where it can be: what counts was read as it was put back
        read_back["after"] = _by_control(device, plan)
    if not failed:
        book.clear()
        return
    read_back["not_put_back"] = failed
    said = "; ".join(f"{name} ({why})" for name, why in failed.items())
    problem = f"{device.name}: could not be put back: {said}; edgewatt doctor {device.name} --restore"
    if raised is None:
        raise HarnessError(problem)
    if isinstance(raised, HarnessError):
        raise type(raised)(f"{raised}; {problem}") from raised


def _by_control(device: Android, plan: Sequence[Held]) -> dict[str, Any]:
    """What is read now: the value of a control of one setting, by setting for the others."""
    told: dict[str, dict[str, str | None]] = {}
    for h in plan:
        now = h.knob.read(device.shell)
        told.setdefault(h.control, {})[h.knob.name] = facts.plain(now)
    return {c: next(iter(values.values())) if len(values) == 1 else values for c, values in told.items()}


def _look_again(device: Android) -> None:
    """What the device remembers of its first look may not hold any more (limits of clocks, rates of sensors)."""
    if isinstance(getattr(type(device), "seen", None), functools.cached_property):
        vars(device).pop("seen", None)
