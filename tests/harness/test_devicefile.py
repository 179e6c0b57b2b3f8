"""Devices by name, and the device file."""

import pytest

from edgewatt.harness import devicefile
from edgewatt.harness.api import UsageError


def written(folder, text):
    path = folder / "devices.toml"
    path.write_text(text)
    return path


def test_host_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert devicefile.find("host").kind == "host"


def test_entry_keeps_address_options_and_meters(tmp_path):
    path = written(
        tmp_path,
        '[devices.bench]\nkind = "host"\naddress = "x"\nsysfs = "/s"\n'
        '[devices.bench.meters.supply]\nkind = "ppk2"\nport = "/dev/ttyACM0"\n',
    )
    entry = devicefile.find("bench", path)
    assert (entry.kind, entry.address, entry.options) == ("host", "x", {"sysfs": "/s"})
    assert entry.meters == {"supply": {"kind": "ppk2", "port": "/dev/ttyACM0"}}


def test_environment_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_DEVICES", str(written(tmp_path, '[devices.a]\nkind = "host"\n')))
    assert set(devicefile.entries()) == {"host", "a"}


def test_file_beside_the_caller_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEWATT_DEVICES", raising=False)
    written(tmp_path, '[devices.b]\nkind = "host"\n')
    monkeypatch.chdir(tmp_path)
    assert "b" in devicefile.entries()


def test_kind_and_address_make_a_device():
    entry = devicefile.find("host:elsewhere")
    assert (entry.kind, entry.address) == ("host", "elsewhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[devices.a]\n", "wanted kind"),
        ('[devices.a]\nkind = "hosst"\n', "did you mean host"),
        ("devices = 3\n", "not a table"),
        ("[devices\n", "is not TOML"),
        ('[devices.a]\nkind = "host"\n[devices.a.meters.m]\nport = "x"\n', "kind = "),
        ("[devices]\na = 1\n", "wanted a table"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        devicefile.entries(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        devicefile.entries(tmp_path / "none.toml")


def test_unknown_device_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean host"):
        devicefile.find("hots")


def test_table_outside_devices_is_not_passed_over(tmp_path):
    with pytest.raises(UsageError, match="'bench'"):
        devicefile.entries(written(tmp_path, '[bench]\nkind = "host"'))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ppk2:/dev/ttyACM0", ("ppk2", "/dev/ttyACM0", {})),
        ("scpi:10.0.0.7:5025,gain_error=0.01", ("scpi", "10.0.0.7:5025", {"gain_error": "0.01"})),
        ("file:a,b.csv,time=t (s),power=P, W", ("file", "a,b.csv", {"time": "t (s)", "power": "P, W"})),
        ("health", ("health", "", {})),
    ],
)
def test_a_meter_in_a_line_has_a_kind_an_address_and_options(text, wanted):
    assert devicefile.parsed(text) == wanted


def test_an_option_given_twice_is_refused():
    with pytest.raises(UsageError, match="boundary is given twice"):
        devicefile.parsed("ppk2:/dev/x,boundary=usb,boundary=wall")
