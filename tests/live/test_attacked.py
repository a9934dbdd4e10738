"""Both running services under a stranger's hostile requests: they go on, within bounds, and write nothing about it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.control_service import ControlService
from tests.live.scraping import Footprint
from tests.live.servers import exporter_server

URI = "test:///default"
CONNECTIONS = 2000
HEAD = b" HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

HOSTILE = [
    # Not HTTP, or not that of this decade.
    b"GET /-/healthy\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", b"GET /" + b"x" * 17_000 + HEAD + CLOSE, b"\0" * 64 + b"\r\n\r\n",
    # Paths, targets, hosts.
    b"GET http://evil.example/metrics" + HEAD + CLOSE, b"CONNECT evil.example:443" + HEAD + CLOSE,
    b"OPTIONS *" + HEAD + CLOSE, b"GET /../../etc/passwd" + HEAD + CLOSE, b"GET /api/v1/domains/%00" + HEAD + CLOSE,
    b"GET //metrics" + HEAD + CLOSE, b"GET /metrics;a=b" + HEAD + CLOSE, b"GET /%2e%2e/%2e%2e/etc" + HEAD + CLOSE,
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n" + CLOSE, b"GET /metrics HTTP/1.1\r\n" + CLOSE,
    # Two requests in one, for a proxy in front.
    b"POST /metrics" + HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"0\r\n\r\nGET /metrics" + HEAD + b"\r\n",
    b"POST /metrics" + HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nGET /m",
    b"POST /metrics" + HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /metrics" + HEAD + b"Connection: close\r\n" + CHUNKED + b"1;" + b"x" * 17_000 + b"\r\na\r\n",
    b"POST /metrics" + HEAD + CHUNKED + b"1\r\na\r\nZZZ\r\n", b"POST /api/v1/read" + HEAD + CHUNKED + b"-1\r\n",
    # Headers that might be written somewhere, or cost time.
    b"GET /metrics" + HEAD + b"X-Request-ID: a\tlevel=error\r\nAuthorization: Bearer x\r\n" + CLOSE,
    b"GET /metrics" + HEAD + b"Authorization: Basic " + b"A" * 12_000 + b"\r\n" + CLOSE,
    b"GET /metrics" + HEAD + b"Authorization: Bearer vgt_0\r\nAuthorization: Bearer vgt_1\r\n" + CLOSE,
    b"GET /metrics" + HEAD + b"Accept: " + b'",' * 7000 + b"\r\nAccept-Encoding: gzip" + b";a" * 500 + b"\r\n" + CLOSE,
    b"GET /metrics" + HEAD + b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    b"GET /metrics" + HEAD + b"X-Prometheus-Scrape-Timeout-Seconds: 1e999\r\n" + CLOSE,
    b"GET /metrics?" + b"collect[]=x&" * 1000 + HEAD + CLOSE, b"GET /metrics?" + b"%" * 9000 + HEAD + CLOSE,
    b"POST /metrics" + HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n" + CLOSE,
    b"\xff" * 100 + HEAD + CLOSE, b"X" * 9000 + b" /metrics" + HEAD + CLOSE,
]  # fmt: skip


@dataclass(frozen=True)
class Attacked:
    """A running service: its port and process, its log, and what tells how many requests it has refused."""

    port: int
    pid: int
    log: Path
    metrics: Callable[[], str]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def refused(self, reason: str) -> float:
        series = f'virtgauge_http_refused_total{{reason="{reason}"}} '
        return next(float(line.split()[1]) for line in self.metrics().splitlines() if line.startswith(series))

    def healthy(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", "/-/healthy")
            return connection.getresponse().status == 200


@pytest.fixture(scope="module", params=["exporter", "control"])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "exporter":
        with exporter_server(folder, URI, [f"--state.directory={folder}"]) as server:
            server.start()
            server.wait_ready()
            yield Attacked(server.port, server.pid, server.log, lambda: server.get("/metrics"))
        return
    service = ControlService(folder, URI).start()
    try:
        assert service.process is not None
        yield Attacked(service.port, service.process.pid, folder / "log",
                       lambda: str(service.ask("GET", "/metrics", token="reader")[1]))  # fmt: skip
    finally:
        assert service.stop() in (0, None)


def answers(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found


def test_hostile_requests_are_answered_or_cut_off_and_nothing_is_written_about_them(attacked: Attacked) -> None:
    assert attacked.healthy()
    assert "virtgauge_http_refused_total" in attacked.metrics()
    written = attacked.log.read_text()
    for request in HOSTILE:
        with contextlib.closing(attacked.connect()) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
            said = answers(client)
        assert not said or said.startswith(b"HTTP/1.1 "), request[:80]
        assert b"HTTP/1.1 50" not in said.replace(b"HTTP/1.1 505", b""), request[:80]
        # One request, one answer, whatever else was in it.
        assert said.count(b"HTTP/1.1 ") <= 1, request[:80]
        assert b"evil" not in said
    assert attacked.healthy()
    assert attacked.log.read_text() == written
    deadline = time.monotonic() + 30
    while attacked.refused("bad_request") < 10:
        # The exporter's page may be a second old.
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_thousands_of_idle_connections_at_the_real_limits(attacked: Attacked) -> None:
    """More than the service may have open files, silent, half a head, half a TLS handshake: a scraper is served."""
    assert attacked.healthy()
    before = Footprint.of(attacked.pid)
    with contextlib.ExitStack() as opened:
        for number in range(CONNECTIONS):
            client = opened.enter_context(contextlib.closing(attacked.connect()))
            with contextlib.suppress(ConnectionError):
                client.sendall((b"", b"GET /metrics HTTP/1.1\r\nX: ", b"\x16\x03\x01")[number % 3])
            if number % 500 == 499:
                assert attacked.healthy()
                assert "virtgauge_http_refused_total" in attacked.metrics()
        during = Footprint.of(attacked.pid)
    assert during.sockets - before.sockets <= 520
    assert during.threads <= before.threads + 2  # of the pool that answers /metrics; none a connection
    assert during.rss_mib - before.rss_mib < 60
    assert attacked.healthy()


def test_an_error_is_told_in_the_services_own_words(attacked: Attacked) -> None:
    """No version of a library, no path, no traceback: only what is asked, cut short."""
    for path in ("/nope", "/api/v1/nope", "/metrics?collect[]=" + "<script>alert(1)</script>" * 100):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", attacked.port, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
        assert answer.status in (400, 401, 404)
        assert "server" not in answer.headers
        assert not answer.headers["content-type"].startswith("text/html")
        assert len(body) < 1000
        assert not [word for word in ("Traceback", "uvicorn", "starlette", "/exporter/") if word in body]
        if "json" in answer.headers["content-type"]:
            assert isinstance(json.loads(body), dict)
