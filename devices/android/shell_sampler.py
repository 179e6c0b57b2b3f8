"""Sampling by the phone's own shell, where nothing of ours may be executed.

A loop of builtins reads files and the uptime: no process is started for a sample (mksh, which phones have; other shells
may start one to wait), but for programs that are to be sampled. Its lines become the events an agent would tell
(docs/agent-protocol.md, `sample`), with the rate that was reached. Stamps are /proc/uptime's, which counts in 10 ms; a
reading took place within that.
"""

from __future__ import annotations

import array
import itertools
import math
import re
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from edgewatt.devices.agent.agent import MISSING, packed
from edgewatt.devices.android.agents import HEARTBEAT_S, OnPhone
from edgewatt.harness.api import Exit, Facts, HarnessError, TransientError, UsageError

if TYPE_CHECKING:
    from edgewatt.devices.android.transport import Adb

STEP_NS = 10_000_000  # of /proc/uptime
MOST_HZ = 100.0  # stamps cannot tell more apart
_SEPARATOR, _END = "\x1f", "\x1e"  # between the parts of a sample, and behind it: no file of the kernel's has them
_LONGEST = 1 << 20
_UPTIME = re.compile(r"\d{1,10}\.\d{1,9}")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")

# Waiting without a process: `read -t` on a descriptor to which nothing is ever written. The beat is looked at every
# few seconds; when its content no longer changes, nobody wants the samples any more.
_LOOP = """echo $$ >@PID@; echo $$ >@GROUP@; trap '' HUP
nl='
'
nap() { sleep @NAP@; }
p() { printf %s "$1"; }
if [ -n "$KSH_VERSION" ]; then
  p() { print -rn -- "$1"; }
  if mkfifo @FIFO@ 2>/dev/null; then exec 9<>@FIFO@; rm -f @FIFO@; nap() { read -t @NAP@ -u9 x; }; fi
fi
k=0 same=0 last=
while :; do
  read -r t rest </proc/uptime
@READS@
  read -r u rest </proc/uptime
  p "$t@WORDS@@SEP@$u@END@$nl"
  k=$((k+1))
  if [ $((k % @LOOK@)) -eq 0 ]; then
    b=; read -r b 2>/dev/null <@BEAT@
    if [ "$b" = "$last" ]; then same=$((same+1)); else same=0; last=$b; fi
    [ $same -gt @MOST@ ] && exit 0
  fi
  nap
done
"""


@dataclass(frozen=True)
class Column:
    """Where a number stands: behind a line's beginning ("": the text's), which of them, its decimals; or its words."""

    name: str
    line: str = ""
    number: int = -1
    decimals: int = 0
    words: tuple[str, ...] = ()

    def value(self, text: str) -> int:
        """The number in the text of a file, or MISSING."""
        if self.words:
            return self.words.index(text.strip()) if text.strip() in self.words else MISSING
        for line in map(str.lstrip, text.split("\n")):
            if line.startswith(self.line):
                found = _NUMBER.findall(line[len(self.line) :])
                try:
                    value = round(Decimal(found[self.number]).scaleb(self.decimals))
                except IndexError:
                    return MISSING
                return value if abs(value) < -MISSING else MISSING
        return MISSING


