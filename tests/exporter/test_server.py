"""The HTTP front over real sockets: routes, negotiation, errors, binding, and a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter import compression, connections
from exporter.compression import CompressedPages, fastest_gzip
from exporter.config import CollectorSettings, Settings, WebSettings
from exporter.errors import VirtgaugeError
from exporter.listening import ListenAddress, bind_sockets, socket_address
from exporter.metrics_app import exporter_application, page_timeout_s
from exporter.server import serve_sockets

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Source:
    """A page source that remembers what it was asked for."""

    def __init__(self):
        self.body = b"# HELP a b\n# TYPE a gauge\na 1\n" * 200
        self.asked = []
        self.is_ready = True
        self.delay_s = 0.0
        self.failure = None

    async def page(self, format, timeout_s, collect):
        self.asked.append((format, timeout_s, collect))
        await asyncio.sleep(self.delay_s)
        if self.failure:
            raise self.failure
        return self.body

    def ready(self):
        return self.is_ready


class Running:
    def __init__(self, source, port):
        self.source, self.port = source, port

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(self, method="GET", path="/metrics", headers=None):
        connection = self.connection()
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer, answer.read()


@contextlib.contextmanager
def running(source, telemetry_path="/metrics"):
    collectors = CollectorSettings(known={"block": True, "domain": True, "perf": False})
    settings = Settings(web=WebSettings(telemetry_path=telemetry_path), collector=collectors)
    app = exporter_application(source, settings)
    (sock,) = bind_sockets([ListenAddress("127.0.0.1", 0)])
    port = socket_address(sock).port
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve_sockets(app, [sock], stop=stop)))
    thread.start()
    try:
        yield Running(source, port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture(scope="module")
def shared():
    with running(Source()) as served:
        yield served


@pytest.fixture
def served(shared):
    shared.source.__init__()
    return shared


def test_the_page_as_text(served):
    answer, body = served.ask()
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert body == served.source.body
    assert served.source.asked[0][1:] == (10.0, None)


def test_the_page_as_openmetrics_in_gzip(served):
    answer, body = served.ask(headers={"Accept": OPENMETRICS + ";escaping=dots", "Accept-Encoding": "gzip"})
    assert answer.headers["Content-Type"].endswith("version=1.0.0; charset=utf-8; escaping=dots")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == served.source.body
    assert served.source.asked[0][0].openmetrics


def test_a_memoryview_is_served(served):
    served.source.body = memoryview(served.source.body)
    for headers in ({}, {"Accept-Encoding": "gzip"}):
        answer, body = served.ask(headers=headers)
        plain = gzip.decompress(body) if answer.headers["Content-Encoding"] else body
        assert plain == bytes(served.source.body)


def test_an_empty_page(served):
    served.source.body = b""
    assert served.ask(headers={"Accept-Encoding": "gzip"})[1] == b""


def test_head_has_the_headers_of_get_and_no_body(served):
    wanted = {"Accept": OPENMETRICS, "Accept-Encoding": "gzip"}
    head, body = served.ask("HEAD", headers=wanted)
    get, _ = served.ask("GET", headers=wanted)
    assert (head.status, body) == (200, b"")
    assert {k: v for k, v in head.getheaders() if k != "date"} == {k: v for k, v in get.getheaders() if k != "date"}


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 200, b'href="/metrics"'),
        ("/-/healthy", 200, b"healthy"),
        ("/-/ready", 200, b"ready"),
        ("/metrics/", 404, b""),
        ("/nothing", 404, b""),
        ("//metrics", 404, b""),
        ("/%2e%2e/etc/passwd", 404, b""),
        ("/-/", 404, b""),
    ],
)
def test_paths(served, path, status, text):
    for method in ("GET", "HEAD"):
        answer, body = served.ask(method, path)
        assert answer.status == status
        assert method == "HEAD" or text in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready"])
def test_other_methods_are_405(served, method, path):
    answer, _ = served.ask(method, path)
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]


def test_ready_is_503_until_libvirt_has_answered(served):
    served.source.is_ready = False
    answer, body = served.ask(path="/-/ready")
    assert (answer.status, body.count(b"\n")) == (503, 1)
    assert served.ask(path="/-/healthy")[0].status == 200


def test_a_bug_in_the_page_is_a_500_with_a_logged_traceback(served, caplog):
    served.source.failure = ZeroDivisionError("secret detail")
    answer, body = served.ask()
    assert (answer.status, body.count(b"\n")) == (500, 1)
    assert b"secret detail" not in body
    (line,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert line.exc_info[0] is ZeroDivisionError
    served.source.failure = None
    assert served.ask()[0].status == 200


@pytest.mark.parametrize(
    ("query", "collect"),
    [
        ("collect[]=block", {"block"}),
        ("collect%5B%5D=block&collect[]=domain", {"block", "domain"}),
        ("exclude[]=block", {"domain"}),
        ("x=y", None),
    ],
)
def test_collect_and_exclude(served, query, collect):
    assert served.ask(path="/metrics?" + query)[0].status == 200
    assert served.source.asked[0][2] == (None if collect is None else frozenset(collect))


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("collect[]=block&exclude[]=domain", b"both"),
        ("collect[]=nope", b"'nope' is unknown; enabled are: block, domain"),
        ("collect[]=perf", b"'perf' is not enabled"),
        ("exclude[]=nope", b"is unknown"),
        ("collect[]=", b"'' is unknown"),
    ],
)
def test_wrong_collectors_are_400(served, query, cause):
    answer, body = served.ask(path="/metrics?" + query)
    assert answer.status == 400
    assert cause in body
    assert served.source.asked == []


@pytest.mark.parametrize(
    ("header", "timeout_s"),
    [(None, 10.0), ("15", 14.5), ("0.5", 0.1), ("0.1", 0.1), ("", 10.0), ("x", 10.0), ("nan", 10.0), ("inf", 10.0),
     ("-3", 10.0), ("0", 10.0), ("1e9", 600.0)],
)  # fmt: skip
def test_scrape_timeout(header, timeout_s):
    assert page_timeout_s(header) == pytest.approx(timeout_s)


def test_the_scrape_timeout_reaches_the_page(served):
    served.ask(headers={"X-Prometheus-Scrape-Timeout-Seconds": "3.000000"})
    assert served.source.asked[0][1] == 2.5


def test_telemetry_path_may_be_moved_even_to_the_root():
    with running(Source(), "/") as served:
        assert served.ask(path="/")[1] == served.source.body
        assert served.ask(path="/metrics")[0].status == 404


def test_an_identical_page_is_compressed_once():
    pages = []

    def count(page):
        pages.append(page)
        return compression.fastest_gzip()(page)

    cache = CompressedPages(count)
    page, other = b"x" * 5000, bytearray(b"y" * 5000)
    first = cache.compressed("text", page)
    assert cache.compressed("text", page) is first
    assert cache.compressed("text", memoryview(page)) is first
    assert len(pages) == 1
    cache.compressed("text", memoryview(other))
    other[:] = b"z" * 5000
    assert gzip.decompress(cache.compressed("text", memoryview(other))) == b"z" * 5000
    cache.compressed("text", page[:4000])
    assert cache.compressed("text", page) is not first


def test_fastest_gzip_is_gzip():
    page = os.urandom(3000) * 3
    assert gzip.decompress(fastest_gzip()(page)) == page


def test_many_clients_at_once(served):
    served.source.delay_s = 0.3
    started_s = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        statuses = [answer.status for answer, _ in pool.map(lambda _: served.ask(), range(20))]
    assert statuses == [200] * 20
    assert time.monotonic() - started_s < 3


def test_a_connection_is_kept(served):
    with contextlib.closing(served.connection()) as connection:
        for _ in range(3):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read() == served.source.body
            kept = connection.sock
            assert kept is not None


def test_headers_too_large_are_refused(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX-Long: " + b"x" * 17_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_garbage_is_refused_and_the_server_lives(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert served.ask()[0].status == 200


def test_a_client_that_sends_no_request_is_closed(served, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_HEAD_S", 0.6)  # in which a loaded machine sends a head
    for sent in (b"", b"GET /metrics HT"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(sent)
            assert client.recv(100) == b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"HEAD /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(0.7)
        client.sendall(b"GET /half")
        assert client.recv(100) == b""
    served.source.delay_s = 0.7
    assert served.ask()[0].status == 200


def test_port_in_use_names_address_cause_and_next_step():
    (sock,) = bind_sockets([ListenAddress("127.0.0.1", 0)])
    with contextlib.closing(sock):
        address = socket_address(sock)
        for taken in (address, ListenAddress("", address.port)):
            with pytest.raises(VirtgaugeError, match=r"already in use.*--web\.listen-address") as caught:
                bind_sockets([taken])
            assert str(taken) in str(caught.value)
            assert caught.value.exit_status == 1


def test_a_failed_bind_releases_the_earlier_ones():
    (free,) = bind_sockets([ListenAddress("127.0.0.1", 0)])
    address = socket_address(free)
    free.close()
    with pytest.raises(VirtgaugeError):
        bind_sockets([address, ListenAddress("192.0.2.1", 1)])
    for sock in bind_sockets([address]):
        sock.close()


@pytest.mark.parametrize(
    ("address", "cause"), [("192.0.2.1:9177", "does not have that address"), ("no-such-host.invalid:1", "not known")]
)
def test_addresses_that_cannot_be_had(address, cause):
    with pytest.raises(VirtgaugeError, match=cause):
        bind_sockets([ListenAddress.parse(address)])


def test_every_address_answers_ipv4_and_ipv6():
    (sock,) = bind_sockets([ListenAddress("", 0)])
    with contextlib.closing(sock):
        hosts = ["127.0.0.1", "::1"] if sock.family == socket.AF_INET6 else ["127.0.0.1"]
        for host in hosts:
            socket.create_connection((host, socket_address(sock).port), timeout=5).close()


def test_without_ipv6_every_address_is_ipv4(monkeypatch):
    real = socket.socket

    def no_ipv6(family=socket.AF_INET, *rest):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr("exporter.listening.socket.socket", no_ipv6)
    (sock,) = bind_sockets([ListenAddress("", 0)])
    with contextlib.closing(sock):
        assert socket_address(sock).host == "0.0.0.0"


PROGRAM = """
import asyncio
from exporter.config import Settings
from exporter.listening import ListenAddress, bind_sockets, socket_address
from exporter.metrics_app import exporter_application
from exporter.server import serve_sockets

