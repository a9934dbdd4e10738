"""Listen addresses in the exporters' spelling, and the sockets bound to them.

Sockets are bound before anything else starts, so that a port in use ends the program at once with a
message instead of after the first sampling.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from exporter.errors import VirtgaugeError

# A host has a handful of scrapers; a deeper queue would only hide that the exporter is stuck.
BACKLOG = 128
RECEIVE_BYTES = 32 * 1024
# SD_LISTEN_FDS_START
_FIRST_ACTIVATED = 3


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address to listen on; an empty `host` means every address, IPv6 and IPv4. Port 0 lets the kernel pick.

    With `path` it is a Unix socket, and host and port mean nothing.
    """

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`:9177`, `127.0.0.1:9177`, `localhost:9177`, `[::1]:9177` or `unix:/run/virtgauge.sock`.

        Raises ValueError with cause and correct form for anything else.
        """
        if text.strip().startswith("unix:"):
            return cls("", 0, _unix_path(text.strip()))
        host, colon, port = text.strip().rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} has no port; write it like :9177, 127.0.0.1:9177 or [::1]:9177")
        if int(port) > 65535:
            raise ValueError(f"port {port} of {text!r} is above 65535")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r} holds a bare IPv6 address; put it in brackets, like [::1]:{port}")
        if any(character in host for character in "[]/ \t\0"):
            raise ValueError(f"{host!r} is not a host name or address; write it like 127.0.0.1:{port}")
        return cls(host, int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    # The kernel's sun_path, which ends in a zero byte.
    if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
        raise ValueError(f"{text!r} is not a Unix socket; write it like unix:/run/virtgauge.sock, up to 107 bytes")
    return path


def bind_sockets(addresses: Iterable[ListenAddress]) -> list[socket.socket]:
    """Listening, non-blocking sockets for all addresses, in order; the caller closes them.

    Raises VirtgaugeError naming the first address that cannot be had; what was bound before is closed again.
    """
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            bound.extend(_bind_address(address))
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def socket_address(sock: socket.socket) -> ListenAddress:
    """Where a bound socket really listens (the kernel's choice for port 0)."""
    if sock.family == socket.AF_UNIX:
        return ListenAddress("", 0, sock.getsockname())
    host, port = sock.getsockname()[:2]
    return ListenAddress(host, port)


def _bind_address(address: ListenAddress) -> Sequence[socket.socket]:
    try:
        if address.path:
            return [_bind_unix(address.path)]
        if not address.host:
            return [_bind_every_address(address.port)]
        return _bind_resolved(address)
    except socket.gaierror as error:
        raise VirtgaugeError(
            f"cannot listen on {address}: the host name is not known ({error.strerror}); "
            "use an address of this host in --web.listen-address, or :PORT for all of them"
        ) from error
    except OSError as error:
        raise VirtgaugeError(f"cannot listen on {address}: {_cause_and_next_step(error, address)}") from error


def _bind_every_address(port: int) -> socket.socket:
    """[::] answers IPv4 too; hosts without IPv6 get 0.0.0.0."""
    try:
        return _bind(socket.AF_INET6, ("::", port), only_ipv6=False)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
    return _bind(socket.AF_INET, ("0.0.0.0", port))


def _bind_resolved(address: ListenAddress) -> list[socket.socket]:
    """A name such as localhost may stand for several addresses: all that this host has are bound."""
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, _type, _protocol, _name, where in dict.fromkeys(found):
            try:
                bound.append(_bind(family, where))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    if not bound:
        raise absent or OSError(errno.EADDRNOTAVAIL, "no address found")
    return bound


def _bind_unix(path: str) -> socket.socket:
    """A Unix socket for its user and group. What a crash left there is replaced; a living one, or a file, is not."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            # Any other answer, EAGAIN for a full queue among them, means that someone is there.
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, "another program listens there")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Made for the user alone and only then opened to the group: there is no moment with more rights.
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def activated_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that systemd hands over (sd_listen_fds(3)); takes the variables out of `environ`.

    Raises VirtgaugeError where there are none for this process, or one is no listening stream socket.
    """
    for_process, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    next_step = "start virtgauge by its .socket unit, or leave --web.systemd-socket out"
    if for_process != str(os.getpid()) or not count.isascii() or not count.isdigit() or not 0 < int(count) < 1000:
        raise VirtgaugeError(f"--web.systemd-socket: systemd gave this process no sockets (LISTEN_FDS); {next_step}")
    taken: list[socket.socket] = []
    try:
        for descriptor in range(_FIRST_ACTIVATED, _FIRST_ACTIVATED + int(count)):
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
            taken.append(sock)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if sock.type != socket.SOCK_STREAM or not listens:
                raise OSError(errno.EINVAL, "it is no listening stream socket; the unit needs ListenStream=")
            sock.setblocking(False)
    except OSError as error:
        for sock in taken:
            sock.close()
        raise VirtgaugeError(
            f"--web.systemd-socket: socket {descriptor} of systemd cannot be used ({error.strerror}); {next_step}"
        ) from error
    return taken


def _bind(family: int, where: tuple[object, ...], *, only_ipv6: bool = True) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart has to wait out the old connections' TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by its connections: requests are small, so this bounds what a flood can leave in the kernel.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        if family == socket.AF_INET6:
            with suppress(AttributeError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        sock.bind(where)
        # Listening here, not later, is what makes a second exporter on the same port fail now.
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _cause_and_next_step(error: OSError, address: ListenAddress) -> str:
    if error.errno == errno.EADDRINUSE and address.path:
        return "another program listens there; stop it or choose another path with --web.listen-address"
    if error.errno == errno.EADDRINUSE:
        return (
            f"the port is already in use; stop the program that holds it (ss -ltnp 'sport = :{address.port}' "
            "names it) or choose another with --web.listen-address"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and address.path:
        return "permission denied; the folder must be writable for the user that virtgauge runs as"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; ports below 1024 need privilege, choose a higher one with --web.listen-address"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host does not have that address; use one of its own in --web.listen-address, or :PORT for all"
    return f"{error.strerror or error}; correct --web.listen-address"
