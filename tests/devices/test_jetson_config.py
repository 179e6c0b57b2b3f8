"""How a Jetson is named and configured; nothing is connected by that."""

from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.jetson.device import Jetson
from edgewatt.devices.ssh import Ssh
from edgewatt.devices.transport import Subprocess
from edgewatt.harness import devicefile
from edgewatt.harness.api import UsageError


def test_local_is_this_machine() -> None:
    for address in ("", "local"):
        board = Jetson.from_config("orin", address, {})
        assert isinstance(board.transport, Subprocess) and board.power == "auto"


def test_address_over_ssh_with_options() -> None:
    board = Jetson.from_config(
        "orin", "ssh://lab@orin-3:2222?power=jtop&interval_s=0.25", {"python": "/opt/py/bin/python"}
    )
    assert isinstance(board.transport, Ssh) and board.transport.name == "lab@orin-3:2222"
    assert (board.power, board.interval_s, board.transport.python) == ("jtop", 0.25, "/opt/py/bin/python")


@pytest.mark.parametrize(
    ("address", "options", "told"),
    [
        ("usb:1", {}, r"orin: address 'usb:1'; wanted local or ssh://user@board"),
        ("ssh://", {}, "wanted ssh://"),
        ("ssh://-oProxyCommand=x", {}, "wanted ssh://"),
        ("ssh://lab:secret@orin", {}, "a password has no place in an address"),
        ("ssh://a b", {}, "wanted ssh://"),
        ("ssh://orin:99999", {}, "wanted ssh://"),
        ("local", {"powr": "jtop"}, "no option 'powr'; did you mean power"),
        ("local?power=sysfs", {}, "power is 'sysfs'; wanted auto, ina3221, tegrastats, jtop"),
        ("local", {"rate_hz": 0}, "rate_hz is 0"),
        ("local", {"rate_hz": True}, "rate_hz is True"),
        ("local", {"interval_s": 0.01}, "interval of 0.01; wanted 0.1 to 10 seconds"),
        ("local", {"parents": "VDD_IN"}, "parents is 'VDD_IN'; wanted a table"),
        ("local", {"shunts_ohm": {"VDD_IN": "5m"}}, "shunts_ohm"),
        ("local", {"python": 3}, "python is 3; wanted a path"),
    ],
)
def test_configuration_that_makes_no_sense_is_refused_in_one_line(
    address: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        Jetson.from_config("orin", address, options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"powermode": "0"}, "no control 'powermode'; did you mean power_mode"),
        ({"jetson_clocks": "perhaps"}, "jetson_clocks=perhaps: wanted true or false"),
        ({"fan_speed": "120"}, "fan_speed is '120'; wanted a number from 0 to 100"),
    ],
)
def test_controls_are_checked_before_anything_is_set(wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Jetson.from_config("orin", "local", {}).controls(wanted)


def test_machine_that_is_no_jetson_is_told_so() -> None:
    if Path("/etc/nv_tegra_release").exists():
        pytest.skip("this is a Jetson")
    with Jetson.from_config("orin", "local", {}) as board, pytest.raises(UsageError, match=r"this is no Jetson.*host"):
        board.describe()


def test_kind_is_known_by_its_name_and_in_the_device_file(tmp_path: Path) -> None:
    assert devicefile.find("jetson:ssh://lab@orin-3").kind == "jetson"
    file = tmp_path / "devices.toml"
    file.write_text(
        '[devices.orin]\nkind = "jetson"\naddress = "ssh://lab@orin-3"\n[devices.orin.meters.second]\nkind = "jtop"\n'
    )
    entry = devicefile.find("orin", file)
    assert (entry.address, list(entry.meters)) == ("ssh://lab@orin-3", ["second"])
