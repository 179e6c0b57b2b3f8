"""The adb protocol at its edges, without a phone: a daemon of a few lines, a cable of bytes, keys in a folder."""

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.android import keys, link
from edgewatt.devices.android.link import Tcp, Usb, wire_to
from edgewatt.devices.android.transport import Adb
from edgewatt.harness.api import HarnessError, TransientError, UsageError

pytest.importorskip("adb_shell", reason="needs the extra `android`")

# What adbd says first (Debian's 34.0.5, March 2025): version, largest packet, properties and features.
BANNER = b"device::ro.product.name=phone;ro.product.model=Phone 8;features=shell_v2,cmd,stat_v2,ls_v2"


def packet(command: bytes, one: int, other: int, data: bytes = b"") -> bytes:
    """A message as AOSP's protocol.txt lays it out: six little-endian words, then the body."""
    number = struct.unpack("<I", command)[0]
    return struct.pack("<6I", number, one, other, len(data), sum(data), number ^ 0xFFFFFFFF) + data


def take(peer: socket.socket) -> tuple[bytes, int, int, bytes]:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            got = peer.recv(count - len(data))
            if not got:
                raise ConnectionError
            data += got
        return data

    command, one, other, length, total, _ = struct.unpack("<4s5I", exactly(24))
    data = exactly(length)
    assert total == sum(data)
    return command, one, other, data


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Adb]]:
    """A phone that greets, and then does what the test gives, with its socket and the first stream asked for."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[Adb] = []

    def phone(answer: Callable[[socket.socket, int, bytes], object], banner: bytes = BANNER) -> Adb:
        def serve() -> None:
            try:
                peer, _ = listener.accept()
                with peer:
                    assert take(peer)[0] == b"CNXN"
                    peer.sendall(packet(b"CNXN", 0x01000001, 1 << 20, banner))
                    _, number, _, service = take(peer)
                    answer(peer, number, service)
                    while True:
                        take(peer)
            except (OSError, AssertionError):
                return

        threading.Thread(target=serve, daemon=True).start()
        held.append(Adb(f"127.0.0.1:{listener.getsockname()[1]}", key=tmp_path / "adbkey"))
        return held[-1]

    yield phone
    listener.close()
    for adb in held:
        adb._drop()


def test_exit_code_and_outputs_come_out_of_packets_of_any_size(daemon: Callable[..., Adb]) -> None:
    said = b"\x01\x04\0\0\0out\n" + b"\x02\x04\0\0\0err\n" + b"\x03\x01\0\0\0\x2a"

    def answer(peer: socket.socket, number: int, service: bytes) -> None:
        assert service == b"shell,v2,raw:ls\0"
        peer.sendall(packet(b"OKAY", 7, number))
        for k in range(0, len(said), 3):
            peer.sendall(packet(b"WRTE", 7, number, said[k : k + 3]))
            while take(peer)[0] != b"OKAY":  # its own WRTE, the end of stdin, comes between
                peer.sendall(packet(b"OKAY", 7, number))
        peer.sendall(packet(b"CLSE", 7, number))

    adb = daemon(answer)
    # The daemon does not look at stdin's end here, so orphans of earlier harnesses are not asked for.
    adb._was_there = True
    done = adb.shell("ls")
    assert (done.status, done.stdout, done.stderr) == (42, b"out\n", "err\n")
    assert adb.features == {"shell_v2", "cmd", "stat_v2", "ls_v2"}


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack("<6I", 0x45545257, 7, 1, 1 << 31, 0, 0x45545257 ^ 0xFFFFFFFF),  # claims 2 GiB
        struct.pack("<6I", 0x45545257, 7, 1, 2, 99, 0x45545257 ^ 0xFFFFFFFF) + b"ab",  # another sum
        struct.pack("<6I", 0x45545257, 7, 1, 0, 0, 0),
        packet(b"WRTE", 7, 1, b"\x01\xff\xff\xff\xff"),  # shell v2: claims 4 GiB
        packet(b"WRTE", 7, 1, b"x") * 100,  # does not wait to be asked
        b"",
    ],
)
def test_nonsense_of_a_phone_is_one_clean_error(daemon: Callable[..., Adb], bad: bytes) -> None:
    def answer(peer: socket.socket, number: int, service: bytes) -> None:
        peer.sendall(packet(b"OKAY", 7, number) + bad)
        peer.shutdown(socket.SHUT_WR)

    adb = daemon(answer)
    adb._was_there = True
    with pytest.raises(HarnessError, match=r"link was lost|does not speak"):
        adb.shell("ls", timeout_s=10)


def test_phone_that_says_nothing_is_given_up(daemon: Callable[..., Adb]) -> None:
    adb = daemon(lambda peer, number, service: None)
    adb._was_there = True
    held = adb.connected()
    with pytest.raises(TransientError, match="does not answer"):
        held.open("shell:true", timeout_s=0.3)
    assert held.is_closed  # so that the next who asks makes another one


def test_what_answers_in_another_protocol_cannot_be_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=serve, daemon=True).start()
        adb = Adb(f"127.0.0.1:{listener.getsockname()[1]}", key=tmp_path / "adbkey")
        with pytest.raises(TransientError, match="cannot be reached"):
            adb.shell("ls")


@pytest.mark.parametrize("address", ["", "a b", ":5555", "host:", "host:0", "host:70000", "host:x", "a\nb"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        wire_to(address)


def test_addresses_are_hosts_or_serials() -> None:
    assert isinstance(wire_to("192.168.1.30:5555"), Tcp) and isinstance(wire_to("[::1]:5555"), Tcp)
    assert isinstance(wire_to("28111FDH2000AB"), Usb)
    assert Adb("28111FDH2000AB").is_usb and not Adb("phone.lan:5555").is_usb


# ---------------------------------------------------------------------------------------------------------------------
# keys


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (("a", 500.0, 1000.0), ("a", 600.0, 1100.0), False),
        (("a", 500.0, 1000.0), ("a", 600.0, 1112.0), False),  # the answer was 12 s on its way
        (("a", 500.0, 1000.0), ("b", 600.0, 1100.0), True),
        (("", 500.0, 1000.0), ("", 600.0, 1100.0), False),
        (("", 500.0, 1000.0), ("", 20.0, 1100.0), True),
        (("a", 500.0, 1000.0), ("", 20.0, 1100.0), True),
    ],
)
def test_phone_has_restarted_where_its_boot_is_another(
    before: tuple[str, float, float],
    now: tuple[str, float, float],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phone = Adb("127.0.0.1:5555")
    monkeypatch.setattr(phone, "_boot_now", lambda: now)
    assert phone.has_restarted(before) is expected


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ADB_VENDOR_KEYS", raising=False)
    first = keys.signers()
    key = tmp_path / ".android" / "adbkey"
    assert key.stat().st_mode & 0o777 == 0o600 and key.parent.stat().st_mode & 0o777 == 0o700
    made = key.read_bytes()
    again = keys.signers()
    assert key.read_bytes() == made and [s.GetPublicKey() for s in again] == [s.GetPublicKey() for s in first]
    # A phone takes a public key of 524 bytes (AOSP's RSA_PUBKEY: 64 words of modulus and of R^2, and three more).
    import base64

    assert len(base64.b64decode(first[0].GetPublicKey().split()[0])) == 524


def test_vendor_keys_are_offered_after_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, folder = tmp_path / "own" / "adbkey", tmp_path / "vendor"
    keys.signers(own)
    keys.signers(folder / "a.adb_key")
    (folder / "a.adb_key.pub").unlink()  # the public half follows from the private one
    monkeypatch.setenv("ADB_VENDOR_KEYS", str(folder))
    assert len(keys.signers(own)) == 2


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adbkey").write_text("no key")
    with pytest.raises(UsageError, match="no adb key that can be read"):
        keys.signers(tmp_path / "adbkey")


# ---------------------------------------------------------------------------------------------------------------------
# a cable


class Handle:
    """usb1's device handle, with the transfers a phone would make."""

    def __init__(self, incoming: list[bytes | Exception]) -> None:
        self.incoming, self.sent = incoming, list[bytes]()

    def bulkRead(self, endpoint: int, length: int, timeout: int) -> bytes:  # noqa: N802
        found = self.incoming.pop(0)
        if isinstance(found, Exception):
            raise found
        assert len(found) <= length, "libusb: overflow"
        return found

    def bulkWrite(self, endpoint: int, data: bytes, timeout: int) -> int:  # noqa: N802
        self.sent.append(bytes(data))
        return len(data)


