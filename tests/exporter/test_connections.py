"""Abuse by raw sockets: each limit is met by a client that breaks it, while another client is served.

The server is a process of its own, so that its memory, threads and open files can be looked at.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.exporter import certificates

PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from exporter import connections
from exporter.listening import ListenAddress, bind_sockets, socket_address
from exporter.server import Front, serve_sockets
from exporter.webconfig_file import WebConfigFile
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

for word in sys.argv[2:]:
    name, value = word.split("=")
    assert hasattr(connections, name)
    setattr(connections, name, type(getattr(connections, name))(value))

pages = {}

async def page(request):
    # As the exporter's page: a new one now and then, shared by all that ask meanwhile.
    key = time.monotonic() // 0.5, request.query_params.get("mib", "0")
    if key not in pages:
        pages.clear()
        pages[key] = os.urandom(1024) * (int(key[1]) * 1024) or b"page"
    return Response(pages[key])

async def slow(request):
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("slow")

async def begun(request):
    async def parts():
        yield b"begun"
        await asyncio.sleep(600)

    return StreamingResponse(parts())

async def refused(request):
    return PlainTextResponse(" ".join(f"{reason}={count}" for reason, count in front.refusals))

front = Front(WebConfigFile(Path(sys.argv[1])) if sys.argv[1] else None, max_requests=5)
sockets = bind_sockets([ListenAddress("127.0.0.1", 0)])
print(socket_address(sockets[0]).port, flush=True)
routes = [Route("/", page, methods=["GET", "POST"]), Route("/slow", slow, methods=["GET", "POST"]),
          Route("/begun", begun), Route("/-/healthy", refused)]
asyncio.run(serve_sockets(Starlette(routes=routes), sockets, front=front))
"""


