"""The web configuration on a real server: order of checks, passwords, client certificates, rotation under load."""

from __future__ import annotations

import asyncio
import base64
import http.client
import itertools
import shutil
import ssl
import subprocess
import threading
import time
from contextlib import closing

import bcrypt
import pytest
import yaml
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from exporter import basic_auth
from exporter.basic_auth import BasicAuth, BusyError, parse_basic
from exporter.refusals import Refusals
from exporter.server import Front
from exporter.webconfig import RateLimit
from exporter.webconfig_app import RateLimiter
from exporter.webconfig_file import WebConfigFile
from tests.exporter import certificates
from tests.exporter.served import serving


async def page(_request):
    return PlainTextResponse("page\n")


async def own_policy(_request):
    return PlainTextResponse("own\n", headers={"Content-Security-Policy": "default-src 'none'"})


APP = Starlette(routes=[Route("/metrics", page), Route("/-/healthy", page), Route("/", own_policy),
                        Route("/api/x", page)])  # fmt: skip


def hashed(password, cost=4):
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    certificates.authority(folder)
    certificates.authority(folder, "stranger")
    for name in ("server", "second"):
        certificates.signed(folder, name, "DNS:localhost,IP:127.0.0.1")
    certificates.signed(folder, "client", "DNS:prometheus.example,IP:10.0.0.7")
    certificates.signed(folder, "unnamed", "DNS:somebody.example")
    certificates.signed(folder, "foreign", "DNS:prometheus.example", ca="stranger")
    return folder


class Web:
    """A folder with a web configuration file, and the clients' side of it."""

    def __init__(self, folder, made):
        self.folder, self.made, self.refusals = folder, made, Refusals()
        self.path = folder / "web.yml"

    def write(self, **tree):
        draft = self.folder / "web.yml.new"
        draft.write_text(yaml.safe_dump(tree))
        draft.replace(self.path)

    def serving(self, **front):
        return serving(APP, Front(WebConfigFile(self.path), self.refusals, **front))

    def ask(self, port, path="/metrics", user=None, context=None, headers=()):
        headers = dict(headers)
        if user:
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
        with closing(kind("localhost", port, timeout=30, **({"context": context} if context else {}))) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.text = answer.read().decode()
            return answer

    def trusting(self, client=None):
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if client:
            context.load_cert_chain(self.folder / f"{client}.pem", self.folder / f"{client}.key")
        return context


@pytest.fixture
def web(made, tmp_path):
    for file in made.iterdir():
        shutil.copy(file, tmp_path)
    return Web(tmp_path, made)


TLS = {"cert_file": "server.pem", "key_file": "server.key"}
CLIENTS = TLS | {"client_ca_file": "ca.pem", "client_auth_type": "RequireAndVerifyClientCert"}


def test_passwords(web):
    web.write(basic_auth_users={"alice": hashed("secret"), "ümit": hashed("pass:wörd")})
    with web.serving() as port:
        assert web.ask(port, user="alice:secret").text == "page\n"
        assert web.ask(port, user="ümit:pass:wörd").text == "page\n"
        for user in (None, "alice:", "alice:wrong", "bob:secret", ":", "alice", "ümit:pass", "alice:" + "x" * 5000,
                     "alice:\0secret", "alice:secret\0"):  # fmt: skip
            for _ in range(2):
                answer = web.ask(port, user=user)
                assert (answer.status, answer.text) == (401, "Unauthorized\n"), user
                assert answer.headers["WWW-Authenticate"] == "Basic"
        assert web.ask(port, "/-/healthy").status == 401
        assert web.ask(port, headers={"Authorization": "Bearer x"}).status == 401
    assert web.refusals["basic_auth"] == 22


