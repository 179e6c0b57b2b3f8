"""What a reader sees of two meters of one run."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, Trace, UsageError
from edgewatt.reports import meters, tradeoff
from support import made_run as made
from support.pages import page, pdf_text

PHASES = made.phases()


def gauge(meter, gain=1.0, rate_hz=50.0, seed=1, **facts):
    t = made.stamps(PHASES, rate_hz)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(t))
    channel = Channel("power", "power", "W", "gauge", "the board", "dc-input", gain_error=0.002)
    return Trace(meter, "boottime", (channel,), t, (gain * made.level(t, made.knots(PHASES)) + noise)[:, None], facts)


def compared(name="supply", gain=1.0):
    run = made.run(PHASES, [gauge(name, gain, wiring={"boundary": "dc-input"}), gauge("own", rate_hz=20.0, seed=2)])
    measurements, flags, warnings = analyse(run)
    return dataclasses.replace(run, measurements=measurements, flags=flags, warnings=warnings)


def test_page_tells_both_energies_ratio_lag_and_agreement(tmp_path):
    meters.write(compared(), tmp_path / "m.html")
    found = page(tmp_path / "m.html")
    assert "Two meters: supply vs own" in found.text
    assert re.search(r"Energy of the windows, supply 400\.\d+ ± \d", found.text)
    assert re.search(r"Energy of the windows, own 400?\.?\d* ± \d|Energy of the windows, own 399\.\d+ ± \d", found.text)
    assert re.search(r"Ratio of two meters (1\.000\d*|0\.999\d*) ± 0\.00\d", found.text)
    assert "Lag between two meters" in found.text
    assert "95 % limits of agreement" in found.text
    words = [a["aria-label"] for _, a in found.tags if "aria-label" in a]
    assert any(w.startswith("Power of supply (dc-input) and own (dc-input) over time") for w in words)
    assert any(w.startswith("Bland-Altman plot") for w in words)


def test_trade_off_page_has_the_section_and_the_flag(tmp_path):
    tradeoff.write([compared(gain=1.05)], tmp_path / "t.html")
    text = page(tmp_path / "t.html").text
    assert "Two meters: supply vs own" in text
    assert "meters disagree" in text
    assert re.search(r"Ratio of two meters 1\.0[45]\d* ± 0\.00\d", text)


def test_run_with_one_meter_says_that_there_is_nothing_to_compare(tmp_path):
    run = made.run(PHASES, [gauge("own")])
    meters.write(run, tmp_path / "m.html")
    assert meters.NONE in page(tmp_path / "m.html").text
    meters.write(run, tmp_path / "m.svg")
    tradeoff.write([run], tmp_path / "t.html")
    assert "Two meters" not in page(tmp_path / "t.html").text


def test_names_from_a_device_stay_text(tmp_path):
    meters.write(compared(name="<img src=x onerror=alert(1)>"), tmp_path / "m.html")
    found = page(tmp_path / "m.html")
    assert "<img src=x onerror=alert(1)> vs own" in found.text
    assert not [t for t, _ in found.tags if t == "img"]


def test_paper_has_the_figures_in_words(tmp_path):
    meters.write(compared(), tmp_path / "m.pdf")
    text = pdf_text(tmp_path / "m.pdf")
    assert "Mean of both (W)" in text
    assert "Ratio of two meters" in text
    meters.write(compared(), tmp_path / "m.svg")
    assert "Difference (W)" in "".join(ElementTree.parse(tmp_path / "m.svg").getroot().itertext())


def test_the_bias_that_was_put_in_is_drawn():
    (c,) = meters.comparisons(compared(gain=1.05))
    slope = np.polyfit(c.agreement.mean_w, c.agreement.difference_w, 1)[0]
    assert slope == pytest.approx(0.05 / 1.025, abs=0.005), "a - b = 0.05 p, their mean 1.025 p"


def test_other_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.html, \.pdf or \.svg"):
        meters.write(compared(), tmp_path / "m.png")
