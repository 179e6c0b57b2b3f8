"""The PPK2's bytes, made here by hand: what a row must be, and that no damage to the bytes makes a wrong joule."""

import random
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgewatt.devices import arrival
from edgewatt.devices.agent.ppk2 import Decoder, facts
from edgewatt.devices.agent.serial_port import MeterError
from edgewatt.devices.host import Host
from edgewatt.devices.ppk2 import Ppk2
from edgewatt.harness.api import UsageError

R = (1031.64, 101.65, 10.15, 0.94, 0.043)
PLAIN = {
    "R": R,
    "GS": (0.0,) * 5,
    "GI": (1.0,) * 5,
    "O": (0.0,) * 5,
    "S": (0.0,) * 5,
    "I": (0.0,) * 5,
    "UG": (1.0,) * 5,
}
STEP_A = 4 * 1.8 / 163840 / 0.043  # of one ADC reading in the widest range: 1.022 mA
SECOND = 1_000_000_000


def metadata(volts: float = 3.0, mode: int = 2, **changed: Any) -> bytes:
    lines = ["Calibrated: 1"]
    constants = {**PLAIN, **changed}
    lines += [f"{name}{k}: {constants[name][k]:.6f}" for k in range(5) for name in constants]
    return "\n".join([*lines, f"VDD: {volts * 1000:.0f}", "HW: 9173", f"mode: {mode}", "IA: 56", "END"]).encode()


class FakePort:
    """Answers a request for metadata with the next of `answers`; keeps what was written."""

    path = "/dev/ttyTEST"

    def __init__(self, *answers: bytes) -> None:
        self._answers, self._waiting, self.written = list(answers), b"", b""

    def write(self, data: bytes) -> None:
        self.written += data
        if data == b"\x19" and self._answers:
            self._waiting = self._answers.pop(0)

    def read(self, timeout_s: float) -> bytes:
        piece, self._waiting = self._waiting[:50], self._waiting[50:]
        return piece

    def drain(self) -> None:
        self._waiting = b""


def decoder(text: bytes = b"", **options: Any) -> Any:
    made = Decoder(options)
    made.begin(FakePort(text or metadata()))  # type: ignore[arg-type]
    return made


def word(adc: int, scale: int, counter: int, inputs: int = 0) -> bytes:
    return struct.pack("<I", adc | scale << 14 | (counter & 63) << 18 | inputs << 24)


def words(adcs: Sequence[int], scale: int = 4, first: int = 0, inputs: int = 0) -> bytes:
    return b"".join(word(a, scale, first + k, inputs) for k, a in enumerate(adcs))


def rows(made: Any, data: bytes, chunk: int = 2000, began_ns: int = 5 * SECOND) -> list[tuple[int, float, list[float]]]:
    """What comes out when the bytes come as fast as a PPK2 sends them."""
    got = []
    for start in range(0, len(data), chunk):
        end = min(start + chunk, len(data))
        got += made.take(data[start:end], began_ns + end * 2500)  # 4 bytes every 10 us
    return got


# ---------------------------------------------------------------------------------------------------------------------
# What a row is


@pytest.mark.parametrize("scale", range(5))
def test_current_is_adc_over_resistance_in_each_range(scale: int) -> None:
    made = decoder(limit_a=10)
    got = rows(made, words([250] * 310, scale))
    assert [(s, e) for s, e, _ in got] == [(0, pytest.approx(e)) for e in (0.001, 0.002, 0.003)]
    for _, _, (power, volts, current, over) in got:
        assert current == pytest.approx(1000 * 1.8 / 163840 / R[scale], rel=1e-12)
        assert (power, volts, over) == (pytest.approx(3 * current), 3.0, 0.0)


def test_every_constant_of_the_calibration_is_used() -> None:
    changed = {"O": (0, 0, 0, 40, 0), "GS": (0, 0, 0, 0.5, 0), "GI": (1, 1, 1, 1.02, 1), "S": (0, 0, 0, 0.001, 0)}
    made = decoder(metadata(2.5, **changed, I=(0, 0, 0, 0.0003, 0), UG=(1, 1, 1, 0.99, 1)))
    (_, _, (power, volts, current, _)), *_ = rows(made, words([100] * 110, 3))
    r = (400 - 40) * 1.8 / 163840 / 0.94
    assert current == pytest.approx(0.99 * (r * (0.5 * r + 1.02) + (0.001 * 2.5 + 0.0003)))
    assert (power, volts) == (pytest.approx(2.5 * current), 2.5)