def test_paths_that_need_a_token_need_no_password(web):
    web.write(basic_auth_users={"alice": hashed("secret")})
    with web.serving(token_paths=["/api/"]) as port:
        assert web.ask(port, "/api/x").status == 200
        for path in ("/metrics", "/ap", "//api/x", "/%61pi/../metrics"):
            assert web.ask(port, path).status in (401, 404), path
        assert web.ask(port, "/metrics").status == 401


def test_a_long_password_counts_to_the_72nd_byte_as_in_the_toolkit(web):
    web.write(basic_auth_users={"alice": hashed("x" * 72)})
    with web.serving() as port:
        assert web.ask(port, user="alice:" + "x" * 80).status == 200
        assert web.ask(port, user="alice:" + "x" * 71).status == 401


def test_headers_are_on_every_answer_and_a_pages_own_wins(web):
    headers = {"X-Frame-Options": "deny", "X-XSS-Protection": 0, "Content-Security-Policy": "default-src 'self'"}
    web.write(http_server_config={"headers": headers}, basic_auth_users={"alice": hashed("secret")})
    with web.serving() as port:
        for answer, status in ((web.ask(port), 401), (web.ask(port, "/nope", "alice:secret"), 404)):
            assert answer.status == status
            assert answer.headers["X-Frame-Options"] == "deny"
            assert answer.headers["X-XSS-Protection"] == "0"
        own = web.ask(port, "/", "alice:secret")
        assert own.headers.get_all("Content-Security-Policy") == ["default-src 'none'"]


def test_the_rate_limit_comes_first_and_without_headers(web):
    web.write(rate_limit={"interval": "1h", "burst": 2}, basic_auth_users={"alice": hashed("secret")},
              http_server_config={"headers": {"X-Frame-Options": "deny"}})  # fmt: skip
    with web.serving() as port:
        assert [web.ask(port).status, web.ask(port, user="alice:secret").status] == [401, 200]
        answer = web.ask(port, user="alice:secret")
        assert (answer.status, answer.text, answer.headers["X-Frame-Options"]) == (429, "Too Many Requests\n", None)
        # Fixed at the start: a new file does not refill it.
        web.write(rate_limit={"interval": "0", "burst": 100})
        assert web.ask(port).status == 429
    assert web.refusals["rate"] == 2


def test_the_bucket_refills():
    now_s = 0.0
    limiter = RateLimiter(RateLimit(interval="2s", burst=2), lambda: now_s)
    assert [limiter.allow() for _ in range(3)] == [True, True, False]
    now_s = 1.9
    assert not limiter.allow()
    now_s = 2.0
    assert [limiter.allow() for _ in range(2)] == [True, False]
    now_s = 1000.0
    assert [limiter.allow() for _ in range(3)] == [True, True, False]
    assert not RateLimiter(RateLimit(interval="1s", burst=0), lambda: now_s).allow()
    assert RateLimiter(RateLimit(interval=0, burst=0), lambda: now_s).allow()


def test_passwords_rotate_and_a_broken_file_is_500_until_it_is_corrected(web, caplog):
    web.write(basic_auth_users={"alice": hashed("old")})
    with web.serving() as port:
        assert web.ask(port, user="alice:old").status == 200
        web.write(basic_auth_users={"alice": hashed("new")})
        assert [web.ask(port, user=f"alice:{word}").status for word in ("old", "new")] == [401, 200]
        web.write(basic_auth_users={"alice": "planted-secret"})
        for _ in range(3):
            answer = web.ask(port, user="alice:new")
            assert (answer.status, answer.text) == (500, "Internal Server Error\n")
        web.path.unlink()
        assert web.ask(port).status == 500
        web.write(tls_server_config=TLS)
        assert web.ask(port).status == 500
        web.write()
        assert web.ask(port).status == 200
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 3
    assert "needs a restart" in errors[-1].cause
    assert "planted-secret" not in caplog.text + str([vars(record) for record in errors])


