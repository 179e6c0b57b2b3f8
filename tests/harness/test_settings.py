"""`--set KEY=VALUE`: types, nearest names, one line for what is wrong."""

from dataclasses import dataclass

import pytest

from edgewatt.harness import settings
from edgewatt.harness.api import UsageError
from edgewatt.harness.measure import Protocol


@dataclass(frozen=True)
class Thing:
    size: int = 416
    name: str = "x"
    share: float = 0.5
    is_strict: bool = False
    cores: tuple[int, ...] | None = None


def test_texts_become_the_types_of_the_fields():
    thing = settings.build(Thing, {"size": "320", "share": "0.25", "is_strict": "true", "cores": "[0, 1]"})
    assert thing == Thing(320, "x", 0.25, True, (0, 1))


def test_none_is_a_value():
    assert settings.build(Thing, {"cores": "none"}).cores is None


def test_a_wrong_type_is_named_with_what_was_found():
    with pytest.raises(UsageError, match="size='big'"):
        settings.build(Thing, {"size": "big"})


def test_list_is_written_in_brackets():
    assert settings.build(Protocol, {"affinity": "[0,2]"}).affinity == (0, 2)
    with pytest.raises(UsageError, match=r"affinity='0,2': wanted a list, such as \[0,1\]"):
        settings.build(Protocol, {"affinity": "0,2"})


def test_setting_without_equals_sign_is_refused():
    with pytest.raises(UsageError, match="wanted KEY=VALUE"):
        settings.parsed(["size"])


def test_value_may_hold_an_equals_sign():
    assert settings.parsed(["data=/a=b/c"]) == {"data": "/a=b/c"}


def test_unknown_key_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean window_s"):
        settings.resolved("femtodet", {"windw_s": "3"})


def test_unknown_workload_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean femtodet"):
        settings.resolved("femtodett", {})


def test_keys_go_to_workload_protocol_and_controls():
    workload, protocol, controls = settings.resolved(
        "femtodet", {"size": "320", "window_s": "2", "controls.governor": "performance"}
    )
    assert (workload.size, protocol.window_s, controls) == (320, 2.0, {"governor": "performance"})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("repeats", 0, "1 to 1000"),
        ("window_s", -1.0, "more than 0"),
        ("max_window_s", 1.0, "less than window_s"),
        ("warmup_max_s", 0.5, "less than warmup_min_s"),
        ("steady_tolerance", 2.0, "between 0 and 1"),
        ("memory_limit_bytes", 1000, "at least 64 MiB"),
    ],
)
def test_protocol_out_of_range_is_refused(key, value, words):
    with pytest.raises(UsageError, match=words):
        Protocol(**{key: value})


@pytest.mark.parametrize("text", ["data=", "data= "])
def test_empty_value_is_refused(text):
    """An empty path would be the current folder."""
    with pytest.raises(UsageError, match="has no value"):
        settings.parsed([text])