class Source:
    async def page(self, format, timeout_s, collect):
        if format.openmetrics:
            print("asked", flush=True)
            await asyncio.sleep(30)
        return b"a 1\\n"
    def ready(self):
        return True

sockets = bind_sockets([ListenAddress("127.0.0.1", 0)])
print(socket_address(sockets[0]).port, flush=True)
asyncio.run(serve_sockets(exporter_application(Source(), Settings()), sockets))
print("clean end", flush=True)
"""


def wakeups(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")))


def test_an_idle_server_wakes_up_about_once_a_second():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert answer.read() == b"a 1\n"
            time.sleep(0.5)
            before = wakeups(process.pid)
            time.sleep(3)
            assert 1 <= wakeups(process.pid) - before <= 10  # uvicorn alone: 30
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_whatever_is_open(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            port = int(process.stdout.readline())
            idle, busy = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2))
            silent = socket.create_connection(("127.0.0.1", port), timeout=10)
            idle.request("GET", "/metrics")
            assert idle.getresponse().read() == b"a 1\n"
            busy.request("GET", "/metrics", headers={"Accept": OPENMETRICS})
            assert process.stdout.readline() == "asked\n"
            process.send_signal(number)
            assert process.wait(10) == 0  # a second, and what a loaded machine adds; the request would take 30
            assert process.stdout.read() == "clean end\n"
            assert "Traceback" not in process.stderr.read()
            assert busy.getresponse().status == 503
        finally:
            process.kill()
            for open_one in (idle, busy, silent):
                open_one.close()