def test_tls_serves_who_trusts_it_and_refuses_plain_http(web):
    web.write(tls_server_config=TLS)
    with web.serving() as port:
        assert web.ask(port, context=web.trusting()).text == "page\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            web.ask(port, context=ssl.create_default_context())
        with pytest.raises((http.client.HTTPException, OSError)):
            web.ask(port)
        old = web.trusting()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert web.ask(port, context=old).status == 200
        web.write(tls_server_config=TLS | {"min_version": "TLS13"})
        with pytest.raises(ssl.SSLError):
            web.ask(port, context=old)
    assert web.refusals["tls"] >= 2


def test_a_client_cannot_negotiate_anew(web):
    """TLS 1.2's renegotiation costs a server much more than its client; 1.3 has none."""
    web.write(tls_server_config=TLS)
    with web.serving() as port:
        done = subprocess.run(["openssl", "s_client", "-connect", f"localhost:{port}", "-tls1_2", "-CAfile",
                               web.folder / "ca.pem"], input="R\n", capture_output=True, text=True, timeout=60,
                              check=False)  # fmt: skip
        assert "CONNECTED" in done.stdout
        assert "no renegotiation" in done.stderr
        assert web.ask(port, context=web.trusting()).status == 200


def test_ciphers_are_limited(web):
    web.write(tls_server_config=TLS | {"cipher_suites": ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]})
    context = web.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with web.serving() as port:
        assert web.ask(port, context=context).status == 200
        context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        with pytest.raises(ssl.SSLError):
            web.ask(port, context=context)


@pytest.mark.parametrize("curve", ["CurveP256", "CurveP384", "CurveP521", "X25519"])
def test_the_curve_is_limited(web, curve):
    names = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
    web.write(tls_server_config=TLS | {"curve_preferences": [curve]})
    with web.serving() as port:
        for other, name in names.items():
            context = web.trusting()
            context.set_ecdh_curve(name)
            if other == curve:
                assert web.ask(port, context=context).status == 200
            else:
                with pytest.raises(ssl.SSLError):
                    web.ask(port, context=context)


def refused(web, port, client=None):
    """With TLS 1.3 a client learns only from its first read that it was not let in."""
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        web.ask(port, context=web.trusting(client))
    return True


def test_client_certificates(web):
    web.write(tls_server_config=CLIENTS)
    with web.serving() as port:
        assert web.ask(port, context=web.trusting("client")).status == 200
        assert web.ask(port, context=web.trusting("unnamed")).status == 200
        assert refused(web, port)
        assert refused(web, port, "foreign")
        web.write(tls_server_config=CLIENTS | {"client_allowed_sans": ["10.0.0.7", "other"]})
        assert web.ask(port, context=web.trusting("client")).status == 200
        assert refused(web, port, "unnamed")
        web.write(tls_server_config=CLIENTS | {"client_auth_type": "VerifyClientCertIfGiven"})
        assert web.ask(port, context=web.trusting()).status == 200
        assert refused(web, port, "foreign")
        shutil.copy(web.folder / "stranger.pem", web.folder / "ca.pem.new")
        trusting = web.trusting("client")
        (web.folder / "ca.pem.new").replace(web.folder / "ca.pem")
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            web.ask(port, context=trusting)
    assert web.refusals["client_certificate"] == 1


def test_a_broken_file_is_500_over_tls_too(web):
    web.write(tls_server_config=CLIENTS | {"client_allowed_sans": ["10.0.0.7"]})
    with web.serving() as port:
        assert web.ask(port, context=web.trusting("client")).status == 200  # the server has read the good file
        web.write(nonsense=1)
        assert web.ask(port, context=web.trusting("client")).status == 500
        assert refused(web, port, "unnamed")


def serial(port, context):
    with closing(http.client.HTTPSConnection("localhost", port, timeout=30, context=context)) as connection:
        connection.connect()
        return connection.sock.getpeercert()["serialNumber"]


