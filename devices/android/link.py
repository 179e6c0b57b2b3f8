"""One connection to an adb daemon that carries many streams at once: a sampler, a model and commands side by side.

adb-shell connects, authorises and knows the messages; its own device object holds one lock while it waits for a packet,
so that two streams would wait for each other. Here a thread of our own reads packets and hands them to their streams.
"""

from __future__ import annotations

import itertools
import math
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.devices.android import keys
from edgewatt.harness.api import HarnessError, TransientError, UsageError

CONNECT_S = 10.0
AUTHORISE_S = 30.0  # for somebody to find the phone and tap Allow
RELINK_S = 45.0  # how long a phone that was there is tried again
_HEADER = struct.Struct("<6I")
SILENCE_S = 60.0  # in the middle of a packet, or of writing one
LOOK_S = 0.5  # how often a cable that says nothing is left, to see whether the link was closed meanwhile
_LONGEST = 1 << 20  # bytes of a packet; what claims more is no adb daemon
_AHEAD = 8  # packets of one stream that may come before we said that we took the first; a real daemon sends one
_COMMANDS = {int.from_bytes(name, "little"): name for name in (b"OPEN", b"OKAY", b"WRTE", b"CLSE", b"CNXN", b"AUTH")}
_STEP = "see that the phone is on and in the network, and that `adb tcpip 5555` was said (edgewatt devices --tcpip)"


class Tcp:
    """Bytes to HOST:PORT, for adb-shell's connecting and for us; without waiting for more to send (TCP_NODELAY): adb
    sends header and body apart, and with Nagle's algorithm the second waits 40 ms for the first to be acknowledged."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._socket: socket.socket | None = None
        self.last = b""  # the last body read: after connecting, what the phone says of itself

    def connect(self, timeout_s: float | None) -> None:
        held = socket.create_connection(self._where, timeout=timeout_s)
        held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                held.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = held

    def bulk_read(self, count: int, timeout_s: float | None) -> bytes:
        """Exactly `count` bytes; OSError if the other end closed, or nothing comes for so long (None: for ever)."""
        held = self._open()
        # A time limit is the socket's, for reader and writer alike: it is set only where both have the same.
        if timeout_s is not None and timeout_s != held.gettimeout():
            held.settimeout(timeout_s)
        data = bytearray(count)
        have = 0
        while have < count:
            try:
                got = held.recv_into(memoryview(data)[have:])
            except TimeoutError:
                if timeout_s is not None:
                    raise
                continue
            if not got:
                raise ConnectionResetError("the phone closed the connection")
            have += got
        self.last = bytes(data)
        return self.last

    def bulk_write(self, data: bytes, timeout_s: float | None) -> int:
        held = self._open()
        if timeout_s is not None and timeout_s != held.gettimeout():
            held.settimeout(timeout_s)
        held.sendall(data)
        return len(data)

    def close(self) -> None:
        held, self._socket = self._socket, None
        if held is not None:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise OSError("closed")
        return self._socket


class Usb:
    """Bytes over a cable: adb-shell finds the phone and claims its interface; what is read and written then is ours."""

    def __init__(self, serial: str) -> None:
        self._serial = serial
        self._usb: Any = None
        self._reading = threading.Lock()  # held in a transfer: the handle is not closed under it
        self._is_closing = False
        self._packet_bytes = 512
        self.last = b""

    def connect(self, timeout_s: float | None) -> None:
        from adb_shell.transport.usb_transport import UsbTransport

        self._usb = UsbTransport.find_adb(serial=self._serial)
        self._usb.connect(timeout_s)
        for endpoint in self._usb._setting.iterEndpoints():
            if endpoint.getAddress() == self._usb._write_endpoint:
                self._packet_bytes = endpoint.getMaxPacketSize() or 512

    def bulk_read(self, count: int, timeout_s: float | None) -> bytes:
        """Exactly `count` bytes, as Tcp's. One transfer may be cut by its time limit: what came of it counts."""
        import usb1

        data = bytearray()
        deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while len(data) < count:
            with self._reading:
                if self._is_closing or self._usb is None:
                    raise OSError("closed")
                try:
                    data += self._usb._transport.bulkRead(
                        self._usb._read_endpoint, count - len(data), timeout=int(LOOK_S * 1000)
                    )
                except usb1.USBErrorTimeout as error:
                    data += error.received or b""
                    if time.monotonic() > deadline:
                        raise TimeoutError("the phone says nothing") from error
                except usb1.USBError as error:
                    raise OSError(f"USB: {error}") from error
        self.last = bytes(data)
        return self.last

    def bulk_write(self, data: bytes, timeout_s: float | None) -> int:
        """All of it. What fills its last USB packet is followed by an empty one: else the phone waits for more."""
        import usb1

        try:
            for part in (data, b"") if data and len(data) % self._packet_bytes == 0 else (data,):
                if self._is_closing or self._usb is None:
                    raise OSError("closed")
                limit_ms = int((timeout_s or SILENCE_S) * 1000)
                sent = self._usb._transport.bulkWrite(self._usb._write_endpoint, part, timeout=limit_ms)
                if sent != len(part):
                    raise OSError(f"USB took {sent} bytes of {len(part)}")
        except usb1.USBError as error:
            raise OSError(f"USB: {error}") from error
        return len(data)

    def close(self) -> None:
        self._is_closing = True
        with self._reading:
            held, self._usb = self._usb, None
            if held is not None:
                with suppress(Exception):  # the library's own kinds; a cable that was pulled
                    held.close()


