"""What a phone's files and tools say at one moment, in one round trip through its own shell.

What comes back is not trusted: each part lies between two copies of a word that is drawn anew for every look, so that
nothing a file holds can be taken for another file, and all of it is bounded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Protocol

from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import HarnessError, TransientError, UsageError

LONGEST_TEXT = 16 << 10  # bytes of a file; sysfs attributes are one page at most
LONGEST_ANSWER = 64 << 10  # bytes of a tool's answer
MOST_FILES = 1200  # a Qualcomm phone has some 90 thermal zones and 60 cooling devices
TOOL_S = 8  # how long a tool may take, where the phone can stop it
LONGEST_S = 60.0

FOLDER = "/data/local/tmp"
_OWN = {"id": ["id"], "room": ["stat", "-f", "-c", "%a %S", FOLDER]}

# $1 the word, $2 how many patterns, the patterns; then for each tool its name, the number of its words, its words.
# mksh reads files by itself, without a process for each; other shells (dash) start `head`. With an empty IFS a pattern
# is expanded but never split. A tool's own errors and its status come by descriptor 3, its output, cut, by 4.
_SCRIPT = r"""
w=$1 n=$2; shift 2
exec 4>&1
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
if [ -n "$KSH_VERSION" ]; then
  p() { print -rn -- "$1"; }
  get() { x=; IFS= read -rN @SIZE@ x <"$1"; [ -n "$x" ]; }
else
  p() { printf %s "$1"; }
  get() { return 1; }
fi
t=; command -v timeout >/dev/null 2>&1 && timeout 1 true >/dev/null 2>&1 && t="timeout @TOOL_S@"
left=@FILES@
while [ "$n" -gt 0 ]; do
  i=$IFS; IFS=
  for f in $1; do
    { [ -e "$f" ] && [ ! -d "$f" ]; } || continue
    [ "$left" -gt 0 ] || break
    left=$((left-1))
    p "$w file $f$w"
    if [ ! -f "$f" ]; then p "$w error not a plain file$w"
    elif get "$f" 2>/dev/null; then p "$x"
    else e=$( { head -c @SIZE@ "$f" >&4; } 2>&1 ) || p "$w error $e$w"
    fi
  done
  IFS=$i; shift; n=$((n-1))
done
IFS=$i
while [ "$#" -gt 0 ]; do
  name=$1 n=$2; shift 2
  p "$w tool $name$w"
  a= k=1
  while [ "$k" -le "$n" ]; do a="$a \"\${$k}\""; k=$((k+1)); done
  if command -v "$1" >/dev/null 2>&1; then
    e=$( { { eval "$t $a" </dev/null; p "$w$?" >&2; } 2>&3 | head -c @ANSWER@ >&4; } 3>&1 )
    p "$w err $e$w"
  else p "$w absent $w"
  fi
  shift "$n"
done
p "$w end $w"
"""
_TROUBLE = re.compile(r"^.*: ")  # "head: cannot open '/x' for reading: Permission denied": the last part is the reason


Files = dict[str, dict[str, str]]
Answers = dict[str, dict[str, object]]


class Told(Protocol):
    """What a command on the phone said; a status of None was not told."""

    @property
    def status(self) -> int | None: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> str: ...


class Shell(Protocol):
    """A script run in the phone's shell, with words as $1, $2, …"""

    def __call__(self, script: str, *words: str, timeout_s: float = 30.0) -> Told: ...


def look(shell: Shell, patterns: Sequence[str], tools: Mapping[str, Sequence[str]]) -> Snapshot:
    """Files that match `patterns` and what `tools` (name -> words) answer, as they are now.

    A file that is not there is left out; one that cannot be read, or is longer than LONGEST_TEXT, has an error. A tool
    that is not there has the status None; so has one whose status the phone did not tell.

    Raises:
        TransientError: the answer came cut short.
        UsageError: what answers there is no shell that can do this.
    """
    files, answers = _asked(shell, list(patterns), {**tools, **_OWN})
    who, room = (answers.pop(name, {}) for name in _OWN)
    uid, groups = _user(str(who.get("out", "")))
    return Snapshot(files, {}, answers, _bytes(str(room.get("out", ""))), uid == 0, groups)


