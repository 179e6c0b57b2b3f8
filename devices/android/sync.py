"""Files over adb: the daemon's `sync:` service, the part of it that every phone has."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewatt.devices.android.link import Link, Stream
from edgewatt.harness.api import HarnessError, TransientError

_MOST = 64 << 10  # bytes of one piece, as the protocol says
_REGULAR = 0o100000
ANSWER_S = 15.0  # for the first word: a daemon that swallowed the request never says one, and it can be made again
SILENCE_S = 60.0  # in the middle of a file


def push(link: Link, source: Path, remote: str, mode: int = 0o644) -> None:
    """A file's content into `remote`. HarnessError with what the phone says if it cannot be written."""
    with source.open("rb") as file:
        send(link, iter(lambda: file.read(_MOST), b""), remote, mode)


def push_packed(link: Link, source: Path, remote: str, mode: int = 0o644) -> None:
    """The same, as gzip packs it: `remote` is to be unpacked there. Quick rather than small; links are slower still."""
    squeeze = zlib.compressobj(1, wbits=31)  # with the header that makes it gzip's

    def pieces() -> Iterator[bytes]:
        with source.open("rb") as file:
            for piece in iter(lambda: file.read(16 * _MOST), b""):
                yield from _cut(squeeze.compress(piece))
        yield from _cut(squeeze.flush())

    send(link, pieces(), remote, mode)


def push_bytes(link: Link, content: bytes, remote: str, mode: int = 0o600) -> None:
    """The same of bytes."""
    send(link, _cut(content), remote, mode)


def send(link: Link, pieces: Iterator[bytes], remote: str, mode: int) -> None:
    """Pieces of at most 64 KiB, in one file."""
    with _service(link) as (stream, inbox):
        stream.write(_request(b"SEND", f"{remote},{_REGULAR | mode}"))
        try:
            waiting = bytearray()  # as much as one packet takes: each costs a round trip
            for piece in pieces:
                waiting += b"DATA" + struct.pack("<I", len(piece)) + piece
                if len(waiting) > link.most_bytes - _MOST:
                    stream.write(bytes(waiting))
                    waiting.clear()
            stream.write(bytes(waiting) + b"DONE" + struct.pack("<I", 0))
        except TransientError:
            if stream.is_lost:
                raise
            # The phone closes the stream at once when it cannot write; its reason may be here already.
        answer, size = struct.unpack("<4sI", inbox.take(8))
        if answer != b"OKAY":
            said = inbox.take(min(size, 4096)).decode(errors="replace") if answer == b"FAIL" else repr(answer)
            raise HarnessError(
                f"{link.name}: {remote} cannot be written ({said}); make room there, or name another folder"
            )


def pull(link: Link, remote: str, into: Path) -> None:
    """The content of a file of the phone in the file `into`. HarnessError with what the phone says."""
    with _service(link) as (stream, inbox), into.open("wb") as file:
        stream.write(_request(b"RECV", remote))
        while True:
            answer, size = struct.unpack("<4sI", inbox.take(8))
            if answer == b"DATA" and size <= _MOST:
                file.write(inbox.take(size))
            elif answer == b"DONE":
                return
            else:
                said = inbox.take(min(size, 4096)).decode(errors="replace") if answer == b"FAIL" else repr(answer)
                raise HarnessError(f"{link.name}: {remote} cannot be fetched ({said})")


class _Inbox:
    """What comes, by counted bytes."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rest = stream, bytearray()
        self._limit_s = ANSWER_S

    def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            try:
                data = self._stream.read(self._limit_s)
            except TimeoutError as error:
                raise TransientError(f"the phone stopped in the middle of a file ({error})") from error
            if data is None:
                raise TransientError("the link was lost in the middle of a file")
            self._rest += data
            self._limit_s = SILENCE_S
        found = bytes(self._rest[:count])
        del self._rest[:count]
        return found


@contextmanager
def _service(link: Link) -> Iterator[tuple[Stream, _Inbox]]:
    stream = link.open("sync:")
    if stream is None:
        raise HarnessError(f"{link.name}: its adb daemon takes no files")
    try:
        yield stream, _Inbox(stream)
        stream.write(b"QUIT" + struct.pack("<I", 0))
    finally:
        stream.close()


def _cut(content: bytes) -> Iterator[bytes]:
    return (content[k : k + _MOST] for k in range(0, len(content), _MOST))


def _request(kind: bytes, text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return kind + struct.pack("<I", len(data)) + data
