"""An Android phone as a device: over a cable (`android:SERIAL`) or over the network (`android:HOST:PORT`)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgewatt.devices.android import (
    build,
    checks,
    conditions,
    controls,
    facts,
    gauge,
    health,
    journal,
    odpm,
    powerstats,
)
from edgewatt.devices.android.look import look
from edgewatt.devices.android.shell import TRIES, Done
from edgewatt.devices.android.transport import Adb, phones
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness import plugins
from edgewatt.harness.api import (
    AgentProcess,
    Check,
    ClockOffset,
    Device,
    Facts,
    Flag,
    HarnessError,
    Meter,
    TransientError,
    UsageError,
)

OPTIONS = (
    "agent", "onnxruntime", "key", "folder", "root", "power", "rate_hz", "current_unit", "current_sign", "min_battery",
)  # fmt: skip
SOURCES = ("odpm", "powerstats", "perfetto", "gauge", "none")
"""Ways to the phone's power, the most trusted first; "none": no joules."""

SHELL = "shell"  # as `agent`: nothing is executed on the phone but its own shell
_PARTS = (facts, conditions, odpm, powerstats, gauge, health)
_LIBRARY = "libonnxruntime.so"


class Android(Device):
    """One phone. What it can be asked depends on who may read what there, and is told by values."""

    kind = "android"
    clock = "boottime"

    def __init__(self, name: str, transport: Adb, *, address: str, options: Mapping[str, Any] | None = None) -> None:
        """`options` are those of the device file, checked (docs/android.md)."""
        self.name, self.address, self.transport = name, address, transport
        self.options = dict(options or {})
        self._why_shell = ""
        self._is_rooted = False

    @classmethod
    def connected(cls) -> Sequence[str]:
        """Serials of the phones on this machine's USB."""
        return phones()

    @classmethod
    def from_config(cls, name: str, address: str, options: Mapping[str, Any]) -> Android:
        for key in options:
            if key not in OPTIONS:
                raise UsageError(f"{name}: an android has no option {key!r}; {plugins.nearest(key, OPTIONS)}")
        power = options.get("power", "auto")
        if power not in ("auto", *SOURCES):
            raise UsageError(f"{name}: power is {power!r}; wanted auto, {', '.join(SOURCES)}")
        for key in ("agent", "onnxruntime", "key", "folder"):
            _text(name, key, options.get(key))
        if not isinstance(options.get("root", False), bool):
            raise UsageError(f"{name}: root is {options['root']!r}; wanted true or false")
        for key in ("agent", "onnxruntime"):
            if options.get(key) not in (None, SHELL) and not Path(options[key]).expanduser().is_file():
                raise UsageError(f"{name}: {key} = {options[key]!r}: no such file; see docs/android.md")
        key_file = options.get("key")
        folder = {"folder": options["folder"]} if "folder" in options else {}
        transport = Adb(address or _only_one(name), key=Path(key_file).expanduser() if key_file else None, **folder)
        return cls(name, transport, address=address, options={**options, "power": power})

    # -- what every device can do

    def describe(self) -> Facts:
        return {
            "kind": self.kind,
            "address": self.address,
            "agent": self.hello or {"kind": self.agent_kind or SHELL, "why": self._why_shell},
            "power": self.options.get("power", "auto"),
            "adb": sorted(self.transport.features),
            **facts.facts(self.look()),
        }

    def start(self, verb: str, job: Facts) -> AgentProcess:
        """The native agent; where nothing may be executed, `sample` is done by the phone's own shell."""
        if self.agent_kind == "native":
            return self.transport.start(verb, self._with_library(job) if verb == "run" else job)
        if verb == "sample":
            return self.transport.shell_sampler(job)
        raise UsageError(f"{self.name}: {verb} needs the native agent there: {self._why_shell}")

    def put(self, path: Path) -> str:
        return self.transport.put(path)

    def get(self, remote: str, into: Path) -> Path:
        return self.transport.get(remote, into)

    def scratch(self) -> str:
        return self.transport.scratch()

    def clock_offset(self) -> ClockOffset:
        _ = self.agent_kind  # decides who is asked for the time
        return self.transport.clock_offset()

    def meters(self) -> Sequence[Meter]:
        return plugins.meters_found_on(self)

    def health(self) -> Sequence[Flag]:
        return list(conditions.gate(self))

    def checks(self) -> Sequence[Check]:
        return list(checks.of(self))

    def steady_nodes(self) -> Sequence[Facts]:
        return conditions.steady_nodes(self.seen)

    def controls(self, wanted: Mapping[str, Any]) -> AbstractContextManager[Facts]:
        """Sets what is asked for, reads it back, and puts it back on any exit; first, what a killed harness left."""
        return controls.held(self, wanted)

    def restore(self) -> Facts:
        return journal.restore(self)

    def close(self) -> None:
        self.transport.close()

    # -- what is known of this phone

    def shell(self, script: str, *words: str, timeout_s: float = 30.0) -> Done:
        """A script in the phone's own shell, with `words` as $1, $2, …; it may be done twice (Adb.shell)."""
        return self.transport.shell(script, *words, timeout_s=timeout_s, tries=TRIES)

    def look(self) -> Snapshot:
        """The phone as it is now."""
        self._as_root()
        patterns = [p for part in _PARTS for p in part.PATTERNS]
        tools = {name: argv for part in _PARTS for name, argv in part.TOOLS.items()}
        return look(self.shell, patterns, tools)

    def _as_root(self) -> None:
        """The daemon restarted as root, once, where the device file asks for it."""
        if self.options.get("root") and not self._is_rooted:
            self.transport.root()
            self._is_rooted = True

    @functools.cached_property
    def seen(self) -> Snapshot:
        """The phone as it was when it was first looked at: what does not change in a run."""
        return self.look()

    @property
    def is_root(self) -> bool:
        """Whether what we run there runs as root."""
        return self.seen.is_root

    @property
    def is_usb(self) -> bool:
        """Whether the phone hangs on a cable, which charges it."""
        return self.transport.is_usb

    @functools.cached_property
    def abi(self) -> str:
        """The kind of programs it runs: "arm64-v8a", "x86_64", …"""
        return facts.abi(self.seen) or ""

    @property
    def agent_kind(self) -> str:  # type: ignore[override]
        """ "native", or "" where nothing of ours may be executed."""
        return "native" if self.hello else ""

    @functools.cached_property
    def hello(self) -> dict[str, Any]:
        """What the native agent says of itself there; empty if it does not run, and then `why_shell` says why."""
        wanted = self.options.get("agent")
        if wanted == SHELL:
            self._why_shell = f'the device file says agent = "{SHELL}"'
            return {}
        binary = Path(wanted).expanduser() if wanted else build.agent_for(self.abi)
        if binary is None:
            self._why_shell = f"none was built for {self.abi or 'its processor'}: edgewatt agent build --abi {self.abi}"
            return {}
        self.transport.agent = binary
        try:
            process = self.transport.start("hello", {})
            try:
                told = next((dict(e) for e in process.events(30.0) if e["event"] == "hello"), {})
            finally:
                ended = process.stop()
        except TransientError:
            raise
        except TimeoutError as error:
            raise TransientError(f"{self.name}: the agent does not answer: {error}") from error
        except HarnessError as error:
            self._why_shell = str(error)
            told = {}
        else:
            if not told:
                said = " ".join(ended.stderr.split())[:200] or f"status {ended.status}"
                self._why_shell = f"{binary.name} does not run there ({said})"
        if not told:
            self.transport.agent = None
            return {}
        more = {k: told[k] for k in ("agent", "engines") if k in told}
        return {"kind": "native", **more, **{k: v for k, v in told.get("facts", {}).items() if k != "boot_id"}}

    @property
    def why_shell(self) -> str:
        """Why the native agent is not used; "" if it is."""
        return "" if self.hello else self._why_shell

    def _with_library(self, job: Facts) -> Facts:
        """The job with the runtime it needs, on the phone."""
        runner = str(job.get("runner", ""))
        if not runner.startswith("native:"):
            raise UsageError(f"{self.name}: runs graphs on tensors alone (native:onnxruntime), and not {runner}")
        if runner != "native:onnxruntime":
            return job
        return {**job, "params": {**job["params"], "library": self.put(self._library())}}

    def _library(self) -> Path:
        """ONNX Runtime's library for this phone."""
        given = self.options.get("onnxruntime")
        if given:
            return Path(given).expanduser()
        if self.abi == "x86_64" and (own := _own_library()) is not None:
            return own
        raise UsageError(
            f"{self.name}: models need {_LIBRARY} for {self.abi}: take it out of the package onnxruntime-android "
            f'(jni/{self.abi}/{_LIBRARY}) and name it in the device file (onnxruntime = "/path/to/{_LIBRARY}")'
        )


def _own_library() -> Path | None:
    """The library inside this machine's own onnxruntime, for an emulator or a phone of the same kind of processor."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "capi").glob(f"{_LIBRARY}.*"))), None)


def _only_one(name: str) -> str:
    """The phone on USB, if there is just one."""
    found = phones()
    if len(found) == 1:
        return found[0]
    said = ", ".join(found) or "none"
    raise UsageError(
        f"{name}: which phone? On USB: {said}; write android:SERIAL, or android:HOST:PORT over the network"
    )


def _text(name: str, key: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"{name}: {key} is {value!r}; wanted a path")