class Stream:
    """One service of the phone: bytes both ways. Ends when the other end closes it, or with the link."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self.number, self.remote = link, number, 0
        self._in: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._may_write = threading.Semaphore(0)
        self._opened = threading.Event()
        self.is_closed = False
        self.is_lost = False  # the link ended, and not the service

    def read(self, timeout_s: float | None = None) -> bytes | None:
        """The next bytes; None at the end. TimeoutError if nothing comes for so long."""
        try:
            data = self._in.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"nothing came for {timeout_s:g} s") from None
        if data is None:
            self._in.put(None)  # whoever reads again finds the end again
            return None
        if not self.is_closed:
            with suppress(TransientError):  # what has come is good all the same
                self._link.send(b"OKAY", self.number, self.remote)
        return data

    def chunks(self, timeout_s: float | None = None) -> Iterator[bytes]:
        """All that comes until the end; TransientError if the link ended first."""
        while (data := self.read(timeout_s)) is not None:
            yield data
        if self.is_lost:
            raise TransientError(f"{self._link.name}: the link was lost")

    def write(self, data: bytes, timeout_s: float = 60.0) -> None:
        """All of `data`, in pieces the phone takes; TransientError if it does not, or is gone."""
        size = self._link.most_bytes
        for start in range(0, len(data), size):
            if not self._may_write.acquire(timeout=timeout_s) or self.is_closed:
                raise TransientError(f"{self._link.name}: the link was lost, or the phone takes nothing more")
            self._link.send(b"WRTE", self.number, self.remote, data[start : start + size])

    def close(self) -> None:
        self._link.forget(self)

    # -- for the link alone

    def took(self, command: bytes, remote: int, data: bytes) -> None:
        if command == b"OKAY":
            self.remote = remote
            self._may_write.release()
            self._opened.set()
        elif command == b"WRTE":
            if self._in.qsize() > _AHEAD:
                raise ValueError("more than was asked for")
            self._in.put(data)

    def ended(self, is_lost: bool) -> None:
        self.is_closed, self.is_lost = True, is_lost
        self._in.put(None)
        self._may_write.release()
        self._opened.set()

    def wait_open(self, timeout_s: float) -> bool:
        """Whether the phone opened it; False if it refused. TimeoutError if it says nothing."""
        if not self._opened.wait(timeout_s):
            raise TimeoutError(f"no answer for {timeout_s:g} s")
        return self.remote != 0


class Link:
    """A connection; it ends once, and another one is made then."""

    def __init__(
        self,
        name: str,
        wire: Tcp | Usb,
        key: Path | None = None,
        say: Callable[[str], object] | None = None,
        authorise_s: float = AUTHORISE_S,
    ) -> None:
        """Connected and authorised. `say` shows a line to whoever is there to tap on the phone.

        UsageError if the phone does not let us in; TransientError if it cannot be reached.
        """
        self.name, self._wire = name, wire
        self.most_bytes, banner = _connected(name, wire, key, say or _to_terminal, authorise_s)
        self.features = _features(banner)
        self.is_closed = False
        self.heard_s = time.monotonic()  # when the last packet came
        self._numbers = itertools.count(1)
        self._streams: dict[int, Stream] = {}
        self._sending, self._knowing = threading.Lock(), threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"adb {name}", daemon=True)
        self._reader.start()

    def open(self, service: str, timeout_s: float = CONNECT_S) -> Stream | None:
        """A service opened; None if the phone does not have it. TransientError if it does not answer."""
        stream = Stream(self, next(self._numbers))
        with self._knowing:
            if self.is_closed:
                raise TransientError(f"{self.name}: the link was lost")
            self._streams[stream.number] = stream
        self.send(b"OPEN", stream.number, 0, service.encode("utf-8", "surrogateescape") + b"\0")
        try:
            is_open = stream.wait_open(timeout_s)
        except TimeoutError as error:
            self.forget(stream)
            # Nothing at all from it: a link that carries nothing is given up, so that another one can be tried.
            if time.monotonic() - self.heard_s > timeout_s:
                self.close()
            raise TransientError(f"{self.name}: the phone does not answer ({error}); {_STEP}") from error
        if is_open:
            return stream
        if stream.is_lost:
            raise TransientError(f"{self.name}: the link was lost")
        return None

    def send(self, command: bytes, one: int, other: int, data: bytes = b"") -> None:
        """One packet, whole."""
        number = int.from_bytes(command, "little")
        header = _HEADER.pack(number, one, other, len(data), _total(data), number ^ 0xFFFFFFFF)
        try:
            with self._sending:
                # Over USB header and body are transfers of their own.
                for part in (header, data) if data else (header,):
                    self._wire.bulk_write(part, SILENCE_S)
        except OSError as error:
            self.close()
            raise TransientError(f"{self.name}: the link was lost ({error})") from error

    def forget(self, stream: Stream) -> None:
        """Tells the phone that a stream is done with."""
        with self._knowing:
            known = self._streams.pop(stream.number, None)
        if known and not stream.is_closed:
            stream.ended(False)
            with suppress(TransientError):
                self.send(b"CLSE", stream.number, stream.remote)

    def close(self) -> None:
        """The connection ends, and every stream with it."""
        with self._knowing:
            self.is_closed = True
            streams, self._streams = list(self._streams.values()), {}
        self._wire.close()
        for stream in streams:
            stream.ended(True)

    def _read(self) -> None:
        try:
            while not self.is_closed:
                command, one, other, data = self._packet()
                self.heard_s = time.monotonic()
                with self._knowing:
                    stream = self._streams.get(other)
                    if command == b"CLSE" and stream is not None:
                        del self._streams[other]
                if command == b"CLSE" and stream is not None:
                    stream.ended(False)
                elif stream is not None:
                    stream.took(command, one, data)
                elif command in (b"WRTE", b"OKAY"):
                    self.send(b"CLSE", other, one)  # of a stream we have given up
        except (OSError, ValueError, HarnessError):
            pass
        finally:
            self.close()

    def _packet(self) -> tuple[bytes, int, int, bytes]:
        """The next packet; ValueError for what is none."""
        number, one, other, length, total, magic = _HEADER.unpack(self._wire.bulk_read(_HEADER.size, None))
        if number not in _COMMANDS or magic != number ^ 0xFFFFFFFF or length > _LONGEST:
            raise ValueError("not the adb protocol")
        data = self._wire.bulk_read(length, SILENCE_S) if length else b""
        if total and total != _total(data):  # newer daemons leave it at 0
            raise ValueError("a packet was damaged")
        return _COMMANDS[number], one, other, data


def wire_to(address: str) -> Tcp | Usb:
    """The way to HOST:PORT, or to a serial on USB; UsageError for what is neither."""
    host, colon, port = address.rpartition(":")
    if not colon:
        if not address or not address.isprintable() or any(c.isspace() for c in address):
            raise UsageError(f"address {address!r}: wanted HOST:PORT, or the serial of a phone on USB")
        return Usb(address)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not host.isprintable() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"address {address!r}: wanted HOST:PORT (such as 192.168.1.30:5555), or a serial on USB")
    return Tcp(host, int(port))


def _connected(
    name: str, wire: Tcp | Usb, key: Path | None, say: Callable[[str], object], authorise_s: float
) -> tuple[int, bytes]:
    """The largest packet the phone takes, and what it says of itself."""
    try:
        from adb_shell.adb_device import AdbDevice
        from adb_shell.exceptions import DeviceAuthError
        from adb_shell.transport.base_transport import BaseTransport
    except ImportError as error:
        raise UsageError(f"phones need {error.name}; pip install 'edgewatt[android]'") from error
    BaseTransport.register(type(wire))
    asked_at: list[float] = []

    def asked(_: object) -> None:
        asked_at.append(time.monotonic())
        say(f"{name}: the phone does not know this machine's key yet: unlock it and tap Allow")

    device = AdbDevice(wire, default_transport_timeout_s=CONNECT_S, banner="edgewatt")
    try:
        device.connect(
            rsa_keys=keys.signers(key), auth_timeout_s=authorise_s, read_timeout_s=CONNECT_S, auth_callback=asked
        )
    except DeviceAuthError as error:
        wire.close()
        raise UsageError(f"{name}: does not let us in ({error}); unlock it and tap Allow") from error
    except UsageError:
        wire.close()
        raise
    except Exception as error:  # OSError, and adb-shell's own kinds, which have no common base
        wire.close()
        if asked_at:
            raise UsageError(
                f"{name}: the phone did not let us in within {authorise_s:g} s; unlock it, tap Allow at the question "
                "about USB debugging, and try again (if no question comes: Developer options, Revoke authorisations)"
            ) from error
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TransientError(f"{name}: cannot be reached ({' '.join(said.split())[:160]}); {_STEP}") from error
    return min(int(device._maxdata), _LONGEST), wire.last


def _total(data: bytes) -> int:
    """The sum of the bytes, which adb calls a checksum."""
    return int(np.frombuffer(data, np.uint8).sum(dtype=np.uint32))


def _features(banner: bytes) -> frozenset[str]:
    """What the daemon can do, as its greeting says."""
    for part in banner.decode(errors="replace").strip("\0").split(";"):
        if part.rpartition("::")[2].startswith("features="):
            return frozenset(part.partition("features=")[2].split(","))
    return frozenset()


def _to_terminal(text: str) -> None:
    sys.stderr.write(f"edgewatt: {text}\n")