@pytest.mark.parametrize("rate_hz, group", [(1000, 100), (5000, 20), (100, 1000)])
def test_rows_are_plain_means_so_that_energy_is_kept(rate_hz: int, group: int) -> None:
    draw = random.Random(1)
    adcs = [draw.choice((3, 40, 900)) for _ in range(5000)]  # jumps, which a filter would smear
    got = rows(decoder(rate_hz=rate_hz), words([*adcs, 0, 0]))  # the last two are held back
    assert len(got) == 5000 // group
    for k, (_, end, values) in enumerate(got):
        assert values[2] == pytest.approx(STEP_A * sum(adcs[k * group : (k + 1) * group]) / group)
        assert end == pytest.approx((k + 1) * group * 1e-5)
    joules = sum(values[0] for _, _, values in got) * group * 1e-5
    assert joules == pytest.approx(3.0 * STEP_A * sum(adcs) * 1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 399, 400, 4096])
def test_bytes_may_come_in_any_pieces(chunk: int) -> None:
    got, whole = (rows(decoder(), words(list(range(1, 903))), size) for size in (chunk, 9999))
    assert len(got) == len(whole) == 9
    for a, b in zip(got, whole, strict=True):
        assert a[2] == pytest.approx(b[2], rel=1e-12) and a[:2] == b[:2]


def test_samples_at_the_limit_are_told_as_a_share() -> None:
    at_limit = round(1.0 / STEP_A)
    got = rows(decoder(), words([at_limit] * 25 + [100] * 75 + [100] * 102))
    assert [values[3] for _, _, values in got] == [0.25, 0.0]
    assert [values[3] for _, _, values in rows(decoder(limit_a=0.05), words([100] * 102))] == [1.0]


def test_inputs_are_the_share_of_samples_in_which_they_were_high() -> None:
    made = decoder(logic=True)
    assert made.columns[4:] == ("D0", "D1", "D2", "D3", "D4", "D5", "D6", "D7")
    data = words([9] * 30, inputs=0b10000001) + words([9] * 72, first=30, inputs=0b00000001)
    assert rows(made, data)[0][2][4:] == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0.3])


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def stream(n: int, seed: int = 5) -> tuple[list[int], bytes]:
    draw = random.Random(seed)
    adcs = [draw.randrange(300, 400) for _ in range(n)]
    return adcs, words(adcs)


def sane(got: list[tuple[int, float, list[float]]]) -> bool:
    """Whether each row's current is one that was sent: 300 to 400 steps."""
    return all(300 * STEP_A <= values[2] <= 400 * STEP_A and values[3] == 0 for _, _, values in got)


def in_order(got: list[tuple[int, float, list[float]]]) -> bool:
    return all(a[0] < b[0] or a[1] < b[1] for a, b in pairwise(got))


@pytest.mark.parametrize("lost", [1, 10, 45])
def test_lost_words_are_counted_and_their_row_is_made_of_the_rest(lost: int) -> None:
    adcs, data = stream(1010)
    made = decoder()
    got = rows(made, data[: 4 * 520] + data[4 * (520 + lost) :])
    # Two words on each side of a loss are not believed, and two are held back at the end.
    assert made.notes["words_lost"] == lost + 4 and made.notes["words"] == 1010 - lost - 4 - 2
    left = adcs[500:518] + adcs[522 + lost : 600]
    row = next(values for _, end, values in got if end == pytest.approx(0.006))
    assert row[2] == pytest.approx(STEP_A * sum(left) / len(left))
    assert len(got) == 10 and sane(got)


