"""Commands in a phone's own shell: what one printed, and how it ended, whatever its daemon can tell of that."""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from edgewatt.devices.android import sync
from edgewatt.devices.android.link import Link, Stream
from edgewatt.harness.api import HarnessError, TransientError, UsageError

TRIES = 3  # of what may be done twice
PATIENCE_S = (5.0, 15.0)  # with all but the last of them
MOST_SCRIPT = 100_000  # bytes; Linux takes 128 KiB as one argument
MOST_OUT = 64 << 20  # bytes of a command's output
V2 = "shell_v2"  # a daemon's word for packets that tell the outputs apart, and the exit code
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


@dataclass(frozen=True)
class Done:
    """How a command on the phone ended, and what it said. `status` None: its shell was ended before it could tell."""

    status: int | None
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """What it printed, as text."""
        return self.stdout.decode(errors="replace")

    @property
    def why(self) -> str:
        """What it said on stderr, in one line."""
        return " ".join(self.stderr.split())[:300] or f"status {self.status}"


def run(link: Link, text: str, stdin: bytes, timeout_s: float) -> Done:
    """A script in the phone's shell; TransientError if it does not end in time, or the link ends first."""
    if V2 in link.features:
        stream = link.open(f"shell,v2,raw:{_short(link, text)}")
        if stream is not None:
            return _by_v2(link.name, stream, stdin, timeout_s)
    return _by_marks(link, text, stdin, timeout_s)


def _by_v2(name: str, stream: Stream, stdin: bytes, timeout_s: float) -> Done:
    out: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray(), EXIT: bytearray()}
    packets = Packets()
    deadline = time.monotonic() + timeout_s
    given = packet(STDIN, stdin) if stdin else b""
    try:
        with _feeding(stream, given + packet(CLOSE_STDIN)):
            while (data := stream.read(max(0.001, deadline - time.monotonic()))) is not None:
                for kind, body in packets.of(data):
                    if kind in out:
                        out[kind] += body
                if sum(map(len, out.values())) > MOST_OUT:
                    raise HarnessError(f"{name}: a command printed more than {MOST_OUT} bytes")
    except TimeoutError as error:
        raise TransientError(f"{name}: a command did not end within {timeout_s:g} s") from error
    finally:
        stream.close()
    if stream.is_lost and not out[EXIT]:
        raise TransientError(f"{name}: the link was lost")
    status = out[EXIT][0] if out[EXIT] else None
    return Done(status, bytes(out[STDOUT]), out[STDERR].decode(errors="replace"))


def _by_marks(link: Link, text: str, stdin: bytes, timeout_s: float) -> Done:
    """On phones before Android 7: no exit codes and one output, so the script says where it ended and how."""
    mark = secrets.token_hex(8)
    errors = f"/data/local/tmp/.edgewatt-{mark}"
    feed = f"head -c {len(stdin)} | " if stdin else ""
    whole = f'{feed}( {text}\n) 2>{errors}; r=$?; echo; echo "{mark} $r"; cat {errors}; rm -f {errors}'
    stream = link.open(f"exec:{_short(link, whole)}")
    if stream is None:
        raise UsageError(f"{link.name}: its adb daemon has neither shell v2 nor exec; Android 5 or later is needed")
    try:
        with _feeding(stream, stdin):
            said = all_of(link.name, stream, timeout_s)
    finally:
        stream.close()
    out, found, rest = said.partition(f"\n{mark} ".encode())
    status, _, stderr = rest.partition(b"\n")
    return Done(int(status) if found and status.isdigit() else None, out, stderr.decode(errors="replace"))


def _short(link: Link, text: str) -> str:
    """The script, or one that runs it out of a file, where it is longer than an argument or a packet may be."""
    content = text.encode("utf-8", "surrogateescape")
    if len(content) < min(MOST_SCRIPT, link.most_bytes - 64):
        return text
    path = f"/data/local/tmp/.edgewatt-{secrets.token_hex(8)}.sh"
    sync.push_bytes(link, content, path)
    return f"sh {path}; r=$?; rm -f {path}; exit $r"


def all_of(name: str, stream: Stream, timeout_s: float) -> bytes:
    """What comes until the stream's end; TransientError if that is not within `timeout_s`, or the link ended first."""
    said = bytearray()
    deadline = time.monotonic() + timeout_s
    try:
        while (data := stream.read(max(0.001, deadline - time.monotonic()))) is not None:
            said += data
            if len(said) > MOST_OUT:
                raise HarnessError(f"{name}: a command printed more than {MOST_OUT} bytes")
    except TimeoutError as error:
        raise TransientError(f"{name}: a command did not end within {timeout_s:g} s") from error
    if stream.is_lost:
        raise TransientError(f"{name}: the link was lost")
    return bytes(said)


@contextmanager
def _feeding(stream: Stream, data: bytes) -> Iterator[None]:
    """Inside, `data` goes to the stream as it is taken, while what comes back can be read."""

    def feed() -> None:
        with suppress(HarnessError):  # one that ends without reading it all is no error
            stream.write(data)

    if data:
        threading.Thread(target=feed, name="stdin of a command", daemon=True).start()
    yield


class Packets:
    """Packets of shell v2 out of pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._rest += data
        while len(self._rest) >= 5:
            kind, length = struct.unpack_from("<BI", self._rest)
            if length > MOST_OUT:
                raise HarnessError("the phone does not speak shell v2 as it says")
            if len(self._rest) < 5 + length:
                return
            body, self._rest = self._rest[5 : 5 + length], self._rest[5 + length :]
            yield kind, body


def packet(kind: int, data: bytes = b"") -> bytes:
    """A packet of shell v2."""
    return struct.pack("<BI", kind, len(data)) + data