def _asked(shell: Shell, patterns: list[str], tools: dict[str, Sequence[str]]) -> tuple[Files, Answers]:
    word = secrets.token_hex(16)
    words = [w for name, argv in tools.items() for w in (name, str(len(argv)), *argv)]
    fill = {"SIZE": LONGEST_TEXT + 1, "ANSWER": LONGEST_ANSWER, "TOOL_S": TOOL_S, "FILES": MOST_FILES}
    script = re.sub(r"@(\w+)@", lambda m: str(fill[m[1]]), _SCRIPT)
    try:
        done = shell(script, word, str(len(patterns)), *patterns, *words, timeout_s=LONGEST_S)
    except (TransientError, UsageError):
        raise
    except HarnessError:  # too long for the adb of phones before Android 7, which take 4 KiB: in two halves
        if len(patterns) + len(tools) < 2:
            raise
        both = [*patterns, *tools]
        half = len(both) // 2
        found: tuple[Files, Answers] = ({}, {})
        for part in (both[:half], both[half:]):
            of_patterns = [p for p in part if p not in tools]
            files, answers = _asked(shell, of_patterns, {n: argv for n, argv in tools.items() if n in part})
            found[0].update(files)
            found[1].update(answers)
        return found
    return parsed(done.stdout, word, done.stderr)


def parsed(said: bytes, word: str, stderr: str = "") -> tuple[Files, Answers]:
    """Files by path and answers by tool, of what the script printed with that word."""
    parts = said.decode("utf-8", "replace").split(word)
    if len(parts) < 3 or parts[-2].strip() != "end":
        if len(parts) == 1 and stderr.strip():
            why = stderr.strip().splitlines()[0][:200]
            raise UsageError(f"the phone's shell cannot be asked ({why}); see docs/android.md")
        raise TransientError("the phone's answer was cut short; try again")
    files: Files = {}
    tools: Answers = {}
    path = name = ""
    at = 1
    while at < len(parts):
        kind, _, rest = parts[at].lstrip(" ").partition(" ")
        body = parts[at + 1] if at + 1 < len(parts) else ""
        at += 2
        if kind == "file":
            path = rest
            is_huge = len(body.encode()) > LONGEST_TEXT
            files[path] = {"error": f"longer than {LONGEST_TEXT >> 10} KiB"} if is_huge else {"text": _stripped(body)}
        elif kind == "error":
            files[path] = {"error": _TROUBLE.sub("", rest.strip())[:200] or "cannot be read"}
        elif kind == "tool":
            name = rest
            tools[name] = {"status": None, "out": body, "err": "cut short"}
        elif kind == "absent":
            tools[name] = {"status": None, "out": "", "err": "not found"}
        elif kind == "err":  # its text ends with the word and the status
            status = body.strip()
            tools[name] |= {"status": int(status) if status.isdigit() else None, "err": rest}
            at += 1
    return files, tools


def _stripped(text: str) -> str:
    return text.strip("\0 \n\t\r")


def _user(said: str) -> tuple[int | None, tuple[str, ...]]:
    """Number of the user and names of its groups: "uid=2000(shell) gid=2000(shell) groups=2000(shell),1004(input)"."""
    uid = re.match(r"uid=(\d{1,10})\b", said)
    groups = re.search(r"groups=(\S+)", said)
    names = re.findall(r"\d+\(([\w.-]{1,64})\)", groups[1]) if groups else []
    return int(uid[1]) if uid else None, tuple(sorted(names))


def _bytes(said: str) -> int | None:
    """Free blocks times their size."""
    told = re.fullmatch(r"(\d{1,18}) (\d{1,9})", said.strip())
    return int(told[1]) * int(told[2]) if told else None