class ShellSampler(OnPhone):
    """The loop on the phone, and its lines as events. When the link is lost, so is the sampling: nothing is spooled."""

    def __init__(self, adb: Adb, job: Facts, path: str, beat: str) -> None:
        """UsageError for what a shell cannot sample."""
        super().__init__(adb, path)
        nodes = job.get("nodes") or []
        if not nodes:
            raise UsageError(f"{adb.name}: its shell samples files and programs alone; the rest needs the native agent")
        self._nodes = list(nodes)
        self._columns = [_columns(n) for n in nodes]
        self._rate_hz = float(job.get("rate_hz", 10))
        self._batch_ns = int(float(job.get("batch_s", 1.0)) * 1e9)
        self._gap_limit_s = float(job.get("gap_limit_s", max(3 / self._rate_hz, 0.05)))
        self._errors: dict[str, int] = {}
        self._is_asked = False
        nap_s = 1 / min(self._rate_hz, MOST_HZ)
        look = max(1, round(5 * min(self._rate_hz, MOST_HZ)))
        script = _LOOP
        for mark, value in {
            "PID": f"{self._base}.pid",
            "GROUP": f"{self._base}.group",
            "FIFO": f"{self._base}.fifo",
            "NAP": f"{nap_s:.3f}",
            "READS": "\n".join(_reads(k, n, self._columns[k]) for k, n in enumerate(nodes)),
            "WORDS": "".join(f"{_SEPARATOR}$v{k}" for k in range(len(nodes))),
            "SEP": _SEPARATOR,
            "END": _END,
            "LOOK": str(look),
            "MOST": str(math.ceil(HEARTBEAT_S / 5)),
            "BEAT": beat,
        }.items():
            script = script.replace(f"@{mark}@", value)
        stream = adb.connected().open(f"exec:{script}")
        if stream is None:
            raise HarnessError(f"{adb.name}: its adb daemon starts no commands")
        self._stream = stream
        self._reader = threading.Thread(target=self._read, name=f"shell on {adb.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        names = [c.name for cs in self._columns for c in cs]
        self._events.put({"event": "hello", "protocol": 1, "agent": "shell 1", "verb": "sample", "clock": "boottime"})
        times, reads = array.array("q"), array.array("q")
        values, stamps = array.array("q"), array.array("q")
        began = False
        try:
            for first_ns, last_ns, row in self._rows():
                t_ns = (first_ns + last_ns) // 2 + STEP_NS // 2  # an uptime is cut, not rounded
                if stamps and t_ns <= stamps[-1]:
                    continue  # two within one step of the clock cannot be told apart
                if not began:
                    if all(v == MISSING for v in row):
                        said = f"nothing can be read of {', '.join(map(_source, self._nodes))}"
                        self._events.put({"event": "error", "kind": "refused", "message": said, "detail": ""})
                        return
                    self._events.put({"event": "sampling", "t_ns": t_ns, "columns": names, "scheduling": "the shell's"})
                    began = True
                for name, value in zip(names, row, strict=True):
                    if value == MISSING:
                        self._errors[name] = self._errors.get(name, 0) + 1
                times.append(t_ns)
                reads.append(last_ns - first_ns + STEP_NS)
                values.extend(row)
                stamps.append(t_ns)
                if t_ns - times[0] >= self._batch_ns:
                    self._frames(times, reads, values)
                    times, reads, values = array.array("q"), array.array("q"), array.array("q")
            self._frames(times, reads, values)
            if self._stream.is_lost and not self._is_asked:
                self._events.put(TransientError(f"the link to {self._adb.name} was lost; its shell spools nothing"))
            self._events.put(self._told(stamps))
            self._events.put({"event": "end", "reason": "stopped" if self._is_asked else "done"})
        except HarnessError as error:
            self._events.put(error)
        finally:
            self.has_ended = True
            self._events.put(None)

    def _rows(self) -> Iterator[tuple[int, int, list[int]]]:
        """When a sample began and ended, and its numbers; one that makes no sense is passed over."""
        rest = b""
        while (data := self._stream.read()) is not None:
            *samples, rest = (rest + data).split(f"{_END}\n".encode())
            for sample in samples:
                first, *texts, last = sample.decode(errors="replace").split(_SEPARATOR)
                if len(texts) != len(self._nodes) or not (_UPTIME.fullmatch(first) and _UPTIME.fullmatch(last)):
                    continue
                row = [c.value(text) for cs, text in zip(self._columns, texts, strict=True) for c in cs]
                yield round(float(first) * 1e9), round(float(last) * 1e9), row
            if len(rest) > _LONGEST:
                raise HarnessError(f"{self._adb.name}: its shell wrote {len(rest)} bytes without a sample")

    def _frames(self, times: array.array[int], reads: array.array[int], values: array.array[int]) -> None:
        if times:
            n = len(times)
            packs = {"t_ns": packed(times), "read_ns": packed(reads), "values": packed(values)}
            self._events.put({"event": "frames", "n": n, **packs, "form": "int64"})

    def _told(self, stamps: Sequence[int]) -> Mapping[str, Any]:
        gaps = [(b - a) * 1e-9 for a, b in itertools.pairwise(stamps)]
        return {
            "event": "sampled", "n": len(stamps), "rate_asked_hz": self._rate_hz,
            "rate_hz": len(gaps) / sum(gaps) if gaps else None,
            "gap_p99_s": sorted(gaps)[math.ceil(0.99 * len(gaps)) - 1] if gaps else None,
            "gap_max_s": max(gaps, default=None), "gap_limit_s": self._gap_limit_s,
            "gaps_over_limit": sum(g > self._gap_limit_s for g in gaps), "skipped": 0, "read_s": None,
            "cpu_s_per_s": None, "sampler": "the phone's shell",
            "errors": {name: {"count": n, "text": "no number"} for name, n in self._errors.items()},
        }  # fmt: skip

    def _stop(self, grace_s: float) -> Exit:
        self._is_asked = True
        self._signal("KILL", is_group=True)
        self._stream.close()
        self._reader.join(grace_s)
        return Exit(0, None, "")


def _columns(node: Mapping[str, Any]) -> list[Column]:
    if fields := node.get("fields"):
        return [Column(f["name"], f["line"], int(f.get("number", -1)), int(f.get("decimals", 0))) for f in fields]
    name = str(node.get("name", node["path"]))
    return [Column(name, decimals=int(node.get("decimals", 0)), words=tuple(node.get("words") or ()))]


def _reads(k: int, node: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """Shell text that reads a node into the variable `v` and its number: a file's first line, all, or what is said."""
    if "command" in node:
        return f"  v{k}=$({shlex.join(node['command'])} </dev/null 2>/dev/null)"
    file = shlex.quote(str(node["path"]))
    if not any(c.line for c in columns):
        return f"  v{k}=; read -r v{k} 2>/dev/null <{file}"
    return f'  v{k}=; while read -r x; do v{k}="$v{k}$x$nl"; done 2>/dev/null <{file}'


def _source(node: Mapping[str, Any]) -> str:
    return str(node.get("path") or shlex.join(node["command"]))