def cable(incoming: list[bytes | Exception]) -> tuple[Usb, Handle]:
    class Transport:
        _read_endpoint, _write_endpoint = 0x81, 0x01
        _transport: Any

    usb, handle = Usb("serial"), Handle(incoming)
    usb._usb = Transport()
    usb._usb._transport = handle
    return usb, handle


def test_transfer_that_its_time_limit_cut_goes_on_where_it_was() -> None:
    usb1 = pytest.importorskip("usb1", reason="needs libusb1")
    cut = usb1.USBErrorTimeout()
    cut.received = b"abc"
    usb, _ = cable([cut, b"def", b"g"])
    assert usb.bulk_read(7, None) == b"abcdefg" == usb.last


def test_full_last_packet_is_followed_by_an_empty_one() -> None:
    pytest.importorskip("usb1", reason="needs libusb1")
    usb, handle = cable([])
    usb.bulk_write(b"h" * 24, 1.0)
    usb.bulk_write(b"b" * 1024, 1.0)
    assert handle.sent == [b"h" * 24, b"b" * 1024, b""]


def test_cable_that_was_pulled_is_an_error_of_the_system() -> None:
    usb1 = pytest.importorskip("usb1", reason="needs libusb1")
    usb, _ = cable([usb1.USBErrorNoDevice()])
    with pytest.raises(OSError, match="USB"):
        usb.bulk_read(24, None)
    usb.close()
    with pytest.raises(OSError, match="closed"):
        usb.bulk_write(b"x", 1.0)


def test_silent_cable_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    usb1 = pytest.importorskip("usb1", reason="needs libusb1")
    now = iter(range(1000))
    monkeypatch.setattr(link.time, "monotonic", lambda: float(next(now)))
    silences: list[bytes | Exception] = []
    for _ in range(10):
        silences.append(usb1.USBErrorTimeout())
        silences[-1].received = b""  # type: ignore[union-attr]
    usb, handle = cable(silences)
    with pytest.raises(TimeoutError):
        usb.bulk_read(24, 3.0)
    assert len(handle.incoming) > 4


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adb_shell.adb_device", None)
    with pytest.raises(UsageError, match=r"edgewatt\[android\]"):
        Adb("127.0.0.1:9").shell("true")
