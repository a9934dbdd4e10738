"""Which of this host's interfaces carry its default route or the caller's own connection.

Read from the kernel's files (/proc/net, /sys/class/net); an interface carries what stands on top of it, so a
bridge's ports and a VLAN's parent count too. Pure reading; any thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

_SIOCGIFCONF = 0x8912
# struct ifreq of x86-64 and other 64-bit Linux: 16 bytes of name, then a sockaddr padded to 24.
_IFREQ_BYTES = 40


caller_address: ContextVar[str | None] = ContextVar("caller_address", default=None)
"""This host's address that the caller of the running operation came in at; set by each way in."""


def ssh_address(environ: Mapping[str, str]) -> str | None:
    """This host's end of the SSH session that a command runs in; sshd(8), SSH_CONNECTION."""
    session = environ.get("SSH_CONNECTION", "").split()
    return session[2] if len(session) == 4 else None


@dataclass(frozen=True)
class HostNetwork:
    """The host's network as the kernel shows it. `root` is `/` except in tests."""

    root: Path = Path("/")

    def default_route(self) -> frozenset[str]:
        """Interfaces with a default route of either IP version."""
        found = set()
        for line in _lines(self.root / "proc/net/route")[1:]:
            fields = line.split()
            if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
                found.add(fields[0])
        for line in _lines(self.root / "proc/net/ipv6_route"):
            fields = line.split()
            # The kernel keeps a "no route" entry on lo with the flag RTF_REJECT (linux/route.h: 0x0200).
            if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and not int(fields[8], 16) & 0x0200:
                found.add(fields[9])
        return frozenset(found - {"lo"})

    def with_address(self, address: str) -> frozenset[str]:
        """The interfaces that have this IP address; none for a malformed one."""
        try:
            wanted = ip_address(address.partition("%")[0])
        except ValueError:
            return frozenset()
        if isinstance(wanted, IPv6Address) and wanted.ipv4_mapped is not None:
            wanted = wanted.ipv4_mapped
        if isinstance(wanted, IPv6Address):
            lines = (line.split() for line in _lines(self.root / "proc/net/if_inet6"))
            return frozenset(f[5] for f in lines if len(f) > 5 and int(f[0], 16) == int(wanted))
        return frozenset(name for name, own in _ipv4_addresses() if own == str(wanted))

    def addresses(self, name: str) -> list[str]:
        """The interface's IP addresses, IPv4 first."""
        found = [address for own, address in _ipv4_addresses() if own == name]
        for line in _lines(self.root / "proc/net/if_inet6"):
            fields = line.split()
            if len(fields) > 5 and fields[5] == name:
                found.append(str(IPv6Address(int(fields[0], 16))))
        return found

    def below(self, names: frozenset[str]) -> frozenset[str]:
        """These interfaces and all that carry them: a bridge's ports, a bond's slaves, a VLAN's parent."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            folder = self.root / "sys/class/net" / name
            if folder.is_dir():
                waiting += [link.name.removeprefix("lower_") for link in folder.glob("lower_*")]
        return frozenset(found)

    def protected(self, caller_address: str | None) -> dict[str, str]:
        """Interfaces that must not be changed lightly, with the reason.

        `caller_address` is this host's end of the caller's connection; None where the caller sits at the host.
        """
        reasons: dict[str, str] = {}
        for name in self.below(self.with_address(caller_address)) if caller_address else ():
            reasons[name] = "carries your own connection"
        for name in self.below(self.default_route()):
            reasons.setdefault(name, "carries the host's default route")
        reasons.pop("lo", None)
        return reasons


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []  # a kernel without IPv6 has no such file


def _ipv4_addresses() -> list[tuple[str, str]]:
    """(interface, address) of all IPv4 addresses; netdevice(7), SIOCGIFCONF. Labels like eth0:1 count as eth0."""
    room = bytearray(_IFREQ_BYTES * 1024)
    buffer = (room, len(room))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        length, used = _ifconf(sock, buffer)
    found = []
    for start in range(0, length, _IFREQ_BYTES):
        entry = used[start : start + _IFREQ_BYTES]
        name = entry[:16].split(b"\0", 1)[0].decode("ascii", "replace").partition(":")[0]
        found.append((name, socket.inet_ntoa(entry[20:24])))
    return found


def _ifconf(sock: socket.socket, buffer: tuple[bytearray, int]) -> tuple[int, bytes]:
    room, size = buffer
    array = (ctypes.c_char * size).from_buffer(room)
    request = struct.pack("iP", size, ctypes.addressof(array))
    answer = fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, request)
    length = struct.unpack("iP", answer)[0]
    return length, bytes(room[:length])