def test_a_certificate_rotates_under_load_without_a_failed_request(web):
    """Certificate and key are replaced one after the other, as every tool does it: in between they do not fit."""
    web.write(tls_server_config=TLS, basic_auth_users={"alice": hashed("secret")})
    context, failed, done = web.trusting(), [], []
    stop = threading.Event()

    def load(port):
        while not stop.is_set():
            try:
                answer = web.ask(port, user="alice:secret", context=context)
                (done if answer.status == 200 else failed).append(answer.status)
            except Exception as error:  # noqa: BLE001  # every failure counts, whatever it is
                failed.append(repr(error))

    with web.serving() as port:
        clients = [threading.Thread(target=load, args=(port,)) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            serials = [serial(port, context)]
            for name in ("second", "server", "second"):
                for kind, part in (("pem", "server.pem"), ("key", "server.key")):
                    shutil.copy(web.made / f"{name}.{kind}", web.folder / "draft")
                    (web.folder / "draft").replace(web.folder / part)
                    seen = len(done)
                    until_s = time.monotonic() + 30
                    # Load goes on while the halves do not fit.
                    while len(done) < seen + 8 and not failed and time.monotonic() < until_s:
                        time.sleep(0.01)
                serials.append(serial(port, context))
        finally:
            stop.set()
            for client in clients:
                client.join()
    assert failed == []
    assert len(done) > 40
    assert len(set(serials)) == 2
    assert all(before != after for before, after in itertools.pairwise(serials))


def test_a_connection_that_stays_open_outlives_a_rotation(web):
    web.write(tls_server_config=TLS)
    with (
        web.serving() as port,
        closing(http.client.HTTPSConnection("localhost", port, timeout=30, context=web.trusting())) as connection,
    ):
        for _ in range(2):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read() == b"page\n"
            for kind in ("pem", "key"):
                (web.folder / f"second.{kind}").replace(web.folder / f"server.{kind}")
                shutil.copy(web.folder / f"server.{kind}", web.folder / f"second.{kind}")


@pytest.mark.parametrize("header", [None, "", "Basic", "Basic !!!", "Basic YQ==", "Bearer YTpi", "Basic /zph", "a"])
def test_what_is_no_basic_authentication(header):
    assert parse_basic(header) is None


def test_a_password_is_checked_once_and_guesses_do_not_push_it_out(monkeypatch):
    checks = []
    monkeypatch.setattr(basic_auth, "_matches", lambda password, _: checks.append(password) or password == b"good")
    users = {"alice": SecretStr(hashed("good"))}
    header = lambda user, word: "Basic " + base64.b64encode(f"{user}:{word}".encode()).decode()  # noqa: E731

    async def ask():
        passwords = BasicAuth()
        together = [passwords.allows(header("alice", "good"), users) for _ in range(20)]
        assert all(await asyncio.gather(*together))
        assert checks == [b"good"]
        for number in range(300):
            assert not await passwords.allows(header("alice", f"guess{number}"), users)
        # Someone else's good password is checked, for the time it takes, and is no good.
        assert not await passwords.allows(header("bob", "good"), users)
        assert checks[-1] == b"good"
        assert await passwords.allows(header("alice", "good"), users)
        assert len(checks) == 302
        assert all(len(cache) <= 100 for cache in (passwords._good, passwords._bad))
        passwords.close()

    asyncio.run(ask())


def test_too_many_guesses_at_once_are_told_to_come_back(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(basic_auth, "_matches", lambda *_: release.wait(30) and False)
    users = {"alice": SecretStr(hashed("good"))}

    async def ask():
        passwords = BasicAuth()
        guesses = [
            asyncio.ensure_future(passwords.allows("Basic " + base64.b64encode(b"a:%d" % n).decode(), users))
            for n in range(12)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        release.set()
        results = await asyncio.gather(*guesses, return_exceptions=True)
        assert [type(result) for result in results].count(BusyError) == 4
        passwords.close()

    asyncio.run(ask())