class Server:
    def __init__(self, process, context):
        self.process, self.context = process, context
        self.port = int(process.stdout.readline())
        self.opened = []

    def connect(self, tls=True):
        """A raw connection; through TLS where the server has it and `tls`."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        if self.context and tls:
            sock = self.context.wrap_socket(sock, server_hostname="localhost")
        self.opened.append(sock)
        return sock

    def get(self, path="/-/healthy"):
        kind = http.client.HTTPSConnection if self.context else http.client.HTTPConnection
        given = {"context": self.context} if self.context else {}
        with contextlib.closing(kind("localhost", self.port, timeout=60, **given)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def refusals(self):
        return {name: int(count) for name, count in (word.split("=") for word in self.get()[1].decode().split())}

    def status(self, key):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    @property
    def memory_mib(self):
        return self.status("VmRSS") / 1024

    @property
    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def running(*changes, folder=None):
    context = config = None
    if folder:
        config = folder / "web.yml"
        config.write_text("tls_server_config: {cert_file: server.pem, key_file: server.key}")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    command = [sys.executable, "-c", PROGRAM, str(config or ""), *changes]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=said, text=True
    ) as process:
        server = None
        try:
            server = Server(process, context)
            yield server
            # Whatever was done to it: it lives, and no client has made it write anything.
            assert server.get()[0] == 200
            said.seek(0)
            assert said.read() == ""
        finally:
            for sock in server.opened if server else ():
                sock.close()
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tls")
    certificates.authority(made)
    certificates.signed(made, "server", "DNS:localhost")
    return made


@pytest.fixture(params=["plain", "tls"])
def served_by(request, folder):
    """Starts a server, plain and with TLS, with changed limits."""
    return lambda *changes: running(*changes, folder=folder if request.param == "tls" else None)


def ended(sock, within_s=30):
    """True once the server has ended the connection, whatever it sent before."""
    until_s = time.monotonic() + within_s
    while (left_s := until_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            if not sock.recv(65536):
                return True
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            return True
    return False


def until(condition, within_s=30):
    until_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.02)
    return condition()


def trickle(sock, piece, pause_s=0.05, within_s=30):
    """Sends `piece` again and again, slowly, until the server ends the connection; whether it did."""
    until_s = time.monotonic() + within_s
    with contextlib.suppress(OSError):
        while time.monotonic() < until_s:
            sock.sendall(piece)
            if ended(sock, pause_s):
                return True
        return False
    return True


def test_a_head_or_body_that_trickles_in_is_cut_off(served_by):
    with served_by("REQUEST_HEAD_S=1.0", "REQUEST_BODY_S=1.0") as server:
        head, body = server.connect(), server.connect()
        head.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert trickle(head, b"a: b\r\n")
        body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert trickle(body, b"x")
        assert until(lambda: server.refusals()["slow"] == 2)


def test_a_silent_client_is_cut_off_at_the_handshake_or_the_head(served_by):
    with served_by("REQUEST_HEAD_S=1.0", "HANDSHAKE_S=1.0") as server:
        assert ended(server.connect(tls=False))
        half = server.connect(tls=False)
        half.sendall(b"\x16\x03\x01" if server.context else b"GE")
        assert ended(half)
        assert until(lambda: server.refusals()["tls" if server.context else "slow"] == 2)


def test_an_endless_head_is_refused(served_by):
    with served_by() as server:
        for start, more in ((b"GET / HTTP/1.1\r\nX: ", b"x" * 4096), (b"GET /", b"y" * 4096),
                            (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 500)):  # fmt: skip
            sock = server.connect()
            sock.sendall(start)
            assert trickle(sock, more, 0.01)
        assert server.refusals()["bad_request"] == 3


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 100 + b"\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"\r\n" * 5000 + b"x\r\n\r\n",
     b"GET / HTTP/1.1\r\nContent-Length: -1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"GET /-/healthy\r\n\r\n",
     b"GET / HTTP/1.1\r\n\xff: x\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http_ends_its_connection_only(plain, garbage):
    sock = plain.connect()
    sock.sendall(garbage)
    assert ended(sock)
    assert plain.get()[0] == 200


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\rX: y\r\n\r\nx", b"400"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", b"505"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
    ],
)
def test_a_request_of_unclear_length_is_refused_and_what_follows_it_is_not_taken_for_one(plain, request_, status):
    before = plain.refusals()["bad_request"]
    sock = plain.connect()
    sock.sendall(request_ + NEXT)
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    assert answer.count(b"\r\ndate: ") + answer.count(b"Invalid HTTP") == 1
    assert answer.split()[1] == status
    assert plain.refusals()["bad_request"] == before + 1


@pytest.mark.parametrize("path", [b"/", b"/slow?s=5", b"/nothing"])
def test_a_body_that_goes_wrong_behind_its_request_ends_the_connection_without_a_word(plain, path):
    """Before, while and after the answer goes out; `running` looks at what the server has written."""
    for answered in (False, True):
        sock = plain.connect()
        sock.sendall(CHUNKED.replace(b" / ", b" " + path + b" ") + b"1\r\na\r\n")
        if answered and b"slow" not in path:
            assert sock.recv(12) == b"HTTP/1.1 " + (b"200" if path == b"/" else b"404")
        sock.sendall(b"ZZ\r\n")
        assert ended(sock)


def test_an_upgrade_is_not_offered_and_no_event(plain):
    for kind in (b"websocket", b"h2c"):
        sock = plain.connect()
        sock.sendall(NEXT.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: " + kind + b"\r\n\r\n"))
        assert sock.recv(12) == b"HTTP/1.1 200"


@pytest.fixture(scope="module")
def plain():
    with running() as server:
        yield server


def test_thousands_of_idle_connections(served_by):
    """Silent ones first, then ones that asked and stay: each newcomer is served, and old ones make room."""
    with served_by("MOST_CONNECTIONS=50", "_SETTLING_S=0.1") as server:
        server.get()
        threads, before_mib = server.status("Threads"), server.memory_mib
        for _ in range(600):
            server.connect(tls=False)
        assert server.get()[0] == 200
        kept = []
        for _ in range(75):
            kept.append(server.connect())
            kept[-1].sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
            assert kept[-1].recv(12) == b"HTTP/1.1 200"
        assert server.get()[0] == 200
        assert until(lambda: server.open_files < 50 + 30)
        assert server.status("Threads") == threads
        # A connection may cost what it needs; that of 675 would be more than this.
        assert server.memory_mib - before_mib < 40
        assert ended(kept[0])
        kept[-1].sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept[-1].recv(12)
        assert server.refusals()["connections"] > 500


def test_where_all_connections_are_at_work_a_newcomer_waits(served_by):
    """Neither reset nor refused: it is served once one of them ends."""
    with served_by("MOST_CONNECTIONS=3", "_SETTLING_S=60") as server:
        busy = [server.connect() for _ in range(3)]
        for sock in busy:
            sock.sendall(b"GET /begun HTTP/1.1\r\nHost: x\r\n\r\n")
            said = b""
            while b"begun" not in said:
                said += sock.recv(4096)
        waiting = [server.connect(tls=False) for _ in range(5)]
        for sock in waiting:
            sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert select.select(waiting, [], [], 0.5)[0] == []
        busy[0].close()
        for sock in waiting:
            # To a server with TLS this is a handshake that fails: an answer all the same.
            assert server.context or sock.recv(12) == b"HTTP/1.1 200"
            assert ended(sock)
        assert server.get()[0] == 200
        assert not ended(busy[1], 0.1)


def test_clients_that_do_not_read(served_by):
    """60 ask for a page of 4 MiB each and read none of it; one who reads gets all of it."""
    with served_by("MOST_STALLED=20") as server:
        server.get("/?mib=4")
        before_mib = server.memory_mib
        for _ in range(60):
            server.connect().sendall(b"GET /?mib=4 HTTP/1.1\r\nHost: x\r\n\r\n")
        status, body = server.get("/?mib=4")
        assert (status, len(body)) == (200, 4 * 1024 * 1024)
        # 60 times the page would be 240 MiB.
        assert server.memory_mib - before_mib < 100
        assert until(lambda: server.refusals()["slow"] >= 40)


def test_a_client_that_stops_reading_or_reads_drop_by_drop_is_cut_off(served_by):
    with served_by("STALLED_S=0.5", "SENDING_S=1.5") as server:
        stopped, dropping = server.connect(), server.connect()
        for sock in (stopped, dropping):
            sock.sendall(b"GET /?mib=16 HTTP/1.1\r\nHost: x\r\n\r\n")
        taken, until_s = 0, time.monotonic() + 40
        with contextlib.suppress(OSError):
            while time.monotonic() < until_s and (piece := dropping.recv(65536)):
                taken += len(piece)
                time.sleep(0.02)
        assert taken < 16 * 1024 * 1024
        assert until(lambda: server.refusals()["slow"] == 2)


def test_a_pipelined_flood_that_reads_nothing(served_by):
    with served_by() as server:
        server.get()
        before_mib = server.memory_mib
        flood = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        for _ in range(6):
            sock = server.connect()
            sock.settimeout(0.2)
            # The first that does not fit ends it: the server takes no more.
            with contextlib.suppress(OSError):
                for _ in range(400):
                    sock.sendall(flood)
            assert server.get()[0] == 200
        assert server.memory_mib - before_mib < 40


def test_a_pipelined_flood_that_reads_does_not_starve_others(served_by):
    with served_by() as server:
        sock = server.connect()
        flood = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n" * 100
        for _ in range(5):
            sock.sendall(flood)
            assert server.get()[0] == 200
            while select.select([sock], [], [], 0.05)[0]:
                assert sock.recv(1 << 20)


def test_more_requests_than_allowed_at_once_are_503_and_health_is_not(plain):
    busy = [plain.connect() for _ in range(5)]
    for sock in busy:
        sock.sendall(b"GET /slow?s=20 HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: plain.get("/slow?s=0")[0] == 503)
    status, body = plain.get("/slow?s=0")
    assert (status, body) == (503, b"Limit of concurrent requests reached (5), try again later.\n")
    assert plain.get()[0] == 200
    for sock in busy:
        sock.close()


def test_a_body_that_nobody_reads_is_not_kept(served_by):
    """GET with a terabyte: the answer goes out, the rest is never taken into memory, and not for longer than 2 s."""
    with served_by("REQUEST_BODY_S=2") as server:
        before_mib = server.memory_mib
        sock = server.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        until_s, cut_off = time.monotonic() + 30, False
        try:
            while time.monotonic() < until_s:
                sock.send(b"x" * 65536)
        except OSError:
            cut_off = True
        assert cut_off
        assert server.memory_mib - before_mib < 30