def test_row_that_lost_more_than_half_is_left_out() -> None:
    _, data = stream(1010)
    made = decoder()
    got = rows(made, data[: 4 * 520] + data[4 * 577 :])
    assert [round(end, 6) for _, end, _ in got if end < 0.0061] == [0.001, 0.002, 0.003, 0.004, 0.005]
    assert made.notes["rows_left_out"] == 1 and sane(got)


@pytest.mark.parametrize("lost", [1, 2, 3, 5, 401, 4002])
@pytest.mark.parametrize("at", range(4))
def test_lost_bytes_are_a_gap_and_the_right_alignment_is_found(at: int, lost: int) -> None:
    _, data = stream(6010)
    made = decoder()
    place = 4 * 2030 + at
    got = rows(made, data[:place] + data[place + lost :])
    assert sane(got) and in_order(got)
    assert 0 <= 60 - len(got) <= lost // 400 + 2
    missing = made.notes["words_lost"]
    assert (missing - lost // 4) % 64 in range(3, 8)  # two words on each side are not believed
    assert made.notes["words"] <= 6010 - lost // 4


@pytest.mark.parametrize("twice", [1, 2, 3, 4, 5, 8, 60, 64, 66, 100, 512, 1000, 1024, 4096, 4100, 7001])
def test_bytes_that_come_twice_count_once(twice: int) -> None:
    _, data = stream(6010)
    made = decoder()
    place = 4 * 3000 + 1
    got = rows(made, data[:place] + data[place - twice :])
    assert sane(got) and in_order(got)
    assert 5990 <= made.notes["words"] <= 6008
    assert 59 <= len(got) <= 60


@pytest.mark.parametrize("chunk", [333, 2000, 4096])
@pytest.mark.parametrize("twice, at", [(4096, 4096), (4096, 12_345), (512, 8192), (1024, 9999)])
def test_whole_turns_of_the_counter_that_come_twice_are_known_by_their_noise(twice: int, at: int, chunk: int) -> None:
    adcs, data = stream(6010)
    made = decoder()
    got = rows(made, data[:at] + data[at - twice :], chunk)
    assert made.notes["bytes_duplicated"] == twice
    assert sane(got) and in_order(got) and made.notes["words"] <= 6010
    means = {round(end, 6): values[2] for _, end, values in got}
    right = [abs(means[k] - STEP_A * sum(adcs[round(k * 1e5) - 100 : round(k * 1e5)]) / 100) < 2e-3 for k in means]
    assert sum(right) >= len(means) - 2 and len(means) >= 58


@pytest.mark.parametrize("stay", [6010, 700, 130])
def test_load_without_noise_is_not_taken_for_a_repetition(stay: int) -> None:
    made = decoder()
    got = rows(made, words([30 + k // stay for k in range(6010)]))
    assert len(got) == 60 and made.notes["bytes_duplicated"] == 0 and made.notes["words"] == 6008


@pytest.mark.parametrize("n", [1, 4, 37, 64, 400, 5003])
@pytest.mark.parametrize("seed", range(3))
def test_garbage_is_never_a_row(seed: int, n: int) -> None:
    _, data = stream(6010)
    made = decoder()
    garbage = random.Random(seed).randbytes(n)
    got = rows(made, data[: 4 * 2030] + garbage + data[4 * 2030 :])
    assert sane(got) and in_order(got)
    assert made.notes["words"] >= 5990 and len(got) >= 59


@pytest.mark.parametrize("seed", range(25))
def test_any_mixture_of_damage_leaves_only_true_rows(seed: int) -> None:
    draw = random.Random(seed)
    _, data = stream(40_000, seed)
    for _ in range(12):
        at, n = draw.randrange(len(data)), draw.choice((1, 2, 3, 4, 17, 120, 1001))
        # A byte changed in place cannot be told where it is of the ADC alone; USB has checks of its own against that.
        kind = draw.choice(("lost", "twice", "garbage", "changed" if n > 16 else "lost"))
        if kind == "lost":
            data = data[:at] + data[at + n :]
        elif kind == "twice":
            data = data[:at] + data[max(0, at - n) :]
        else:
            data = data[:at] + draw.randbytes(n) + data[at + n * (kind == "changed") :]
    made = decoder()
    got = rows(made, data, draw.randrange(100, 5000))
    assert sane(got) and in_order(got)
    assert len(got) > 300 and made.notes["breaks"] >= 3


def test_range_that_does_not_exist_is_no_word() -> None:
    _, data = stream(1010)
    made = decoder()
    got = rows(made, data[:2000] + word(350, 6, 500) + data[2004:])
    assert sane(got) and len(got) == 10 and made.notes["words_lost"] == 5


def test_current_that_cannot_be_is_in_no_mean_but_over_the_limit() -> None:
    adcs = [300] * 90 + [9000] * 10 + [300] * 102  # 9.2 A through a meter for 1 A
    (_, _, first), (_, _, second) = rows(decoder(), words(adcs))
    assert first[2] == pytest.approx(300 * STEP_A) and first[3] == pytest.approx(0.1)
    assert second[3] == 0


@pytest.mark.parametrize("lost", [64, 640, 1000, 6400, 100_001])
def test_loss_that_the_counter_does_not_show_begins_a_segment_or_is_told_by_arrival(lost: int) -> None:
    _, data = stream(160_000 + lost)
    made, got = decoder(), []
    for k in range(0, 4 * 160_000, 2000):  # the first 20 000, then none for as long as it took to make the lost ones
        at = k if k < 80_000 else k + 4 * lost
        now_ns = 5 * SECOND + (at + 2000) * 2500
        got += made.take(data[at : at + 2000], now_ns)
    assert sane(got)
    if lost > 1000:
        assert got[-1][0] >= 1 and made.notes["words_lost"] == pytest.approx(lost, abs=40)


@pytest.fixture(scope="module")
def dated() -> bytes:
    """5 s of words, of which each reading tells when it was made, to 7 ms."""
    return words([k // 700 for k in range(500_000)])


@pytest.mark.parametrize(
    "stood_s, waited, drained_s",
    [
        (0.7, 1024, 0.003),
        (0.7, 16_384, 0.05),
        (0.7, 60_000, 0.3),
        (0.7, 60_010, 0.3),
        (0.7, 110_000, 0.55),
        (1.5, 230_000, 1.2),
        (1.5, 235_200, 1.2),
        (1.5, 250_000, 1.2),
    ],
)
def test_what_waited_is_never_taken_for_what_is_new(
    dated: bytes, stood_s: float, waited: int, drained_s: float
) -> None:
    """A port stands still; the first `waited` words since come within `drained_s`, the rest never: new ones do.

    Of some the counter shows no loss.
    """
    made, got, came_s = decoder(), [], []

    def send(first: int, last: int, began_s: float, ended_s: float) -> None:
        """Words first to last, the last of them at `ended_s`, in pieces of 500."""
        n = -(-(last - first) // 500)
        for k in range(n):
            piece = dated[4 * (first + 500 * k) : 4 * min(first + 500 * k + 500, last)]
            now_s = 5 + began_s + (ended_s - began_s) * (k + 1) / n
            more = made.take(piece, round(now_s * SECOND))
            got.extend(more)
            came_s.extend([now_s] * len(more))

    again_s = 1 + stood_s
    new_s = again_s + drained_s
    new = round(new_s * 100_000)
    send(0, 100_000, 0, 1)
    send(100_000, 100_000 + waited, again_s, new_s)
    send(new, new + 150_000, new_s, new_s + 1.5)
    segment, end_s = np.array([s for s, _, _ in got]), np.array([end for _, end, _ in got])
    made_s = np.array([values[2] for _, _, values in got]) / STEP_A * 700e-5
    placed = arrival.times(segment, end_s, np.array(came_s))
    assert np.nanmax(np.abs(placed.t_s - 5 - made_s)) < 7e-3 + placed.bound_s  # none where it does not belong
    is_placed = np.isfinite(placed.t_s)
    assert is_placed[made_s < 0.98].all() and is_placed[made_s > new_s + 0.3].all()
    assert made.notes["words_lost"] // 64 == pytest.approx((new - 100_000 - waited) // 64, abs=2)


# ---------------------------------------------------------------------------------------------------------------------
# The handshake


def began(options: dict[str, Any], *answers: bytes) -> FakePort:
    port = FakePort(*answers)
    Decoder(options).begin(port)  # type: ignore[arg-type]
    return port


def test_nothing_is_set_that_was_not_asked_for() -> None:
    assert began({}, metadata()).written == b"\x07\x19\x06"


@pytest.mark.parametrize("volts, high, low", [(0.8, 3, 32), (3.3, 12, 228), (5.0, 19, 136)])
def test_source_mode_sets_the_voltage_and_switches_the_device_on(volts: float, high: int, low: int) -> None:
    told = began({"mode": "source", "volts": volts}, metadata())
    assert told.written == b"\x07\x19" + bytes([0x11, 2, 0x0D, high, low, 0x0C, 1, 0x06])


def test_ampere_mode_takes_the_voltage_it_is_told() -> None:
    made = Decoder({"mode": "ampere", "volts": 3.7})
    port = FakePort(metadata())
    made.begin(port)  # type: ignore[arg-type]
    assert port.written == b"\x07\x19\x11\x01\x06"
    assert (made.notes["volts"], made.notes["volts_from"], made.notes["mode"]) == (3.7, "option", "ampere")
    with pytest.raises(MeterError, match="ampere mode, in which it measures no voltage"):
        began({}, metadata(mode=1))


def test_power_stays_on_unless_told() -> None:
    for options, written in (({}, b"\x07"), ({"power_off": True}, b"\x07\x0c\x00")):
        port = FakePort()
        Decoder(options).end(port)  # type: ignore[arg-type]
        assert port.written == written


def test_metadata_that_broke_off_are_asked_for_again_and_then_refused() -> None:
    whole = metadata()
    assert began({}, whole[:300], whole[:-40], whole).written.count(b"\x19") == 3
    with pytest.raises(MeterError, match=r"its metadata broke off after 300 bytes .* in 3 tries; unplug"):
        began({}, *[whole[:300]] * 3)
    with pytest.raises(MeterError, match="are no PPK2's metadata"):
        began({}, *[b"1,3900,500,1950\r\n"] * 3)
    with pytest.raises(MeterError, match=r"nothing came within .* when asked for metadata"):
        began({})


def test_metadata_without_sense_are_refused() -> None:
    text = metadata().decode()
    assert facts(text)["R"] == list(R)
    for old, new in (("R4: 0.043", "R4: 0.0"), ("O2: 0.0", "O2: nan"), ("UG1", "UX1")):
        assert old in text
        with pytest.raises(MeterError, match="wanted 5 numbers"):
            facts(text.replace(old, new))


# ---------------------------------------------------------------------------------------------------------------------
# The options


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as found:
        yield found


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mode": "sauce"}, "did you mean 'source'|source"),
        ({"mode": "ampere"}, "measures no voltage"),
        ({"volts": 5.5}, "volts is 5.5; wanted a number from 0.8 to 5"),
        ({"volts": True}, "volts is True"),
        ({"rate_hz": 3000}, "wanted a divisor of 100000, such as 2500"),
        ({"rate_hz": 10_000}, "wanted a number from 1 to 5000"),
        ({"limit_a": "much"}, "limit_a is 'much'"),
        ({"logic": 3}, "wanted true or false"),
        ({"voltage": 3.3}, "no option 'voltage'"),
        ({"boundary": "batery"}, "battery"),
    ],
)
def test_wrong_options_are_refused_in_one_line(host: Host, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Ppk2.attached_to(host, "/dev/ttyACM0", **options)
    assert "\n" not in str(caught.value)


def test_channels_say_where_joules_are_counted(host: Host) -> None:
    meter = Ppk2.attached_to(host, "/dev/ttyACM0", boundary="battery", gain_error=0.01, rate_hz="5000", logic="true")
    power = meter.channels[0]
    assert (power.name, power.boundary, power.gain_error, power.averaging_s) == ("power", "battery", 0.01, 2e-4)
    assert [c.name for c in meter.channels[1:4]] == ["voltage", "current", "over_range"]
    assert [c.name for c in meter.channels[4:]] == [*(f"D{k}" for k in range(8)), "meter_clock", "arrival"]
